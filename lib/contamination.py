"""Training rows that repeat what the model will be measured on: runs of words they share with held-out rows or exam items, and near copies."""

import functools
import json
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from lib import clean, duplicates
from lib.chunks import texts_of

COMMON = 10  # a run of words found in more training rows is a turn of phrase, not a leak (Brown et al. 2020, appendix C)


class HeldOut(NamedTuple):
    """The runs of words of held-out rows and exam items: their hashes, sorted, and the number of each one's first owner."""

    hashes: np.ndarray
    owners: np.ndarray


def grams(tokens: list[str], size: int, numbers: dict[str, int]) -> np.ndarray:
    """64-bit hashes of every run of `size` words, in order; `numbers` keeps the words' own hashes."""
    if len(tokens) < size:
        return np.empty(0, np.uint64)
    hashed = np.fromiter((numbers.get(w) or numbers.setdefault(w, duplicates.key(w)) for w in tokens), np.uint64, len(tokens))
    powers = np.array([pow(0x100000001B3, n, 2**64) for n in range(size)], np.uint64)
    return (np.lib.stride_tricks.sliding_window_view(hashed, size) * powers).sum(axis=1, dtype=np.uint64)


def held_out(runs: list[tuple[np.ndarray, int]]) -> HeldOut:
    """HeldOut of (hashes, owner) of each held-out text."""
    hashes = np.concatenate([np.empty(0, np.uint64), *(h for h, _ in runs)])
    owners = np.concatenate([np.empty(0, np.int64), *(np.full(len(h), owner) for h, owner in runs)])
    hashes, first = np.unique(hashes, return_index=True)
    return HeldOut(hashes, owners[first])


def find(hashes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Places in the sorted `hashes` of the distinct `wanted` that are among them."""
    wanted = np.unique(wanted)
    at = np.searchsorted(hashes, wanted)
    return at[hashes[np.minimum(at, len(hashes) - 1)] == wanted] if len(hashes) else at[:0]


def contaminated(found: Iterable[tuple[int, np.ndarray]], held: HeldOut) -> tuple[dict[int, int], int]:
    """Of (training row, places of its held-out runs): {row: the first place that is no common phrase}, and how many runs are common."""
    rows = [(row, at) for row, at in found if len(at)]
    counts = np.bincount(np.concatenate([at for _, at in rows]), minlength=len(held.hashes)) if rows else np.zeros(len(held.hashes), int)
    return {row: int(rare[0]) for row, at in rows if len(rare := at[counts[at] <= COMMON])}, int((counts > COMMON).sum())


def shared(messages: list[dict[str, str]], size: int, run: np.uint64) -> str:
    """The words of a row whose run has this hash."""
    tokens = spoken(messages)
    return next((" ".join(tokens[n:n + size]) for n, h in enumerate(grams(tokens, size, {})) if h == run), "")


def spoken(messages: list[dict[str, str]]) -> list[str]:
    return [w for m in messages if m["role"] != "system" for w in clean.words(m["content"])]


# ---------------------------------------------------------------------------------------------------------------------
# on a chunk


def chunk_runs(path: pathlib.Path, at: np.ndarray, size: int) -> tuple[list[str], list[np.ndarray]]:
    """Ids and runs of words of some rows."""
    ids, texts = texts_of(path, at)
    numbers: dict[str, int] = {}
    return ids, [grams(spoken(messages), size, numbers) for messages in texts]


def chunk_overlaps(path: pathlib.Path, at: np.ndarray, size: int, scratch: pathlib.Path, threshold: float) -> tuple[list[Any], list[tuple[int, int]]]:
    """(place in `at`, places of its runs among the held-out ones) of rows that have some; (place in `at`, number of the exam item it nearly is)."""
    import rensa

    hashes = np.load(scratch / "held_out.npy")
    _, texts = texts_of(path, at)
    numbers: dict[str, int] = {}
    found = [(n, places) for n, messages in enumerate(texts) if len(places := find(hashes, grams(spoken(messages), size, numbers)))]
    items, index = _exam_index(scratch / "exam.json", (scratch / "exam.json").stat().st_mtime_ns, threshold)
    close = []
    if items and texts:
        asked = [next(m["content"] for m in messages if m["role"] == "user") for messages in texts]
        parts = [set(clean.words(text)) for q, messages in zip(asked, texts, strict=True) for text in (q, f"{q} {messages[-1]['content']}")]
        sketches = rensa.RMinHash.from_token_sets([sorted(p) or [""] for p in parts], duplicates.HASHES, duplicates.SEED)
        for n, (part, sketch) in enumerate(zip(parts, sketches, strict=True)):
            for other in index.query(sketch):
                theirs = items[other]
                if n % 2 == other % 2 and len(part & theirs) >= threshold * len(part | theirs):
                    close.append((n // 2, other // 2))
    return found, close


@functools.cache
def _exam_index(path: pathlib.Path, stamp: int, threshold: float) -> tuple[list[set[str]], Any]:
    """Each exam question, alone and with its right answer, as a set of words, and an index of them; `stamp` tells one run's file from another's."""
    import rensa

    exam = json.loads(path.read_text(encoding="utf-8"))
    items = [set(clean.words(text)) for question, answer in exam for text in (question, f"{question} {answer}")]
    index = rensa.RMinHashLSH(threshold, duplicates.HASHES, duplicates.BANDS)
    sketches = rensa.RMinHash.from_token_sets([sorted(words) or [""] for words in items], duplicates.HASHES, duplicates.SEED) if items else []
    index.insert_pairs(list(enumerate(sketches)))
    return items, index
