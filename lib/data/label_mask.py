"""Which tokens of a row are trained, and the proof that these are the right ones."""

import re
from collections.abc import Iterable
from typing import Any

from lib.common.errors import UserError
from lib.data.chat import TURN_END, Chat

IGNORED = -100  # the label transformers' loss skips
MODEL_TURN = "<start_of_turn>model\n"
SENTENCE_END = re.compile(r"(?<=[^\s\d])[.!?][\"')\]]*(?=\s|$)|\n")  # not the "3." of a list


def spans(chat: Chat, messages: list[dict[str, str]]) -> tuple[str, list[tuple[int, int]]]:
    """The rendered conversation, and from where to where in it each answer and its <end_of_turn> stand.

    The spans are those by which the rendering grows with each assistant turn, so any template whose rendering of a prefix is
    a prefix of the rendering works; ValueError when it is not.
    """
    text, found = chat.render(messages), []
    for n, message in enumerate(messages):
        if message["role"] == "assistant":
            start = chat.render(messages[:n], add_generation_prompt=True)
            if not text.startswith(start):
                raise ValueError(
                    "the chat template renders the same turns differently when more follow"
                )
            found.append((len(start), text.index(TURN_END, len(start)) + len(TURN_END)))
    return text, found


def label(encoding: Any, found: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Ids and labels of an encoded text: labels are its ids inside the spans, IGNORED elsewhere; ValueError when a token straddles an edge."""
    ids = encoding.ids
    labels = [IGNORED] * len(ids)
    for start, end in found:
        first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1)
        if (
            first is None
            or last is None
            or encoding.token_to_chars(first)[0] != start
            or encoding.token_to_chars(last)[1] != end
        ):
            raise ValueError("a token straddles the edge of an answer")
        # one emoji may be several tokens that all claim the same character
        while first and encoding.token_to_chars(first - 1) == encoding.token_to_chars(first):
            first -= 1
        labels[first : last + 1] = ids[first : last + 1]
    return ids, labels


def encode(chat: Chat, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    """Token ids and labels of one conversation; labels are on assistant text and its <end_of_turn>, IGNORED elsewhere."""
    text, found = spans(chat, messages)
    return label(chat.tokenizer.encode(text, add_special_tokens=False), found)


def encode_all(
    chat: Chat, rows: Iterable[list[dict[str, str]]]
) -> list[tuple[list[int], list[int]]]:
    """`encode` of many conversations at once; UserError when tokenizer or template cannot be used for training."""
    import jinja2

    try:
        rendered = [spans(chat, messages) for messages in rows]
        encoded = chat.tokenizer.encode_batch(
            [text for text, _ in rendered], add_special_tokens=False
        )
        return [
            label(encoding, found) for encoding, (_, found) in zip(encoded, rendered, strict=True)
        ]
    except (ValueError, jinja2.TemplateError) as error:
        raise UserError(
            f"{error}.\nThe tokenizer or chat template of the base model cannot be used for training on these rows as it is."
        ) from None


def prove(chat: Chat, ids: list[int], labels: list[int], messages: list[dict[str, str]]) -> str:
    """What is wrong with a tokenised row, or an empty string: the checks every row must pass.

    Exactly one <bos>, first; every label its token; as many trained runs as answers, each right after the model's turn begins, and
    each decoding to that answer, whole, and its <end_of_turn>: so at least one token is trained, the stop token is, no token of a
    user is, and no answer is cut away. The whole decodes to the template's rendering, so that questions are whole too.
    """
    bos, head = chat.id("<bos>"), chat.tokenizer.encode(MODEL_TURN, add_special_tokens=False).ids
    if ids.count(bos) != 1 or ids[0] != bos:
        return f"{ids.count(bos)} <bos> tokens, expected one, first"
    if len(ids) != len(labels) or any(
        lab not in (IGNORED, token) for token, lab in zip(ids, labels, strict=True)
    ):
        return "a label differs from its token"
    answers = [m["content"].strip() for m in messages if m["role"] == "assistant"]
    edges = [
        n
        for n in range(len(ids) + 1)
        if (n < len(ids) and labels[n] != IGNORED) != (n > 0 and labels[n - 1] != IGNORED)
    ]
    runs = list(zip(edges[::2], edges[1::2], strict=True))
    if len(runs) != len(answers):
        return f"{len(runs)} trained runs of tokens, expected {len(answers)}, one an answer"
    for (start, end), answer in zip(runs, answers, strict=True):
        if ids[start - len(head) : start] != head:
            return f"a trained run does not start where the model's turn begins, but after {chat.decode(ids[max(0, start - 4) : start])!r}"
        if ids[end - 1] != chat.id(TURN_END):
            return f"an answer's {TURN_END} is not trained"
        if chat.decode(ids[start:end]) != (answer + TURN_END).replace(
            "\u2581", " "
        ):  # the tokenizer writes blanks as U+2581
            return "the trained tokens do not decode to the answer"
    if chat.decode(ids) != chat.render(messages).replace("\u2581", " "):
        return "the tokens do not decode to the rendered conversation"
    return ""


def cut(chat: Chat, messages: list[dict[str, str]], most: int) -> list[dict[str, str]] | None:
    """The conversation within `most` tokens: last exchanges left out, then the last answer cut after a whole sentence; None when nothing fits.

    The answer still ends in a trained <end_of_turn>, so it must end as an answer does, not in the middle of a sentence.
    """
    while (
        len(messages) > 3
        and len(encode(chat, messages[:-1] + [{"role": "assistant", "content": "."}])[0]) > most
    ):
        messages = messages[:-2]
    text, found = spans(chat, messages)
    if len(chat.tokenizer.encode(text, add_special_tokens=False)) <= most:
        return messages
    answer, start = messages[-1]["content"].strip(), found[-1][0]
    offsets = chat.tokenizer.encode(text, add_special_tokens=False).offsets
    room = (
        offsets[max(0, most - 3)][0] - start
    )  # the end token and the line end after it need their place
    for end in reversed([m.end() for m in SENTENCE_END.finditer(answer[: max(0, room)])]):
        shorter = [*messages[:-1], {"role": "assistant", "content": answer[:end].strip()}]
        if (
            re.search(r"\w", answer[:end])
            and not answer[:end].rstrip().endswith(":")
            and len(encode(chat, shorter)[0]) <= most
        ):
            return shorter
    return None
