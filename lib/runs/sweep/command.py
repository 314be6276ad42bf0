"""A sweep: many runs from one file through Ray Tune, the worse ones stopped early; the same command continues.

    python -m lib.runs.sweep --params params/sweep.yaml [--set "k=v k=v"]

A trial is an ordinary run folder, and what a sweep knows lies in these folders alone. Ray is in sweep_ray.py: nothing here needs it.
Exit codes: 0, 1 a trial failed, 2 wrong usage, 130 / 143 interrupted.
"""

import argparse
import contextlib
import shlex
import sys

from lib.common import files
from lib.common.errors import UserError
from lib.runs import compare
from lib.runs.sweep import sweep_file
from lib.runs.sweep.states import best, settle, state, table
from lib.runs.sweep.sweep_file import Sweep, Trial

NOT_INSTALLED = (
    "A sweep runs through Ray, which cannot be imported here ({}).\n"
    "Install it with `.venv/bin/pip install -r requirements-sweep.txt`; the same command then starts the sweep.\n"
    'Without it, `make train PARAMS=... SET="..."` makes one run after another, and `make compare` compares them.'
)


def end(found: list[Trial], sweep: Sweep, command: str) -> bool:
    """Print what came of it, last the path of the comparison page; returns whether no trial failed."""
    states = [state(t.folder, sweep) for t in found]
    print(f"\n{table(found, states, sweep)}")
    for trial, of in zip(found, states, strict=True):
        if of.word == "failed":
            print(f"{trial.folder.name} failed: {of.reason}")
    if left := [s for s in states if s.word not in ("finished", "stopped early", "failed")]:
        print(
            f"{len(left)} of {len(found)} trials are not done; the same command continues: {command}"
        )
    if (first := best(states, sweep)) is not None:
        name = found[first].folder
        print(
            f"best: {name.name}. Export it with `make export PARAMS={files.shown(name / 'params.yaml')} RUN={name.name}`."
        )
    begun = [t.folder for t, s in zip(found, states, strict=True) if s.step is not None]
    if len(begun) > 1:
        print(
            files.shown(
                compare.write(
                    begun, sweep.metric if sweep.metric in compare.METRICS else "eval_loss_after"
                )[1]
            )
        )
    return not any(s.word == "failed" for s in states)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lib.runs.sweep", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--params", required=True, metavar="FILE", help="a sweep file, like params/sweep.yaml"
    )
    parser.add_argument(
        "--set", default="", metavar='"K=V K=V"', dest="overrides", help="parameters of every trial"
    )
    options = parser.parse_args(argv)
    command = f"make sweep PARAMS={options.params}" + (
        f" SET={shlex.quote(options.overrides)}" if options.overrides else ""
    )
    try:
        sweep = sweep_file.read(options.params)
        found = sweep_file.trials(sweep, options.params, options.overrides)
        try:
            from lib.runs.sweep import sweep_ray
        except ImportError as error:
            raise UserError(NOT_INSTALLED.format(error)) from None
        settle(found)
        done = [t for t in found if state(t.folder, sweep).word in ("finished", "stopped early")]
        print(
            f"sweep: {len(found)} trials of {sweep.base}"
            + (f", {len(done)} of them done before" if done else ""),
            flush=True,
        )
        number = sweep_ray.run(sweep, found) if len(done) < len(found) else 0
        with contextlib.suppress(UserError):  # one that still saves is shown as running
            settle(found)
        whole = end(found, sweep, command)
        return 128 + number if number else int(not whole)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
