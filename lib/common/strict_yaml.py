"""YAML without its surprises: a value that YAML versions read differently is an error."""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from lib.common.errors import UserError

AMBIGUOUS = "!ambiguous"
NULL = "tag:yaml.org,2002:null"
# each kind of plain value: its tag, its form, and the characters it may begin with
KINDS = (
    ("tag:yaml.org,2002:bool", r"true|false|True|False", [*"tfTF"]),
    (NULL, r"null|~|", ["n", "~", ""]),
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


# what to do about the parser's own errors, by a part of their text
ADVICE = {
    "\\t": "write blanks instead of tabs",
    "another document": "keep one, without a line `---` between",
    "escape character": "in double quotes a backslash begins an escape: write paths with /, or in "
    "single quotes",
    "escape sequence": "in double quotes a backslash begins an escape: write paths with /, or in "
    "single quotes",
    "undefined alias": "quote a text that begins with *",
    "alphabetic or numeric character": "quote a text that begins with * or &",
    "could not find expected ':'": "expected `key: value`, with a plain blank after the colon",
    "mapping values are not allowed": "quote a text with a colon in it, begin the keys of a "
    "mapping in one column, and write a plain blank after each colon",
}


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


def _refuse_null(loader: yaml.SafeLoader, node: yaml.ScalarNode, key: str = "") -> Any:
    problem = (
        f'{key or "an entry"} has no value (null); write "" for an empty text, [] for an empty '
        f"list, or remove the line to take the default"
    )
    raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _construct_text(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    if node.style is None and node.value[0] in "\u201c\u201d\u201e\u2018\u2019\u00ab":
        problem = f"{node.value} begins with a typographic quote; YAML's are \" and '"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    return loader.construct_scalar(node)


def _construct_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    mapping: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node)
        if key == "<<" and key_node.style is None:
            problem = "`<<`, YAML 1.1's merging of mappings, is not read; write the keys out here"
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        if not isinstance(key, Hashable):
            problem = "a key is a list or a mapping; expected a name"
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        if key in mapping:
            problem = f"`{key}` is given twice; keep one"
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        if value_node.tag == NULL:
            _refuse_null(loader, value_node, f"`{key}`")
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_StrictLoader.yaml_implicit_resolvers = {}
for _tag, _form, _first in KINDS:
    _StrictLoader.add_implicit_resolver(_tag, re.compile(f"^(?:{_form})$"), _first)
_StrictLoader.add_constructor(AMBIGUOUS, _refuse_ambiguous)
_StrictLoader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
_StrictLoader.add_constructor(NULL, _refuse_null)
_StrictLoader.add_constructor("tag:yaml.org,2002:str", _construct_text)


def parse(text: str, where: str) -> Any:
    """Return the value of a YAML text; raise UserError with `where` and the line."""
    try:
        return yaml.load(text, _StrictLoader)  # a SafeLoader underneath: no tag can build an object
    except RecursionError:
        raise UserError(f"{where}: lists or mappings are nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        advice = [text for part, text in ADVICE.items() if part in str(error.problem)]
        problem = str(error.problem).removeprefix("but ")
        raise UserError(f"{where}{line}: {'; '.join([problem, *advice])}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not YAML: {error}") from None
