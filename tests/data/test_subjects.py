"""Whether rows that are much alike state one fact or several.

python -m pytest tests/data/test_subjects.py
"""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.templated import TERMS, templated
from lib.common.words import words_of
from lib.data import subjects


def terms(question, answer):
    return subjects.unpack_terms(subjects.pack_terms(words_of(question), words_of(answer)))


SAME_WORDS = [
    ("treats", "treated"),
    ("bleeding", "bleeds"),
    ("haemorrhage", "hemorrhages"),
    ("oedema", "edema"),
    ("children", "child"),
    ("biopsies", "biopsy"),
    ("masses", "mass"),
    ("causes", "caused"),
    ("treatments", "treated"),
    ("necrotising", "necrotizing"),
    ("Behçet".casefold(), "behcet"),
]
OTHER_WORDS = [
    ("hyperkalaemia", "hypokalaemia"),
    ("prednisone", "prednisolone"),
    ("ileum", "ilium"),
    ("left", "right"),
    ("chlorpromazine", "chlorpropamide"),
    ("amoxicillin", "ampicillin"),
    ("abduction", "adduction"),
    ("mcg", "mg"),
]


@pytest.mark.parametrize(("one", "other"), SAME_WORDS)
def test_forms_and_spellings_of_a_word_are_one_term(one, other):
    assert subjects.fold(one) == subjects.fold(other)


@pytest.mark.parametrize(("one", "other"), OTHER_WORDS)
def test_different_words_stay_different(one, other):
    assert subjects.fold(one) != subjects.fold(other)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("you don't", ["not"]),
        ("you do not", ["not"]),
        ("you cannot", ["not"]),
        ("you can't", ["not"]),
        ("2.5 mg of B12", ["2", "5", "b12"]),
        ("for adults and children", ["adult", "child"]),
        ("Hypertension before meals", ["hypertension", "befor"]),
        ("the patient is dressed", []),
    ],
)
def test_vital_words_are_numbers_negations_and_opposites(text, found):
    assert subjects.vital_words(words_of(text)) == found


@pytest.mark.parametrize("kind", list(TERMS))
def test_rows_of_a_template_state_different_facts(kind):
    for one, other in itertools.permutations(templated(kind), 2):
        assert not subjects.state_same_fact(terms(*one), terms(*other))
        turns = subjects.answers_turn_on_question(terms(*one), terms(*other))
        assert turns == (kind != "silent"), "an answer that never names it is the same answer"


@pytest.mark.parametrize(
    ("question", "other"),
    [
        ("How do I stop a nosebleed?", "What is the best way to stop a nosebleed?"),
        ("How are burns treated?", "How do I treat a burn?"),
        ("What causes haemorrhage?", "What are the causes of a hemorrhage?"),
        ("How is haemorrhage diagnosed?", "What is the diagnosis of a hemorrhage?"),
    ],
)
def test_questions_in_other_words_ask_the_same(question, other):
    answer = "Sit up, lean forward, and pinch the nose. HIV is not caught in this way."
    assert subjects.state_same_fact(terms(question, answer), terms(other, answer))
    assert not subjects.answers_turn_on_question(terms(question, answer), terms(other, answer))


def test_what_both_answers_name_equally_often_is_not_what_they_turn_on():
    answer = "Shingles, or herpes zoster, is a rash on one side of the body."
    one, other = terms("What is shingles?", answer), terms("What is herpes zoster?", answer)
    assert subjects.state_same_fact(one, other)
    narrower = terms("What is shingles, the rash?", answer)
    assert not subjects.state_same_fact(one, narrower)
    assert not subjects.state_same_fact(one, terms("How is herpes zoster treated?", answer))


def test_one_question_with_two_drugs_is_two_facts():
    answer = "Give {x} by mouth for a week. Stop {x} when a rash comes, and write it down."
    one, other = (terms("What is given?", answer.format(x=x)) for x in ("ampicillin", "cefalexin"))
    assert not subjects.state_same_fact(one, other)
    changed = terms("What is given?", answer.format(x="ampicillin").replace("rash", "fever"))
    assert subjects.state_same_fact(one, changed), "a single changed word"


def test_other_vital_words_under_another_subject_are_another_fact():
    answer = "The usual amount is {x} drops, given on the tongue and kept there for a moment."
    one, other = (
        terms("How much for a toddler?", answer.format(x=5)),
        terms("How much for a teenager?", answer.format(x=20)),
    )
    assert subjects.differ_in_vital_terms(one, other)
    copied = terms("And in school?", "So it is said: " + answer.format(x=5))
    assert not subjects.differ_in_vital_terms(one, copied), "the whole answer, and more"
    asked_again = terms("How much for a toddler?", answer.format(x=20))
    assert not subjects.differ_in_vital_terms(one, asked_again), "the question is the same"


def test_a_part_of_an_answer_under_another_question_is_no_other_fact():
    whole = "Hold the ankle up. Cool it with a wet cloth, and keep the ankle still for two days."
    one = terms("What helps a twisted ankle?", whole)
    part = terms("What is a wet cloth for?", "Cool it with a wet cloth.")
    assert not subjects.answers_turn_on_question(one, part)


@given(st.lists(st.sampled_from("a the amoxicillin left 5 mg not pain".split()), max_size=40))
def test_packed_terms_come_back(words):
    half = len(words) // 2
    got = subjects.unpack_terms(subjects.pack_terms(words[:half], words[half:]))
    content = [word for word in words if subjects.fold(word) not in subjects.ASKING]
    asked = {subjects._number_term(word) & subjects.NUMBER for word in words[:half]} - {0}
    assert got.asked == asked
    assert len(got.told) == len(set(words[half:]) & set(content))
    assert all(1 <= term & subjects.MOST <= subjects.MOST for term in got.told)
    assert subjects.state_same_fact(got, got)
    assert not subjects.answers_turn_on_question(got, got)


def test_terms_are_read_row_by_row(tmp_path):
    packed = [subjects.pack_terms(["knee"], ["left"] * n) for n in range(1, 4)]
    (tmp_path / "terms").write_bytes(b"".join(packed))
    file = subjects.TermsFile(tmp_path / "terms", [sum(map(len, packed[:n])) for n in (1, 2, 3)])
    assert [file.read(n) for n in (2, 0, 1)] == [
        subjects.unpack_terms(packed[n]) for n in (2, 0, 1)
    ]
    file.close()
