"""Read the turns of a conversation: who speaks, what is said, and whether an answer is trained."""

from collections.abc import Mapping
from typing import Any

from lib.data.cleaning.turns import MASKED, Turn
from lib.data.reading.row_parts import marks
from lib.data.reading.row_parts.fields import (
    BadRow,
    DroppedRow,
    Fields,
    as_text,
    fold_names,
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
# fields that say whether an answer is trained: OpenAI and ShareGPT, Axolotl, ms-swift, verl
WEIGHTS = ("weight", "train", "training", "loss", "loss_mask", "loss_weight", "trainable")
NOT_TRAINED = ("masked", "no_loss", "ignore_loss")  # say the opposite
# fields that train a part of an answer, or of which nobody knows the sense
NOT_HONOURED = ("mask", "train_detail", "training_detail")
ALL_WEIGHTS = (*WEIGHTS, *NOT_TRAINED, *NOT_HONOURED)
WEIGHT_VALUES = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
HISTORIES = (
    "history",
    "chat_history",
    "conversation_history",
    "dialogue_history",
    "dialog_history",
    "message_history",
    "previous_turns",
    "previous_messages",
    "past_messages",
)
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
    folded = fold_names(tuple(said))
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
    weights = {ours: theirs for ours, theirs in folded.items() if ours in ALL_WEIGHTS}
    read = {role_key, text_key, *weights.values()}
    if role == "assistant":
        read |= _drop_marked_wrong(said, folded, field)
    row.unread_inside |= {
        f"{field}[].{key}" for key, value in said.items() if key not in read and is_filled(value)
    }
    if role == "assistant" and not _find_weight(said, weights):
        return {"role": role, "content": as_text(text), MASKED: "yes"}
    return {"role": role, "content": as_text(text)}


def _is_media(part: Any) -> bool:
    return isinstance(part, dict) and str(part.get("type", "text")) not in ("text", "input_text")


def _find_weight(turn: dict[str, Any], names: dict[str, str]) -> bool:
    """Tell whether an answer is trained; other weights than 0 and 1 cannot be honoured.

    `names` are {our name: theirs} of the turn's fields that say so.
    """
    trained = True
    for ours, theirs in names.items():
        value = turn[theirs]
        if not is_filled(value):
            continue
        if ours in NOT_HONOURED:
            raise BadRow(
                f"a turn's {theirs} is {quote(value)}, which is not read. Say which answers are "
                f"trained by `train`: true or false in each turn, or remove the field."
            )
        weight = read_weight(value, f"a turn's {theirs}")
        trained = (weight != (ours in NOT_TRAINED)) and trained
    return trained


def _drop_marked_wrong(turn: dict[str, Any], names: Mapping[str, str], field: str) -> set[str]:
    """Raise DroppedRow for an answer that its turn marks as wrong; return the fields that judge."""
    read = set()
    for ours, theirs in names.items():
        kind = marks.find_kind(ours)
        if kind not in (marks.RIGHT, marks.WRONG) or not is_filled(turn[theirs]):
            continue
        read.add(theirs)
        if not read_sure_mark(f"{field}[].{theirs}", kind, turn[theirs]):
            why = f"its `{field}[].{theirs}` is {quote(turn[theirs])}"
            raise DroppedRow("marked_wrong", why)
    return read


def read_sure_mark(name: str, kind: str, value: Any) -> bool:
    """Return whether a field whose name judges calls the answer right.

    Raise BadRow for a value that is neither true nor false.
    """
    verdict = marks.read_mark(kind, value)
    if verdict is None:
        raise BadRow(
            f"its `{name}` is {quote(value)}, and by its name it says whether the answer is "
            f"{kind}; expected true or false (or yes, no, 1, 0, accepted, rejected, ...). Write "
            f"one of them. If it says something else, name the columns that count, for example "
            f"columns: {{question: ask, answer: reply}}"
        )
    return verdict


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

    They are [question, answer] each (LLaMA-Factory, ms-swift), objects, or turns. Raise BadRow for
    another form, and for two fields that hold unlike histories.
    """
    names = [name for name in HISTORIES if row.is_filled(name)]
    histories = [_read_history(row, name) for name in names]
    if any(history != histories[0] for history in histories):
        raise BadRow(
            f"its fields {' and '.join(str(row.names[name]) for name in names)} hold different "
            f"earlier exchanges. Keep one, or name it with columns: {{history: "
            f"{row.names[names[0]]}}} and rename the other."
        )
    return histories[0] if histories else []


def _read_history(row: Fields, name: str) -> list[Turn]:
    history = rows_of(unpack(row.get(name)))
    theirs = row.names[name]
    if has_turns(history):
        return read_turns(row, history, name)
    if not isinstance(history, list):
        raise _refuse_history(theirs, history)
    return [turn for exchange in history for turn in _read_exchange(theirs, exchange)]


def _read_exchange(theirs: str, exchange: Any) -> list[Turn]:
    if isinstance(exchange, dict):
        own = next((pair for pair in HISTORY_PAIRS if set(pair) == set(exchange)), None)
        exchange = [exchange[name] for name in own] if own else exchange
    is_pair = isinstance(exchange, list | tuple) and len(exchange) == 2
    if not is_pair or not all(isinstance(text, str) for text in exchange):
        raise _refuse_history(theirs, exchange)
    question, answer = exchange
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _refuse_history(theirs: str, value: Any) -> BadRow:
    return BadRow(
        f"its {theirs} field is {quote(value)}; expected earlier exchanges, as "
        f"[[question, answer], ...] or as turns. If it belongs to the question, name it with "
        f"columns: {{context: {theirs}}}; if it does not count, name the columns "
        f"that do, for example columns: {{question: ask, answer: reply}}."
    )
