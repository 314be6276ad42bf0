"""A row's fields: found by our names, remembered as read, and their values as text.

row = Fields({"Question": "...", "Answer": "...", "source": "WHO"})
row.get("question"), row.get("answer")
row.split()  # ("Question", "Answer"), ("source",)
"""

import ast
import functools
import json
import re
from collections.abc import Mapping
from typing import Any

from lib.common.errors import UserError

# the fields that `columns:` may name
FIELDS = (
    "question",
    "answer",
    "context",
    "system",
    "history",
    "options",
    "answer_letter",
    "messages",
    "conversations",
    "text",
    "id",
    "topic",
    "is_correct",
)
# if `columns:` names only these, the shape is still recognised by the row's other fields
BESIDE = {"context", "system", "history", "id", "topic", "is_correct"}
# the fields that are still taken from a row when `columns` names others
KEPT = ("id", "topic", "question", "answer")


CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z][a-z])")  # between the words of `isCorrect`


class BadRow(Exception):
    """A row that cannot be read; the text says what is wrong with it, but not where it is."""

    def __init__(self, text: str) -> None:
        # the text may quote characters that cannot be printed
        super().__init__(text.encode(errors="backslashreplace").decode())


class DroppedRow(BadRow):
    """A row that can be read and must not be trained on, with the reason under which it counts."""

    def __init__(self, reason: str, text: str, row_id: str = "") -> None:
        super().__init__(text)
        self.reason = reason
        self.row_id = row_id


# -------------------------------------------------------------------------------------------------
# names


def fold_name(name: Any) -> str:
    """Return a field's name as ours are written: `Answer Letter`, `answerLetter`: answer_letter."""
    words = CAMEL.sub("_", str(name).strip()).casefold().replace("-", " ")
    return "_".join(words.split())


@functools.lru_cache(maxsize=1024)
def fold_names(names: tuple[Any, ...]) -> Mapping[str, Any]:
    """Return {our name: theirs}; of two names that are one to us, the one written as ours wins."""
    found: dict[str, Any] = {}
    for name in names:
        folded = fold_name(name)
        if folded == name or folded not in found:
            found[folded] = name
    return found


