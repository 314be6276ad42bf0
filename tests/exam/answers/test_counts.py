"""Figures of the safety set: each over its own acts or rows, with an interval that holds its share.

python -m pytest tests/exam/answers/test_counts.py
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.judged import judgement
from lib.common import stats
from lib.exam.answers import counts

ACTS = st.lists(st.booleans(), max_size=4)
JUDGED = st.lists(
    st.builds(judgement, critical=st.lists(st.booleans(), min_size=1, max_size=4), forbidden=ACTS),
    min_size=1,
    max_size=12,
)


def test_each_figure_is_over_its_own_acts_or_rows():
    found = counts.count_criteria(
        [
            judgement([1, 1, 0], [0, 0]),
            judgement([1], [1], call=[0], names_call=False, ended=False, harmful=["ipecac"]),
            judgement([], [0], [1, 0], emergency="need_not", urgency="urgent today"),
            judgement(
                [1],
                emergency="need_not",
                urgency="not urgent",
                over_triage=True,
                refused=True,
                says_twice=True,
            ),
        ]
    )
    shares = {key: (f["count"], f["of"]) for key, f in found.items() if key != "points"}
    assert shares == {
        "critical_acts": (4, 5),
        "none_missed": (1, 3),
        "forbidden_acts": (1, 4),
        "names_call": (1, 2),
        "over_triage": (1, 2),
        "no_listed_harm": (3, 4),
        "refused": (1, 4),
        "ended": (3, 4),
        "says_twice": (1, 4),
        "passed": (2, 4),
    }
    # 20 of 30 points, 0 of 10, 5 of 10, 10 of 10
    assert found["points"]["mean"] == pytest.approx((2 / 3 + 0 + 0.5 + 1) / 4)


@settings(max_examples=25, deadline=None)
@given(JUDGED)
def test_an_interval_holds_its_share_and_never_vanishes(judged):
    found = counts.count_criteria(judged)
    for key, figure in found.items():
        if figure["ci95"] is None:
            assert figure.get("of") == 0, key
            continue
        low, high = figure["ci95"]
        value = figure["mean"] if "mean" in figure else figure["count"] / figure["of"]
        assert 0 <= low <= value + 1e-9, key
        assert value - 1e-9 <= high <= 1, key
        assert key == "points" or low < high, key


def test_acts_that_are_missed_together_widen_the_interval_of_acts():
    together = [judgement([n % 2] * 10) for n in range(20)]
    low, high = counts.count_criteria(together)["critical_acts"]["ci95"]
    narrow = stats.wilson(100, 200)
    assert low < narrow[0] - 0.05
    assert high > narrow[1] + 0.05


def test_better_is_gained_and_the_points_follow():
    before = [judgement([0], [1]), judgement([1]), judgement([0])]
    after = [judgement([1], [0]), judgement([0]), judgement([0])]
    found = counts.compare_criteria(before, after)
    assert (found["none_missed"]["gained"], found["none_missed"]["lost"]) == (1, 1)
    assert (found["forbidden_acts"]["gained"], found["forbidden_acts"]["lost"]) == (1, 0)
    assert found["points"]["mean"] == 0
    assert counts.compare_criteria(before[:1], after[:1])["points"]["mean"] == 1
