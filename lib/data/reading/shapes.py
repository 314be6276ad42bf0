"""Convert rows of every known shape into chat messages.

to_messages({"question": "...", "answer": "..."})
# [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]

Fields that change what a row means are honoured here, or the row is dropped or refused: history,
an unpaired preference's label, pictures, the weight of a turn (`row_parts/chats.py`).
"""

import functools
from collections.abc import Collection, Mapping
from typing import Any

from lib.data.cleaning.control_tokens import has_control_token
from lib.data.cleaning.turns import Turn
from lib.data.reading import templated
from lib.data.reading.row_parts import chats, choice_options, multiple_choice, verdicts
from lib.data.reading.row_parts.fields import (
    BadRow,
    DroppedRow,
    Fields,
    as_text,
    fold_names,
    is_filled,
    quote,
)

# Where a file of mixed shapes fills several pairs, the first counts. `chosen` is the better answer
# of a preference; beside it, `rejected` is never trained.
PAIRS = (
    ("question", "answer"),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("input", "output"),
    ("prompt", "response"),
    ("instruction", "response"),
    ("query", "response"),
    ("question", "response"),
    ("query", "answer"),
    ("prompt", "chosen"),
    ("question", "chosen"),
    ("instruction", "chosen"),
    ("query", "chosen"),
    ("input", "chosen"),
)
ASKING = tuple(dict.fromkeys(ask for ask, _ in PAIRS))
REPLIES = tuple(dict.fromkeys(reply for _, reply in PAIRS))
CHATS = ("messages", "conversations", "conversation")
SYSTEM = ("system", "system_prompt")
TEXT = "text"  # a conversation that a chat template has made one text of
SHAPES = (
    "messages or conversations (turns of role/content or from/value), question/answer, "
    "prompt/completion, instruction/(input)/output, input/output(/context), query/response, "
    "prompt/chosen, question/options/answer_letter, the columns of MedMCQA and PubMedQA, and text "
    "with the turns of a chat template (Gemma, ChatML, Llama, Alpaca, ...)"
)
NO_INPUT = ("<noinput>", "noinput", "no input")  # how Alpaca's kin write an empty `input`
Messages = list[Turn]


def has_known_shape(names: Collection[str]) -> bool:
    """Tell whether columns of these names form a known shape."""
    folded = fold_names(tuple(names))
    return (
        any(key in folded for key in CHATS)
        or any(ask in folded and reply in folded for ask, reply in PAIRS)
        or choice_options.may_be_choice(tuple(folded))
        or TEXT in folded
    )


def to_messages(
    values: dict[str, Any],
    columns: Mapping[str, str] | None = None,
    habits: multiple_choice.Habits | None = None,
) -> Messages:
    """Return a row as chat messages.

    Raise BadRow when it has no known shape, DroppedRow when it must not be trained on, and
    UndecidedRow when other rows of its source decide which option is right.
    """
    seen = verdicts.Seen()
    messages = read_messages(Fields(values, columns), habits, seen)
    verdicts.require_decided(seen)
    return messages


def read_messages(
    row: Fields,
    habits: multiple_choice.Habits | None = None,
    seen: verdicts.Seen | None = None,
) -> Messages:
    """Return a row as chat messages, and note which of its fields were read; see to_messages.

    `seen` gets what the source's fields with verdicts hold.
    """
    verdicts.drop_with_media(row)
    messages = _read_shape(row, habits)
    verdicts.drop_with_placeholder(messages)
    verdicts.drop_without_weight(row)
    verdicts.drop_marked_wrong(row, seen or verdicts.Seen())
    return messages


def _read_shape(row: Fields, habits: multiple_choice.Habits | None) -> Messages:
    keys, pairs = _find_shapes(row.shape)
    listed = [key for key in keys if chats.is_chat(row.peek(key))]
    key = next(filter(row.is_filled, listed), None)
    if key:
        return _begin(row, _read_chat(row, key))
    if multiple_choice.is_choice(row):
        return _begin(row, _read_choice(row, habits))
    if pairs:
        # a file of mixed shapes has every column in every row: the pair with values counts
        filled = [pair for pair in pairs if any(map(row.is_filled, pair))]
        whole = [pair for pair in filled if all(map(row.is_filled, pair))]
        return _begin(row, _read_pair(row, *(whole or filled or pairs)[0]))
    if chats.is_chat(row.peek("chosen")):  # a preference whose prompt is in both conversations
        return _begin(row, chats.read_turns(row, row.get("chosen"), "chosen"))
    if listed:
        row.get(listed[0])
        return []  # a conversation without turns, which is dropped as empty
    for name in (TEXT, "chosen"):  # Anthropic's preferences are whole conversations as text
        turns = _read_templated(row.peek(name))
        if turns:
            row.get(name)
            return _begin(row, turns)
    raise BadRow(_explain_unknown(row))


