"""A sweep: many runs from one file through Ray Tune, the worse ones stopped early; the same command continues.

    python -m lib.sweep --params params/sweep.yaml [--set "k=v k=v"]

A trial is an ordinary run folder, and what a sweep knows lies in these folders alone. Ray is in lib/sweep_ray.py: nothing here needs it.
Exit codes: 0, 1 a trial failed, 2 wrong usage, 130 / 143 interrupted.
"""

import argparse
import itertools
import json
import math
import os
import pathlib
import random
import shlex
import sys
import time
from typing import Any, Literal, NamedTuple

import pydantic

from lib import files, ledger, params, record, runs, sources
from lib.params import ROOT, Params, Text, UserError

SEARCHES = ("grid", "list", "random")
METRICS = [k for k, v in ledger.summary([]).items() if k not in ("device", "devices", "memory_of")]
RECORD = "sweep.json"  # in a trial's folder: why the sweep stopped it early
NOT_INSTALLED = ("A sweep runs through Ray, which cannot be imported here ({}).\n"
                 "Install it with `.venv/bin/pip install -r requirements-sweep.txt`; the same command then starts the sweep.\n"
                 "Without it, `make train PARAMS=... SET=\"...\"` makes one run after another, and `make compare` compares them.")


def _key(expected: str, default: Any = ..., **bounds: Any) -> Any:
    return pydantic.Field(default, json_schema_extra={"expected": expected}, **bounds)


class Range(pydantic.BaseModel):
    """Numbers a random search draws from; whole ones where both ends are whole, evenly in the logarithm with `log`."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)

    low: int | float
    high: int | float
    log: bool = False

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> "Range":
        if not self.low < self.high or self.log and self.low <= 0:
            raise ValueError("low must be below high, and with log above 0")
        return self


Values = list[Any]
Rows = list[dict[str, Any]]


class Sweep(pydantic.BaseModel):
    """What a sweep file may say; `expected` of a key is what its error message asks for."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)

    base: Text = _key("a params file, like params/cpu.yaml")
    set: dict[str, Any] = _key("a mapping of parameters that every trial has, over the base's", {})
    grid: dict[str, Values] = _key("a mapping of parameters to lists of values, all combinations of which are tried", {})
    list: Rows = _key("a list of mappings, each the parameters of a trial", [])
    random: dict[str, Values | Range] = _key("a mapping of parameters to lists of values, or to {low, high, log: true}", {})
    max_trials: int = _key("a whole number >= 0 (trials; 0 is all of a grid or list)", 0, ge=0)
    max_minutes: float = _key("a number >= 0 (minutes; 0 is no limit)", 0.0, ge=0)
    seed: int = _key("a whole number >= 0", 0, ge=0)
    metric: Literal[tuple(METRICS)] = _key("one of " + ", ".join(METRICS))
    direction: Literal["min", "max"] = _key("one of min, max")
    early_stop: bool = _key("true or false", True)
    grace_evals: int = _key("a whole number >= 1 (evals no trial is stopped before)", 1, ge=1)
    reduction_factor: int = _key("a whole number >= 2 (of so many trials at an eval one goes on)", 3, ge=2)
    retries: int = _key("a whole number >= 0 (times a killed trial is continued)", 3, ge=0)
    cores_per_trial: int = _key("a whole number >= 1 (cores)", 1, ge=1)
    gpus_per_trial: float = _key("a number >= 0 (GPUs; 0.5 puts two trials on one)", 0.0, ge=0)


class Trial(NamedTuple):
    """One run of a sweep: its folder, what sets it apart, the checked job, and the runner's command line."""

    folder: pathlib.Path
    values: dict[str, Any]
    job: Params
    words: list[str]


# ---------------------------------------------------------------------------------------------------------------------
# the file


