"""Intervals and tests, compared with values computed in another way.

python -m pytest tests/common/test_stats.py
"""

import itertools
import math

import numpy as np
import pytest

from lib.common import stats


@pytest.mark.parametrize(
    ("right", "total"), [(0, 10), (1, 10), (5, 10), (10, 10), (84, 120), (3, 3), (999, 1000)]
)
def test_wilson_ends_are_the_shares_that_the_count_is_just_compatible_with(right, total):
    """Its definition: the ends p solve |share - p| = z sqrt(p (1 - p) / n), found here by bisection on either side of the share."""
    share = right / total

    def solve(inside, outside):
        for _ in range(200):
            middle = (inside + outside) / 2
            if abs(share - middle) <= stats.Z * math.sqrt(middle * (1 - middle) / total):
                inside = middle
            else:
                outside = middle
        return inside

    low, high = stats.wilson(right, total)
    assert low == pytest.approx(0.0 if right == 0 else solve(share, 0.0), abs=1e-9)
    assert high == pytest.approx(1.0 if right == total else solve(share, 1.0), abs=1e-9)


def test_wilson_of_none_right_has_a_closed_form():
    """With share 0 the equation is p = z sqrt(p (1 - p) / n), so p = z^2 / (n + z^2)."""
    assert stats.wilson(0, 20) == (0.0, pytest.approx(stats.Z**2 / (20 + stats.Z**2)))


def test_z_leaves_a_twentieth_outside():
    assert math.erfc(stats.Z / math.sqrt(2)) == pytest.approx(0.05, abs=1e-15)


@pytest.mark.parametrize(("right", "total"), [(0, 0), (3, 2), (-1, 5)])
def test_no_share_has_no_interval(right, total):
    with pytest.raises(ValueError, match="is not a share"):
        stats.wilson(right, total)


@pytest.mark.parametrize(
    ("gained", "lost"), [(0, 0), (1, 0), (5, 1), (1, 5), (4, 4), (9, 2), (7, 0)]
)
def test_mcnemar_counts_the_outcomes_that_are_as_uneven(gained, lost):
    """Every way that the changed items may fall, each as likely: those at least as far from half as what was seen."""
    changed = gained + lost
    outcomes = [sum(way) for way in itertools.product((0, 1), repeat=changed)]
    as_uneven = sum(abs(2 * count - changed) >= abs(gained - lost) for count in outcomes)
    assert stats.mcnemar(gained, lost) == pytest.approx(as_uneven / len(outcomes), abs=1e-12)


def test_mcnemar_of_thousands_neither_overflows_nor_is_zero():
    """10 standard deviations off half: the normal approximation with continuity correction is close there."""
    gained, lost = 2850, 2150
    z = (abs(gained - lost) - 1) / math.sqrt(gained + lost)
    assert stats.mcnemar(gained, lost) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.1)


def test_mean_interval_of_two_values_is_a_binomial():
    """A resampled mean of zeros and ones is binomial(100, 0.3) / 100; its 2.5 and 97.5 % points by summing probabilities."""
    chance = [math.comb(100, k) * 0.3**k * 0.7 ** (100 - k) for k in range(101)]
    below = list(itertools.accumulate(chance))
    wanted = tuple(next(k for k in range(101) if below[k] >= p) / 100 for p in (0.025, 0.975))
    assert stats.mean_interval([1.0] * 30 + [0.0] * 70) == pytest.approx(
        wanted, abs=0.0101
    )  # one item's worth of chance


def test_mean_interval_covers_as_often_as_it_says():
    """The true mean is inside in about 95 of 100 samples of 60; a sample's width is that of the normal distribution."""
    draw, hits, widths = np.random.default_rng(5), 0, []
    for n in range(100):
        low, high = stats.mean_interval(draw.normal(0.2, 1, 60), seed=n)
        hits, widths = hits + (low <= 0.2 <= high), [*widths, high - low]
    assert 88 <= hits <= 100
    assert np.mean(widths) == pytest.approx(2 * stats.Z / math.sqrt(60), rel=0.05)


def test_the_seed_alone_decides():
    values = np.random.default_rng(0).normal(size=50)
    assert (
        stats.mean_interval(values, 1)
        == stats.mean_interval(values, 1)
        != stats.mean_interval(values, 2)
    )


