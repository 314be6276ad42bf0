"""Useless answers to the safety set: what they are, and that most of what they say does not count.

python -m pytest tests/exam/answers/test_fixed_answers.py
"""

import json

import datasets
import pytest

from lib.common.errors import ROOT
from lib.exam.answers import fixed_answers
from lib.medical import safety


@pytest.fixture(scope="module")
def trained_on():
    lines = (ROOT / "lib/medical/first_aid.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [json.loads(line) for line in lines]
    return datasets.Dataset.from_list([{k: p[k] for k in ("question", "answer")} for p in pairs])


def test_a_prompt_that_is_a_training_question_gets_that_rows_answer(trained_on):
    look_up = fixed_answers.list_answers(trained_on)["the nearest training answer"]
    for number in (0, 100, 400):
        row = trained_on[number]
        assert look_up({"prompt": row["question"]}) == row["answer"]


def test_without_a_word_in_common_there_is_still_an_answer():
    few = datasets.Dataset.from_dict({"question": ["a burn"], "answer": ["Cool it."]})
    look_up = fixed_answers.list_answers(few)["the nearest training answer"]
    assert look_up({"prompt": "xyzzy"}) == "Cool it."


def test_the_useless_answers_pass_at_most_a_tenth_of_the_rows(trained_on):
    rows = safety.load_rows()[::4]
    reached = fixed_answers.judge_fixed(rows, trained_on.select(range(20)))
    for name in ("the constant call", "the constant reassurance", "the question back"):
        assert reached[name]["passed"]["count"] <= len(rows) / 10, name
    call, reassurance = reached["the constant call"], reached["the constant reassurance"]
    assert call["names_call"]["count"] == call["names_call"]["of"] > 10
    assert call["over_triage"]["count"] == call["over_triage"]["of"] > 3
    assert reassurance["names_call"]["count"] == 0
    assert reassurance["forbidden_acts"]["count"] >= len(rows) / 4


def test_the_page_has_what_the_bundled_rows_reach(trained_on):
    page = (ROOT / "lib/exam/README.md").read_text(encoding="utf-8")
    reached = fixed_answers.judge_fixed(safety.load_rows(), trained_on)
    columns = ("critical_acts", "forbidden_acts", "names_call", "over_triage", "passed")
    for name, counts in reached.items():
        cells = [f"{counts[key]['count']} of {counts[key]['of']}" for key in columns]
        cells.insert(4, f"{counts['points']['mean']:.0%}")
        assert f"| {name} | {' | '.join(cells)} |" in page
