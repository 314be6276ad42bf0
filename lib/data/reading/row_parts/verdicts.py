"""Drop rows that must not be trained on: marked as wrong, or about a picture that is not read."""

import dataclasses
import functools
import re
from typing import Any

from lib.data.cleaning.turns import Turn
from lib.data.reading.row_parts import chats, marks
from lib.data.reading.row_parts.fields import (
    BadRow,
    DroppedRow,
    Fields,
    fold_name,
    is_filled,
    quote,
    unpack,
)

# fields with a row's particulars, in which a mark may stand
INSIDE = ("metadata", "meta", "info", "extra", "extra_info")
# image, images, img_path, picture, audio_url, figure_path
MEDIA = re.compile(
    r"(?:image|img|picture|photo|figure|video|audio)s?"
    r"(?:_?(?:path|file|filename|name|url|id|bytes|base64|data)s?)?"
)
# where a text stands for a picture (LLaVA and its kin)
PLACEHOLDERS = ("<image>", "<video>", "<audio>")
ROW_WEIGHTS = (*chats.WEIGHTS, "sample_weight")
REASONS = ("marked_wrong", "image_not_read", "tool_call", "templated_text", "options_repeated")


class MixedVerdicts(BadRow):
    """A row that shows that a field judges answers, of which some values are not known."""


@dataclasses.dataclass
class Seen:
    """The first values, by field, of the open fields of the rows of one source read so far."""

    unknown: dict[Any, Any] = dataclasses.field(default_factory=dict)
    wrong: dict[Any, Any] = dataclasses.field(default_factory=dict)
    doubtful: dict[Any, Any] = dataclasses.field(default_factory=dict)  # kept so far


@functools.lru_cache(maxsize=1024)
def _find_names(names: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Return the fields with pictures and with verdicts among a row's names."""
    media = [name for name in names if MEDIA.fullmatch(name)]
    return media, [name for name in names if marks.find_kind(name)]


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


def drop_marked_wrong(row: Fields, seen: Seen) -> None:
    """Raise DroppedRow for a row whose answer a field marks as wrong.

    Only fields that nothing else was read from are looked at. Raise BadRow for a value that may or
    may not be a mark, and MixedVerdicts where the values of the source's other rows say so.
    """
    _, verdicts = _find_names(row.shape)
    for name in verdicts:
        theirs = row.names[name]
        is_preference = name == marks.REJECTED and "chosen" in row.names
        if theirs in row.read or is_preference or not row.is_filled(name):
            continue
        kind = _find_kind(name, theirs)
        if kind in (marks.OPEN, marks.UNPROVEN):
            verdict = _read_open(row, name, kind, seen)
        else:
            verdict = chats.read_sure_mark(theirs, kind, row.peek(name))
        if verdict is not None:
            row.get(name)
        if verdict is False:
            raise DroppedRow("marked_wrong", f"its `{theirs}` is {quote(row.peek(name))}")
    _drop_marked_inside(row)


def _find_kind(name: str, theirs: Any) -> str:
    """Return how a field judges; where `columns` names `is_wrong` as is_correct, it is is_wrong."""
    own = marks.find_kind(fold_name(theirs))
    return marks.WRONG if own == marks.WRONG else marks.find_kind(name) or marks.RIGHT


def _drop_marked_inside(row: Fields) -> None:
    for name in INSIDE:
        inside = unpack(row.peek(name)) if name in row.names else None
        for key, value in inside.items() if isinstance(inside, dict) else ():
            kind = marks.find_kind(fold_name(key))
            if kind not in (marks.RIGHT, marks.WRONG) or not is_filled(value):
                continue
            place = f"{row.names[name]}.{key}"
            if not chats.read_sure_mark(place, kind, value):
                raise DroppedRow("marked_wrong", f"its `{place}` is {quote(value)}")


def _read_open(row: Fields, name: str, kind: str, seen: Seen) -> bool | None:
    """Return whether a field that may judge calls the answer right; None if it does not judge."""
    value, theirs = row.peek(name), row.names[name]
    verdict = marks.read_mark(marks.WRONG if name.endswith(marks.REJECTED) else kind, value)
    is_mark = name.endswith("label") and "completion" in row.names  # TRL's unpaired preference
    may_be_class = name in ("label", "correct") and marks.is_number(value) and not is_mark
    if verdict is not None and may_be_class:
        raise BadRow(
            f"its `{theirs}` is {quote(value)}, which may mark a wrong answer, or may be "
            f"the number of a class. {_ways_out(theirs)}"
        )
    if verdict is False and marks.is_doubtful(value) and not is_mark:
        seen.doubtful.setdefault(theirs, value)
        return None
    if verdict is None:
        seen.unknown.setdefault(theirs, value)
    elif verdict is False:
        seen.wrong.setdefault(theirs, value)
    if theirs in seen.unknown and theirs in seen.wrong:
        raise MixedVerdicts(
            f"`{theirs}` is {quote(seen.wrong[theirs])} in one row, as if it marked wrong answers, "
            f"and {quote(seen.unknown[theirs])} in another, which says neither right nor wrong. "
            f"{_ways_out(theirs)}"
        )
    return verdict


def require_decided(seen: Seen) -> None:
    """Raise BadRow, after the last row of a source, for a field that may mark wrong answers.

    Where a field has only words such as yes and no, these may be marks. Beside any other value they
    are the names of classes, and beside a sure mark the error has been raised before.
    """
    for theirs, value in seen.doubtful.items():
        if theirs not in seen.unknown:
            raise BadRow(
                f"`{theirs}` is {quote(value)} in some rows, which may mark wrong answers, or may "
                f"be something else, such as a finding or a class. {_ways_out(theirs)}"
            )


def _ways_out(theirs: Any) -> str:
    return (
        f"Where it is a mark, write true or false and name it: columns: {{is_correct: {theirs}}}. "
        f"Otherwise name the columns that count, for example columns: {{question: ask, answer: "
        f"reply}}"
    )


def drop_without_weight(row: Fields, is_chat: bool = False) -> None:
    """Raise DroppedRow for a row that says that it is not trained, BadRow for other weights.

    Outside of conversations a `weight` besides 0 may be kilograms, and is not read.
    """
    for name in ROW_WEIGHTS:
        value = row.peek(name)
        if not row.is_filled(name):
            continue
        # a number may be a loss that was measured, or kilograms
        may_be_else = name == "loss" and not isinstance(value, bool)
        may_be_else = may_be_else or (name == "weight" and not is_chat)
        if may_be_else and (name == "loss" or not _is_zero(value)):
            continue
        # which rows are of a split, or are trained by others, may stand there too
        if name in ("train", "training") and not _is_zero(value):
            continue
        if not chats.read_weight(row.get(name), f"its {row.names[name]}"):
            raise DroppedRow("nothing_trained", f"its {row.names[name]} is {quote(value)}")


def _is_zero(value: Any) -> bool:
    return chats.WEIGHT_VALUES.get(str(value).strip().casefold()) is False