def read(sweep_file: str) -> Sweep:
    """A sweep file, strictly read: UserError names each wrong key, its value and the expected form."""
    raw, wrong = params.read(sweep_file), []
    for key in raw:
        if key not in Sweep.model_fields:
            of_params = f"a parameter goes under `set`, {', '.join(SEARCHES[:2])} or random" if key in params.FIELDS else ""
            wrong.append(f"unknown key `{key}`; {of_params or params.nearest(key, Sweep.model_fields)}")
    if not wrong and len(given := [s for s in SEARCHES if s in raw]) != 1:
        wrong.append(f"expected one of {', '.join(SEARCHES)}; found {' and '.join(given) or 'none'}")
    sweep = None
    if not wrong:
        try:
            sweep = Sweep(**raw)
        except pydantic.ValidationError as error:
            for key in dict.fromkeys(str(e["loc"][0]) for e in error.errors()):
                found = f"is {json.dumps(raw[key], default=str)[:300]}" if key in raw else "is missing"
                wrong.append(f"`{key}` {found}; expected {Sweep.model_fields[key].json_schema_extra['expected']}")
    if sweep and not (space := getattr(sweep, given[0])):
        wrong.append(f"`{given[0]}` is empty; expected {Sweep.model_fields[given[0]].json_schema_extra['expected']}")
    elif sweep and isinstance(space, dict) and (empty := [k for k, v in space.items() if v == []]):
        wrong.append(f"`{given[0]}`: no values for {', '.join(empty)}; expected one or more")
    if sweep and sweep.random and not sweep.max_trials:
        wrong.append("`max_trials` is 0; a random search needs 1 or more")
    if wrong:
        raise UserError("\n".join([f"{sweep_file}:"] + [f"  - {line}" for line in wrong]))
    return sweep


def trials(sweep: Sweep, sweep_file: str, overrides: str = "") -> list[Trial]:
    """All trials of a sweep, each job checked; the same file gives the same trials in the same folders."""
    fixed = {**sweep.set, **params.parse_overrides(overrides)}
    space = sweep.grid or sweep.random or {k: None for row in sweep.list for k in row}
    if twice := sorted(space.keys() & fixed.keys()):
        raise UserError(f"{sweep_file}: {', '.join(twice)} is both varied and set for every trial; keep one.")
    base, found = params.read(sweep.base), {}
    params.check(base, sweep.base)
    for number, values in enumerate(_draws(sweep) if sweep.random else _listed(sweep), 1):
        where = f"{sweep_file}, trial {number} ({text(values)})"
        job = params.check({**base, **fixed, **values}, where)
        _check(job, sweep, where)
        folder = record.folder_for(job, sweep_file)
        if folder in found and not sweep.random:
            raise UserError(f"{where} is the same run as ({text(found[folder].values)}): it differs only in what changes no weight.")
        words = " ".join(shlex.quote(f"{k}={json.dumps(v)}") for k, v in {**fixed, **values}.items())
        found.setdefault(folder, Trial(folder, values, job, ["train", "--params", sweep.base, "--run", folder.name, "--set", words]))
        if len(found) == sweep.max_trials:
            break
    return list(found.values())


def _listed(sweep: Sweep) -> Any:
    if sweep.list:
        return iter(sweep.list)
    return (dict(zip(sweep.grid, values, strict=True)) for values in itertools.product(*sweep.grid.values()))


def _draws(sweep: Sweep) -> Any:
    """Random values, the same for the same seed; more than max_trials, since two may be alike."""
    draw = random.Random(sweep.seed)

    def one(choices: Any) -> Any:
        if isinstance(choices, list):
            return draw.choice(choices)
        low, high = (math.log(v) if choices.log else v for v in (choices.low, choices.high))
        value = draw.uniform(low, high)
        value = math.exp(value) if choices.log else value
        whole = isinstance(choices.low, int) and isinstance(choices.high, int)
        # three digits can be read in a table, and say as much
        return min(max(round(value) if whole else float(f"{value:.3g}"), choices.low), choices.high)

    for _ in range(100 * sweep.max_trials):
        yield {key: one(choices) for key, choices in sweep.random.items()}


def _check(job: Params, sweep: Sweep, where: str) -> None:
    """What a job must have to be a trial, beyond being a job; nothing is read or made yet."""
    sources.check(job)
    if (needs := runs.needs_gpu(job)) and not sweep.gpus_per_trial:
        raise UserError(f"{where} trains with {needs}, which needs an NVIDIA GPU, and gpus_per_trial is 0. Set gpus_per_trial: 1.")
    if sweep.early_stop and (not job.eval_steps or not job.validation_size or 0 < job.max_steps <= job.eval_steps):
        raise UserError(f"{where}: early_stop compares held-out losses on the way, and there are none with eval_steps: {job.eval_steps}, max_steps: "
                        f"{job.max_steps}, validation_size: {job.validation_size:g}.\nSet eval_steps to a fraction of the steps, or early_stop: false.")
    if not os.environ.get("RAY_ADDRESS"):  # elsewhere other cards may be
        from lib import model

        try:
            model.check_options(job)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None


