"""Run a sweep: many runs from one file through Ray Tune, which stops the worse ones early.

    python -m lib.runs.sweep --params params/sweep.yaml [--set "k=v k=v"]

The same command continues it. A trial is an ordinary run folder, and these folders are the sweep's
only state. Ray is used in sweep_ray.py only.
Exit codes: 0, 1 if a trial failed, 2 for wrong usage, 130 / 143 when interrupted.
"""

import argparse
import contextlib
import shlex
import sys

from lib.common import files
from lib.common.errors import UserError
from lib.runs.compare import compare_runs
from lib.runs.metrics import METRICS
from lib.runs.sweep.states import OVER, find_best, format_table, read_state, wait_until_saved
from lib.runs.sweep.sweep_file import Sweep, Trial, make_trials, read_sweep

NOT_INSTALLED = (
    "A sweep needs Ray, which cannot be imported here ({}).\n"
    "Install it with `.venv/bin/pip install -r requirements-sweep.txt`; the same command then "
    "starts the sweep.\n"
    'Without it, `make train PARAMS=... SET="..."` makes one run after another, and '
    "`make compare` compares them."
)


def main(argv: list[str] | None = None) -> int:
    assert __doc__
    parser = argparse.ArgumentParser(
        prog="python -m lib.runs.sweep", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--params", default="", metavar="FILE", help="a sweep file, like params/sweep.yaml"
    )
    parser.add_argument(
        "--set", default="", metavar='"K=V K=V"', dest="overrides", help="parameters of every trial"
    )
    options = parser.parse_args(argv)
    try:
        if not options.params:
            raise UserError("Which sweep? Name its file: `make sweep PARAMS=params/sweep.yaml`.")
        return run_sweep(options.params, options.overrides)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run_sweep(params_file: str, overrides: str) -> int:
    """Run the trials that are not over yet, and print the results of all; return the exit code."""
    sweep = read_sweep(params_file)
    trials = make_trials(sweep, params_file, overrides)
    try:
        from lib.runs.sweep import sweep_ray  # Ray is optional
    except ImportError as error:
        raise UserError(NOT_INSTALLED.format(error)) from None
    wait_until_saved(trials)
    over = sum(read_state(trial.folder, sweep).word in OVER for trial in trials)
    before = f", {over} of them already done" if over else ""
    print(f"sweep: {len(trials)} trials of {sweep.base}{before}", flush=True)
    signal_number = sweep_ray.run_trials(sweep, trials) if over < len(trials) else 0
    with contextlib.suppress(UserError):  # a trial that is still saving is listed as running
        wait_until_saved(trials)
    command = f"make sweep PARAMS={params_file}"
    if overrides:
        command += f" SET={shlex.quote(overrides)}"
    none_failed = tell_end(trials, sweep, command)
    if signal_number:
        return 128 + signal_number
    return 0 if none_failed else 1


def tell_end(trials: list[Trial], sweep: Sweep, command: str) -> bool:
    """Print the results and the path of the comparison page; return whether no trial failed."""
    states = [read_state(trial.folder, sweep) for trial in trials]
    print(f"\n{format_table(trials, states, sweep)}")
    for trial, state in zip(trials, states, strict=True):
        if state.word == "failed":
            print(f"{trial.folder.name} failed: {state.reason}")
    left = sum(state.word not in (*OVER, "failed") for state in states)
    if left:
        print(f"{left} of {len(trials)} trials are not done; the same command continues: {command}")
    best = find_best(states, sweep)
    if best is not None:
        folder = trials[best].folder
        export = f"make export RUN={folder.name}"
        print(f"best: {folder.name}. Export it with `{export}`.")
    begun = [
        trial.folder for trial, state in zip(trials, states, strict=True) if state.step is not None
    ]
    if len(begun) > 1:
        metric = sweep.metric if sweep.metric in METRICS else "eval_loss_after"
        _, page = compare_runs(begun, metric)
        print(files.format_path(page))
    return not any(state.word == "failed" for state in states)
