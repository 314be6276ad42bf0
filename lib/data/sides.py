"""Which side of the split a row is on by itself: its file's, or one drawn by its question."""

import numpy as np

from lib.data.splits import SPLITS
from lib.params import Params


def find_own_sides(columns: dict[str, np.ndarray], job: Params) -> np.ndarray:
    """Return each row's side before it meets others, as an index into splits.SIDES.

    A side that held-out files give has no other rows, so a hash fills only the other one.
    """
    given = columns["given_side"]
    validation_size = 0 if (given == SPLITS.index("validation")).any() else job.validation_size
    test_size = 0 if (given == SPLITS.index("test")).any() else job.test_size
    hashed = hash_side(columns["question"], job.seed, validation_size, test_size)
    return np.where(given > 0, given, hashed)


def hash_side(
    questions: np.ndarray, seed: int, validation_size: float, test_size: float
) -> np.ndarray:
    """Return an index into splits.SPLITS for each question's hash.

    The bits are mixed by splitmix64 with a seed (Steele, Lea, Flood 2014).
    """
    z = questions.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    share = (z ^ (z >> np.uint64(31))).astype(np.float64) / 2**64
    is_test = share < test_size
    is_validation = ~is_test & (share < test_size + validation_size)
    return np.select([is_test, is_validation], [2, 1], 0).astype(np.int8)
