"""Which rows are the same, nearly the same, or belong together; decided in the order of the rows, so appended rows change no earlier decision.

Near duplicates: MinHash signatures of three-word shingles by rensa, banded LSH (Leskovec, Rajaraman, Ullman, Mining of Massive
Datasets, chapter 3). rensa's own index takes 1.3 KB a row, measured at a million rows; here a row takes 0.3 KB.
"""

import hashlib
import re
from typing import Any

import numpy as np

from lib.common.words import normalised, words_of
from lib.params import Params

HASHES, BANDS = 128, 16  # 16 bands of 8: 99 % of the pairs at 0.85 meet, 24 % of those at 0.6
SIGNATURE = (
    2 * HASHES
)  # bytes kept of a signature: 16 bits tell unequal hashes apart (Li and König 2010)
MOST_IN_BUCKET = 256  # rows of one bucket that a row is held against: with near_duplicates=keep a boilerplate fills them
SHINGLE = 3  # words
SEED = 1
# rows that differ in one of these are no duplicates, however alike: 30 compressions are not 15, "do" not "don't" (two words, don and t)
VITAL = re.compile(
    r"\d+|\b(?:not?|nor|none|never|avoid\w*|cannot|without|unless|except|\w+n t|can t)\b"
)
SAME_REASONS = (
    "exact_duplicate",
    "same_question",
    "answer_repeated",
    "near_duplicate",
    "ties_both_sides",
)
REASONS = ("", "too_long", *SAME_REASONS, "contaminated")
SHORT_ANSWER = 20  # characters: "yes" and "Staphylococcus" may answer any number of questions


def key(text: str) -> int:
    """64 bits of a text: at a million rows two that differ share one with a chance of 3 in 100 million."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def shingles(tokens: list[str]) -> list[str]:
    return [" ".join(tokens[n : n + SHINGLE]) for n in range(max(1, len(tokens) - SHINGLE + 1))]


def signatures(rows: list[list[str]]) -> np.ndarray:
    """MinHash signatures, uint32 of shape (rows, HASHES), of rows given as shingles."""
    import rensa

    return np.array(rensa.RMinHash.digests_from_token_sets(rows, HASHES, SEED), np.uint32).reshape(
        -1, HASHES
    )


def keys(messages: list[dict[str, str]]) -> dict[str, Any]:
    """What a cleaned row is compared by: whole text, question, answer and vital words as 64 bits each, and its words.

    The answer key is 0 for a conversation of several exchanges: no single answer of it is a row's answer.
    """
    turns = [
        (m["role"], m["content"], words_of(m["content"])) for m in messages if m["role"] != "system"
    ]
    spoken = [word for _, _, part in turns for word in part]
    (_, question, asked), (_, answer, replied) = turns[0], turns[-1]
    later = [key(" ".join(part) or text) for role, text, part in turns[1:] if role == "user"]
    return {
        "exact": key("\n".join(f"{m['role']}:{normalised(m['content'])}" for m in messages)),
        "question": key(" ".join(asked) or question),
        "answer": key(" ".join(replied) or answer) if len(turns) == 2 else 0,
        "vital": key(" ".join(VITAL.findall(" ".join(spoken)))),
        "later_questions": later,
        "answer_length": sum(len(text) for role, text, _ in turns if role == "assistant"),
        "words": spoken,
    }


def bands(signature: np.ndarray) -> np.ndarray:
    """One uint64 a band, shape (rows, BANDS): equal where all hashes of the band are."""
    odd = np.random.default_rng(SEED).integers(
        1, 2**63, HASHES // BANDS, dtype=np.uint64
    ) * np.uint64(2) + np.uint64(1)
    return (signature.reshape(-1, BANDS, HASHES // BANDS).astype(np.uint64) * odd).sum(
        axis=2, dtype=np.uint64
    )


# ---------------------------------------------------------------------------------------------------------------------
# decisions


class Decisions:
    """What becomes of each row.

    `reason` indexes REASONS, 0 keeps the row; `by` is the row that decided it, or -1; `side` indexes prepared.SPLITS, -1 is none.
    """

    def __init__(self, count: int):
        self.reason, self.by, self.side = (
            np.zeros(count, np.int8),
            np.full(count, -1, np.int64),
            np.full(count, -1, np.int8),
        )

    def kept(self) -> np.ndarray:
        return np.flatnonzero(self.reason == 0)

    def drop(self, rows: Any, reason: str, by: Any = -1) -> None:
        self.reason[rows], self.by[rows], self.side[rows] = REASONS.index(reason), by, -1


def first_of(values: np.ndarray) -> np.ndarray:
    """For each place the first place of the same value."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return first[inverse]


