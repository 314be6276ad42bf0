"""Convert rows of every known shape into chat messages.

to_messages({"question": "...", "answer": "..."})
# [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]
"""

import json
from collections.abc import Collection
from typing import Any

from lib.common.errors import UserError

PAIRS = (
    ("question", "answer"),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("input", "output"),
)
CHATS = (("messages", "role", "content"), ("conversations", "from", "value"))
CHOICES = ("options", "choices")
RIGHT = ("answer_letter", "answer_idx", "answer", "label")
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}
# the fields that `columns:` may name
FIELDS = (
    "question",
    "answer",
    "context",
    "system",
    "options",
    "answer_letter",
    "messages",
    "conversations",
    "id",
    "topic",
)
# if `columns:` names only these, the shape is still recognised by the row's other fields
BESIDE = {"context", "system", "id", "topic"}
SHAPES = (
    "messages (role/content), conversations (from/value), question/answer, prompt/completion, "
    "instruction/(input)/output, input/output(/context), question/options/answer_letter"
)
Messages = list[dict[str, str]]


class BadRow(Exception):
    """A row that cannot be read; the text says what is wrong with it, but not where it is."""

    def __init__(self, text: str) -> None:
        # the text may quote characters that cannot be printed
        super().__init__(text.encode(errors="backslashreplace").decode())


# -------------------------------------------------------------------------------------------------
# fields


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
    for key, role_key, _ in CHATS:
        if values and all(isinstance(turn, dict) and role_key in turn for turn in values):
            return f'. It is a bare list of turns: write {{"{key}": [...]}} around each'
    if values and all(isinstance(text, str) for text in values):
        return '. It is a list of texts: name them, as in {"question": "...", "answer": "..."}'
    return ""


def require_unicode(*texts: str) -> None:
    """Raise BadRow for text that cannot be encoded, so that no file or tokenizer accepts it."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise BadRow(
            "its text has half of a character pair (a lone surrogate), which is not Unicode text. "
            "Write the complete character."
        ) from None


def list_fields(values: dict[str, Any]) -> str:
    """Return the names of a row's fields, for messages; empty for a row without any."""
    return ", ".join(map(str, values))


