"""Split a text into sentences, and tell which are listed under a heading such as "Do not:".

The line ends of a list end a sentence too; wording.py's `plain_sentences` splits more coarsely.
"""

import functools
import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

from lib.medical.wording import either, plain_text

HEADING_CHARACTERS = 60  # a longer line is a heading only if it ends in a colon

_LINE_START = re.compile(r"[\n•▪❌🚫✗✘]|(?<=\s\s)[-*](?= )")
_BULLET = re.compile(r"\s*(?:[-*•▪–—+]|\d{1,2}[.)])\s*(?=\S)")
_NO_ABBREVIATION = r"(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bvs\.)"
_STOP = re.compile(rf"[.!?;]+{_NO_ABBREVIATION}(?=[\s\"'”’)*_\]]|[A-Z])")
_FORBIDDING = either(r"""
    \b(?:do|should|must) ?n[o']t\b(?! (?:panic|worry|hesitate|delay|wait|forget))
    \bnever\b | \bnot to\b | \bdon'?ts\b
    \b(?:wrong|false|bad|deadly|harmful|dangerous) (?:answers?|advice|steps|ideas|tips|beliefs)\b
    \bmistakes?\b | \berrors?\b | \bmyths?\b | ❌ | 🚫
    \bavoid(?:ed|ing)?(?=$| (?:the following|these|doing|this))
""")
# "Never do this", but not "If you must not move him" nor "Dos and don'ts"
_FORBIDDING_HEADING = re.compile(rf"(?!if\b|when\b|do'?s (?:and|&))[^.!?]*{_FORBIDDING}[^.!?]*$")


class Sentence(NamedTuple):
    """A sentence as written, and whether it is listed under a heading such as "Do not:"."""

    text: str
    forbidden: bool


@functools.lru_cache(maxsize=16)  # two kinds of rules read one answer after the other
def split_sentences(text: str) -> tuple[Sentence, ...]:
    """Return the sentences of a text, as written."""
    sentences: list[Sentence] = []
    forbidden = False  # below a heading that forbids
    loose = False  # below a heading without a colon
    listed = False  # a list item came since the last heading
    blank = False  # the line before is empty
    for line in _split_lines(text):
        if not line.strip("\n\r\t "):
            blank = True
            continue
        bullet = _BULLET.match(line)
        heading = _heading_of(line, bool(bullet))
        list_ended = not bullet and (loose or (listed and (blank or forbidden)))
        if heading or list_ended:
            forbidden = False
        start = bullet.end() if bullet else 0
        stops = [match.end() for match in _STOP.finditer(line, start)]
        for stop in [*stops, len(line)]:
            sentences.append(Sentence(line[start:stop], forbidden))
            start = stop
        if heading:
            forbidden = bool(_FORBIDDING_HEADING.match(heading.rstrip(":?")))
            listed = False
        loose = bool(heading) and not heading.endswith(":")
        listed = listed or bool(bullet)
        blank = False
    return tuple(sentences)


def _split_lines(text: str) -> Iterator[str]:
    """Yield the lines of a text; a bullet or a cross inside a line begins one too."""
    starts = [0, *(match.start() for match in _LINE_START.finditer(text)), len(text)]
    for start, stop in itertools.pairwise(starts):
        yield text[start:stop]


def _heading_of(line: str, bullet: bool) -> str:
    """Return a line as plain text if it is a heading, otherwise ""."""
    if len(line) >= HEADING_CHARACTERS and not line.rstrip(" *_").endswith(":"):
        return ""
    plain = plain_text(line)
    if plain.endswith(":"):
        return plain
    if bullet or plain.endswith((".", "!", ";", ",")):
        return ""
    return plain
