"""Confidence intervals and tests for comparing two models on the same items."""

import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np

Z = 1.959963984540054  # the normal distribution's 97.5th percentile, for 95 % intervals
Z_POWER = 0.8416212335729143  # its 80th percentile, for a power of 80 %
# Bootstrap resamples. With 10,000, an interval's ends vary from seed to seed by about a fiftieth
# of its width.
DRAWS = 10_000
INDICES_AT_ONCE = 2**22


class Changes(TypedDict):
    """How many items became right, how many became wrong, and McNemar's exact p."""

    gained: int
    lost: int
    p: float


def wilson(right: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a share; raise ValueError for an impossible one.

    Unlike p +- Z s, it stays within 0 and 1, and it has a width even where all or none are right.
    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference,
    J. Am. Stat. Assoc. 22 (1927) 209-212.
    """
    if not 0 <= right <= total or not total:
        raise ValueError(
            f"{right} of {total} is not a share; expected 0 <= right <= total and total >= 1"
        )
    share = right / total
    spread = Z * Z / total
    centre = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(gained: int, lost: int) -> float:
    """Return the exact two-sided p of McNemar's test.

    It is the chance of a split at least as uneven, if each item that changed was as likely gained
    as lost: twice the smaller tail of binomial(gained + lost, 1/2).
    Source: Q. McNemar, Note on the sampling error of the difference between correlated proportions
    or percentages, Psychometrika 12 (1947) 153-157, here without its normal approximation.
    """
    changed = gained + lost
    tail = sum(math.comb(changed, k) for k in range(min(gained, lost) + 1))
    # integers up to the last division, so that the result is exact for thousands of items too
    return min(1.0, 2 * tail / 2**changed)


def changes(before: list[bool], after: list[bool]) -> Changes:
    """Compare which of the same items were right before and after."""
    pairs = list(zip(before, after, strict=True))
    gained = pairs.count((False, True))
    lost = pairs.count((True, False))
    return {"gained": gained, "lost": lost, "p": mcnemar(gained, lost)}


def items_needed(changing: float, difference: float) -> int:
    """Return how many items show a difference between two models in 80 of 100 exams.

    `changing` is the share of items that only one of them gets right, and `difference` that of
    their accuracies; McNemar's test decides, two-sided, at p < 0.05. Raise ValueError unless
    0 < difference <= changing <= 1.
    Source: R. J. Connor, Sample size for testing differences in proportions for the paired-sample
    design, Biometrics 43 (1987) 207-211.
    """
    if not 0 < difference <= changing <= 1:
        raise ValueError(
            f"a difference of {difference} with {changing} of the items changing is impossible; "
            f"expected 0 < difference <= changing <= 1"
        )
    spread = Z * math.sqrt(changing) + Z_POWER * math.sqrt(changing - difference**2)
    return math.ceil((spread / difference) ** 2)


def holm(ps: list[float]) -> list[float]:
    """Return each p corrected for the number of tests, in the order given.

    The smallest of m p values is multiplied by m, the next by m - 1 and so on; none may be smaller
    than the one before it.
    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scand. J. Stat. 6
    (1979) 65-70.
    """
    corrected = [0.0] * len(ps)
    highest = 0.0
    by_size = sorted(range(len(ps)), key=ps.__getitem__)
    for rank, n in enumerate(by_size):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[n]))
        corrected[n] = highest
    return corrected


# The intervals below are percentile bootstraps: B. Efron, Bootstrap methods: another look at the
# jackknife, Ann. Stat. 7 (1979) 1-26; B. Efron and R. J. Tibshirani, An introduction to the
# bootstrap (1993), chapter 13.


def mean_interval(differences: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean of paired differences, one for each item."""
    sums = _resampled_sums(np.asarray(differences, np.float64)[:, None], seed)[:, 0]
    return _middle_95(sums / len(differences))


def loss_interval(rows: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean loss of a token, in nats.

    `rows` is (rows, 2): summed loss in nats and trained tokens. Whole rows are drawn, since the
    tokens of a row are not independent.
    """
    return ratio_interval(rows, seed)


def ratio_interval(rows: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of column 0 / column 1, both summed over whole rows."""
    sums = _resampled_sums(rows, seed)
    return _middle_95(sums[:, 0] / sums[:, 1])


def perplexity_ratio(
    before: np.ndarray, after: np.ndarray, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Return perplexity after / before, and its 95 % bootstrap interval; under 1 is better.

    Each array is (items, 2): summed loss in nats and trained tokens. Whole items are drawn, each
    with both its losses. Raise ValueError unless the numbers of tokens are the same.
    """
    if before.shape != after.shape or (before[:, 1] != after[:, 1]).any():
        raise ValueError("the two models were not measured on the same tokens")
    paired = np.stack([after[:, 0] - before[:, 0], before[:, 1]], axis=1)
    loss, tokens = paired.sum(axis=0)
    sums = _resampled_sums(paired, seed)
    return math.exp(loss / tokens), _middle_95(np.exp(sums[:, 0] / sums[:, 1]))


def kappa(pairs: Sequence[tuple[bool, bool]]) -> float:
    """Return how far two judges agree beyond chance: 1 is always, 0 is as often as by chance.

    A judge who says the same of everything has 0, even where the other does so too.
    Source: J. Cohen, A coefficient of agreement for nominal scales, Educ. Psychol. Meas. 20 (1960)
    37-46.
    """
    return float(_kappas(_agreement_table(pairs)[None])[0])


def kappa_interval(
    groups: Sequence[Sequence[tuple[bool, bool]]], seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of kappa over the pairs of all groups.

    Whole groups are drawn, since verdicts about the same question are not independent.
    """
    tables = np.array([_agreement_table(group) for group in groups])
    return _middle_95(_kappas(_resampled_sums(tables, seed)))


def _agreement_table(pairs: Sequence[tuple[bool, bool]]) -> np.ndarray:
    """Return how often the judges said (yes, yes), (yes, no), (no, yes), (no, no)."""
    cells = [(True, True), (True, False), (False, True), (False, False)]
    return np.array([sum(pair == cell for pair in pairs) for cell in cells], np.float64)


def _kappas(tables: np.ndarray) -> np.ndarray:
    """Return kappa for each row of (tables, 4)."""
    both, first, second, neither = tables.T
    total = tables.sum(axis=1)
    agreed = (both + neither) / total
    yes = (both + first) * (both + second)
    expected = (yes + (neither + second) * (neither + first)) / total**2
    room = 1 - expected
    return np.divide(agreed - expected, room, out=np.zeros_like(room), where=room > 1e-12)


def _resampled_sums(values: np.ndarray, seed: int) -> np.ndarray:
    """Return (DRAWS, columns) sums over as many rows as there are, drawn with replacement."""
    rows = len(values)
    if not rows:
        raise ValueError("there is nothing to resample")
    draw = np.random.default_rng(seed)
    # drawn in pieces, because the indices of 10,000 draws of 10,000 items take 800 MB
    at_once = max(1, INDICES_AT_ONCE // rows)
    pieces = []
    for start in range(0, DRAWS, at_once):
        size = min(at_once, DRAWS - start)
        pieces.append(values[draw.integers(0, rows, (size, rows))].sum(axis=1))
    return np.concatenate(pieces)


def _middle_95(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)
