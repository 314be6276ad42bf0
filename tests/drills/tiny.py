"""What the drills share: a small job on the tiny Gemma 3n, the runner as a process, and what a run must come to whatever happened on the way."""

import concurrent.futures
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import time

import psutil

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers import tiny_gemma3n
from lib.common import files
from lib.record import ledger
from lib.record.run_record import STAGES

LIMIT_SECONDS = 900


def job(folder, rows=24):
    """Write a params file for four steps on short rows into `folder`, with all it needs."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_gemma3n.build(folder / "base")
    every = [
        json.loads(line)
        for line in (ROOT / "lib/medical/first_aid.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    short = sorted(every, key=lambda row: len(row["question"] + row["answer"]))[:rows]
    (folder / "rows.jsonl").write_text(
        "".join(
            json.dumps({k: row[k] for k in ("id", "question", "answer")}) + "\n" for row in short
        ),
        encoding="utf-8",
    )
    (folder / "tiny.yaml").write_text(
        f"base_model: {folder / 'base'}\ndataset: {folder / 'rows.jsonl'}\nload_in_4bit: false\noptim: adamw_torch\nmax_seq_length: 512\n"
        "validation_size: 0.2\nmax_steps: 4\nwarmup_steps: 0\nsave_steps: 1\nsample_tokens: 1\nper_device_train_batch_size: 2\n"
        "gradient_accumulation_steps: 1\ngradient_checkpointing: false\nexam: []\nsafety_tokens: 0\nlora_gguf: false\n"
    )
    return folder / "tiny.yaml"


def start(params, runs, command="run", core=None, **env):
    """The runner as `make` starts it, its output in runs/terminal.txt.

    `core`: the one it is kept on. llama.cpp's threads wait for each other by spinning: where two processes share two cores, each
    with two threads, a token takes 25 s.
    """
    runs.mkdir(parents=True, exist_ok=True)
    pinned = [] if core is None else ["taskset", "-c", str(core)]
    with open(runs / "terminal.txt", "a") as terminal:
        return subprocess.Popen(
            [
                *pinned,
                sys.executable,
                "-m",
                "lib.runs",
                command,
                "--params",
                str(params),
                "--run",
                "tiny",
            ],
            cwd=ROOT,
            stdout=terminal,
            stderr=terminal,
            env={**os.environ, "MEDRESCUE_RUNS": str(runs), **env},
        )


def side_by_side(work, parts):
    """Call work(core, number, part) for every part, one per core at a time; yield the results in order."""
    cores = queue.SimpleQueue()
    for core in os.sched_getaffinity(0):
        cores.put(core)

    def one(pair):
        core = cores.get()
        try:
            return work(core, *pair)
        finally:
            cores.put(core)

    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(one, enumerate(parts))


def terminal(runs):
    return (runs / "terminal.txt").read_text(errors="replace")


def record(runs):
    try:
        return json.loads((runs / "tiny/run.json").read_text())
    except OSError:
        return None


def running(runs, stage, process, attempts=0):
    """Wait until a new attempt at a stage is recorded; return False if the command ended first."""
    end = time.monotonic() + LIMIT_SECONDS
    while process.poll() is None and time.monotonic() < end:
        found = record(runs)
        if (
            found
            and found["stages"][stage]["status"] == "running"
            and len(found["stages"][stage]["attempts"]) > attempts
        ):
            return True
        time.sleep(0.02)
    return False


def finished(runs, stage):
    found = record(runs)
    return bool(found) and found["stages"][stage]["status"] == "finished"


def attempts(runs, stage=None):
    found = record(runs) or {"stages": {}}
    return [
        a for s, entry in found["stages"].items() if stage in (None, s) for a in entry["attempts"]
    ]


def kernels(process):
    try:
        return [
            child
            for child in psutil.Process(process.pid).children()
            if "ipykernel" in " ".join(child.cmdline())
        ]
    except psutil.NoSuchProcess:
        return []


def kill(process, what):
    """Kill -9 `kernel`, `runner` or `both`; if there is no kernel yet, the runner."""
    found = kernels(process)
    for child in found if what in ("kernel", "both") else []:
        child.send_signal(signal.SIGKILL)
    if what in ("runner", "both") or not found:
        process.kill()
    return process.wait(LIMIT_SECONDS)


def undisturbed(params, runs):
    """Run the job to its end; return the seconds of each stage."""
    code = start(params, runs).wait(LIMIT_SECONDS)
    if code:
        raise SystemExit(f"the undisturbed run ended with {code}:\n{terminal(runs)[-3000:]}")
    return {stage: span(entry["attempts"][-1]) for stage, entry in record(runs)["stages"].items()}


def span(attempt):
    import datetime

    begun, ended = (datetime.datetime.fromisoformat(attempt[key]) for key in ("start", "end"))
    return max(1.0, (ended - begun).total_seconds())


def outcome(runs):
    """Return what must not depend on interruptions: results of each stage, every step's loss, the bits of weights and GGUF."""
    folder, results = runs / "tiny", files.read_json(runs / "tiny/results.json", "results")
    entries = ledger.read_ledger(folder / "metrics.jsonl")
    stages = record(runs)["stages"]
    return {
        "outputs": {
            stage: stages[stage]["output"] for stage in STAGES[:2]
        },  # the export's covers cards, which tell this machine's speed
        "artifacts": {
            a["path"]: a["sha256"]
            for stage in STAGES
            for a in stages[stage]["artifacts"]
            if a["path"].endswith((".safetensors", ".gguf", ".arrow"))
        },
        "losses": [(e["step"], e["loss"]) for e in ledger.valid_steps(entries)],
        "evals": [
            (e["when"], e["step"], e["eval_loss"]) for e in ledger.keep_valid(entries, "eval")
        ],
        "rows": {
            k: results["prepare"][k]
            for k in ("rows_read", "rows_kept", "train", "validation", "test", "dropped")
        },
        "parity": {
            kind: {k: v for k, v in told.items() if k != "seconds"}
            for kind, told in results["export"]["parity"].items()
        },
    }


