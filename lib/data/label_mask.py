"""Decide which tokens of a row are trained, and prove that they are the right ones.

ids, labels = encode(chat, messages)
fault = find_mask_fault(chat, ids, labels, messages)  # "" when the mask is right
"""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from lib.common.chat_template import TURN_END
from lib.common.errors import UserError
from lib.data.chat import Chat
from lib.data.cleaning.ending import find_endings
from lib.data.cleaning.turns import is_trained

IGNORED = -100  # the label that transformers' loss skips
MODEL_TURN = "<start_of_turn>model\n"
SHORTEST_REST = 0.5  # of what fits: the first lines of a long answer alone are none
# a later answer that takes an earlier one back
TAKEN_BACK = re.compile(r"\b(?:sorry|apolog\w+|i was wrong|correction|mistaken?|in fact)\b", re.I)


# -------------------------------------------------------------------------------------------------
# ids and labels


def render_with_spans(
    chat: Chat, messages: list[dict[str, str]]
) -> tuple[str, list[tuple[int, int]]]:
    """Render a conversation; find the character span of each trained answer and <end_of_turn>.

    A span, (start, end), is what the rendering grows by with an assistant turn. This holds for any
    template that renders the first turns of a conversation alike whatever follows; raise ValueError
    for any other.
    """
    text = chat.render(messages)
    spans = []
    for n, message in enumerate(messages):
        if not is_trained(message):
            continue
        before = chat.render(messages[:n], add_generation_prompt=True)
        if not text.startswith(before):
            raise ValueError(
                "the chat template renders the same turns differently when more follow"
            )
        start = len(before)
        spans.append((start, text.index(TURN_END, start) + len(TURN_END)))
    return text, spans


