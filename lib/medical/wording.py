"""Normalise texts for the rules of this folder, and join a rule's phrases into a pattern."""

import re
import unicodedata

# typographic apostrophes become plain; quotation marks and markdown are removed
_NOISE = str.maketrans({"’": "'", "‘": "'"} | dict.fromkeys('“”"*_`#', ""))
# letters of another width or shape, which read as the plain ones
_SHAPED = re.compile("[\uff01-\uff5e\U0001d400-\U0001d7ff]")
_UNSEEN = ("Cf", "Mn")  # Unicode's categories of invisible characters and of marks on a letter
# what a page shows as deleted, or not at all
_STRUCK = re.compile(r"~~(?=\S).*?~~|<!--.*?(?:-->|$)", re.S)
_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|\n+")


def plain_text(text: str) -> str:
    """Return a text in lower case, without quotation marks and markdown, with single spaces."""
    return " ".join(text.translate(_NOISE).lower().split())


def visible_text(text: str) -> str:
    """Return what a reader sees of a text: no invisible characters, nothing struck out.

    Accents and other marks go as well, so that "n\u0302ot" is "not" and "caf\u00e9" is "cafe".
    """
    if text.isascii():
        return _STRUCK.sub(" ", text)
    shaped = _SHAPED.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    parted = unicodedata.normalize("NFD", shaped)
    seen = "".join(c for c in parted if unicodedata.category(c) not in _UNSEEN)
    return _STRUCK.sub(" ", seen)


def plain_sentences(text: str) -> list[str]:
    """Return the non-empty sentences of a text as `plain_text`; a line end ends a sentence too.

    advice.py splits more finely, since its rules need list items and headings.
    """
    sentences = (plain_text(part) for part in _SENTENCE_END.split(text))
    return [sentence for sentence in sentences if sentence]


def says_twice(text: str) -> bool:
    """Tell whether a text says a sentence of three words or more twice."""
    said = [tuple(_WORD.findall(sentence)) for sentence in plain_sentences(text)]
    long = [words for words in said if len(words) >= 3]
    return len(set(long)) < len(long)


def either(phrases: str) -> str:
    """Return a regular expression, as a group, that matches any of the phrases.

    Phrases are regular expressions, separated by line ends or by ` | `. Their order and the spaces
    within them matter. Two spaces and a # begin a comment.
    """
    alternatives: list[str] = []
    for line in phrases.splitlines():
        text = line.split("  #")[0].strip()
        if text:
            alternatives.extend(text.split(" | "))
    return f"(?:{'|'.join(alternatives)})"