def same(columns: dict[str, np.ndarray], job: Params, made: Decisions) -> None:
    """Exact duplicates, several answers to one question, one answer under many questions."""
    if "exact_duplicate" not in job.skip_rules:
        rows = made.kept()
        first = rows[first_of(columns["exact"][rows])]
        made.drop(rows[first != rows], "exact_duplicate", first[first != rows])
    if job.same_question != "all":
        rows = made.kept()
        rows = rows[columns["answer"][rows] != 0]
        # the longest answer first where that is asked for, then the order of the rows
        order = (
            rows[np.lexsort((rows, -columns["answer_length"][rows]))]
            if job.same_question == "longest"
            else rows
        )
        first = order[first_of(columns["question"][order])]
        made.drop(order[first != order], "same_question", first[first != order])
    if job.answer_cap:
        rows = made.kept()
        rows = rows[
            (columns["answer"][rows] != 0) & (columns["answer_length"][rows] >= SHORT_ANSWER)
        ]
        order = rows[np.argsort(columns["answer"][rows], kind="stable")]
        values = columns["answer"][order]
        begins = np.maximum.accumulate(
            np.where(
                np.r_[True, values[1:] != values[:-1]][: len(values)], np.arange(len(values)), 0
            )
        )
        over = np.arange(len(values)) - begins >= job.answer_cap
        made.drop(order[over], "answer_repeated", order[begins[over]])


def place(
    banded: np.ndarray,
    signature: np.ndarray,
    columns: dict[str, np.ndarray],
    later: dict[int, list[int]],
    job: Params,
    made: Decisions,
    bar: Any = iter,
) -> None:
    """Give each kept row, in order, its side, that of the kept earlier rows with one of its questions or much like it.

    Without any its side is a seeded hash of its question; a row tied to both sides is dropped, as it would carry the one into the
    other. So is, by the policy, one much like an earlier row that differs from it in no number and no negation. `signature` (low 16
    bits of each hash) may lie on disk; `later` holds the questions of a row after its first.
    """
    rows = made.kept()
    made.side[rows] = side_of(columns["question"], job)[rows]
    buckets = _shared_buckets(banded, rows)
    several = np.isin(rows, list(later))
    more = np.array(
        [question for row in rows[several].tolist() for question in later[row]], np.uint64
    )
    shared = _repeated(np.concatenate([columns["question"][rows], more]))
    meets = rows[(buckets >= 0).any(axis=1) | np.isin(columns["question"][rows], shared) | several]
    place_of = np.searchsorted(rows, meets)
    newest, before = (
        np.full(buckets.max(initial=-1) + 1, -1, np.int32),
        np.full((len(meets), buckets.shape[1]), -1, np.int32),
    )
    side_of_question: dict[int, tuple[int, int]] = {}
    shared_keys = set(shared.tolist())
    for n, row in enumerate(bar(meets.tolist())):
        mine = [
            (band, bucket)
            for band, bucket in enumerate(buckets[place_of[n]].tolist())
            if bucket >= 0
        ]
        alike = _alike(
            meets, _met(mine, newest, before), signature, row, job.near_duplicate_threshold
        )
        same_words = alike[columns["vital"][alike] == columns["vital"][row]]
        if len(same_words) and job.near_duplicates == "drop":
            made.drop(row, "near_duplicate", int(same_words[0]))
            continue
        questions = [
            q for q in (int(columns["question"][row]), *later.get(row, ())) if q in shared_keys
        ]
        ties = [(int(made.side[other]), int(other)) for other in alike] + [
            side_of_question[q] for q in questions if q in side_of_question
        ]
        if len({side for side, _ in ties}) > 1:
            made.drop(
                row, "ties_both_sides", next(other for side, other in ties if side != ties[0][0])
            )
            continue
        if ties:
            made.side[row] = ties[0][0]
        for q in questions:
            side_of_question.setdefault(q, (int(made.side[row]), row))
        for band, bucket in mine:
            before[n, band], newest[bucket] = newest[bucket], n


def _shared_buckets(banded: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """For each of `rows` and each band the number of its bucket, -1 where no other row is in it: int32 of shape (rows, bands)."""
    buckets, offset = np.full((len(rows), banded.shape[1]), -1, np.int32), 0
    for band in range(banded.shape[1]):
        _, inverse, counts = np.unique(banded[rows, band], return_inverse=True, return_counts=True)
        number = np.cumsum(counts > 1) - 1 + offset
        buckets[:, band] = np.where(counts[inverse] > 1, number[inverse], -1)
        offset += int((counts > 1).sum())
    return buckets


def _repeated(values: np.ndarray) -> np.ndarray:
    found, counts = np.unique(values, return_counts=True)
    return found[counts > 1]


def _met(mine: list[tuple[int, int]], newest: np.ndarray, before: np.ndarray) -> list[int]:
    """The rows (as places among those that meet) in the buckets of one, each bucket a chain from its newest row back."""
    met: set[int] = set()
    for band, bucket in mine:
        other, count = int(newest[bucket]), 0
        while other >= 0 and count < MOST_IN_BUCKET:
            met.add(other)
            other, count = int(before[other, band]), count + 1
    return sorted(met)


def _alike(
    meets: np.ndarray, met: list[int], signature: np.ndarray, row: int, threshold: float
) -> np.ndarray:
    others = meets[met]
    return (
        others[(signature[others] == signature[row]).mean(axis=1) >= threshold] if met else others
    )


def side_of(question_keys: np.ndarray, job: Params) -> np.ndarray:
    """Index into prepared.SPLITS by a seeded mix of the question's key (splitmix64, Steele, Lea, Flood 2014)."""
    z = question_keys.astype(np.uint64) + np.uint64((job.seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    u = (z ^ (z >> np.uint64(31))).astype(np.float64) / 2**64
    return np.where(
        u < job.test_size, 2, np.where(u < job.test_size + job.validation_size, 1, 0)
    ).astype(np.int8)