def label_tokens(encoding: Any, spans: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Return ids and labels of an encoded text: labels are ids inside the spans, else IGNORED.

    Raise ValueError when a token lies across the edge of a span.
    """
    ids = encoding.ids
    labels = [IGNORED] * len(ids)
    for start, end in spans:
        first = encoding.char_to_token(start)
        last = encoding.char_to_token(end - 1)
        if (
            first is None
            or last is None
            or encoding.token_to_chars(first)[0] != start
            or encoding.token_to_chars(last)[1] != end
        ):
            raise ValueError("a token crosses the edge of an answer")
        # one emoji may be several tokens that all claim the same character
        while first and encoding.token_to_chars(first - 1) == encoding.token_to_chars(first):
            first -= 1
        labels[first : last + 1] = ids[first : last + 1]
    return ids, labels


def _label_turns(
    chat: Chat, ids: list[int], messages: list[dict[str, str]]
) -> tuple[list[int], list[int]] | None:
    """Return ids and labels; None unless each of the model's turns has its beginning and its end.

    These two are tokens, so that the labels are those that `label_tokens` finds by characters.
    """
    turns = [message for message in messages if message["role"] == "assistant"]
    starts = _find_model_turns(chat, ids)
    if len(starts) != len(turns):
        return None
    labels = [IGNORED] * len(ids)
    end_token = chat.token_id(TURN_END)
    for start, turn in zip(starts, turns, strict=True):
        if not is_trained(turn):
            continue
        if end_token not in ids[start:]:
            return None
        end = ids.index(end_token, start) + 1
        labels[start:end] = ids[start:end]
    return ids, labels


def encode(chat: Chat, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    """Return ids and labels of one conversation.

    Answers and their <end_of_turn> are trained, except those that are masked.
    """
    text, spans = render_with_spans(chat, messages)
    return label_tokens(_tokenise(chat, text), spans)


def encode_all(
    chat: Chat, rows: Iterable[list[dict[str, str]]]
) -> list[tuple[list[int], list[int]]]:
    """Encode many conversations.

    Raise UserError when tokenizer or template cannot train on them.
    """
    import jinja2  # a command that renders nothing starts without it

    try:
        conversations = list(rows)
        rendered = [render_with_spans(chat, messages) for messages in conversations]
        texts = [text for text, _ in rendered]
        by_words = chat.words.encode_all(texts) if chat.words else [None] * len(texts)
        labelled = [
            _label_turns(chat, ids, messages) if ids else None
            for ids, messages in zip(by_words, conversations, strict=True)
        ]
        as_a_whole = [text for text, own in zip(texts, labelled, strict=True) if not own]
        encodings = iter(chat.tokenizer.encode_batch(as_a_whole, add_special_tokens=False))
        return [
            own or label_tokens(next(encodings), spans)
            for own, (_, spans) in zip(labelled, rendered, strict=True)
        ]
    except (ValueError, jinja2.TemplateError) as error:
        raise UserError(
            f"{error}.\nThe tokenizer or chat template of the base model cannot be used for "
            f"training on these rows as it is."
        ) from None


def _tokenise(chat: Chat, text: str) -> Any:
    return chat.tokenizer.encode(text, add_special_tokens=False)


# -------------------------------------------------------------------------------------------------
# the proof


def find_mask_fault(
    chat: Chat, ids: list[int], labels: list[int], messages: list[dict[str, str]]
) -> str:
    """Say what is wrong with a tokenised row; return "" when it passes every check.

    - Exactly one <bos>, and it comes first.
    - Every label is IGNORED or equal to its token.
    - There is one run of trained tokens for each answer that is not masked. It starts right after
      the beginning of this very turn of the model, and decodes to the complete answer and
      <end_of_turn>. So at least one token is trained, the stop token is trained, no token of a user
      or of a masked answer is, and no answer is cut.
    - The ids decode to the template's rendering, so that the questions are complete too.
    """
    bos = chat.token_id("<bos>")
    if ids.count(bos) != 1 or ids[0] != bos:
        return f"{ids.count(bos)} <bos> tokens, expected exactly one, at the start"
    tokens, trained = np.asarray(ids), np.asarray(labels)
    if len(ids) != len(labels) or not np.all((trained == IGNORED) | (trained == tokens)):
        return "a label differs from its token"
    turns = [m for m in messages if m["role"] == "assistant"]
    starts = _find_model_turns(chat, ids)
    if len(starts) != len(turns):
        return f"{len(starts)} turns of the model, expected {len(turns)}"
    expected = [
        (start, turn["content"].strip())
        for start, turn in zip(starts, turns, strict=True)
        if is_trained(turn)
    ]
    if not expected:
        return "no answer is trained"
    runs = _trained_runs(trained)
    if len(runs) != len(expected):
        return f"{len(runs)} trained runs of tokens, expected {len(expected)}, one per answer"
    for run, (start, answer) in zip(runs, expected, strict=True):
        if fault := _find_run_fault(chat, ids, run, start, answer):
            return fault
    if chat.decode(ids) != _as_decoded(chat.render(messages)):
        return "the tokens do not decode to the rendered conversation"
    return ""


def _trained_runs(labels: np.ndarray) -> list[tuple[int, int]]:
    """Return (start, end) of each unbroken run of trained tokens."""
    trained = np.concatenate([[False], labels != IGNORED, [False]])
    edges = np.flatnonzero(trained[1:] != trained[:-1]).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def _find_model_turns(chat: Chat, ids: list[int]) -> list[int]:
    """Return where the text of each of the model's turns begins; no text can hold such a head."""
    head = _tokenise(chat, MODEL_TURN).ids
    starts = []
    place = -1
    for _ in range(ids.count(head[0])):
        place = ids.index(head[0], place + 1)
        if ids[place : place + len(head)] == head:
            starts.append(place + len(head))
    return starts


def _find_run_fault(
    chat: Chat, ids: list[int], run: tuple[int, int], expected_start: int, answer: str
) -> str:
    start, end = run
    if start != expected_start:
        before = chat.decode(ids[max(0, start - 4) : start])
        return (
            f"a trained run does not start where the model's turn begins (token {expected_start}), "
            f"but at token {start}, after {before!r}"
        )
    if ids[end - 1] != chat.token_id(TURN_END):
        return f"an answer's {TURN_END} is not trained"
    if chat.decode(ids[start:end]) != _as_decoded(answer + TURN_END):
        return "the trained tokens do not decode to the answer"
    return ""


def _as_decoded(text: str) -> str:
    # the tokenizer writes a space as U+2581, so a U+2581 of the text comes back as a space
    return text.replace("\u2581", " ")


# -------------------------------------------------------------------------------------------------
# over-long rows


def cut_to_fit(
    chat: Chat, messages: list[dict[str, str]], max_tokens: int, language: str
) -> list[dict[str, str]] | None:
    """Shorten a conversation to at most `max_tokens`; return None when that cannot be done safely.

    The last exchanges are dropped first, and masked answers that no trained one follows. Then the
    last answer is cut where this changes nothing of what the rest advises (`cleaning/ending.py`),
    and leaves at least SHORTEST_REST of what fits; only in English, whose words tell.
    """
    if len(encode(chat, messages)[0]) <= max_tokens:
        return messages
    messages = _end_with_trained(messages)
    while len(messages) > 3 and not _shortest_fits(chat, messages, max_tokens):
        earlier = _end_with_trained(messages[:-2])
        left_out = [m["content"] for m in messages[len(earlier) :] if m["role"] == "assistant"]
        if any(map(TAKEN_BACK.search, left_out)):
            return None
        messages = earlier
    if not messages:
        return None
    text, spans = render_with_spans(chat, messages)
    offsets = _tokenise(chat, text).offsets
    if len(offsets) <= max_tokens:
        return messages
    answer = messages[-1]["content"].strip()
    start, _ = spans[-1]
    # where the last token that can stay begins: the end token and a line end must still fit
    room = offsets[max(0, max_tokens - 3)][0] - start
    if language != "en":
        return None
    for end in find_endings(answer, max(0, room)):
        if end < room * SHORTEST_REST:
            return None
        shorter = [*messages[:-1], {**messages[-1], "content": answer[:end].strip()}]
        if len(encode(chat, shorter)[0]) <= max_tokens:
            return shorter
    return None


def _end_with_trained(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return a conversation up to its last trained answer; empty when none is trained."""
    trained = [n for n, message in enumerate(messages) if is_trained(message)]
    return messages[: trained[-1] + 1] if trained else []


def _shortest_fits(chat: Chat, messages: list[dict[str, str]], max_tokens: int) -> bool:
    """Tell whether the conversation would fit with the shortest possible last answer."""
    shortest = [*messages[:-1], {"role": "assistant", "content": "."}]
    return len(encode(chat, shortest)[0]) <= max_tokens
