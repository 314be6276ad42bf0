"""Normalise texts and split them into words, to compare them."""

import re
import unicodedata

WORDS = re.compile(r"\w+")
# Japanese kana, Chinese characters and Thai, which are written without spaces between words
UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\u0e00-\u0e7f]")


def normalised(text: str) -> str:
    """Return a text for comparing: NFKC, case folded, each run of white space as one space."""
    if text.isascii():  # most texts are, and NFKC takes far longer
        return " ".join(text.lower().split())
    before = ""
    while text != before:  # folding case can undo NFKC; every character settles in three rounds
        before = text
        text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(text.split())


def words_of(text: str) -> list[str]:
    """Return the words of a text for comparing; in scripts without spaces, the characters."""
    text = normalised(text)
    if not text.isascii():
        text = UNSPACED.sub(r" \g<0> ", text)
    return WORDS.findall(text)
