"""One file of a run cut short, or with a flipped bit or a block of zeros: detected, or harmless; never another number. Of a finished run
and of one killed in training; one time in ten the command itself is given as well, and must end with an error or with the same bits."""

import contextlib
import io
import os
import random
import shutil
import subprocess
import time

import tiny

from lib import params
from lib.common import files
from lib.common.errors import UserError
from lib.pages import report
from lib.record import ledger, run_record
from lib.training import checkpoint

TRIALS = 200
KINDS = {
    "finished": {
        "Arrow shard": "data/**/*.arrow",
        "data records": "data/*.json*",
        "ledger": "metrics.jsonl",
        "answers": "samples.json",
        "adapter": "adapter/*",
        "merged": "merged/*",
        "GGUF": "gguf/*.gguf",
        "deployment files": "gguf/M*",
        "record": "run.json",
        "results": "results.json",
        "notebook": "*.ipynb",
        "parameters": "params.yaml",
    },
    "killed in training": {
        "checkpoint": "checkpoints/step-*/*",
        "ledger": "metrics.jsonl",
        "record": "run.json",
        "Arrow shard": "data/**/*.arrow",
    },
}


def drill(folder, trials):
    job = tiny.job(folder / "job")
    os.environ["MEDRESCUE_RUNS"] = str(folder / "finished")
    tiny.undisturbed(job, folder / "finished")
    wanted = tiny.outcome(folder / "finished")
    _killed_in_training(job, folder / "killed in training")
    draw, counts, lost = random.Random(11), {}, []
    cases = [(state, kind) for state, kinds in KINDS.items() for kind in kinds]
    for n in range(trials):
        state, kind = cases[n % len(cases)]
        copy = folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        subprocess.run(["cp", "-al", folder / state, copy], check=True)
        path = draw.choice(
            sorted(p for p in (copy / "tiny").glob(KINDS[state][kind]) if p.stat().st_size)
        )
        how = _damage(path, draw)
        where = f"{state}, {path.relative_to(copy)}, {how}"
        try:
            verdict = _verdict(state, path, copy, folder / state)
        except Exception as error:  # what the user would see as a traceback
            verdict = f"LOST: {type(error).__name__}: {error}"
        if verdict == "detected" and draw.random() < 0.1:
            verdict = _command(job, copy, wanted)
        counts.setdefault(f"{state}, {kind}", []).append(verdict.split(":")[0])
        if verdict.startswith("LOST"):
            lost.append(f"{where}: {verdict}")
    for name, verdicts in counts.items():
        print(f"  {name}: " + ", ".join(f"{v} {verdicts.count(v)}" for v in sorted(set(verdicts))))
    return trials, lost


def _killed_in_training(job, runs):
    process = tiny.start(job, runs, "train")
    while process.poll() is None and not (runs / "tiny/checkpoints/step-000002").exists():
        time.sleep(0.01)
    if tiny.kill(process, "both") == 0:
        raise SystemExit("training ended before it could be killed")


def _damage(path, draw):
    """Damage a copy of a file in place of its hard link; return how."""
    content, at = bytearray(path.read_bytes()), draw.randrange(path.stat().st_size)
    how = draw.choice(["cut", "bit", "bit", "zeros"])
    if how == "cut":
        del content[at:]
    elif how == "bit":
        content[at] ^= 1 << draw.randrange(8)
    else:
        length = min(512, len(content) - at)
        if not any(content[at : at + length]):
            content[at] = 1  # zeros over zeros are no damage
        else:
            content[at : at + length] = bytes(length)
    path.unlink()
    path.write_bytes(content)
    return f"{how} at {at:,}"


def _verdict(state, path, copy, sound):
    run, name = copy / "tiny", path.relative_to(copy / "tiny").as_posix()
    try:
        data = run_record.read_record(run / "run.json")
    except UserError:
        return "detected"
    if name == "run.json":
        return (
            "harmless"
            if data == files.read_json(sound / "tiny/run.json", "")
            else "LOST: read as something else"
        )
    if name.startswith("checkpoints/"):
        with contextlib.redirect_stdout(io.StringIO()):
            found = checkpoint.newest_checkpoint(run / "checkpoints")
        if found is None:
            return "LOST: no checkpoint was left"
        folder = found[0]
        same = all(
            (folder / f.name).read_bytes() == f.read_bytes()
            for f in (sound / "tiny/checkpoints" / folder.name).iterdir()
        )
        return (
            "harmless"
            if same and folder == path.parent
            else "detected"
            if same
            else "LOST: a damaged checkpoint was taken"
        )
    if name == "metrics.jsonl" and state != "finished":
        return _ledger(run, sound / "tiny")
    if name == "params.yaml":
        try:
            return (
                "harmless"
                if params.load_job(path) == params.load_job(sound / "tiny/params.yaml")
                else _page(run, path.name)
            )
        except UserError:
            return "detected"
    owner = next(
        (
            s
            for s in run_record.STAGES
            if any(a["path"] == name for a in data["stages"][s]["artifacts"])
        ),
        None,
    )
    if owner:
        return (
            "detected"
            if run_record.Run(run, data).check_finished(owner)[1]
            else "LOST: its stage counts as finished"
        )
    if name == "results.json":
        try:
            values = files.read_json(path, "results")
        except UserError:
            return "detected"
        return (
            "harmless"
            if values == files.read_json(sound / "tiny/results.json", "")
            else "LOST: read as other numbers"
        )
    return _page(run, path.name)


def _ledger(run, sound):
    with contextlib.redirect_stdout(io.StringIO()):
        step = checkpoint.newest_checkpoint(run / "checkpoints")[1]["step"]
    try:
        book = ledger.Ledger(run / "metrics.jsonl")
        book.require_steps(step)
    except UserError:
        return "detected"
    return "harmless" if _upto(run, step) == _upto(sound, step) else "LOST: other numbers"


def _upto(run, step):
    """Return what a session that resumes there builds on."""
    entries = [*ledger.read_ledger(run / "metrics.jsonl"), {"event": "session", "start_step": step}]
    return ledger.valid_steps(entries), [
        (e["when"], e["eval_loss"])
        for e in ledger.keep_valid(entries, "eval")
        if e["when"] == "before"
    ]


def _page(run, name):
    """Tell whether the report refuses a file, or warns about it by name; a link has the bare name too."""
    try:
        page = report.write_report(run).read_text(encoding="utf-8")
    except UserError:
        return "detected"
    warned = f"{name} is not as" in page or f"{name} has changed since" in page
    return "detected" if warned else "LOST: the report says nothing"


def _command(job, copy, wanted):
    process = tiny.start(job, copy)
    code, said = process.wait(tiny.LIMIT_SECONDS), tiny.terminal(copy)
    if "Traceback" in said:
        return f"LOST: a traceback: {said[-300:]}"
    if code:
        return (
            "detected"
            if code in (1, 2) and ("error: " in said or "failed in" in said)
            else f"LOST: the command ended with {code}: {said[-300:]}"
        )
    trouble = tiny.differences(tiny.outcome(copy), wanted)
    return f"LOST: {trouble}" if trouble else "mended by the command"
