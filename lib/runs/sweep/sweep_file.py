"""Read a sweep file strictly, and make its trials: jobs that are checked before any starts."""

import itertools
import json
import math
import os
import pathlib
import random
import shlex
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import pydantic

from lib import params
from lib.common.errors import UserError
from lib.data.reading import sources
from lib.params import Params, Text
from lib.params.kinds import CONFIG
from lib.record import ledger, run_folder
from lib.runs import needs

SEARCHES = ("grid", "list", "random")
# numbers in the section `train` of results.json
METRICS = [key for key in ledger.summarise([]) if key not in ("device", "devices", "memory_of")]


def _key(expected: str, default: Any = ..., **bounds: Any) -> Any:
    return pydantic.Field(default, json_schema_extra={"expected": expected}, **bounds)


class Range(pydantic.BaseModel):
    """A range of numbers for a random search; with `log`, they are even in the logarithm.

    If both ends are integers, so are the numbers.
    """

    model_config = CONFIG

    low: int | float
    high: int | float
    log: bool = False

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> "Range":
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError("low must be below high, and above 0 with log")
        return self


Values = list[Any]
Rows = list[dict[str, Any]]


class Sweep(pydantic.BaseModel):
    """The keys of a sweep file; `expected` is what a key's error message asks for."""

    model_config = CONFIG

    base: Text = _key("a params file, like params/cpu.yaml")
    set: dict[str, Any] = _key("a mapping of parameters that every trial has, over the base's", {})
    grid: dict[str, Values] = _key(
        "a mapping of parameters to lists of values, all combinations of which are tried", {}
    )
    list: Rows = _key("a list of mappings, each the parameters of a trial", [])
    random: dict[str, Values | Range] = _key(
        "a mapping of parameters to lists of values, or to {low, high, log: true}", {}
    )
    max_trials: int = _key("a whole number >= 0 (trials; 0 is all of a grid or list)", 0, ge=0)
    max_minutes: float = _key("a number >= 0 (minutes; 0 is no limit)", 0.0, ge=0)
    seed: int = _key("a whole number >= 0", 0, ge=0)
    metric: str = _key("one of " + ", ".join(METRICS))
    direction: Literal["min", "max"] = _key("one of min, max")
    early_stop: bool = _key("true or false", True)
    grace_evals: int = _key("a whole number >= 1 (evals before which no trial is stopped)", 1, ge=1)
    reduction_factor: int = _key(
        "a whole number >= 2 (at an eval, one in this many trials goes on)", 3, ge=2
    )
    retries: int = _key("a whole number >= 0 (times a killed trial is continued)", 3, ge=0)
    cores_per_trial: int = _key("a whole number >= 1 (cores)", 1, ge=1)
    gpus_per_trial: float = _key("a number >= 0 (GPUs; 0.5 puts two trials on one)", 0.0, ge=0)

    @pydantic.field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        if metric not in METRICS:
            raise ValueError
        return metric


class Trial(NamedTuple):
    """One run of a sweep."""

    folder: pathlib.Path
    values: dict[str, Any]  # the parameters in which trials differ
    job: Params
    words: list[str]  # the arguments of the runner


def read_sweep(sweep_file: str) -> Sweep:
    """Read a sweep file strictly; raise UserError with each wrong key and what is expected."""
    raw = params.read_values(sweep_file)
    if raw.keys() & params.FIELDS.keys() and not raw.keys() & {"base", *SEARCHES}:
        raise UserError(
            f"{sweep_file} is not a sweep file, but the parameters of one job: "
            f"`make run PARAMS={sweep_file}` runs it.\n"
            f"A sweep file names it as its `base`, and what varies; params/sweep.yaml is one."
        )
    problems = [_describe_unknown(key) for key in raw if key not in Sweep.model_fields]
    given = [search for search in SEARCHES if search in raw]
    if not problems and len(given) != 1:
        problems = [
            f"expected exactly one of {', '.join(SEARCHES)}; the file has "
            f"{' and '.join(given) or 'none'}"
        ]
    sweep = None
    if not problems:
        try:
            sweep = Sweep(**raw)
        except pydantic.ValidationError as error:
            problems = [
                _describe_wrong(key, raw)
                for key in dict.fromkeys(str(e["loc"][0]) for e in error.errors())
            ]
    if sweep is not None:
        problems = _find_gaps(sweep, given[0])
    if sweep is None or problems:
        raise UserError("\n".join([f"{sweep_file}:"] + [f"  - {line}" for line in problems]))
    return sweep


def _expected(key: str) -> str:
    """Return what a key must be, in words."""
    note = Sweep.model_fields[key].json_schema_extra
    assert isinstance(note, dict)  # set by `_key`
    return str(note["expected"])


def _describe_unknown(key: str) -> str:
    if key in params.FIELDS:
        return f"unknown key `{key}`; put a parameter under `set`, grid, list or random"
    return f"unknown key `{key}`; {params.suggest_name(key, Sweep.model_fields)}"


def _describe_wrong(key: str, raw: dict[str, Any]) -> str:
    fault = f"is {json.dumps(raw[key], default=str)[:300]}" if key in raw else "is missing"
    return f"`{key}` {fault}; expected {_expected(key)}"


