"""YAML without its surprises: what reads as one thing to one reader and another to the next is an error."""

import re
from typing import Any

import yaml

from lib.common.errors import UserError


class _StrictLoader(yaml.SafeLoader):
    """YAML 1.2 numbers and booleans; duplicate keys and the YAML 1.1 words (`no`, `on`, `010`, `1:30`) are errors."""


_StrictLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:bool", r"true|false|True|False", "tfTF"),
    ("tag:yaml.org,2002:null", r"null|~|", ["n", "~", ""]),
    ("tag:yaml.org,2002:int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?",
        "-+.0123456789",
    ),
    (
        "!ambiguous",
        r"(?i:yes|no|on|off|y|n)|0[0-9_]+|0[xob][0-9a-fA-F_]+|[0-9]+(?::[0-9]+)+|[0-9]+_[0-9_]+",
        "yYnNoO0123456789",
    ),
):
    _StrictLoader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list(_first))


def _ambiguous(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    raise yaml.constructor.ConstructorError(
        None,
        None,
        f"`{node.value}` reads as different things in different YAML versions; write true or false, a plain "
        f'decimal number, or quote it ("{node.value}") if it is a text',
        node.start_mark,
    )


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for n, key in enumerate(keys):
        if isinstance(key, list | dict):
            raise yaml.constructor.ConstructorError(
                None,
                None,
                "a key is a list or a mapping; expected a name",
                node.value[n][0].start_mark,
            )
        if key in keys[:n]:
            raise yaml.constructor.ConstructorError(
                None, None, f"`{key}` is given twice; keep one", node.value[n][0].start_mark
            )
    return dict(
        zip(
            keys,
            (loader.construct_object(value, deep=True) for _, value in node.value),
            strict=True,
        )
    )


_StrictLoader.add_constructor("!ambiguous", _ambiguous)
_StrictLoader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse(text: str, where: str) -> Any:
    """The value that a text of YAML says; UserError with `where` and the line."""
    try:
        return yaml.load(text, _StrictLoader)  # a SafeLoader underneath: no tag can build an object
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{where}{line}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not YAML: {error}") from None