class Fields:
    """A row's values by our names; `columns` is {ours: theirs} for names that are not recognised.

    If `columns` names a field of the exchange, only the fields in KEPT are taken from the others;
    beside a named answer_letter, no other answer.
    """

    def __init__(self, values: dict[str, Any], columns: Mapping[str, str] | None = None) -> None:
        self.values = values
        self.names = fold_names(tuple(values))
        self.read: set[Any] = set()  # their names
        self.unread_inside: set[str] = set()  # of the turns, as messages[].name
        if columns:
            self.names = _choose_names(values, self.names, columns)
        self.shape = tuple(self.names)  # what depends on the names alone is found once for each

    def peek(self, name: str) -> Any:
        """Return a field's value, or None, without noting it as read."""
        theirs = self.names.get(name)
        return None if theirs is None else self.values[theirs]

    def get(self, name: str) -> Any:
        """Return a field's value, or None, and note it as read."""
        theirs = self.names.get(name)
        if theirs is None:
            return None
        self.read.add(theirs)
        return self.values[theirs]

    def is_filled(self, name: str) -> bool:
        """Tell whether the row has a value in this field."""
        return is_filled(self.peek(name))

    def split(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the row's own names of the fields with a value: those read, and the others."""
        filled = [name for name, value in self.values.items() if is_filled(value)]
        unread = [str(name) for name in filled if name not in self.read]
        unread += sorted(self.unread_inside)
        return tuple(str(name) for name in filled if name in self.read), tuple(unread)

    def describe(self) -> str:
        """Return the names of the row's fields, for messages; empty for a row without any."""
        return ", ".join(map(str, self.values))


def _choose_names(
    values: dict[str, Any], names: Mapping[str, Any], columns: Mapping[str, str]
) -> dict[str, Any]:
    missing = [theirs for theirs in columns.values() if theirs not in values]
    if missing:
        raise BadRow(
            f"`columns` names {', '.join(missing)}; the row has "
            f"{', '.join(map(str, values)) or '(nothing)'}"
        )
    # a column that has been given another name of ours has lost its own
    free = {ours: theirs for ours, theirs in names.items() if theirs not in columns.values()}
    if set(columns) <= BESIDE:
        return {**free, **columns}
    kept = [name for name in KEPT if name != "answer" or "answer_letter" not in columns]
    return {**{name: free[name] for name in kept if name in free}, **columns}


def check_columns(columns: dict[str, str]) -> None:
    """Raise UserError when `columns` names a field that no shape has."""
    wrong = [ours for ours in columns if ours not in FIELDS]
    if wrong:
        raise UserError(
            f"columns: `{wrong[0]}` is not a known field; expected some of {', '.join(FIELDS)}, "
            f"each with the data's column, for example columns: {{question: ask, answer: reply}}"
        )


def require_fields(values: Any) -> dict[str, Any]:
    """Return a row as its file gave it; raise BadRow unless it is an object with named fields."""
    if isinstance(values, BadRow):
        raise values
    if isinstance(values, list):
        raise BadRow(f"its type is list; expected an object with named fields{_name_list(values)}.")
    if not isinstance(values, dict):
        raise BadRow(f"its type is {type(values).__name__}; expected an object with named fields.")
    return values


def _name_list(values: list[Any]) -> str:
    """Return how a row that is a bare list would be written as an object, or ""."""
    for key, role_key in (("messages", "role"), ("conversations", "from")):
        if values and all(isinstance(turn, dict) and role_key in turn for turn in values):
            return f'. It is a bare list of turns: write {{"{key}": [...]}} around each'
    if values and all(isinstance(text, str) for text in values):
        return '. It is a list of texts: name them, as in {"question": "...", "answer": "..."}'
    return ""


# -------------------------------------------------------------------------------------------------
# values


def is_filled(value: Any) -> bool:
    """Tell whether a field holds something: not null, NaN, blank or an empty list."""
    if value is None:
        return False
    if isinstance(value, str):
        return value != "" and not value.isspace()
    if isinstance(value, list | dict | tuple | bytes):
        return len(value) > 0
    return bool(value == value)  # pandas writes NaN for an empty field


def as_text(value: Any) -> str:
    """Return a field as text; raise BadRow where it holds something else."""
    if isinstance(value, BadRow):
        raise value
    if isinstance(value, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in value
    ):
        return "\n".join(part["text"] for part in value)  # OpenAI's content parts
    if value is None or value != value:  # pandas writes NaN for an empty field
        return ""
    if not isinstance(value, str | int | float):
        raise BadRow(f"a text field is {quote(value)}; expected a string, or parts of type text")
    return str(value)


def unpack(value: Any) -> Any:
    """Return a list or object that was written as text, in JSON or as Python prints it.

    A table has such texts where a row of JSON has a list. Any other value is returned as it is.
    """
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "{"):
        return value
    for parse in (_parse_json, ast.literal_eval):
        try:
            parsed = parse(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(parsed, list | dict):
            return parsed
    return value


def _parse_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_refuse_twice)


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise BadRow(f"the field `{name}` is named twice; rename or remove one.")
    return dict(pairs)


def rows_of(value: Any) -> Any:
    """Return {name: [values]} as [{name: value}], the form in which it was written.

    `datasets` gives a Sequence of objects as an object of lists. Any other value is returned as it
    is.
    """
    if not isinstance(value, dict) or not value:
        return value
    columns = list(value.values())
    if not all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        return value
    return [dict(zip(value, own, strict=True)) for own in zip(*columns, strict=True)]


def require_unicode(*texts: str) -> None:
    """Raise BadRow for text that cannot be encoded, so that no file or tokenizer accepts it."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise BadRow(
            "its text has half of a character pair (a lone surrogate), which is not Unicode text. "
            "Write the complete character."
        ) from None


def quote(value: Any) -> str:
    """Return a value as a message shows it, in at most 120 characters."""
    try:
        return json.dumps(value, ensure_ascii=False, default=str)[:120]
    except RecursionError:
        return f"a {type(value).__name__} that cannot be shown"
