"""The options of a multiple-choice row, in every form in which sets have them.

read_options(Fields(row))  # {"A": "ice", "B": "water"}
"""

import functools
import re
from typing import Any

from lib.data.reading.row_parts.fields import (
    BadRow,
    DroppedRow,
    Fields,
    quote,
    rows_of,
    unpack,
)

OPTIONS = ("options", "choices")
# opa (MedMCQA), op1 (CareQA), option_a, choice_1, ending0, A
OPTION_COLUMN = re.compile(r"(op_?|option_?|choice_?|ending_?|)([a-h]|\d)")
PUBMEDQA = {"A": "yes", "B": "no", "C": "maybe"}  # the options of its final_decision
# a letter of its own at the start of an option: "A) ice", "(a) ice", "A. ice", "A: ice"
OWN_LETTER = re.compile(r"\s*(?:\(([A-Za-z])\)|([A-Za-z])[).:])\s+(\S[\s\S]*)")
SPECIES = re.compile(r"\s*[A-Z]\. [a-z]+(?:a|ae|ans|ens|es|i|is|um|us|x)\s*")
Options = dict[str, Any]  # {letter: text}, with null where the row has no such option


def is_pubmedqa(row: Fields) -> bool:
    """Tell whether a row is asked with PubMedQA's options, which the set does not write down."""
    decision = str(row.peek("final_decision")).strip().casefold()
    return decision in PUBMEDQA.values() and not row.is_filled("answer")


@functools.lru_cache(maxsize=1024)
def may_be_choice(names: tuple[str, ...]) -> bool:
    """Tell whether columns of these names, written as ours, can hold questions with options."""
    has_options = any(name in names for name in (*OPTIONS, "final_decision"))
    return "question" in names and (has_options or bool(group_columns(names)))


def find_option_columns(row: Fields) -> list[str]:
    """Return our names of the columns of options that have a column each, in order."""
    columns = group_columns(row.shape)
    return columns if sum(map(row.is_filled, columns)) > 1 else []


@functools.lru_cache(maxsize=1024)
def group_columns(names: tuple[str, ...]) -> list[str]:
    """Return the columns of options among these names, in order."""
    groups: dict[str, list[str]] = {}
    for name in names:
        match = OPTION_COLUMN.fullmatch(name)
        if match and (match[1] or match[2].isalpha()):
            groups.setdefault(match[1], []).append(match[2])
    for stem, marks in groups.items():
        first = min(marks)
        # a column `b` or `option_3` alone is something else
        if first in "a01" and sorted(marks) == [chr(ord(first) + n) for n in range(len(marks))]:
            return [stem + mark for mark in sorted(marks)] if len(marks) > 1 else []
    return []


def read_options(row: Fields) -> Options:
    """Return the options of a row, in whatever form it has them."""
    name = next((name for name in OPTIONS if row.is_filled(name)), None)
    columns = find_option_columns(row)
    options: Any = None
    if name:
        options = _letter_options(rows_of(unpack(row.get(name))))
    elif columns:
        # a table has the column of a fifth option in the rows of four too
        texts = [row.get(own) if row.is_filled(own) else None for own in columns]
        options = _letter_options(texts)
    elif is_pubmedqa(row):
        options = dict(PUBMEDQA)
    texts = [text for text in (options or {}).values() if text is not None]
    if len(texts) < 2 or not all(isinstance(text, str | int | float) for text in texts):
        shown = options if options else row.peek(name or "options")
        raise BadRow(
            f"its options are {quote(shown)}; expected a list of texts, or {{letter: text}}"
        )
    return _drop_own_letters(
        {letter: None if text is None else str(text) for letter, text in options.items()}
    )


def _drop_own_letters(options: Options) -> Options:
    """Return options whose texts begin with their own letters without these.

    ["A) ice", "B) water"] are {"A": "ice", "B": "water"}. "A. baumannii", "B. cereus" stay: these
    letters are names.
    """
    letters = [letter for letter, text in options.items() if text is not None]
    found = [OWN_LETTER.fullmatch(options[letter]) for letter in letters]
    own = [(mark[1] or mark[2]).upper() for mark in found if mark]
    are_species = all(SPECIES.fullmatch(options[letter]) for letter in letters)
    if own != [letter.upper() for letter in letters] or are_species:
        return options
    rests = {letter: mark[3] for letter, mark in zip(letters, found, strict=True) if mark}
    return {letter: rests.get(letter) for letter in options}


def require_unlike(options: Options) -> None:
    """Raise DroppedRow for options of which two are the same: one of them would be wrong."""
    letter_of: dict[str, str] = {}
    for letter, text in options.items():
        plain = " ".join(text.split())
        if plain in letter_of:
            raise DroppedRow(
                "options_repeated",
                f"its options {letter_of[plain]} and {letter} are the same, {quote(text)}, and "
                f"only one of them is called right",
            )
        letter_of[plain] = letter


def _letter_options(options: Any) -> Options | None:
    """Return {letter: text}: with the row's own letters, as in MedQA, or with A, B, C, ..."""
    if isinstance(options, BadRow):  # the object has a letter twice
        raise options
    if isinstance(options, str):
        return _split_options(options)
    if isinstance(options, dict):  # in parquet, each row has a column for every letter of the file
        return {str(letter): _or_none(text) for letter, text in options.items()}
    if not isinstance(options, list):
        return None
    for key, text in (("key", "value"), ("label", "text")):
        if options and all(isinstance(o, dict) and {key, text} <= set(o) for o in options):
            letters = [str(option[key]) for option in options]
            _refuse_twice(letters)
            texts = [_or_none(option[text]) for option in options]
            return dict(zip(letters, texts, strict=True))
    return {chr(65 + n): _or_none(text) for n, text in enumerate(options)}


def _or_none(text: Any) -> Any:
    return None if text is None or text != text else text


def _refuse_twice(letters: list[str]) -> None:
    for letter in letters:
        if letters.count(letter) > 1:
            raise BadRow(
                f"its options have the letter {quote(letter)} twice; expected a different letter "
                f"for each"
            )


def _split_options(text: str) -> Options | None:
    """Return the options of a text such as "A) ice B) water"; None unless the letters run on."""
    marks = list(re.finditer(r"(?:^|(?<=\s))\(?([A-Z])[).:](?=\s)", text))
    letters = [mark[1] for mark in marks]
    if not marks or text[: marks[0].start()].strip():
        return None
    if letters != [chr(65 + n) for n in range(len(letters))]:
        return None
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    return {
        mark[1]: text[mark.end() : end].strip(" \t\r\n,;|")
        for mark, end in zip(marks, ends, strict=True)
    }
