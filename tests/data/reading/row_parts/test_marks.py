"""Which names judge an answer, and what their values say.

python -m pytest tests/data/reading/row_parts/test_marks.py
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from lib.data.reading.row_parts import marks
from lib.data.reading.row_parts.fields import fold_name

KINDS = {
    marks.RIGHT: "is_correct isCorrect Is-Correct iscorrect accepted Approved is_valid answer_correct "
    "is_answer_correct is_correct_answer kto_tag is_not_wrong",
    marks.WRONG: "incorrect is_wrong isWrong flagged retracted is_flagged Invalid not_accepted "
    "is_not_correct marked_wrong is_marked_as_wrong has_errors doNotUse exclude",
    marks.OPEN: "label status verdict review_status score correct rejected",
    marks.UNPROVEN: "verified is_verified expert_verified",
    None: "question answer correct_answer answer_letter is_medical marital_status topic issue source",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_says_how_it_judges(kind):
    assert {name: marks.find_kind(fold_name(name)) for name in KINDS[kind].split()} == (
        dict.fromkeys(KINDS[kind].split(), kind)
    )


def spell(word):
    """Return ways in which people write a word."""
    return some.sampled_from([word, word.upper(), word.capitalize(), f" {word} ", f"{word}."])


@settings(derandomize=True, max_examples=100, deadline=None)
@given(some.sampled_from(sorted(marks.YES | marks.NO)).flatmap(spell))
def test_yes_and_no_have_the_opposite_sense_under_an_inverse_name(said):
    right, wrong = marks.read_mark(marks.RIGHT, said), marks.read_mark(marks.WRONG, said)
    assert right is not None
    assert wrong is not right
    assert wrong is not None


@settings(derandomize=True, max_examples=100, deadline=None)
@given(some.sampled_from(sorted(marks.BAD | {f"not {word}" for word in marks.GOOD})).flatmap(spell))
def test_a_word_that_judges_says_the_same_under_any_name(said):
    for kind in (marks.RIGHT, marks.WRONG, marks.OPEN, marks.UNPROVEN):
        assert marks.read_mark(kind, said) is False


@pytest.mark.parametrize("value", [2, 0.5, [False], {"a": 1}, "maybe", "N/A", "dosage", "1.5"])
def test_any_other_value_is_not_known(value):
    assert marks.read_mark(marks.RIGHT, value) is None
    assert marks.read_mark(marks.WRONG, value) is None


def test_a_tick_and_minus_one_are_clear_only_where_the_name_is():
    signs = ["✓", "✗", "❌", "✔️", -1]
    assert [marks.read_mark(marks.RIGHT, sign) for sign in signs] == [
        True,
        False,
        False,
        True,
        False,
    ]
    assert {marks.read_mark(marks.WRONG, sign) for sign in signs} == {None}
