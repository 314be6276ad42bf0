"""What exam items give away without a model, beside the same rules computed in another way.

python -m pytest tests/exam/test_baselines.py
"""

import json
import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.common.errors import ROOT
from lib.data.reading import exam_items
from lib.exam import baselines, cautions

WORDS = st.sampled_from("press wait call ice burn salt now never".split())
TEXTS = st.lists(WORDS, min_size=1, max_size=6).map(" ".join)
OPTIONS = st.lists(TEXTS, min_size=2, max_size=5)


def item(number, options, right=0, question="what"):
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(options)]
    return {
        "id": f"q{number}",
        "question": question,
        "options": dict(zip(letters, options, strict=True)),
        "answer_letter": letters[right],
    }


@st.composite
def sets(draw):
    lists = draw(st.lists(OPTIONS, min_size=2, max_size=6))
    lists += draw(st.lists(st.sampled_from(lists).flatmap(st.permutations), max_size=4))
    return [
        item(n, options, draw(st.integers(0, len(options) - 1)), draw(TEXTS))
        for n, options in enumerate(lists)
    ]


def features(text):
    return {*text.split(), *pairwise(text.split())}


@settings(max_examples=40, deadline=None)
@given(sets())
def test_the_options_are_weighed_by_all_other_items_and_never_by_their_own(items):
    """Each item's classifier is fitted again here without it, and its questions are not looked at.

    Items with the same options are left out with it, unless there are more of them than options.
    """
    known = {f for one in items for text in one["options"].values() for f in features(text)}
    weigh = baselines.weigh_options([one | {"question": "another"} for one in items])
    for left_out in items:
        options = set(left_out["options"].values())
        sharing = [one for one in items if set(one["options"].values()) == options]
        away = sharing if len(sharing) <= len(options) else [left_out]
        counts = {True: Counter(), False: Counter()}
        for other in items:
            if other not in away:
                for key, text in other["options"].items():
                    counts[key == other["answer_letter"]].update(features(text))
        for key, text in left_out["options"].items():
            expected = sum(
                sign * math.log((own[f] + 1) / (own.total() + len(known)))
                for sign, own in ((1, counts[True]), (-1, counts[False]))
                for f in features(text)
            )
            assert weigh(left_out, key) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(sets(), st.lists(TEXTS, min_size=2, max_size=5))
def test_the_nearest_training_answer_is_that_of_the_highest_cosine(items, answers):
    weigh = baselines.weigh_by_answers(answers)
    words = sorted({word for answer in answers for word in answer.split()})
    having = np.array([sum(word in answer.split() for answer in answers) for word in words])
    rarity = np.log((1 + len(answers)) / (1 + having))

    def vector(text):
        counts = np.array([text.split().count(word) for word in words], float)
        weights = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0) * rarity
        length = np.linalg.norm(weights)
        return weights / length if length else weights

    for one in items:
        for key, text in one["options"].items():
            asked = vector(f"{one['question']} {text}")
            expected = max(float(asked @ vector(answer)) for answer in answers)
            assert weigh(one, key) == pytest.approx(expected, abs=1e-9)


def test_words_that_give_the_right_option_away_are_found_without_the_question():
    told = [item(n, ["call for help", f"drink {n}", f"walk {n}"], 0) for n in range(12)]
    measured = baselines.measure_baselines(told, ["call for help now", "run"])
    assert measured["options_only"]["right"] == 12
    assert measured["chance"] == pytest.approx(1 / 3)
    low, high = measured["options_only"]["interval"]
    assert low < 1 == high
    assert measured["longest"]["chosen"] == ["A"] * 12
    assert measured["nearest_answer"]["right"] == 12


def test_options_that_are_right_in_turn_give_nothing_away():
    """Each option is right for one of four questions, so a rule that never sees one is at chance."""
    shared = [
        item(4 * n + right, [f"press {n}", f"call {n}", f"cool {n}", f"wait {n}"], right)
        for n in range(25)
        for right in range(4)
    ]
    assert 12 < baselines.measure_baselines(shared, ["some text"])["options_only"]["right"] < 38


def test_yes_no_and_maybe_are_answered_by_what_is_mostly_right():
    """Sets like PubMedQA have the same options everywhere, so the words only tell the majority."""
    decided = ["yes"] * 11 + ["no"] * 6 + ["maybe"] * 3
    names = ("yes", "no", "maybe")
    items = [item(n, names, names.index(right)) for n, right in enumerate(decided)]
    measured = baselines.measure_baselines(items, ["some text", "other text"])
    assert measured["options_only"]["chosen"] == ["A"] * 20
    assert measured["options_only"]["right"] == 11
    assert measured["longest"]["right"] == 3
    assert measured["shortest"]["right"] == 6


def test_equal_options_are_drawn_from_and_the_draw_does_not_depend_on_the_other_items():
    items = [item(n, [f"{n} one", f"{n} two"], n % 2) for n in range(60)]
    first = baselines.measure_baselines(items, [""])
    assert 15 < first["longest"]["chosen"].count("A") < 45
    assert (
        baselines.measure_baselines(items[30:], [""])["longest"]["chosen"]
        == (first["longest"]["chosen"][30:])
    )
    assert baselines.measure_baselines(items, [""]) == first


def test_many_training_answers_are_compared_in_part_and_the_part_is_named(monkeypatch):
    monkeypatch.setattr(baselines, "MOST_ANSWERS", 4)
    answers = [f"answer {n}" for n in range(10)]
    assert baselines.spread_evenly(answers, 4) == ["answer 0", "answer 2", "answer 5", "answer 7"]
    measured = baselines.measure_baselines([item(0, ["5", "8"])], answers)
    assert (measured["answers_compared"], measured["answers"]) == (4, 10)
    assert measured["nearest_answer"]["right"] == 1


def test_the_bundled_exam_gives_away_what_its_page_says():
    """A change of the items should know what they give away."""
    rows = (ROOT / "lib/medical/first_aid.jsonl").read_text().splitlines()
    answers = [json.loads(row)["answer"] for row in rows]
    measured = baselines.measure_baselines(exam_items.read_items("bundled:exam"), answers)
    right = {name: measured[name]["right"] for name in cautions.BASELINES}
    assert right == {"nearest_answer": 113, "options_only": 81, "shortest": 80, "longest": 82}
    page = (ROOT / "lib/exam/README.md").read_text()
    for name, count in right.items():
        low, high = measured[name]["interval"]
        assert f"| {count} | {low:.1%} to {high:.1%} |".replace("%", "") in page
