"""Intervals and tests for "better than before", on the same items before and after."""

import math

import numpy as np

Z = 1.959963984540054  # the normal distribution's 97.5th percentile, for 95 % intervals
DRAWS = 10_000  # resamples of a bootstrap: its ends then vary by about a fiftieth of the interval from seed to seed


def wilson(right: int, of: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson, 1927): unlike p +- 2 s it stays within 0 and 1, and is no point where all or none are right."""
    if not 0 <= right <= of or not of:
        raise ValueError(f"{right} of {of} is no share")
    share, spread = right / of, Z * Z / of
    centre = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / of + spread / (4 * of)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p of McNemar's test: how likely so uneven a split is if an item that changed was as likely gained as lost."""
    changed = gained + lost
    tail = sum(math.comb(changed, k) for k in range(min(gained, lost) + 1))
    return min(
        1.0, 2 * tail / 2**changed
    )  # whole numbers up to the last division, so thousands of changed items are exact too


def changes(before: list[bool], after: list[bool]) -> dict[str, float]:
    """Of the same items right before and after: how many were gained, how many lost, and McNemar's exact p."""
    pairs = list(zip(before, after, strict=True))
    gained, lost = pairs.count((False, True)), pairs.count((True, False))
    return {"gained": gained, "lost": lost, "p": mcnemar(gained, lost)}


def holm(ps: list[float]) -> list[float]:
    """Each p corrected for how many tests there are (Holm, 1979), in the order given."""
    found, highest = [0.0] * len(ps), 0.0
    for rank, n in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        found[n] = highest = max(highest, min(1.0, (len(ps) - rank) * ps[n]))
    return found


def mean_interval(differences: list[float], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval (percentiles) of the mean of paired differences, one an item."""
    sums = _resampled(np.asarray(differences, np.float64)[:, None], seed)[:, 0]
    return _middle(sums / len(differences))


def loss_interval(rows: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of a mean loss a token: rows are drawn whole. (rows, 2): summed loss in nats and trained tokens."""
    sums = _resampled(rows, seed)
    return _middle(sums[:, 0] / sums[:, 1])


def perplexity_ratio(
    before: np.ndarray, after: np.ndarray, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Perplexity after / before, and its 95 % bootstrap interval: items are drawn whole, with their tokens and both their losses.

    Each is (items, 2): summed loss in nats and trained tokens; the tokens must be the same. Under 1 is better.
    """
    if before.shape != after.shape or (before[:, 1] != after[:, 1]).any():
        raise ValueError("the two were not measured on the same tokens")
    paired = np.stack([after[:, 0] - before[:, 0], before[:, 1]], axis=1)
    loss, tokens = paired.sum(axis=0)
    sums = _resampled(paired, seed)
    return math.exp(loss / tokens), _middle(np.exp(sums[:, 0] / sums[:, 1]))


def _resampled(values: np.ndarray, seed: int) -> np.ndarray:
    """(DRAWS, columns) sums over as many rows as there are, drawn with replacement."""
    if not len(values):
        raise ValueError("there is nothing to resample")
    draw, at_once = np.random.default_rng(seed), max(1, 2**22 // len(values))
    sizes = [
        min(at_once, DRAWS - start) for start in range(0, DRAWS, at_once)
    ]  # in pieces: 10,000 draws of 10,000 items are 800 MB of indices
    return np.concatenate(
        [values[draw.integers(0, len(values), (size, len(values)))].sum(axis=1) for size in sizes]
    )


def _middle(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)
