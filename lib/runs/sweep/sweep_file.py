"""A sweep file: strictly read, and every trial it means, each an ordinary job that is checked before the first starts."""

import itertools
import json
import math
import os
import pathlib
import random
import shlex
from typing import Any, Literal, NamedTuple

import pydantic

from lib import params
from lib.common.errors import UserError
from lib.data import sources
from lib.params import Params, Text
from lib.record import ledger, run_folder
from lib.runs import needs

SEARCHES = ("grid", "list", "random")
METRICS = [
    k for k, v in ledger.summarise([]).items() if k not in ("device", "devices", "memory_of")
]


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
    metric: Literal[tuple(METRICS)] = _key("one of " + ", ".join(METRICS))
    direction: Literal["min", "max"] = _key("one of min, max")
    early_stop: bool = _key("true or false", True)
    grace_evals: int = _key("a whole number >= 1 (evals no trial is stopped before)", 1, ge=1)
    reduction_factor: int = _key(
        "a whole number >= 2 (of so many trials at an eval one goes on)", 3, ge=2
    )
    retries: int = _key("a whole number >= 0 (times a killed trial is continued)", 3, ge=0)
    cores_per_trial: int = _key("a whole number >= 1 (cores)", 1, ge=1)
    gpus_per_trial: float = _key("a number >= 0 (GPUs; 0.5 puts two trials on one)", 0.0, ge=0)


class Trial(NamedTuple):
    """One run of a sweep: its folder, what sets it apart, the checked job, and the runner's command line."""

    folder: pathlib.Path
    values: dict[str, Any]
    job: Params
    words: list[str]


def read(sweep_file: str) -> Sweep:
    """A sweep file, strictly read: UserError names each wrong key, its value and the expected form."""
    raw, wrong = params.read_values(sweep_file), []
    for key in raw:
        if key not in Sweep.model_fields:
            of_params = (
                f"a parameter goes under `set`, {', '.join(SEARCHES[:2])} or random"
                if key in params.FIELDS
                else ""
            )
            wrong.append(
                f"unknown key `{key}`; {of_params or params.suggest_name(key, Sweep.model_fields)}"
            )
    if not wrong and len(given := [s for s in SEARCHES if s in raw]) != 1:
        wrong.append(
            f"expected one of {', '.join(SEARCHES)}; found {' and '.join(given) or 'none'}"
        )
    sweep = None
    if not wrong:
        try:
            sweep = Sweep(**raw)
        except pydantic.ValidationError as error:
            for key in dict.fromkeys(str(e["loc"][0]) for e in error.errors()):
                found = (
                    f"is {json.dumps(raw[key], default=str)[:300]}" if key in raw else "is missing"
                )
                wrong.append(
                    f"`{key}` {found}; expected {Sweep.model_fields[key].json_schema_extra['expected']}"
                )
    if sweep and not (space := getattr(sweep, given[0])):
        wrong.append(
            f"`{given[0]}` is empty; expected {Sweep.model_fields[given[0]].json_schema_extra['expected']}"
        )
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
        raise UserError(
            f"{sweep_file}: {', '.join(twice)} is both varied and set for every trial; keep one."
        )
    base, found = params.read_values(sweep.base), {}
    params.check_values(base, sweep.base)
    for number, values in enumerate(_draws(sweep) if sweep.random else _listed(sweep), 1):
        where = f"{sweep_file}, trial {number} ({text(values)})"
        job = params.check_values({**base, **fixed, **values}, where)
        _check(job, sweep, where)
        folder = run_folder.choose_folder(job, sweep_file)
        if folder in found and not sweep.random:
            raise UserError(
                f"{where} is the same run as ({text(found[folder].values)}): it differs only in what changes no weight."
            )
        words = " ".join(
            shlex.quote(f"{k}={json.dumps(v)}") for k, v in {**fixed, **values}.items()
        )
        found.setdefault(
            folder,
            Trial(
                folder,
                values,
                job,
                ["train", "--params", sweep.base, "--run", folder.name, "--set", words],
            ),
        )
        if len(found) == sweep.max_trials:
            break
    return list(found.values())


def _listed(sweep: Sweep) -> Any:
    if sweep.list:
        return iter(sweep.list)
    return (
        dict(zip(sweep.grid, values, strict=True))
        for values in itertools.product(*sweep.grid.values())
    )


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
    sources.check_sources(job)
    if (wants := needs.describe_gpu_needs(job)) and not sweep.gpus_per_trial:
        raise UserError(
            f"{where} trains with {wants}, which needs an NVIDIA GPU, and gpus_per_trial is 0. "
            f"Set gpus_per_trial: 1."
        )
    if sweep.early_stop and (
        not job.eval_steps or not job.validation_size or 0 < job.max_steps <= job.eval_steps
    ):
        given = ", ".join(
            f"{k}: {getattr(job, k):g}" for k in ("eval_steps", "max_steps", "validation_size")
        )
        raise UserError(
            f"{where}: early_stop compares held-out losses on the way, and there are none with {given}.\n"
            f"Set eval_steps to a fraction of the steps, or early_stop: false."
        )
    if not os.environ.get("RAY_ADDRESS"):  # elsewhere other cards may be
        from lib.model import options

        try:
            options.check_options(job)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None


def text(values: dict[str, Any]) -> str:
    return " ".join(f"{k}={v}" for k, v in values.items())