def _read_templated(text: Any) -> Messages:
    """Return the turns of a templated text; empty for anything else."""
    if not isinstance(text, str):
        return []
    turns = templated.read_turns(text)
    if turns is None and templated.is_templated(text):
        why = f"it is not clear where the turns of its text begin and end: {quote(text)}"
        raise DroppedRow("templated_text", why)
    return turns or []


@functools.lru_cache(maxsize=1024)
def _find_shapes(names: tuple[str, ...]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the keys of conversations, and the pairs, among a row's names."""
    pairs = [(ask, reply) for ask, reply in PAIRS if ask in names and reply in names]
    return [key for key in CHATS if key in names], pairs


def _explain_unknown(row: Fields) -> str:
    wrong = [key for key in CHATS if row.peek(key) is not None]
    if wrong:
        return f"its {wrong[0]} field is {quote(row.peek(wrong[0]))}; expected a list of turns"
    return (
        f"no known shape; its fields are {row.describe() or '(none)'}.\n"
        f"Known shapes: {SHAPES}.\n"
        f"Map other names with columns, e.g. columns: {{question: ask, answer: reply}}"
    )


def _begin(row: Fields, turns: Messages) -> Messages:
    """Return a conversation with the row's system message and its history before it."""
    history = chats.read_history(row)
    if turns and turns[0]["role"] == "system":
        return [turns[0], *history, *turns[1:]]
    name = next((name for name in SYSTEM if row.is_filled(name)), None)
    system = [{"role": "system", "content": as_text(row.get(name))}] if name else []
    return [*system, *history, *turns]


def _read_chat(row: Fields, key: str) -> Messages:
    verdicts.drop_without_weight(row, is_chat=True)
    turns = chats.read_turns(row, row.get(key), key)
    if turns and turns[-1]["role"] == "user" and row.is_filled("chosen"):
        turns += chats.read_side(row, "chosen", "assistant")
    return turns


def _read_choice(row: Fields, habits: multiple_choice.Habits | None) -> Messages:
    item = multiple_choice.to_choice(row, habits)
    options = item["options"]
    choice_options.require_unlike(options)
    listed = "\n".join(f"{letter}) {text}" for letter, text in options.items())
    asked = [read_context(row), item["question"], listed]
    return _exchange(asked, options[item["answer_letter"]])


def _read_pair(row: Fields, ask: str, reply: str) -> Messages:
    question, answer = row.peek(ask), row.peek(reply)
    if chats.has_turns(question) or chats.has_turns(answer):
        asked = chats.read_side(row, ask, "user")
        answered = chats.read_side(row, reply, "assistant")
        return chats.join_sides(asked, answered)
    for name in REPLIES:  # the same text under another name is read, and not said to be unread
        if row.peek(name) == answer:
            row.get(name)
    more = row.get("input") if ask == "instruction" else None
    if isinstance(more, str) and more.strip().casefold() in NO_INPUT:
        more = None
    context = read_context(row)
    if isinstance(question, str) and isinstance(answer, str):
        turns = _read_cut_template(question, answer, bool(more or context))
        if turns:
            row.get(ask), row.get(reply)
            return turns
    return _exchange([row.get(ask), more, context], row.get(reply))


def _read_cut_template(question: str, answer: str, has_more: bool) -> Messages:
    """Return the turns of a prompt and its completion that are one templated text, cut in two.

    Empty for other texts, and where the row `has_more` that is asked. Raise DroppedRow for a prompt
    that ends where a template has the answer begin, if its turns are not clear.
    """
    asks_to_go_on = templated.asks_to_go_on(question)
    if not asks_to_go_on and not has_control_token(question) and not templated.ends_open(question):
        return []
    turns = None
    if not has_more:
        # the answer of a preference may repeat its prompt
        repeats = answer.strip().startswith(question.strip())
        turns = templated.read_turns(answer if repeats else question + answer)
        turns = turns or templated.read_turns(f"{question}\n{answer.lstrip()}")
    if not turns and asks_to_go_on and not has_control_token(question):
        why = f"it is not clear where the turns of its prompt begin and end: {quote(question)}"
        raise DroppedRow("templated_text", why)
    return turns or []


def read_context(row: Fields) -> str:
    """Return a row's context as text: also the list of paragraphs that PubMedQA has."""
    value = row.get("context")
    if isinstance(value, dict) and "contexts" in value:
        rest = [name for name in value if name != "contexts" and is_filled(value[name])]
        row.unread_inside |= {f"context.{name}" for name in rest}
        value = value["contexts"]
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        return "\n".join(value)
    return as_text(value)


def _exchange(asked: list[Any], answer: Any) -> Messages:
    texts = [as_text(part).strip() for part in asked]
    return [
        {"role": "user", "content": "\n\n".join(text for text in texts if text)},
        {"role": "assistant", "content": as_text(answer)},
    ]
