"""Drop rows that must not be trained on: marked as wrong, or about a picture that is not read."""

import functools
import re
from typing import Any

from lib.data.cleaning.turns import Turn
from lib.data.reading.row_parts import chats
from lib.data.reading.row_parts.fields import BadRow, DroppedRow, Fields, is_filled, quote

# a field that judges the answer: an unpaired preference's label, a review's verdict
VERDICTS = (
    "label",
    "kto_tag",
    "is_correct",
    "correct",
    "is_answer",
    "accepted",
    "is_accepted",
    "approved",
)
TRUE, FALSE = ("true",), ("false", "wrong", "incorrect", "rejected")
# image, images, img_path, picture, audio_url, figure_path
MEDIA = re.compile(
    r"(?:image|img|picture|photo|figure|video|audio)s?"
    r"(?:_?(?:path|file|filename|name|url|id|bytes|base64|data)s?)?"
)
# where a text stands for a picture (LLaVA and its kin)
PLACEHOLDERS = ("<image>", "<video>", "<audio>")
REASONS = ("marked_wrong", "image_not_read", "tool_call", "templated_text")


@functools.lru_cache(maxsize=1024)
def _find_names(names: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Return the fields with pictures and with verdicts among a row's names."""
    media = [name for name in names if MEDIA.fullmatch(name)]
    return media, [name for name in VERDICTS if name in names]


def drop_with_media(row: Fields) -> None:
    """Raise DroppedRow for a row with a picture, sound or film: only its texts would be trained."""
    media, _ = _find_names(row.shape)
    for name in media:
        value = row.peek(name)
        if value is not False and is_filled(value):
            row.get(name)
            raise DroppedRow(
                "image_not_read",
                f"its `{row.names[name]}` is {quote(value)}: only texts are read. If they make "
                f"sense without it, name them, e.g. columns: {{question: ask, answer: reply}}",
            )


def drop_with_placeholder(messages: list[Turn]) -> None:
    """Raise DroppedRow for a conversation in which a text marks the place of a picture."""
    for turn in messages:
        for mark in PLACEHOLDERS:
            if turn["role"] == "user" and mark in turn["content"]:
                raise DroppedRow(
                    "image_not_read", f"a question holds {mark}: {quote(turn['content'])}"
                )


def drop_marked_wrong(row: Fields) -> None:
    """Raise DroppedRow for a row whose answer a field marks as wrong.

    Only fields that nothing else was read from are looked at. Raise BadRow for a number that may or
    may not be a mark.
    """
    _, verdicts = _find_names(row.shape)
    for name in verdicts:
        theirs = row.names[name]
        if theirs in row.read or not row.is_filled(name):
            continue
        verdict = _read_verdict(row, name, row.peek(name))
        if verdict is not None:
            row.get(name)
        if verdict is False:
            raise DroppedRow("marked_wrong", f"its `{theirs}` is {quote(row.peek(name))}")


def drop_without_weight(row: Fields) -> None:
    """Raise DroppedRow for a conversation whose own weight is 0, BadRow for a weight besides 1."""
    if row.is_filled("weight") and not chats.read_weight(row.get("weight"), "its weight"):
        raise DroppedRow("nothing_trained", "its weight is 0")


def _read_verdict(row: Fields, name: str, value: Any) -> bool | None:
    """Return whether a field calls the answer right; None when it is no verdict."""
    if isinstance(value, bool):
        return value
    said = str(value).strip().casefold()
    if said in TRUE or said in FALSE:
        return said in TRUE
    if said not in ("0", "1", "0.0", "1.0"):
        return None
    # in TRL's unpaired preference a label is a mark; elsewhere it may be the number of a class
    is_mark = "completion" in row.names if name == "label" else name != "correct"
    if not is_mark:
        raise BadRow(
            f"its `{row.names[name]}` is {quote(value)}, which may mark a wrong answer, or may be "
            f"the number of a class. Write true or false where it is a mark; otherwise name the "
            f"columns that count, for example columns: {{question: ask, answer: reply}}"
        )
    return float(said) == 1
