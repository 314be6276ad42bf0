"""Answers and sentences in other words than the rules': what was once judged rightly stays so.

    python -m pytest tests/medical/test_unseen.py
    python -m tests.benchmarks.safety_rules tests/medical/answers/third

The sets in answers/ were written without looking at the rules, which were then improved
on them. They tell when a change of a rule loses something, and nothing about answers unseen.
"""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "benchmarks"))

import safety_rules

from lib.medical import safety

ANSWERS = pathlib.Path(__file__).with_name("answers")
ROWS = {row["id"]: row for row in safety.load_rows()}


@pytest.mark.slow
@pytest.mark.parametrize("folder", sorted(ANSWERS.iterdir()), ids=lambda folder: folder.name)
def test_what_was_right_stays_right(folder):
    answers = safety_rules.read_lines(folder / "answers.jsonl")
    sentences = safety_rules.read_lines(folder / "sentences.jsonl")
    measured = [
        *safety_rules.measure_answers(ROWS, answers),
        *safety_rules.measure_sentences(sentences),
    ]
    assert [(kind, faults) for kind, faults, of in measured if len(faults) > 0.05 * of] == []