def rename_columns(values: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    """Return a row with the data's columns under our field names; `columns` is {ours: theirs}.

    If `columns` names a field of the exchange, only question, answer, id and topic are kept of the
    row's other fields.
    """
    missing = [theirs for theirs in columns.values() if theirs not in values]
    if missing:
        raise BadRow(
            f"`columns` names {', '.join(missing)}; the row has "
            f"{list_fields(values) or '(nothing)'}"
        )
    if set(columns) <= BESIDE:
        kept = values
    else:
        counts = ("id", "topic", "question", "answer")
        kept = {name: value for name, value in values.items() if name in counts}
    return {**kept, **{ours: values[theirs] for ours, theirs in columns.items()}}


def check_columns(columns: dict[str, str]) -> None:
    """Raise UserError when `columns` names a field that no shape has."""
    wrong = [ours for ours in columns if ours not in FIELDS]
    if wrong:
        raise UserError(
            f"columns: `{wrong[0]}` is not a known field; expected some of {', '.join(FIELDS)}, "
            f"each with the data's column, for example columns: {{question: ask, answer: reply}}"
        )


def has_known_shape(names: Collection[str]) -> bool:
    """Tell whether columns of these names form a known shape."""
    return (
        any(key in names for key, _, _ in CHATS)
        or any(ask in names and reply in names for ask, reply in PAIRS)
        or ("question" in names and any(name in names for name in CHOICES))
    )


# -------------------------------------------------------------------------------------------------
# messages


def to_messages(values: dict[str, Any]) -> Messages:
    """Return a row as chat messages; raise BadRow when it has no known shape."""
    for key, role_key, text_key in CHATS:
        if isinstance(values.get(key), list):
            return _read_chat(values, key, role_key, text_key)
    if "question" in values and any(values.get(name) for name in CHOICES):
        return _read_choice(values)
    pairs = [(ask, reply) for ask, reply in PAIRS if ask in values and reply in values]
    if pairs:
        # a file of mixed shapes has every column in every row: the pair with values counts
        filled = [pair for pair in pairs if values[pair[0]] or values[pair[1]]]
        ask, reply = filled[0] if filled else pairs[0]
        more = values.get("input") if ask == "instruction" else None
        return _exchange(values, [values[ask], more, values.get("context")], values[reply])
    wrong = [key for key, _, _ in CHATS if values.get(key) is not None]
    if wrong:
        raise BadRow(
            f"its {wrong[0]} field is {_quote(values[wrong[0]])}; expected a list of turns"
        )
    raise BadRow(
        f"no known shape; its fields are {list_fields(values) or '(none)'}.\n"
        f"Known shapes: {SHAPES}.\n"
        f"Map other names with columns, e.g. columns: {{question: ask, answer: reply}}"
    )


def _read_chat(values: dict[str, Any], key: str, role_key: str, text_key: str) -> Messages:
    turns = [_read_turn(turn, role_key, text_key) for turn in values[key]]
    if turns and turns[0]["role"] != "system":
        return _system(values) + turns
    return turns


def _read_turn(turn: Any, role_key: str, text_key: str) -> dict[str, str]:
    name = turn.get(role_key) if isinstance(turn, dict) else None
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None or text_key not in turn:
        raise BadRow(
            f"a turn is {_quote(turn)}; expected {role_key} (one of {', '.join(ROLES)}) and "
            f"{text_key}."
        )
    return {"role": role, "content": as_text(turn[text_key])}


def _read_choice(values: dict[str, Any]) -> Messages:
    item = to_choice(values)
    options = item["options"]
    listed = "\n".join(f"{letter}) {text}" for letter, text in options.items())
    asked = [values.get("context"), item["question"], listed]
    return _exchange(values, asked, options[item["answer_letter"]])


def _exchange(values: dict[str, Any], asked: list[Any], answer: Any) -> Messages:
    texts = [as_text(part).strip() for part in asked]
    return [
        *_system(values),
        {"role": "user", "content": "\n\n".join(text for text in texts if text)},
        {"role": "assistant", "content": as_text(answer)},
    ]


def _system(values: dict[str, Any]) -> Messages:
    text = values.get("system") or values.get("system_prompt")
    return [{"role": "system", "content": text}] if isinstance(text, str) else []


# -------------------------------------------------------------------------------------------------
# multiple choice


def to_choice(values: dict[str, Any]) -> dict[str, Any]:
    """Return a multiple-choice row as {"question", "options": {"A": text, ...}, "answer_letter"}.

    The right option may be given as a letter, as a number from 0, or in words. Raise BadRow when
    it is none of the options.
    """
    options = _read_options(values)
    right = next((values[name] for name in RIGHT if values.get(name) is not None), None)
    letter = _find_letter(right, options)
    if letter is None:
        raise BadRow(
            f"its answer is {_quote(right)}; expected one of {', '.join(options)}, the number of "
            f"an option from 0, or its text"
        )
    return {
        "question": as_text(values.get("question")),
        "options": options,
        "answer_letter": letter,
    }


def _read_options(values: dict[str, Any]) -> dict[str, str]:
    """Return {letter: text} of the options, in whatever form the row has them."""
    options = next((values[name] for name in CHOICES if values.get(name)), None)
    if isinstance(options, BadRow):  # the object has a letter twice
        raise options
    if isinstance(options, list):
        options = _letter_options(options)
    if isinstance(options, dict):  # in parquet, each row has a column for every letter of the file
        options = {str(letter): text for letter, text in options.items() if text is not None}
    if (
        not isinstance(options, dict)
        or len(options) < 2
        or not all(isinstance(text, str | int | float) for text in options.values())
    ):
        raise BadRow(
            f"its options are {_quote(options)}; expected a list of texts, or {{letter: text}}"
        )
    return {letter: str(text) for letter, text in options.items()}


def _letter_options(options: list[Any]) -> dict[Any, Any]:
    """Return {letter: text} of a list: with its own letters, as in MedQA, or with A, B, C, ..."""
    if not all(isinstance(o, dict) and {"key", "value"} <= set(o) for o in options):
        return {chr(65 + n): text for n, text in enumerate(options)}
    letters = [option["key"] for option in options]
    for letter in letters:
        if letters.count(letter) > 1:
            raise BadRow(
                f"its options have the letter {_quote(letter)} twice; expected a different letter "
                f"for each"
            )
    return {option["key"]: option["value"] for option in options}


def _find_letter(right: Any, options: dict[str, str]) -> str | None:
    if isinstance(right, int):
        letters = list(options)
        return letters[right] if 0 <= right < len(letters) else None
    named = str(right).strip()
    if named in options:
        return named
    return next((letter for letter, text in options.items() if text.strip() == named), None)


# -------------------------------------------------------------------------------------------------
# values


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
        raise BadRow(f"a text field is {_quote(value)}; expected a string, or parts of type text")
    return str(value)


def _quote(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=str)[:120]
    except RecursionError:
        return f"a {type(value).__name__} that cannot be shown"
