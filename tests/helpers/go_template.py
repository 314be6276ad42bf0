"""Go's text/template, as much of it as the files for Ollama and LocalAI use; anything else is an error, never a guess.

    render("{{ range .Messages }}{{ .Content }}{{ end }}", {"Messages": [{"Content": "Hi"}]})

Held against Go's own output in tests/helpers/go_templates.json. The packages that know all of Go's are 27,000 lines, or compile it.
"""

import json
import re
from collections import ChainMap
from collections.abc import Callable
from typing import Any

_ACTION = re.compile(
    r"\{\{(-(?=[ \t\r\n]))?(.*?)((?<=[ \t\r\n])-)?\}\}", re.DOTALL
)  # a dash next to a space trims the text next to it
_TOKEN = re.compile(r'"(?:[^"\\\n]|\\.)*"|:=|[=,()]|\d+|\$?\w*(?:\.\w+)+|\$\w*|[A-Za-z]\w*|\.')


def _need(right: bool, what: str) -> None:
    if not right:
        raise ValueError(f"Go template: {what}")


def _equal(a: Any, b: Any) -> bool:
    _need(type(a) is type(b), f"{a!r} and {b!r} are of different kinds")
    return a == b


def _list(value: Any) -> list[Any]:
    _need(isinstance(value, list), f"{value!r} is not a list")  # for a text, Go counts bytes
    return value


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "and": lambda a, b: b if a else a,
    "or": lambda a, b: a if a else b,
    "not": lambda a: not a,
    "eq": _equal,
    "ne": lambda a, b: not _equal(a, b),
    "len": lambda v: len(_list(v)),
    "slice": lambda v, start: _list(v)[start:],
}


def render(
    template: str, data: dict[str, Any], functions: dict[str, Callable[..., Any]] | None = None
) -> str:
    """Return the text of a template for data of dicts, lists, texts and whole numbers; `functions` are known besides Go's own.

    ValueError for a construct, function, variable or field that is not known, also where Go would print <no value>.
    """
    items, end, trim, out = [], 0, False, []
    for match in [*_ACTION.finditer(template), None]:
        text = template[end : match.start() if match else None]
        text = text.lstrip(" \t\r\n") if trim else text
        items.append(text.rstrip(" \t\r\n") if match and match[1] else text)
        if match:
            _need(
                not _TOKEN.sub("", match[2]).strip() and match[2].strip() != "",
                f"{match[0]} is not understood",
            )
            items.append(_TOKEN.findall(match[2]))
            end, trim = match.end(), bool(match[3])
    known = {"if", "else", "end", "range", *FUNCTIONS, *(functions or {})}
    for item in items:
        words = [] if isinstance(item, str) else [token for token in item if token[0].isalpha()]
        _need(
            {*words} <= known and "{{" not in (item if isinstance(item, str) else ""),
            f"{item!r} is not understood",
        )
    scope = ChainMap({".": data, "$": data}, {**FUNCTIONS, **(functions or {})})
    try:
        _need(_run(items, 0, scope, out) == len(items), "there is an `end` or `else` too many")
    except TypeError as error:  # a function with too many operands, or too few
        raise ValueError(f"Go template: {error}") from None
    return "".join(out)


def _run(items: list[Any], place: int, scope: ChainMap, out: list[str] | None) -> int:
    """Render a block from `place` on, or skip it if `out` is None; return the place of the `else` or `end` that closes it."""
    while place < len(items) and items[place][:1] not in (["else"], ["end"]):
        item = items[place]
        if isinstance(item, str):
            out is None or out.append(item)
        elif item[0] == "range":
            names, over = (item[1:4:2], item[5:]) if item[2:5:2] == [",", ":="] else ([], item[1:])
            start, elements = place + 1, [] if out is None else _list(_value(over, scope))
            place = _run(items, start, scope.new_child(), None)
            for element in enumerate(elements):
                _run(
                    items,
                    start,
                    scope.new_child({**dict(zip(names, element, strict=False)), ".": element[1]}),
                    out,
                )
            _need(items[place : place + 1] == [["end"]], "a `range` has no `end`")
        elif item[0] == "if":
            wanted, stop = out, item
            while stop != ["end"]:
                _need(
                    "if" in stop[:2] and stop[-1] != "if" or stop == ["else"],
                    f"{stop} is not understood",
                )
                taken = wanted is not None and (
                    stop == ["else"] or bool(_value(stop[stop.index("if") + 1 :], scope))
                )
                place = _run(items, place + 1, scope.new_child(), wanted if taken else None)
                _need(
                    place < len(items)
                    and stop != ["else"]
                    or items[place : place + 1] == [["end"]],
                    "an `if` has no `end`",
                )
                wanted, stop = None if taken else wanted, items[place]
        elif out is not None and item[1:2] in ([":="], ["="]):
            # `:=` makes a variable in this block, `=` reaches the block that has it
            home = (
                scope.maps[0]
                if item[1] == ":="
                else next((names for names in scope.maps if item[0] in names), {})
            )
            _need(
                re.fullmatch(r"\$\w+", item[0]) is not None
                and (item[1] == ":=" or item[0] in home),
                f"{item[0]} cannot be set",
            )
            home[item[0]] = _value(item[2:], scope)
        elif out is not None:
            value = _value(item, scope)
            _need(type(value) in (str, int), f"{value!r} is not a text or a whole number")
            out.append(str(value))
        place += 1
    return place


def _value(tokens: list[str], scope: ChainMap) -> Any:
    """Return a function's result for its operands, or the value of a single operand."""
    waiting: list[list[Any]] = [[]]  # one list a bracket
    for number, token in enumerate([*tokens, ")"]):
        if token == "(":
            waiting.append([])
        elif token == ")":
            first, *operands = waiting.pop() or [None]
            _need(
                first is not None and callable(first) | (not operands),
                f"{' '.join(tokens)!r} is not understood",
            )
            value = first(*operands) if callable(first) else first
            if not waiting:
                _need(number == len(tokens), f"a bracket of {' '.join(tokens)!r} is not open")
                return value
            waiting[-1].append(value)
        elif token[0] == '"' or token.isdigit():
            waiting[-1].append(
                json.loads(token)
            )  # Go's and JSON's escapes agree where both have one
        else:
            head, *fields = [token] if token == "." else token.split(".")
            _need((head or ".") in scope, f"{token!r} is not known")
            value = scope[head or "."]
            for field in fields:
                _need(
                    isinstance(value, dict) and field in value,
                    f"there is no {field!r} for {token!r}",
                )
                value = value[field]
            waiting[-1].append(value)
    raise ValueError(f"Go template: a bracket of {' '.join(tokens)!r} is not closed")
