"""YAML without its surprises: a value that YAML versions read differently is an error."""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from lib.common.errors import UserError

AMBIGUOUS = "!ambiguous"
# each kind of plain value: its tag, its form, and the characters it may begin with
KINDS = (
    ("tag:yaml.org,2002:bool", r"true|false|True|False", [*"tfTF"]),
    ("tag:yaml.org,2002:null", r"null|~|", ["n", "~", ""]),
    ("tag:yaml.org,2002:int", r"[-+]?(?:0|[1-9][0-9]*)", [*"-+0123456789"]),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?",
        [*"-+.0123456789"],
    ),
    (
        AMBIGUOUS,
        r"(?i:yes|no|on|off|y|n)|0[0-9_]+|0[xob][0-9a-fA-F_]+|[0-9]+(?::[0-9]+)+|[0-9]+_[0-9_]+",
        [*"yYnNoO0123456789"],
    ),
)


class _StrictLoader(yaml.SafeLoader):
    """YAML 1.2 numbers and booleans; duplicate keys and YAML 1.1's words are errors.

    YAML 1.1 reads `no`, `on`, `010` and `1:30` as false, true, 8 and 90.
    """


def _refuse_ambiguous(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    raise yaml.constructor.ConstructorError(
        None,
        None,
        f"`{node.value}` means different things in different YAML versions; write true or "
        f'false, a plain decimal number, or quote it ("{node.value}") if it is text',
        node.start_mark,
    )


def _construct_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    mapping: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node)
        if not isinstance(key, Hashable):
            problem = "a key is a list or a mapping; expected a name"
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        if key in mapping:
            problem = f"`{key}` is given twice; keep one"
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_StrictLoader.yaml_implicit_resolvers = {}
for _tag, _form, _first in KINDS:
    _StrictLoader.add_implicit_resolver(_tag, re.compile(f"^(?:{_form})$"), _first)
_StrictLoader.add_constructor(AMBIGUOUS, _refuse_ambiguous)
_StrictLoader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def parse(text: str, where: str) -> Any:
    """Return the value of a YAML text; raise UserError with `where` and the line."""
    try:
        return yaml.load(text, _StrictLoader)  # a SafeLoader underneath: no tag can build an object
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{where}{line}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not YAML: {error}") from None