def text(values: dict[str, Any]) -> str:
    return " ".join(f"{k}={v}" for k, v in values.items())


# ---------------------------------------------------------------------------------------------------------------------
# what has become of the trials, from their folders


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
    run = record.Run(folder, record.read_record(path))
    stage = "train" if run.stage("train")["attempts"] else "prepare"
    word, attempts = run.stage(stage)["status"], run.stage(stage)["attempts"]
    evals = ledger.kept(ledger.read(folder / "metrics.jsonl"), "eval")
    last = (evals[-1]["step"], evals[-1]["eval_loss"]) if evals else (None, None)
    if stage == "train" and run.finished("train")[0]:
        return State("finished", *last, files.read_json(folder / "results.json", "results file")["train"].get(sweep.metric))
    if sweep.early_stop and (folder / RECORD).exists():
        return State("stopped early", *last)
    return State("pending" if (stage, word) == ("prepare", "finished") else word, *last, reason=(attempts[-1]["exit"] or "") if attempts else "")


def settle(found: list[Trial], seconds: float = 90) -> None:
    """Wait for runs that a stopped sweep left saving; UserError says who holds one after that."""
    end = time.monotonic() + seconds
    for trial in found:
        while trial.folder.exists():
            try:
                record.lock(trial.folder)
                files.unlock(trial.folder)
                break
            except UserError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)


def best(states: list[State], sweep: Sweep) -> int | None:
    """Which finished trial is best by the metric."""
    have = [n for n, s in enumerate(states) if s.value is not None]
    return (min if sweep.direction == "min" else max)(have, key=lambda n: states[n].value) if have else None


def table(found: list[Trial], states: list[State], sweep: Sweep) -> str:
    """The trials as lines of text, the best marked."""
    varied, first = list(dict.fromkeys(k for t in found for k in t.values)), best(states, sweep)
    rows = [["", "run", *varied, "state", "step", "held-out loss", sweep.metric]]
    for n, (trial, of) in enumerate(zip(found, states, strict=True)):
        numbers = ["-" if v is None else f"{v:.4g}" for v in (of.loss, of.value)]
        rows.append(["*" if n == first else "", trial.folder.name, *(str(trial.values.get(k, "-")) for k in varied), of.word,
                     str(of.step if of.step is not None else "-"), *numbers])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def end(found: list[Trial], sweep: Sweep, command: str) -> bool:
    """Print what came of it, last the path of the comparison page; returns whether no trial failed."""
    states = [state(t.folder, sweep) for t in found]
    print(f"\n{table(found, states, sweep)}")
    for trial, of in zip(found, states, strict=True):
        if of.word == "failed":
            print(f"{trial.folder.name} failed: {of.reason}")
    if left := [s for s in states if s.word not in ("finished", "stopped early", "failed")]:
        print(f"{len(left)} of {len(found)} trials are not done; the same command continues: {command}")
    if (first := best(states, sweep)) is not None:
        name = found[first].folder
        print(f"best: {name.name}. Export it with `make export PARAMS={files.shown(name / 'params.yaml')} RUN={name.name}`.")
    try:
        from lib import compare
    except ImportError:
        return not any(s.word == "failed" for s in states)
    if names := [t.folder.name for t, s in zip(found, states, strict=True) if s.step is not None]:
        print(files.shown(compare.write(names, sweep.metric)))
    return not any(s.word == "failed" for s in states)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lib.sweep", description=__doc__.splitlines()[0])
    parser.add_argument("--params", required=True, metavar="FILE", help="a sweep file, like params/sweep.yaml")
    parser.add_argument("--set", default="", metavar='"K=V K=V"', dest="overrides", help="parameters of every trial")
    options = parser.parse_args(argv)
    command = f"make sweep PARAMS={options.params}" + (f" SET={shlex.quote(options.overrides)}" if options.overrides else "")
    try:
        sweep = read(options.params)
        found = trials(sweep, options.params, options.overrides)
        try:
            from lib import sweep_ray
        except ImportError as error:
            raise UserError(NOT_INSTALLED.format(error)) from None
        settle(found)
        done = [t for t in found if state(t.folder, sweep).word in ("finished", "stopped early")]
        print(f"sweep: {len(found)} trials of {sweep.base}" + (f", {len(done)} of them done before" if done else ""), flush=True)
        number = sweep_ray.run(sweep, found) if len(done) < len(found) else 0
        settle(found)
        return (0 if end(found, sweep, command) else 1) if not number else end(found, sweep, command) and 128 + number or 128 + number
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
