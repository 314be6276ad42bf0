"""Read the turns of a conversation: who speaks, what is said, and whether an answer is trained."""

from typing import Any

from lib.data.cleaning.turns import MASKED, Turn
from lib.data.reading.row_parts.fields import (
    BadRow,
    DroppedRow,
    Fields,
    as_text,
    is_filled,
    quote,
    rows_of,
    unpack,
)

ROLES = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
    "developer": "system",
}
TOOL_ROLES = ("tool", "function", "function_call", "observation", "ipython")
TOOL_FIELDS = ("tool_calls", "function_call")
# fields that say whether an answer is trained: OpenAI and ShareGPT, Axolotl, ms-swift
WEIGHTS = ("weight", "train", "training", "loss")
WEIGHT_VALUES = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
# exchanges of a history that are objects
HISTORY_PAIRS = (
    ("question", "answer"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("input", "output"),
    ("query", "response"),
    ("user", "assistant"),
    ("human", "assistant"),
)


def is_chat(value: Any) -> bool:
    """Tell whether a field holds a list that can be turns, as a list or written as text."""
    return isinstance(rows_of(unpack(value)), list)


def has_turns(value: Any) -> bool:
    """Tell whether a field of an exchange holds turns, and not a text or parts of a text."""
    turns = _list_turns(value)
    return (
        isinstance(turns, list)
        and len(turns) > 0
        and all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in turns)
    )


def _list_turns(value: Any) -> Any:
    turns = rows_of(unpack(value))
    return [turns] if isinstance(turns, dict) else turns


def read_turns(row: Fields, value: Any, field: str) -> list[Turn]:
    """Return the turns in a field; a turn's fields that are not read are noted as unread."""
    return [_read_turn(row, turn, field) for turn in _list_turns(value)]


def read_side(row: Fields, name: str, role: str) -> list[Turn]:
    """Return one side of an exchange, a text or one or several turns, as turns."""
    value = row.get(name)
    if not has_turns(value):
        return [{"role": role, "content": as_text(value)}]
    return read_turns(row, value, name)


def join_sides(asked: list[Turn], answered: list[Turn]) -> list[Turn]:
    """Return prompt and answer as one conversation.

    An answer that is a whole conversation, as in preferences, has to begin with the prompt.
    """
    if answered[0]["role"] == "assistant":
        return [*asked, *answered]
    has_system = answered[0]["role"] == "system" != asked[0]["role"]
    begin = answered[has_system : len(asked) + has_system]
    if [turn["content"].strip() for turn in begin] != [turn["content"].strip() for turn in asked]:
        raise BadRow(
            f"its prompt is {quote(asked[-1]['content'])}, but the conversation that answers it "
            f"begins with {quote(begin[0]['content'])}. Give the answer alone."
        )
    return answered


def _read_turn(row: Fields, turn: Any, field: str) -> Turn:
    said = turn if isinstance(turn, dict) else {}
    role_key = "role" if said.get("role") is not None else "from"
    text_key = "content" if "content" in said else "value"
    name = said.get(role_key)
    own = name.strip().casefold() if isinstance(name, str) else ""
    if own in TOOL_ROLES or any(is_filled(said.get(key)) for key in TOOL_FIELDS):
        raise DroppedRow("tool_call", f"its {field} hold a tool call: {quote(turn)}")
    role = ROLES.get(own)
    if role is None or text_key not in said:
        raise BadRow(
            f"a turn is {quote(turn)}; expected role or from (one of {', '.join(ROLES)}) and "
            f"content or value."
        )
    text = said[text_key]
    if isinstance(text, list) and any(_is_media(part) for part in text):
        raise DroppedRow("image_not_read", f"a turn of its {field} holds {quote(text)}")
    read = {role_key, text_key, *WEIGHTS}
    row.unread_inside |= {
        f"{field}[].{key}" for key, value in said.items() if key not in read and is_filled(value)
    }
    if role == "assistant" and not _find_weight(said):
        return {"role": role, "content": as_text(text), MASKED: "yes"}
    return {"role": role, "content": as_text(text)}


def _is_media(part: Any) -> bool:
    return isinstance(part, dict) and str(part.get("type", "text")) not in ("text", "input_text")


def _find_weight(turn: dict[str, Any]) -> bool:
    """Tell whether an answer is trained; other weights than 0 and 1 cannot be honoured."""
    trained = True
    for key in WEIGHTS:
        value = turn.get(key)
        if not is_filled(value):
            continue
        trained = read_weight(value, f"a turn's {key}") and trained
    return trained


def read_weight(value: Any, what: str) -> bool:
    """Return whether something of this weight is trained; raise BadRow for others than 0 and 1."""
    weight = WEIGHT_VALUES.get(str(value).strip().casefold())
    if weight is None:
        raise BadRow(
            f"{what} is {quote(value)}; expected 0 (not trained) or 1. Round it, or remove the "
            f"field."
        )
    return weight


# -------------------------------------------------------------------------------------------------
# history


def read_history(row: Fields) -> list[Turn]:
    """Return the earlier exchanges of a row, which come before its question, as turns.

    They are [question, answer] each (LLaMA-Factory, ms-swift), objects, or turns.
    """
    if not row.is_filled("history"):
        return []
    history = rows_of(unpack(row.get("history")))
    if has_turns(history):
        return read_turns(row, history, "history")
    if not isinstance(history, list):
        raise _refuse_history(row, history)
    return [turn for exchange in history for turn in _read_exchange(row, exchange)]


def _read_exchange(row: Fields, exchange: Any) -> list[Turn]:
    if isinstance(exchange, dict):
        own = next((pair for pair in HISTORY_PAIRS if set(pair) == set(exchange)), None)
        exchange = [exchange[name] for name in own] if own else exchange
    is_pair = isinstance(exchange, list | tuple) and len(exchange) == 2
    if not is_pair or not all(isinstance(text, str) for text in exchange):
        raise _refuse_history(row, exchange)
    question, answer = exchange
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _refuse_history(row: Fields, value: Any) -> BadRow:
    return BadRow(
        f"its {row.names['history']} field is {quote(value)}; expected earlier exchanges, as "
        f"[[question, answer], ...] or as turns. If it belongs to the question, name it with "
        f"columns: {{context: {row.names['history']}}}; if it does not count, name the columns "
        f"that do, for example columns: {{question: ask, answer: reply}}."
    )
