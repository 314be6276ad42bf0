"""Texts for the rules of this folder, and a way to write a rule's phrases one below the other."""

import re

# typographic quotes become plain, marks of quotation and markdown go
_NOISE = str.maketrans({"’": "'", "‘": "'"} | dict.fromkeys('“”"*_`#', ""))
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|\n+")


def plain_text(text: str) -> str:
    """Return a text in lower case, without quotation marks and markdown, with single blanks."""
    return " ".join(text.translate(_NOISE).lower().split())


def plain_sentences(text: str) -> list[str]:
    """Return the sentences of a text as `plain_text`, empty ones left out; a line ends one too.

    advice.py splits more finely, since a rule there needs list items and headings.
    """
    sentences = (plain_text(part) for part in _SENTENCE_END.split(text))
    return [sentence for sentence in sentences if sentence]


def either(phrases: str) -> str:
    """Return a regular expression, as a group, that matches any of the phrases.

    Phrases are regular expressions, separated by line ends or by ` | `. Their order counts, blanks
    within them too. Two blanks and a # begin a comment.
    """
    alternatives: list[str] = []
    for line in phrases.splitlines():
        text = line.split("  #")[0].strip()
        if text:
            alternatives.extend(text.split(" | "))
    return f"(?:{'|'.join(alternatives)})"
