"""Decide which option of a multiple-choice row is right, for training data and exams alike.

habits = find_habits((where, values) for ...)  # what answers such as 1 or "A" mean in this source
to_choice(Fields(row), habits)  # {"question", "options": {"A": text, ...}, "answer_letter"}

An answer may be an option's letter, its number from 0 or from 1, its text, or a JSON boolean. What
one row leaves open, all rows of its source decide: a way of reading ("habit") that one of them
excludes is excluded for all. A row that stays open is an error. Numbers and words are decided
apart: a source may have both.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from lib.data.reading.row_parts.choice_options import (
    OPTIONS,
    Options,
    find_option_columns,
    is_pubmedqa,
    may_be_choice,
    read_options,
)
from lib.data.reading.row_parts.fields import BadRow, Fields, as_text, quote, require_fields

# These say which option is right by its place. In the others, an option's text may stand too.
PLACES = ("answer_letter", "answer_idx", "answer_index", "answerkey", "answer_key", "cop")
RIGHT = (*PLACES, "correct_option", "correct_answer", "answer", "label", "final_decision")
NUMBER = re.compile(r"(-?\d{1,6})(?:\.0+)?")

# Ways in which an answer can name an option
LETTER, TEXT, BOOLEAN = "letter", "text", "boolean"
FROM_0, FROM_1 = "from_0", "from_1"
HABITS = (LETTER, TEXT, BOOLEAN, FROM_0, FROM_1)
IN_WORDS = {
    LETTER: "as a letter",
    TEXT: "as an option's text",
    BOOLEAN: "as true or false",
    FROM_0: "counted from 0",
    FROM_1: "counted from 1",
}
# {(field, whether its answer is a number): {habit: the place of a row that excludes it}}
Habits = Mapping[tuple[str, bool], Mapping[str, str]]
Readings = dict[str, str]  # {habit: letter}


class UndecidedRow(BadRow):
    """A row whose answer names different options, depending on how the rest of its source is."""


def is_choice(row: Fields) -> bool:
    """Tell whether a row is a question with options."""
    if not may_be_choice(row.shape):
        return False
    if any(row.is_filled(name) for name in OPTIONS) or is_pubmedqa(row):
        return True
    return bool(find_option_columns(row)) and any(name in row.names for name in RIGHT)


# -------------------------------------------------------------------------------------------------
# what an answer can mean


class Answer(NamedTuple):
    """A field that names the right option, and what it can mean."""

    value: Any
    readings: Readings
    is_number: bool


def read_answer(value: Any, options: Options, by_place: bool = False) -> Answer:
    """Return what a value can mean as an answer; without any reading if it names no option.

    `by_place` is for fields that name a letter or number, and hold a text only instead.
    """
    if isinstance(value, bool):
        return Answer(value, _read_boolean(value, options), False)
    shown = str(value).strip() if isinstance(value, str | int | float) else ""
    number = NUMBER.fullmatch(shown)  # a table with an empty cell has its numbers as 1.0
    named = number[1] if number else shown
    letter = _find_letter(named, options)
    readings: Readings = {}
    if letter:
        readings[LETTER] = letter
    elif number:
        readings |= _read_number(int(named), options)
    elif named.casefold() in ("true", "false"):
        readings |= _read_boolean(named.casefold() == "true", options)
    text = _find_text(shown, options) or _find_text(named, options)
    if text and not (by_place and readings):
        readings[TEXT] = text
    return Answer(value, readings, bool(number))


def _read_boolean(value: bool, options: Options) -> Readings:
    letter_of = {_plain(text): letter for letter, text in options.items() if text is not None}
    for yes, no in (("true", "false"), ("yes", "no")):
        if yes in letter_of and no in letter_of:
            return {BOOLEAN: letter_of[yes if value else no]}
    return {}


def _read_number(number: int, options: Options) -> Readings:
    """Return what an option's number can mean; options that are null keep their numbers."""
    letters = list(options)
    readings = {
        habit: letters[number - first]
        for habit, first in ((FROM_0, 0), (FROM_1, 1))
        if 0 <= number - first < len(letters) and options[letters[number - first]] is not None
    }
    return readings | (_read_boolean(number == 1, options) if number in (0, 1) else {})


def _find_letter(named: str, options: Options) -> str | None:
    """Return the letter that an answer such as "B", "b", "(B)", "Option B" or "B) Water" names."""
    if options.get(named) is not None:
        return named
    match = re.fullmatch(r"(?:option\s*)?\(?([A-Za-z]|\d+)[).:]?", named, re.I)
    rest = ""
    if not match:
        match = re.fullmatch(r"\(?([A-Za-z]|\d+)[).:]\s+(.+)", named, re.S)
        rest = match[2] if match else ""
    if not match:
        return None
    letter = next(
        (own for own in (match[1], match[1].upper(), match[1].lower()) if options.get(own)), None
    )
    if letter and rest and _plain(rest) != _plain(options[letter]):
        return None
    return letter


def _find_text(named: str, options: Options) -> str | None:
    texts = {letter: text for letter, text in options.items() if text is not None}
    for letter, text in texts.items():
        if text.strip() == named:
            return letter
    alike = [letter for letter, text in texts.items() if _plain(text) == _plain(named)]
    return alike[0] if len(alike) == 1 else None


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")


# -------------------------------------------------------------------------------------------------
# which option is right


