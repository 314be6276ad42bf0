"""Every known shape of a row becomes chat messages, [{"role": "user"|"assistant"|"system", "content": str}, ...]."""

import json
from typing import Any

from lib.common.errors import UserError

PAIRS = (
    ("question", "answer"),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("input", "output"),
)
CHATS = (("messages", "role", "content"), ("conversations", "from", "value"))
CHOICES, RIGHT = ("options", "choices"), ("answer_letter", "answer_idx", "answer", "label")
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}
# what `columns:` may name, beside id and topic
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
BESIDE = {
    "context",
    "system",
    "id",
    "topic",
}  # to name only these leaves the shape to be recognised
SHAPES = (
    "messages (role/content), conversations (from/value), question/answer, prompt/completion, instruction/(input)/output, "
    "input/output(/context), question/options/answer_letter"
)


class BadRow(Exception):
    """A row that cannot be read: what is wrong with it, without where it is."""

    def __init__(self, text: str):
        super().__init__(
            text.encode(errors="backslashreplace").decode()
        )  # what it quotes may be what cannot be printed


def named(values: Any) -> dict[str, Any]:
    """A row as its file gave it, known to have named fields; BadRow otherwise."""
    if isinstance(values, BadRow):
        raise values
    if not isinstance(values, dict):
        raise BadRow(f"expected an object with named fields, found {type(values).__name__}.")
    return values


