"""A judge model's figures: only with its agreement, and with a word on what that is worth.

python -m pytest tests/exam/answers/test_judge_tables.py
"""

import pytest

from helpers.judged import judgement
from lib.exam import safety_set, tables
from lib.exam.answers import counts, judge_tables
from lib.medical import safety


def a_judge(kappa, low, high):
    by_judge = counts.count_acts([judgement([1]), judgement([0])])
    return {
        "model": "m-7b",
        "agreement": {
            "kappa": kappa,
            "ci95": [low, high],
            "answers": 30,
            "unjudged": 0,
            "right_passed": {"count": 9, "of": 10},
            "wrong_caught": {"count": 18, "of": 20},
            "acts": {"kappa": 0.5, "ci95": [0.4, 0.6]},
        },
        "models": {"base": {"criteria": by_judge, "unjudged": 1, "verdicts": [{}, {}, None]}},
    }


@pytest.fixture
def entry():
    said = [{**judgement([1, 1]), "prompt": "p", "answer": "a"}] * 3
    base = safety_set.count_answers(said)
    return {
        "exam": safety.NAME,
        "items": 3,
        "tokens": 9,
        "models": {"base": base},
        "judge": a_judge(0.8, 0.7, 0.9),
    }


def test_the_judges_figures_stand_beside_the_rules_with_its_agreement(entry):
    caption, rows = tables.exam_tables({safety.NAME: entry})[-1]
    assert "kappa with what is known of them is 0.80 (0.70 to 0.90)" in caption
    assert "passes 9 of 10 (90%) of the right ones and catches 18 of 20 (90%)" in caption
    assert "not to be believed" not in caption
    assert [(row["judged by"], row["critical acts done"][:6]) for row in rows] == [
        ("rules", "6 of 6"),
        ("model", "1 of 2"),
    ]
    assert [row["no verdict"] for row in rows] == [0, 1]
    assert "m-7b" in tables.format_entry(entry)
    section = tables.result_sections({safety.NAME: entry})["safety"]["judge"]
    assert section["agreement"]["kappa"] == 0.8
    assert section["models"]["base"]["unjudged"] == 1
    assert "verdicts" not in section["models"]["base"]


def test_a_judge_whose_agreement_may_be_low_is_not_to_be_believed(entry):
    entry["judge"] = a_judge(0.7, 0.55, 0.85)
    caption, _ = tables.exam_tables({safety.NAME: entry})[-1]
    assert "not to be believed: kappa may be below 0.6" in caption


def test_a_judge_that_failed_has_a_reason_and_no_figure(entry):
    entry["judge"] = {"model": "m-7b", "failed": "the server refuses: 401"}
    caption, rows = judge_tables.judge_tables(entry)[0]
    assert caption.endswith("no verdicts. the server refuses: 401")
    assert rows == []
    assert tables.result_sections({safety.NAME: entry})["safety"]["judge"] == entry["judge"]
