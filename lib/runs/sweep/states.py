"""Where each trial of a sweep stands, from the run folders alone."""

import pathlib
import time
from typing import NamedTuple

from lib.common import files, text
from lib.common.errors import UserError
from lib.record import ledger, run_folder, run_record
from lib.runs.sweep.sweep_file import Sweep, Trial

RECORD = "sweep.json"  # in a trial's folder: why the sweep stopped it early


class State(NamedTuple):
    """`word` is pending, running, finished, stopped early, interrupted or failed; the loss is the last held-out one, at `step`."""

    word: str
    step: int | None = None
    loss: float | None = None
    value: float | None = None  # of the sweep's metric; only of a finished run
    reason: str = ""


def state(folder: pathlib.Path, sweep: Sweep) -> State:
    if not (path := folder / "run.json").exists():
        return State("pending")
    run = run_record.Run(folder, run_record.read_record(path))
    stage = "train" if run.stage("train")["attempts"] else "prepare"
    word, attempts = run.stage(stage)["status"], run.stage(stage)["attempts"]
    evals = ledger.keep_valid(ledger.read_ledger(folder / "metrics.jsonl"), "eval")
    last = (evals[-1]["step"], evals[-1]["eval_loss"]) if evals else (None, None)
    if stage == "train" and run.check_finished("train")[0]:
        return State(
            "finished",
            *last,
            files.read_json(folder / "results.json", "results file")["train"].get(sweep.metric),
        )
    if sweep.early_stop and (folder / RECORD).exists():
        return State("stopped early", *last)
    return State(
        "pending" if (stage, word) == ("prepare", "finished") else word,
        *last,
        reason=(attempts[-1]["exit"] or "") if attempts else "",
    )


def settle(found: list[Trial], seconds: float = 90) -> None:
    """Wait for runs that a stopped sweep left saving; UserError says who holds one after that."""
    end = time.monotonic() + seconds
    for trial in found:
        while trial.folder.exists():
            try:
                run_folder.lock_run(trial.folder)
                files.unlock_folder(trial.folder)
                break
            except UserError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)


def best(states: list[State], sweep: Sweep) -> int | None:
    """Which finished trial is best by the metric."""
    have = [n for n, s in enumerate(states) if s.value is not None]
    return (
        (min if sweep.direction == "min" else max)(have, key=lambda n: states[n].value)
        if have
        else None
    )


def table(found: list[Trial], states: list[State], sweep: Sweep) -> str:
    """The trials as lines of text, the best marked."""
    varied, first = list(dict.fromkeys(k for t in found for k in t.values)), best(states, sweep)
    rows = []
    for n, (trial, of) in enumerate(zip(found, states, strict=True)):
        numbers = {
            key: "-" if value is None else f"{value:.4g}"
            for key, value in (("held-out loss", of.loss), (sweep.metric, of.value))
        }
        rows.append(
            {
                "": "*" if n == first else "",
                "run": trial.folder.name,
                **{key: str(trial.values.get(key, "-")) for key in varied},
                "state": of.word,
                "step": str(of.step if of.step is not None else "-"),
                **numbers,
            }
        )
    return text.aligned_table(rows)
