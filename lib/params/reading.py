"""Read params files and overrides strictly; errors name each wrong key and what is expected."""

import difflib
import json
import math
import pathlib
import shlex
from collections.abc import Iterable
from typing import Any

import pydantic

from lib.common import locations, strict_yaml
from lib.common.errors import ROOT, UserError
from lib.common.redact import holds_secret
from lib.common.text import find_encoding, shorten
from lib.params.kinds import language_of
from lib.params.schema import FIELDS, Params
from lib.params.wording import describe_type

LONGEST = 300  # characters of a wrong value in a message


def load_job(params_file: str | pathlib.Path, overrides: str = "") -> Params:
    """Read a params file (relative to the repository, or absolute) and apply `k=v k=v` overrides.

    Raise UserError if the file or an override is wrong.
    """
    values = read_values(params_file)
    if "base" in values:  # a key of sweeps, not a parameter
        raise UserError(
            f"{params_file} is a sweep, many jobs in one file: `make sweep PARAMS={params_file}`."
        )
    where = f'{params_file} + SET="{shorten(overrides)}"' if overrides else str(params_file)
    return check_values({**values, **parse_overrides(overrides)}, where)


def read_values(params_file: str | pathlib.Path) -> dict[str, Any]:
    """Return the keys and values of a params file, not yet checked."""
    path = locations.local_path(params_file)
    if path.is_dir():
        inside = sorted(file.name for file in path.glob("*.y*ml"))
        raise UserError(
            f"PARAMS=`{shorten(str(params_file))}` is a folder; expected a params file, such as "
            f"{path.name + '/' + inside[0] if inside else 'params/cpu.yaml'}."
        )
    if not path.is_file():
        presets = [p for p in (ROOT / "params").glob("*.yaml") if p.name != "sweep.yaml"]
        raise UserError(
            f"params file `{shorten(str(params_file))}` does not exist (looked in {ROOT}).\n"
            f"Available: {', '.join(sorted(str(p.relative_to(ROOT)) for p in presets))}. "
            f"Use PARAMS=params/cpu.yaml or write your own."
        )
    try:
        content = path.read_bytes()
        text = content.decode(find_encoding(content[:4]))
    except UnicodeDecodeError as error:
        raise UserError(
            f"params file `{params_file}` is not {error.encoding.upper()} text (byte "
            f"{error.start}, {error.reason}). Save it as UTF-8."
        ) from None
    values = strict_yaml.parse(text, str(params_file))
    if values is None:
        raise UserError(
            f"params file `{shorten(str(params_file))}` sets no parameter, so every one would be "
            f"the default: {FIELDS['base_model'].default} on {FIELDS['dataset'].default}.\n"
            f"If that is meant, write {{}} into it; otherwise lines of `key: value`."
        )
    if not isinstance(values, dict):
        raise UserError(
            f"{params_file} is of type {type(values).__name__}; expected lines of `key: value`."
        )
    return values


def parse_overrides(text: str) -> dict[str, Any]:
    """Parse the text of SET=, such as `learning_rate=1e-4 max_steps=50`; values are strict YAML."""
    values: dict[str, Any] = {}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(
            f'SET="{shorten(text)}": {error}; expected SET="key=value key=value"'
        ) from None
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UserError(
                f"SET: `{shorten(word)}` is not of the form key=value; expected "
                f'SET="key=value key=value"'
            )
        if key in values:
            raise UserError(f"SET: `{key}` is given twice; keep one")
        values[key] = _parse_override(key, value)
    return values


def _parse_override(key: str, value: str) -> Any:
    if not value:
        return ""
    try:
        return strict_yaml.parse(value, f"SET: {key}")
    except UserError as error:
        cut_at_a_space = value[0] in "[{" and value[-1] not in "]}"
        if not cut_at_a_space:
            raise
        raise UserError(
            f"{error}; quote a value with spaces in it: SET=\"{key}='{value} ...'\""
        ) from None


# --------------------------------------------------------------------------------------------------
# checking


def check_values(values: dict[str, Any], where: str) -> Params:
    """Validate raw values; raise UserError with each wrong key, its value and what is expected."""
    wrong = [problem for key, value in values.items() if (problem := _find_problem(key, value))]
    if not wrong:
        try:
            return Params(**({"language": language_of(values.get("dataset"))} | values))
        except pydantic.ValidationError as error:
            for key in dict.fromkeys(str(e["loc"][0]) for e in error.errors()):
                value = json.dumps(values[key], default=str)[:LONGEST]
                entry = _describe_entry(error, key, values[key])
                infinite = isinstance(values[key], float) and not math.isfinite(values[key])
                finite = " (a finite one)" if infinite else ""
                wrong.append(f"`{key}` is {value}; expected {describe_type(key)}{finite}{entry}")
    raise UserError("\n".join([f"{where}:"] + [f"  - {line}" for line in wrong]))


def _find_problem(key: str, value: Any) -> str:
    """Say what is wrong with a key, or that its value has a secret; return "" if nothing is."""
    if key not in FIELDS:
        return f"unknown parameter `{shorten(str(key))}`; {suggest_name(key, FIELDS)}"
    if holds_secret(value):
        return (
            f"`{key}` contains a token or password; expected {describe_type(key)}. Parameters are "
            f"kept with the run and shown in its report. Secrets belong only in the environment "
            f"(HF_TOKEN), and one that was in a file should be revoked"
        )
    return ""


def _describe_entry(error: pydantic.ValidationError, key: str, value: Any) -> str:
    """Say which key of a data set is wrong, in a list also of which one, or what the schema says.

    Return "" for other values.
    """
    if not isinstance(value, list | dict):
        return ""
    for wrong in error.errors():
        location = wrong["loc"]
        if location == (key,) and wrong["type"] == "value_error":  # raised by the schema itself
            return f". {wrong['ctx']['error']}"
        numbers = [step for step in location if isinstance(step, int)]
        if location[0] != key or "Source" not in location or bool(numbers) == (type(value) is dict):
            continue
        entry = f"Entry {numbers[0] + 1}" if numbers else ""
        name = "" if location[-1] == "Source" else f"`{location[-1]}`"
        where = ", ".join(part for part in (entry, name) if part)
        return f". {where}: {wrong['msg'].lower()}"
    return ""


def suggest_name(key: Any, names: Iterable[str]) -> str:
    """Return a hint for an unknown key: the name that was probably meant."""
    near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)
    return f"did you mean `{near[0]}`?" if near else "params/README.md lists them all"
