"""Answers that only point elsewhere, and short answers with their source.

python -m pytest tests/data/cleaning/test_links.py
"""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.cleaning import reason
from helpers.odd_texts import any_of, any_text
from lib.data.cleaning.links import is_link_list

ONLY_LINKS = [
    "https://a.org",
    "https://a.org\nhttps://b.org",
    "See https://a.org/x and www.b.org.",
    "See <a href='https://a.org'>here</a>.",
    "Source: https://a.org",
    "More information: https://a.org",
    "Burns guidance: https://a.org",
    "Click here: https://a.org",
    "Please refer to the following link: https://a.org",
    "Read more at https://a.org.",
    "See https://a.org for burns.",
    "For more information about burns, visit https://a.org/burns.",
    "You can find more information on the website www.a.org/burns",
    "Useful links: https://a.org, https://b.org",
    "NHS https://a.org WHO https://b.org",
    "- Red Cross: https://a.org\n- WHO: https://b.org",
    "[Burns](https://a.org) [Scalds](https://b.org)",
    "Resources about burns:  - Red Cross  - WHO   See also:  - NHS",
]
ANSWERS = [
    "Naloxone https://a.org",
    "Naloxone (https://a.org)",
    "Naloxone. Source: https://a.org",
    "Naloxone (see https://a.org)",
    "Source: https://a.org\nNaloxone",
    "Burns ointment (source: https://a.org)",
    "Ramipril [source](https://a.org)",
    "Call 112 (https://a.org)",
    "112. https://a.org",
    "30:2 https://a.org",
    "0.5 mg IM\nRef: https://a.org",
    "Yes. https://a.org",
    "No, according to https://a.org",
    "https://a.org says: cool it",
    "Apply ice <a href='https://a.org'>NHS</a>",
    "See a doctor now. https://a.org",
    "Visit the emergency room now. https://a.org",
    "Cool it for 20 minutes [1]: https://a.org",
    "Press hard. Sources: https://a.org https://b.org",
    "Lean forward, pinch nose.\n\nhttps://a.org\nhttps://b.org",
    "Give [naloxone](https://a.org) and call [112](https://b.org).",
]


@pytest.mark.parametrize("answer", ONLY_LINKS)
def test_an_answer_that_only_points_elsewhere_is_dropped(answer):
    assert reason("How do I treat burns?", answer) == "link_list"


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_short_answer_with_its_source_is_kept(answer):
    assert reason("How do I treat burns?", answer) == ""


@any_of
@given(any_text, st.sampled_from(ANSWERS[:4]))
def test_whatever_the_question_says_a_fact_with_its_source_is_an_answer(question, answer):
    assert not is_link_list(question, answer)


@pytest.mark.parametrize("unit", ["<a href=", "[", "(", "- ", "See ", " www. ", "https://a "])
def test_long_answers_take_linear_time(unit):
    started = time.perf_counter()
    is_link_list("Where?", "https://a.org " + unit * (500_000 // len(unit)))
    assert time.perf_counter() - started < 5
