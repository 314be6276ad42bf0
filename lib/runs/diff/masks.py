"""Mask what differs between any two executions of one job: times, bars, paths, names.

Masking changes what is compared, never what a run recorded; the page lists what it took as equal.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

LONGEST_BAR = 400  # characters; the patterns below take the square of a line's length
# a bar of tqdm with a known total, as in `training:  14%|██   | 153/1088 [00:04<00:24, 9step/s]`
BAR = re.compile(
    r"^(?P<label>[^|]*?):?\s*\d{1,3}%\|[^|]*\|\s*(?P<done>[\d.,]+\w*)/(?P<total>[\d.,]+\w*)"
    r"\s*\[(?P<inside>[^\]]*)\]\s*$"
)
# one without: `near duplicates: 12row [00:00, ?row/s]`
COUNTER = re.compile(
    r"^(?P<label>.*?):?\s*\b(?P<done>\d[\d.,]*\w*)\s*\[(?P<inside>\d+:\d\d[^\]]*)\]\s*$"
)
# what a log gets instead of a bar (lib/common/progress.py)
PERCENT = re.compile(r"^(?P<label>.*?):\s*\d{1,3}%, about \d+ s left\s*$")


class Mask(NamedTuple):
    """What is masked and why. `printed`: only in printed lines, since answers may hold the like."""

    pattern: re.Pattern[str]
    mask: str
    why: str
    printed: bool = False


MASKS = (
    Mask(
        re.compile(
            r"\b\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?\b"
        ),
        "‹date›",
        "an execution's date",
    ),
    Mask(re.compile(r"\b\d\d:\d\d:\d\d(?:\.\d+)?\b"), "‹clock›", "an execution's time of day"),
    Mask(
        re.compile(r"\b0x[0-9a-fA-F]{8,16}\b"),
        "‹address›",
        "where an object lay in memory",
    ),
    Mask(
        re.compile(r"\b(?P<keep>pid|PID|process)(?P<by>[ =:]+)\d+\b(?!\s*(?:of|/))(?![.,]\d)"),
        r"\g<keep>\g<by>‹pid›",
        "the system's number of a process",
        printed=True,
    ),
    Mask(
        re.compile(
            r"\b(?P<keep>in|about|after|took) \d+(?:\.\d+)? (?:s|ms)\b(?=\s*(?:$|left|[.,;)]))"
        ),
        r"\g<keep> ‹seconds›",
        "how long a step took; minutes and hours stay, since an advice may hold them",
        printed=True,
    ),
    Mask(
        re.compile(r"(?<![\w.:/<~›])(?:~|/[A-Za-z_.])[\w.@+~-]{0,255}/(?:[\w.@+~-]{1,255}/)*"),
        "‹path›/",
        "where a folder lies on a disk; the last part of the path stays",
    ),
    Mask(
        re.compile(r"^\d+(?= parameters at their defaults$)"),
        "‹count›",
        "it follows from the parameters that differ, which the page lists first",
    ),
)

# rows and columns that hold a measured time or a rate: they differ from one execution to the next
TIMED = re.compile(r"(?:^|_)seconds$|^time estimated\b|_per_second(?:_|$)|\w/s$|, s$")
NUMBER = re.compile(r"^(?:[\d.,]+(?:e[+-]?\d+)?|not measured|-)$")


class Line(NamedTuple):
    """A line, or the text of a table's cell: as it is compared, and as the notebook has it."""

    masked: str
    raw: str


def mask_text(text: str, names: Sequence[str] = (), printed: bool = False) -> str:
    """Return one line with times, paths, addresses, dates, process ids and run names masked."""
    for rule in MASKS:
        if printed or not rule.printed:
            text = rule.pattern.sub(rule.mask, text)
    for name in names:
        text = _mask_name(text, name)
    return text


def _mask_name(text: str, name: str) -> str:
    """Mask a run's name where it can be nothing else: a run may be called `5` or `loss`."""
    word = re.escape(name)
    before = r"(?:runs/|runs/examples/|‹path›/|\bRUN=|\brun_name = \")"
    text = re.sub(rf"({before}){word}(?![\w-]|\.\w)", r"\1‹run›", text)
    text = re.sub(rf"^(run: ){word}$", r"\1‹run›", text)
    return re.sub(rf"(?<![\w.-]){word}(-[a-z0-9_]+\.gguf\b)", r"‹run›\1", text)


def mask_printed(text: str, names: Sequence[str] = ()) -> list[Line]:
    """Return printed lines as a terminal shows them, without empty ones, and with bars masked.

    How often a bar was printed depends on the clock, so of its lines in a row only the last stays.
    """
    lines: list[Line] = []
    label = None  # of the bar in the line before
    for printed in ANSI.sub("", text).split("\n"):
        raw = printed.rstrip("\r").rsplit("\r", 1)[-1]  # a terminal shows what comes after \r
        if not raw.strip():
            continue
        bar = _mask_bar(raw)
        before, label = label, bar and bar.split("‹bar›")[0]
        if label is not None and label == before:
            lines.pop()
        lines.append(Line(mask_text(bar or raw, names, printed=True), raw))
    return lines


def _mask_bar(line: str) -> str | None:
    """Return a progress bar without times and rates, or None for another line.

    Of a bar that is not full, only the total stays: its other figures are those of a moment.
    """
    if len(line) > LONGEST_BAR:
        return None
    if match := PERCENT.match(line):
        return f"{match['label']}: ‹bar›"
    if match := BAR.match(line):
        if match["done"] != match["total"]:
            return f"{match['label']}: ‹bar› of {match['total']}"
        return f"{match['label']}: ‹bar› all {match['total']}{_keep_figures(match['inside'])}"
    if match := COUNTER.match(line):
        return f"{match['label']}: ‹bar› {match['done']}{_keep_figures(match['inside'])}"
    return None


def _keep_figures(inside: str) -> str:
    """Return what follows time and rate within a bar's brackets, such as `loss=1.5`."""
    figures = inside.split(", ")[2:]
    return f", {', '.join(figures)}" if figures else ""


def mask_cell(text: str, row: str, column: str, names: Sequence[str] = ()) -> Line:
    """Return a table's cell; a number is masked if its row or column is a measured time or rate."""
    timed = TIMED.search(row) or TIMED.search(column)
    if timed and NUMBER.match(text.strip()):
        return Line("‹time or rate›", text)
    return Line("\n".join(mask_text(line, names) for line in text.splitlines()), text)
