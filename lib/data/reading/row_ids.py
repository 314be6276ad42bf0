"""Give each row an id of its own, since files may use an id twice.

An id names a row in dropped.jsonl, the data card and the prepared splits.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

Chunk = TypeVar("Chunk", bound=Any)  # of rows, in its field of that name


def give_own_ids(chunks: Iterator[Chunk], note: Callable[[str, str], None]) -> Iterator[Chunk]:
    """Yield chunks in which no row has an earlier row's id; `note` gets (before, after)."""
    known = np.empty(0, np.uint64)
    count = 0
    for chunk in chunks:
        renamed, known = rename_repeated(chunk.rows, known, count)
        count += len(chunk.rows)
        for before, after in renamed:
            note(before, after)
        yield chunk


def rename_repeated(
    rows: list[dict[str, Any]], known: np.ndarray, first: int
) -> tuple[list[tuple[str, str]], np.ndarray]:
    """Rename, in place, each row whose id an earlier row has: "r1" to "r1#45", its number.

    `known` has the sorted hashes (uint64) of earlier rows' ids: 8 bytes a row, where a set takes
    100. `first` is the number of rows before these. Return (before, after) of each renamed row, and
    the hashes with those of these rows.
    """
    renamed = []
    own: set[int] = set()
    for number, row in enumerate(rows, first + 1):
        before = row["id"]
        code = _hash(before)
        while code in own or _has(known, code):  # an earlier row may have the new id, too
            row["id"] = f"{row['id']}#{number}"
            code = _hash(row["id"])
        if row["id"] != before:
            renamed.append((before, row["id"]))
        own.add(code)
    new = np.array(sorted(own), np.uint64)
    return renamed, np.insert(known, np.searchsorted(known, new), new)


def _hash(row_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(row_id.encode(), digest_size=8).digest(), "big")


def _has(known: np.ndarray, code: int) -> bool:
    place = np.searchsorted(known, np.uint64(code))
    return bool(place < len(known) and known[place] == np.uint64(code))
