"""Read the state of each trial of a sweep from the run folders."""

import pathlib
import time
from typing import NamedTuple

from lib.common import files, text
from lib.common.errors import UserError
from lib.record import ledger, run_folder, run_record
from lib.runs.sweep.sweep_file import Sweep, Trial

RECORD = "sweep.json"  # in a trial's folder: why the sweep stopped it early
OVER = ("finished", "stopped early")  # states of trials that are not started again


class State(NamedTuple):
    """The state of a trial."""

    word: str  # pending, running, finished, stopped early, interrupted or failed
    step: int | None = None  # of the last held-out loss
    loss: float | None = None
    value: float | None = None  # the sweep's metric; only a finished run has one
    reason: str = ""  # why the last attempt ended


def read_state(folder: pathlib.Path, sweep: Sweep) -> State:
    path = folder / "run.json"
    if not path.exists():
        return State("pending")
    run = run_record.Run(folder, run_record.read_record(path))
    stage = "train" if run.stage("train")["attempts"] else "prepare"
    entry = run.stage(stage)
    evals = ledger.keep_valid(ledger.read_ledger(folder / "metrics.jsonl"), "eval")
    step = evals[-1]["step"] if evals else None
    loss = evals[-1]["eval_loss"] if evals else None
    if stage == "train" and run.check_finished("train")[0]:
        results = files.read_results(folder)
        return State("finished", step, loss, results.get("train", {}).get(sweep.metric))
    if sweep.early_stop and (folder / RECORD).exists():
        return State("stopped early", step, loss)
    reason = entry["attempts"][-1]["exit"] or "" if entry["attempts"] else ""
    between_stages = stage == "prepare" and entry["status"] == "finished"
    return State("pending" if between_stages else entry["status"], step, loss, reason=reason)


def wait_until_saved(trials: list[Trial], seconds: float = 90) -> None:
    """Wait for runs that were still saving when a sweep stopped.

    Raise UserError with the holder of a run that is still in use after that.
    """
    end = time.monotonic() + seconds
    for trial in trials:
        while trial.folder.exists():
            try:
                run_folder.lock_run(trial.folder)
                files.unlock_folder(trial.folder)
                break
            except UserError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)


def find_best(states: list[State], sweep: Sweep) -> int | None:
    """Return the position of the finished trial that is best by the metric, if any."""
    values = {n: state.value for n, state in enumerate(states) if state.value is not None}
    if not values:
        return None
    choose = min if sweep.direction == "min" else max
    return choose(values, key=values.__getitem__)


def format_table(trials: list[Trial], states: list[State], sweep: Sweep) -> str:
    """Return the trials as lines of text, with a star at the best."""
    varied = list(dict.fromkeys(key for trial in trials for key in trial.values))
    best = find_best(states, sweep)
    rows = [
        {
            "": "*" if number == best else "",
            "run": trial.folder.name,
            **{key: str(trial.values.get(key, "-")) for key in varied},
            "state": state.word,
            "step": "-" if state.step is None else str(state.step),
            "held-out loss": _format_number(state.loss),
            sweep.metric: _format_number(state.value),
        }
        for number, (trial, state) in enumerate(zip(trials, states, strict=True))
    ]
    return text.aligned_table(rows)


def _format_number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