def _find_gaps(sweep: Sweep, search: str) -> list[str]:
    """List what is missing in a search whose values are all well-formed."""
    problems = []
    space = getattr(sweep, search)
    if not space:
        problems.append(f"`{search}` is empty; expected {_expected(search)}")
    elif isinstance(space, dict):
        empty = [key for key, values in space.items() if values == []]
        if empty:
            problems.append(f"`{search}`: no values for {', '.join(empty)}; expected one or more")
    if sweep.random and not sweep.max_trials:
        problems.append("`max_trials` is 0; a random search needs 1 or more")
    return problems


# --------------------------------------------------------------------------------------------------
# trials


def make_trials(sweep: Sweep, sweep_file: str, overrides: str = "") -> list[Trial]:
    """Return all trials of a sweep, with checked jobs; raise UserError for a wrong trial.

    The same file gives the same trials in the same folders.
    """
    fixed = {**sweep.set, **params.parse_overrides(overrides)}
    _refuse_varied_and_fixed(sweep, fixed, sweep_file)
    base = params.read_values(sweep.base)
    params.check_values(base, sweep.base)
    trials: dict[pathlib.Path, Trial] = {}
    candidates = _draw_values(sweep) if sweep.random else _list_values(sweep)
    for number, values in enumerate(candidates, 1):
        where = f"{sweep_file}, trial {number} ({format_values(values)})"
        job = params.check_values({**base, **fixed, **values}, where)
        _check_trial(job, sweep, where)
        folder = run_folder.choose_folder(job, sweep_file)
        if folder in trials and not sweep.random:
            same = format_values(trials[folder].values)
            raise UserError(
                f"{where} is the same run as ({same}): the two differ only in parameters that "
                f"change no weight."
            )
        if folder not in trials:
            words = ["train", "--params", sweep.base, "--run", folder.name]
            overrides_of_trial = _format_overrides({**fixed, **values})
            trials[folder] = Trial(folder, values, job, [*words, "--set", overrides_of_trial])
        if len(trials) == sweep.max_trials:
            break
    return list(trials.values())


def _format_overrides(values: dict[str, Any]) -> str:
    """Return values as the text for --set; JSON is YAML too."""
    return " ".join(shlex.quote(f"{key}={json.dumps(value)}") for key, value in values.items())


def _refuse_varied_and_fixed(sweep: Sweep, fixed: dict[str, Any], sweep_file: str) -> None:
    varied = {key for row in sweep.list for key in row} | {*sweep.grid, *sweep.random}
    twice = sorted(varied & fixed.keys())
    if twice:
        raise UserError(
            f"{sweep_file}: {', '.join(twice)} is both varied and set for every trial; keep one."
        )


def _list_values(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """Yield the values of each trial of a list, or of all combinations of a grid."""
    if sweep.list:
        yield from sweep.list
        return
    for values in itertools.product(*sweep.grid.values()):
        yield dict(zip(sweep.grid, values, strict=True))


def _draw_values(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """Yield random values from the seed, more than max_trials of them, since some may be equal."""
    draw = random.Random(sweep.seed)
    for _ in range(100 * sweep.max_trials):
        yield {key: _draw_one(draw, choices) for key, choices in sweep.random.items()}


def _draw_one(draw: random.Random, choices: list[Any] | Range) -> Any:
    if isinstance(choices, list):
        return draw.choice(choices)
    low, high = choices.low, choices.high
    if choices.log:
        value = math.exp(draw.uniform(math.log(low), math.log(high)))
    else:
        value = draw.uniform(low, high)
    if isinstance(low, int) and isinstance(high, int):
        return min(max(round(value), low), high)
    # three significant digits are enough, and readable in a table
    return min(max(float(f"{value:.3g}"), low), high)


def _check_trial(job: Params, sweep: Sweep, where: str) -> None:
    """Check what a valid job also needs to be a trial; nothing is read or made yet."""
    sources.check_sources(job)
    try:
        params.require_consistent(job)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    gpu_needs = needs.describe_gpu_needs(job)
    if gpu_needs and not sweep.gpus_per_trial:
        raise UserError(
            f"{where} trains with {gpu_needs}, which needs an NVIDIA GPU, but gpus_per_trial is 0. "
            f"Set gpus_per_trial: 1."
        )
    ends_before_eval = 0 < job.max_steps <= job.eval_steps
    if sweep.early_stop and (not job.eval_steps or not job.validation_size or ends_before_eval):
        raise UserError(
            f"{where}: early_stop compares held-out losses during training, but none come with "
            f"eval_steps: {job.eval_steps:g}, max_steps: {job.max_steps:g}, "
            f"validation_size: {job.validation_size:g}.\n"
            f"Set eval_steps to a fraction of the steps, or early_stop: false."
        )
    if not os.environ.get("RAY_ADDRESS"):  # a cluster may have other GPUs than this machine
        from lib.model import options  # imports torch, which takes seconds

        try:
            options.check_options(job)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None


def format_values(values: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in values.items())
