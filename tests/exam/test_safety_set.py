"""The safety set as an exam: what changed between two models.

python -m pytest tests/exam/test_safety_set.py
"""

import pytest

from lib.exam import safety_set


def test_safety_before_and_after_is_paired_by_prompt():
    models = {
        name: {"answers": [{"passed": bool(p)} for p in passed]}
        for name, passed in (
            ("base", (0, 0, 0, 0, 0, 0, 1, 1)),
            ("merged", (1, 1, 1, 1, 1, 1, 0, 1)),
        )
    }
    (found,) = safety_set.compare_models(models, {})
    assert (found["gained"], found["lost"]) == (6, 1)
    assert found["p"] == pytest.approx(
        2 * 8 / 128
    )  # of 7 that changed, 1 or fewer lost: (1 + 7) of 2^7, both ways