def encodable(*texts: str) -> None:
    """BadRow for texts that no file and no tokenizer takes."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise BadRow(
            "its text has half of a character pair (a lone surrogate), which is not Unicode text. Write the character whole."
        ) from None


def renamed(values: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    """The row with the data's columns under our field names, as `columns` (ours: theirs) says.

    Once a field of the exchange is named, of the rest of the row only question, answer, id and topic count.
    """
    if missing := [theirs for theirs in columns.values() if theirs not in values]:
        raise BadRow(
            f"`columns` names {', '.join(missing)}; the row has {', '.join(map(str, values)) or '(nothing)'}"
        )
    kept = (
        values
        if set(columns) <= BESIDE
        else {k: v for k, v in values.items() if k in ("id", "topic", "question", "answer")}
    )
    return {**kept, **{ours: values[theirs] for ours, theirs in columns.items()}}


def check_columns(columns: dict[str, str]) -> None:
    """UserError when `columns` names a field that no shape has."""
    if wrong := [ours for ours in columns if ours not in FIELDS]:
        raise UserError(
            f"columns: `{wrong[0]}` is not a field of ours; expected some of {', '.join(FIELDS)}, each with the data's column: "
            f"columns: {{question: ask, answer: reply}}"
        )


def known(names: Any) -> bool:
    """Whether columns of these names hold a shape."""
    return (
        any(key in names for key, _, _ in CHATS)
        or any(a in names and b in names for a, b in PAIRS)
        or ("question" in names and any(c in names for c in CHOICES))
    )


def messages(values: dict[str, Any]) -> list[dict[str, str]]:
    """The row as chat messages; BadRow when it has no known shape."""
    for key, role_key, text_key in CHATS:
        if isinstance(values.get(key), list):
            turns = [_turn(turn, role_key, text_key) for turn in values[key]]
            return _system(values) + turns if turns[:1] and turns[0]["role"] != "system" else turns
    if "question" in values and any(values.get(name) for name in CHOICES):
        item = choice(values)
        listed = "\n".join(f"{letter}) {text}" for letter, text in item["options"].items())
        return _exchange(
            values,
            [values.get("context"), item["question"], listed],
            item["options"][item["answer_letter"]],
        )
    pairs = [(ask, reply) for ask, reply in PAIRS if ask in values and reply in values]
    # files of mixed shapes have every column in every row: the pair is the one that is filled
    if pairs:
        ask, reply = min(pairs, key=lambda pair: not (values[pair[0]] or values[pair[1]]))
        more = values.get("input") if ask == "instruction" else None
        return _exchange(values, [values[ask], more, values.get("context")], values[reply])
    if wrong := [key for key, _, _ in CHATS if values.get(key) is not None]:
        raise BadRow(f"its {wrong[0]} are {_shown(values[wrong[0]])}; expected a list of turns")
    raise BadRow(
        f"no known shape; its fields are {', '.join(map(str, values)) or '(none)'}.\nKnown shapes: {SHAPES}.\n"
        f"Other names are told with columns, e.g. columns: {{question: ask, answer: reply}}"
    )


def choice(values: dict[str, Any]) -> dict[str, Any]:
    """A multiple-choice row as {"question", "options": {"A": text, ...}, "answer_letter"}; BadRow when no option is right.

    The right one may be given as a letter, as a number from 0, or in words.
    """
    options = next((values[name] for name in CHOICES if values.get(name)), None)
    if isinstance(options, BadRow):  # a letter twice in one object
        raise options
    if isinstance(options, list) and all(
        isinstance(o, dict) and {"key", "value"} <= set(o) for o in options
    ):
        letters = [o["key"] for o in options]
        if twice := next((letter for letter in letters if letters.count(letter) > 1), None):
            raise BadRow(
                f"its options have the letter {_shown(twice)} twice; expected a letter each"
            )
        options = {o["key"]: o["value"] for o in options}
    if isinstance(options, list):
        options = {chr(65 + n): text for n, text in enumerate(options)}
    if isinstance(options, dict):  # in a parquet file every row has the letters of the longest
        options = {str(k): v for k, v in options.items() if v is not None}
    if (
        not isinstance(options, dict)
        or len(options) < 2
        or not all(isinstance(o, str | int | float) for o in options.values())
    ):
        raise BadRow(
            f"its options are {_shown(options)}; expected a list of texts, or letters with texts"
        )
    options = {k: str(v) for k, v in options.items()}
    right = next((values[name] for name in RIGHT if values.get(name) is not None), None)
    if isinstance(right, int):
        letter = list(options)[right] if 0 <= right < len(options) else None
    else:
        named = str(right).strip()
        letter = (
            named
            if named in options
            else next((k for k, v in options.items() if v.strip() == named), None)
        )
    if letter is None:
        raise BadRow(
            f"its answer is {_shown(right)}; expected one of {', '.join(options)}, its number from 0, or its words"
        )
    return {
        "question": as_text(values.get("question")),
        "options": options,
        "answer_letter": letter,
    }


def _exchange(values: dict[str, Any], asked: list[Any], answer: Any) -> list[dict[str, str]]:
    question = "\n\n".join(text for part in asked if (text := as_text(part).strip()))
    return [
        *_system(values),
        {"role": "user", "content": question},
        {"role": "assistant", "content": as_text(answer)},
    ]


def _system(values: dict[str, Any]) -> list[dict[str, str]]:
    text = values.get("system") or values.get("system_prompt")
    return [{"role": "system", "content": text}] if isinstance(text, str) else []


def _turn(turn: Any, role_key: str, text_key: str) -> dict[str, str]:
    role = (
        ROLES.get(turn.get(role_key))
        if isinstance(turn, dict) and isinstance(turn.get(role_key), str)
        else None
    )
    if role is None or text_key not in turn:
        raise BadRow(
            f"a turn is {_shown(turn)}; expected {role_key} (one of {', '.join(ROLES)}) and {text_key}."
        )
    return {"role": role, "content": as_text(turn[text_key])}


def as_text(value: Any) -> str:
    """A field as text; BadRow where it holds something else."""
    if isinstance(value, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in value
    ):
        return "\n".join(part["text"] for part in value)  # OpenAI's content parts
    if value is None or value != value:  # NaN is what pandas writes for nothing
        return ""
    if not isinstance(value, str | int | float):
        raise BadRow(f"a text is {_shown(value)}; expected a text, or parts of the type text")
    return str(value)


def _shown(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=str)[:120]
    except RecursionError:
        return f"a {type(value).__name__} that cannot be shown"
