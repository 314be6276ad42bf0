"""Texts as words, by which they are compared."""

import re
import unicodedata

WORDS = re.compile(r"\w+")
UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\u0e00-\u0e7f]")


def normalised(text: str) -> str:
    """Text for comparing: NFKC, case folded, runs of white space as one blank."""
    if text.isascii():
        return " ".join(text.lower().split())
    before = ""
    while text != before:  # folding case can undo NFKC: three rounds settle every character
        before, text = text, unicodedata.normalize("NFKC", text).casefold()
    return " ".join(text.split())


def words_of(text: str) -> list[str]:
    """The words of a text for comparing; of a script without blanks, its characters."""
    text = normalised(text)
    return WORDS.findall(text if text.isascii() else UNSPACED.sub(r" \g<0> ", text))
