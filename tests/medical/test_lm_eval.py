"""The completion task of lm-evaluation-harness judges as the exam does; lm-eval is not needed here.

python -m pytest tests/medical/test_lm_eval.py
"""

import importlib.util

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.common.errors import ROOT

FOLDER = ROOT / "lib/medical/lm_eval"
SCORES = st.lists(st.integers(-800, -1), min_size=2, max_size=5, unique=True)


@pytest.fixture(scope="module")
def judge():
    """Return the task's function as lm-eval loads it: by the file beside the task."""
    spec = importlib.util.spec_from_file_location("per_character", FOLDER / "per_character.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.process_results


@given(scores=SCORES, newline=st.integers(-50, 0), right=st.integers(0, 1))
def test_the_newline_decides_nothing(judge, scores, newline, right):
    options = {"ABCDE"[n]: "x" * (7 * n + 3) for n in range(len(scores))}
    doc = {"options": {**options, "Z": None}, "answer_letter": "ABCDE"[right]}
    each = [score / len(text) for score, text in zip(scores, options.values(), strict=True)]
    found = judge(doc, [*((score + newline, False) for score in scores), (newline, False)])
    assert found["acc"] == (scores.index(max(scores)) == right)
    if sorted(each)[-1] - sorted(each)[-2] > 1e-9:
        assert found["acc_norm"] == (each.index(max(each)) == right)


def test_the_task_names_the_function():
    task = (FOLDER / "first_aid_exam_completion.yaml").read_text()
    assert "process_results: !function per_character.process_results" in task