def untrue(runs):
    """Return the false claims in a run's records; empty if they are all true."""
    found, folder, data = [], runs / "tiny", record(runs)
    for stage, entry in data["stages"].items():
        if entry["status"] == "finished" and (
            trouble := files.find_damage(folder, entry["artifacts"])
        ):
            found.append(f"{stage} says finished, and {trouble}")
        if entry["status"] == "running":
            found.append(f"{stage} says running, and nothing runs")
        for number, attempt in enumerate(entry["attempts"], 1):
            if attempt["end"] is None or not attempt["exit"]:
                found.append(f"attempt {number} at {stage} has no end")
            copy = folder / (
                f"{stage}.ipynb"
                if number == len(entry["attempts"])
                else f"{stage}.attempt{number}.ipynb"
            )
            # an attempt may be cut off after the last cell: all cells are completed then, and the record says that it did not close
            if not copy.exists():
                continue
            content = json.loads(copy.read_text())
            whole = all(
                cell["metadata"].get("papermill", {}).get("status", "completed") == "completed"
                for cell in content["cells"]
            )
            if bool(content["metadata"]["papermill"].get("exception")) == (
                attempt["exit"] == "ok" or whole
            ):
                found.append(
                    f"attempt {number} at {stage} ended with `{attempt['exit'][:80]}`, its notebook says otherwise"
                )
    found += [
        f"{path.relative_to(runs)} was left"
        for path in folder.rglob("*")
        if path.name.endswith((".tmp", ".old"))
    ]
    return found


def ending(params, runs, core, wanted):
    """Run the same command once more to its end; return what is wrong with its exit, the records, the outcome and the terminal."""
    if code := start(params, runs, core=core).wait(LIMIT_SECONDS):
        return [f"{runs.name}: the last command ended with {code}: {terminal(runs)[-600:]}"]
    traceback = terminal(runs).partition("Traceback")
    found = [
        *untrue(runs),
        *differences(outcome(runs), wanted),
        *[f"a traceback on the terminal: {traceback[2][:1500]}"] * bool(traceback[1]),
    ]
    return [f"{runs.name}: {text}" for text in found]


def differences(one, other, where=""):
    """Return the paths at which two outcomes differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            text
            for key in one.keys() | other.keys()
            for text in differences(one.get(key), other.get(key), f"{where}.{key}")
        ]
    return [] if one == other else [f"{where[1:]}: {str(one)[:60]} != {str(other)[:60]}"]