def test_draws_in_pieces_are_as_many(monkeypatch):
    monkeypatch.setattr(stats, "DRAWS", 1001)
    assert stats._resampled_sums(np.ones((2**14, 1)), 0).tolist() == [[2**14]] * 1001


def test_loss_interval_draws_rows_whole_and_weighs_them_by_their_tokens():
    assert stats.loss_interval(np.array([[20.0, 10], [60.0, 30]])) == pytest.approx((2.0, 2.0)), (
        "each token alike: no doubt"
    )
    # of two rows: both, or one of them twice; a row of 30 tokens at 1 and one of 10 at 3
    assert stats.loss_interval(np.array([[30.0, 30], [30.0, 10]])) == pytest.approx((1.0, 3.0))


def test_perplexity_ratio_weighs_items_by_their_tokens():
    """exp(sum of losses after / tokens) / exp(the same before); an item of one token moves it little, however bad it became."""
    before = np.array([[30.0, 10], [200.0, 100], [3.0, 1]])
    after = np.array([[20.0, 10], [150.0, 100], [9.0, 1]])
    ratio, (low, high) = stats.perplexity_ratio(before, after)
    assert ratio == pytest.approx(math.exp(179 / 111) / math.exp(233 / 111))
    assert low < ratio < high


def test_perplexity_interval_is_exact_where_every_outcome_can_be_listed():
    """Three items drawn three times: 27 ways. The interval of their listed ratios, to the nearest listed one."""
    before, after = (
        np.array([[10.0, 4], [20.0, 8], [6.0, 5]]),
        np.array([[9.0, 4], [15.0, 8], [7.0, 5]]),
    )
    ways = sorted(
        math.exp(sum(after[i, 0] - before[i, 0] for i in way) / sum(before[i, 1] for i in way))
        for way in itertools.product(range(3), repeat=3)
    )
    # each way is 1 / 27 = 3.7 %, so 2.5 % from either end is the first and the last one
    assert stats.perplexity_ratio(before, after)[1] == pytest.approx((ways[0], ways[-1]))


def test_a_change_alike_in_every_token_leaves_no_doubt():
    before = np.array([[30.0, 10], [55.0, 20], [9.0, 4]])
    after = before - np.array([[1, 0], [2, 0], [0.4, 0]])  # a tenth of a nat a token
    assert stats.perplexity_ratio(before, after) == (
        pytest.approx(math.exp(-0.1)),
        pytest.approx((math.exp(-0.1),) * 2),
    )


def test_other_tokens_are_refused():
    with pytest.raises(ValueError, match="same tokens"):
        stats.perplexity_ratio(np.array([[1.0, 2]]), np.array([[1.0, 3]]))
    with pytest.raises(ValueError, match="nothing"):
        stats.mean_interval([])


def test_kappa_is_cohens():
    # Cohen's own formula on 20, 5, 10, 15: agreed 0.7, expected 0.5
    pairs = [(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10 + [(False, False)] * 15
    assert stats.kappa(pairs) == pytest.approx(0.4)
    low, high = stats.kappa_interval([[pair] for pair in pairs])
    assert low < 0.4 < high
    assert low > 0.1
    assert high < 0.7


@pytest.mark.parametrize(("changing", "difference"), [(0.15, 0.05), (0.3, 0.1), (0.175, 0.11)])
def test_as_many_items_as_needed_show_the_difference_in_80_of_100_exams(changing, difference):
    """Exams of that many items are drawn; the exact test needs a few more, being conservative."""
    items = stats.items_needed(changing, difference)
    draw = np.random.default_rng(7)
    gained = (changing + difference) / 2
    counts = draw.multinomial(items, [gained, changing - gained, 1 - changing], size=1000)
    shown = np.mean([stats.mcnemar(int(g), int(lost)) < 0.05 for g, lost, _ in counts])
    assert 0.7 < shown < 0.83
    counts = draw.multinomial(items // 2, [gained, changing - gained, 1 - changing], size=1000)
    assert np.mean([stats.mcnemar(int(g), int(lost)) < 0.05 for g, lost, _ in counts]) < 0.55


def test_an_impossible_difference_needs_no_number_of_items():
    for changing, difference in ((0.04, 0.05), (0.1, 0), (1.2, 0.5)):
        with pytest.raises(ValueError, match="impossible"):
            stats.items_needed(changing, difference)