def to_choice(row: Fields, habits: Habits | None = None) -> dict[str, Any]:
    """Return a multiple-choice row as {"question", "options": {"A": text, ...}, "answer_letter"}.

    Raise BadRow when the answer is none of the options, or its fields contradict each other, and
    UndecidedRow when it is one or another, depending on `habits`, or on rows not seen without them.
    """
    options = read_options(row)
    answers = _read_fields(row, options)
    letter = _decide(answers, habits)
    if letter is None:
        raise UndecidedRow(_explain_undecided(row, answers, habits or {}))
    for name in answers:
        row.get(name)
    return {
        "question": as_text(row.get("question")),
        "options": {own: text for own, text in options.items() if text is not None},
        "answer_letter": letter,
    }


def _read_fields(row: Fields, options: Options) -> dict[str, Answer]:
    """Return {field: answer} of every field that names the right option.

    What one of them excludes is not among the readings of another.
    """
    filled = [name for name in RIGHT if row.is_filled(name)]
    answers = {name: read_answer(row.peek(name), options, name in PLACES) for name in filled}
    # a label of true or false beside the answer judges the row, and names no option
    if len(filled) > 1 and isinstance(row.peek("label"), bool) and not answers["label"].readings:
        del answers["label"]
    letters = {own for answer in answers.values() for own in answer.readings.values()}
    answers = {
        name: answer
        for name, answer in answers.items()
        if answer.readings or not any(_explains(answer.value, options[own]) for own in letters)
    }
    wrong = [answer.value for answer in answers.values() if not answer.readings]
    if wrong or not answers:
        unknown = (
            " (-1 stands for an answer that is not published: take a split with answers)"
            if wrong == [-1]
            else ""
        )
        letters_there = [letter for letter, text in options.items() if text is not None]
        raise BadRow(
            f"its answer is {quote(wrong[0] if wrong else None)}{unknown}; expected one of "
            f"{', '.join(letters_there)}, the number of an option, or its text"
            f"{_hint_columns(row, list(answers))}"
        )
    agreed = set.intersection(*(set(answer.readings.values()) for answer in answers.values()))
    if not agreed:
        named = ", ".join(f"`{row.names[name]}` {quote(row.peek(name))}" for name in answers)
        raise BadRow(
            f"its fields name different options as right: {named}. Correct the row"
            f"{_hint_columns(row, list(answers))}"
        )
    return {
        name: answer._replace(
            readings={habit: own for habit, own in answer.readings.items() if own in agreed}
        )
        for name, answer in answers.items()
    }


def _explains(value: Any, text: str) -> bool:
    """Tell whether an answer that names no option explains one: it contains the option's text."""
    return isinstance(value, str) and bool(_plain(text)) and _plain(text) in _plain(value)


def _hint_columns(row: Fields, names: list[str]) -> str:
    """Return how to have one of several fields read alone; empty where there is only one."""
    options = next((name for name in OPTIONS if row.is_filled(name)), None)
    if len(names) < 2 or options is None:
        return ""
    return (
        f", or name the columns that count, for example columns: "
        f"{{question: {row.names['question']}, options: {row.names[options]}, "
        f"answer_letter: {row.names[names[0]]}}}"
    )


def _decide(answers: dict[str, Answer], habits: Habits | None) -> str | None:
    """Return the right option's letter; None when only other rows of the source can tell."""
    sure = set()
    for name, answer in answers.items():
        letters = set(answer.readings.values())
        # a number may mean one thing here, and another row may exclude just that
        if answer.is_number or len(letters) > 1:
            if habits is None:
                continue
            excluded = habits.get((name, answer.is_number), {})
            letters = {own for habit, own in answer.readings.items() if habit not in excluded}
            if not letters:
                return None
        if len(letters) == 1:
            sure |= letters
    return sure.pop() if len(sure) == 1 else None


def _explain_undecided(row: Fields, answers: dict[str, Answer], habits: Habits) -> str:
    named = []
    contradicted = []
    for name, answer in answers.items():
        meant = ", ".join(f"{own} {IN_WORDS[habit]}" for habit, own in answer.readings.items())
        named.append(f"its `{row.names[name]}` {quote(answer.value)} is option {meant}")
        excluded = habits.get((name, answer.is_number), {})
        contradicted += [
            f"not {IN_WORDS[habit]} in {excluded[habit]}"
            for habit in answer.readings
            if habit in excluded
        ]
    rest = ", and no row of the set tells which"
    if contradicted:
        rest = f", but other answers are {'; '.join(contradicted)}"
    return f"{' and '.join(named)}{rest}."


# -------------------------------------------------------------------------------------------------
# what answers mean in a source


def find_habits(
    rows: Iterable[tuple[str, Any]],
    columns: Mapping[str, str] | None = None,
    numbers: str = "auto",
) -> Habits:
    """Return, for each field, the habits that some row excludes, with the place of the first.

    `rows` are (place, values) of all rows of a source, read one by one. `numbers` is the parameter
    `answer_numbers`: a habit that numbers have whatever the rows say.
    """
    habits: dict[tuple[str, bool], dict[str, str]] = {}
    for where, values in rows:
        try:
            row = Fields(require_fields(values), columns)
            answers = _read_fields(row, read_options(row)) if is_choice(row) else {}
        except BadRow:
            continue  # it is reported when it is read
        for name, answer in answers.items():
            excluded = habits.setdefault((name, answer.is_number), {})
            for habit in HABITS:
                if habit not in answer.readings:
                    excluded.setdefault(habit, where)
    if numbers != "auto":
        others = [habit for habit in HABITS if habit not in (LETTER, numbers)]
        fixed = dict.fromkeys(others, f"answer_numbers ({numbers})")
        habits |= {(name, True): fixed for name in RIGHT}
    return habits
