"""A disk that fills up at each kind of write, a folder that cannot be written, two commands at once, a clock set back: one screen says
what happened, no half file has its final name, the same command ends with the same bits."""

import glob
import os
import random
import subprocess
import time

import tiny

TRIALS = 30
ROOM = 2 * 2**30  # what the checks before a start ask for, and a little
# what is there when the disk fills up: of each stage its record, then what it writes, in order
KINDS = {
    "record": "tiny/run.json",
    "prepared rows": "tiny/data",
    "executed notebook": "tiny/train.ipynb",
    "ledger": "tiny/metrics.jsonl",
    "checkpoint": "tiny/checkpoints/step-000002",
    "adapter": "tiny/adapter",
    "merged weights": "tiny/.merged*",
    "merged folder": "tiny/merged",
    "GGUF": "tiny/gguf/*",
    "last notebook": "tiny/export.ipynb",
}
FAKETIME = "/usr/lib/*/faketime/libfaketimeMT.so.1"  # of a program with threads; the other one leaves them waiting for ever


def drill(folder, trials):
    params = tiny.job(folder / "job")
    tiny.undisturbed(params, folder / "reference")
    wanted = tiny.outcome(folder / "reference")
    lost, done = [], 0
    if os.geteuid():
        print("  full disk, read-only folder: NOT RUN, they need root to mount a small disk")
    else:
        kinds, draw = list(KINDS), random.Random(3)
        for n in range(times := max(1, trials // 3)):
            kind = kinds[n * len(kinds) // times % len(kinds)]
            found = _full(params, folder / f"full-{n}", KINDS[kind], draw, wanted)
            print(f"  disk full, {kind}: {len(found)} lost", flush=True)
            lost += [f"disk full, {kind}: {text}" for text in found]
            done += 1
        lost += [f"read-only: {text}" for text in _read_only(params, folder / "read-only")]
        done += 1
    for n in range(max(1, trials // 3)):
        lost += [f"two at once: {text}" for text in _two(params, folder / f"two-{n}")]
        done += 1
    library = next(iter(glob.glob(FAKETIME)), "")
    if not library:
        print("  clock set back: NOT RUN, Debian's faketime is not installed")
    for n in range(3 if library else 0):
        lost += [
            f"clock set back: {text}"
            for text in _clock(params, folder / f"clock-{n}", library, wanted)
        ]
        done += 1
    return done, lost


def _mount(runs, *options):
    runs.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", ",".join([f"size={ROOM}", *options]), "tmpfs", runs],
        check=True,
    )


def _full(params, runs, pattern, draw, wanted):
    """Fill the disk when `pattern` exists, or some moments later; free it, and repeat the command."""
    _mount(runs)
    try:
        process = tiny.start(params, runs)
        while process.poll() is None and not any(runs.glob(pattern)):
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.5))
        if process.poll() is not None:
            return ["it ended before the disk was full"]
        ballast = runs / "ballast"
        while process.poll() is None:  # what is freed meanwhile is taken too
            _fill(ballast)
            time.sleep(0.02)
        code, said = process.wait(), tiny.terminal(runs)
        ballast.unlink(missing_ok=True)
        found = [] if code in (0, 1, 2) else [f"exit code {code}"]
        if "Traceback" in said:
            found.append(f"a traceback: {said[-500:]}")
        if code and not any(
            words in said
            for words in (
                "No space left",
                "cannot be written",
                "cannot write",
                "Not enough disk",
                "could not be saved",
            )
        ):
            found.append(f"nobody says why: {said[-400:]}")
        if code := tiny.start(params, runs).wait(tiny.LIMIT_SECONDS):
            return [*found, f"with room again it ended with {code}: {tiny.terminal(runs)[-600:]}"]
        return found + tiny.untrue(runs) + tiny.differences(tiny.outcome(runs), wanted)
    finally:
        subprocess.run(["umount", "-l", runs])


def _fill(path):
    try:
        with open(path, "ab", buffering=0) as file:
            for size in (2**24, 2**20, 2**12, 1):
                while file.write(bytes(size)) == size:
                    pass
    except OSError:
        return


def _read_only(params, runs):
    _mount(runs)
    try:
        (runs / "terminal.txt").touch()
        subprocess.run(["mount", "-o", "remount,ro", runs], check=True)
        done = subprocess.run(
            [
                tiny.sys.executable,
                "-m",
                "lib.runs",
                "run",
                "--params",
                str(params),
                "--run",
                "tiny",
            ],
            cwd=tiny.ROOT,
            capture_output=True,
            text=True,
            env={**os.environ, "MEDRESCUE_RUNS": str(runs)},
        )
        said = done.stdout + done.stderr
        return (
            []
            if done.returncode == 2
            and "Read-only file system" in said
            and "Traceback" not in said
            and len(said.splitlines()) < 6
            else [said[-600:]]
        )
    finally:
        subprocess.run(["umount", "-l", runs])


def _two(params, runs):
    """Start the same new run twice at once: one command runs it, the other names the holder."""
    pair = [tiny.start(params, runs, "prepare") for _ in range(2)]
    codes, said = sorted(process.wait(tiny.LIMIT_SECONDS) for process in pair), tiny.terminal(runs)
    found = [] if codes == [0, 2] else [f"exit codes {codes}: {said[-400:]}"]
    if "is in use" not in said or "Traceback" in said:
        found.append(f"the second said: {said[-400:]}")
    if len(tiny.attempts(runs)) != 1:
        found.append(f"{len(tiny.attempts(runs))} attempts on record")
    return found


def _clock(params, runs, library, wanted):
    """Prepare now; train and export on a machine whose clock is 400 days behind, as after an empty battery."""
    back = {"LD_PRELOAD": library, "FAKETIME": "-400d"}
    codes = [
        tiny.start(params, runs, "prepare").wait(tiny.LIMIT_SECONDS),
        tiny.start(params, runs, **back).wait(tiny.LIMIT_SECONDS),
    ]
    if any(codes):
        return [f"exit codes {codes}: {tiny.terminal(runs)[-600:]}"]
    found = tiny.untrue(runs) + tiny.differences(tiny.outcome(runs), wanted)
    results = tiny.files.read_json(runs / "tiny/results.json", "results")
    if (
        any(
            e["seconds"] <= 0
            for e in tiny.ledger.valid_steps(tiny.ledger.read_ledger(runs / "tiny/metrics.jsonl"))
        )
        or results["export"]["seconds"] < 0
    ):
        found.append("a duration below zero")
    listed = subprocess.run(
        [tiny.sys.executable, "-m", "lib.runs", "list"],
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "MEDRESCUE_RUNS": str(runs), **back},
    )
    if listed.returncode or "later than now" not in listed.stdout:
        found.append(f"make runs: {listed.stdout}{listed.stderr[-300:]}")
    return found
