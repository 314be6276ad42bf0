"""Buckets of banded LSH: the earlier rows that share a band of hashes, or a subject, with a row."""

from collections.abc import Sequence

import numpy as np

# a row is compared with at most this many rows of a bucket: boilerplate text fills its buckets
MOST_IN_BUCKET = 256


class Buckets:
    """LSH buckets, each a chain of its rows from the newest to the first.

    Rows are counted among those that share a bucket or a question with another. `numbers` has the
    bucket of each row and band, or -1 where no other row is in it: int32 of shape (rows, bands).
    """

    def __init__(self, numbers: np.ndarray) -> None:
        self.numbers = numbers
        self.newest = np.full(numbers.max(initial=-1) + 1, -1, np.int32)
        self.before = np.full(numbers.shape, -1, np.int32)

    def of_row(self, place: int) -> list[tuple[int, int]]:
        """Return the row's (band, bucket) pairs."""
        numbers = self.numbers[place].tolist()
        return [(band, bucket) for band, bucket in enumerate(numbers) if bucket >= 0]

    def rows_in(self, own: list[tuple[int, int]]) -> list[int]:
        """Return the rows in these buckets, in order."""
        rows: set[int] = set()
        for band, bucket in own:
            other = int(self.newest[bucket])
            count = 0
            while other >= 0 and count < MOST_IN_BUCKET:
                rows.add(other)
                other = int(self.before[other, band])
                count += 1
        return sorted(rows)

    def add(self, place: int, own: list[tuple[int, int]]) -> None:
        """Put a row into its buckets."""
        for band, bucket in own:
            self.before[place, band] = self.newest[bucket]
            self.newest[bucket] = place


def number_shared_buckets(keys: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Number the bucket of each row and key, -1 where no other row is in it.

    `keys` has a value per row for each band; rows with one value are in one bucket. Return int32 of
    shape (rows, keys).
    """
    numbers = np.full((len(rows), len(keys)), -1, np.int32)
    offset = 0
    for band, key in enumerate(keys):
        _, inverse, counts = np.unique(key[rows], return_inverse=True, return_counts=True)
        is_shared = counts > 1
        number = np.cumsum(is_shared) - 1 + offset
        numbers[:, band] = np.where(is_shared[inverse], number[inverse], -1)
        offset += int(is_shared.sum())
    return numbers
