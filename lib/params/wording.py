"""Describe parameters in words: what a value must be, for messages, and all of them as a table."""

import json
import types
import typing
from typing import Annotated, Any, Literal

import pydantic

from lib.params.schema import FIELDS

NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def describe_type(key: str) -> str:
    """Return the expected form of a parameter: type, choices and bounds."""
    return _describe(FIELDS[key].annotation, FIELDS[key].metadata)


def _describe(annotation: Any, bounds: list[Any]) -> str:
    """Return a type in words; `bounds` are those that annotated_types adds to it."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _describe(inner[0], list(inner[1:]))
    if origin in (typing.Union, types.UnionType):
        return _join_kinds([_describe(part, bounds) for part in inner])
    if origin is Literal:
        return inner[0] if len(inner) == 1 else f"one of {', '.join(inner)}"
    if origin is list:
        return _describe_list(inner[0], bounds)
    if origin is dict:
        return "a mapping of text to text"
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return _describe_entry(annotation)
    return " ".join([NAMES[annotation], _describe_bounds(bounds)]).strip()


def _join_kinds(kinds: list[str]) -> str:
    """Join the kinds that a value may be; the last may be the same as an item of a list before."""
    if len(kinds) > 2 and kinds[-1] in kinds[-2]:
        kinds = [*kinds[:-1], "one of these alone"]
    return ", or ".join(kinds)


def _describe_list(item: Any, bounds: list[Any]) -> str:
    many = any(getattr(bound, "min_length", 0) for bound in bounds)
    return f"a list, {'one' if many else 'none'} or more of {_describe_items(item)}"


def _describe_items(item: Any) -> str:
    """Return the items of a list in words, in the plural."""
    origin, inner = typing.get_origin(item), typing.get_args(item)
    if origin is Literal:
        return ", ".join(inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe_items(part) for part in inner)
    described = _describe(item, [])
    return "texts" if described == NAMES[str] else described


def _describe_entry(model: type[pydantic.BaseModel]) -> str:
    """Return a mapping with fixed keys in words, each key with its bounds."""
    keys = [
        f"{key} {_describe_bounds(field.metadata)}".strip()
        for key, field in model.model_fields.items()
    ]
    return f"{{{', '.join(keys)}}}"


def _describe_bounds(bounds: list[Any]) -> str:
    limits = [
        f"{sign} {_describe_limit(getattr(bound, name))}"
        for bound in bounds
        for name, sign in SIGNS.items()
        if getattr(bound, name, None) is not None
    ]
    return " and ".join(limits)


def _describe_limit(limit: float) -> str:
    if limit == 2**32:
        return "2^32"
    return f"{limit:,}" if isinstance(limit, int) else f"{limit:g}"


def markdown_table() -> str:
    """Return the parameters as a Markdown table, for params/README.md."""
    rows = ["| parameter | default | expected | what it does |", "| --- | --- | --- | --- |"]
    for key, field in FIELDS.items():
        default = json.dumps(field.default)
        rows.append(f"| `{key}` | `{default}` | {describe_type(key)} | {field.description} |")
    return "\n".join(rows)
