"""Which rows are the same, nearly the same, or belong together; decided in the order of the rows, so appended rows change no earlier decision.

Near duplicates: MinHash signatures of three-word shingles by rensa, banded LSH (Leskovec, Rajaraman, Ullman, Mining of Massive
Datasets, chapter 3). rensa's own index takes 1.3 KB a row, measured at a million rows; here a row that shares no band takes 200 bytes.
"""

import hashlib
import re
from typing import Any

import numpy as np

from lib.clean import normalised, words
from lib.params import Params

HASHES, BANDS = 128, 16  # 16 bands of 8: 99 % of the pairs at 0.85 meet, 24 % of those at 0.6
SIGNATURE = 2 * HASHES  # bytes kept of a signature: the low 16 bits of a hash tell unequal ones apart (Li, Koenig 2010, b-bit minwise hashing)
MOST_IN_BUCKET = 256  # with near_duplicates=keep a boilerplate would make a bucket that each of its rows is held against
SHINGLE = 3  # words
SEED = 1
# rows that differ in one of these are not duplicates, however alike: 30 compressions are not 15, "do" is not "do not"
VITAL = re.compile(r"\d+|\b(?:not?|never|don|doesn|cannot|without|unless|except)\b")
REASONS = ("", "exact_duplicate", "same_question", "answer_repeated", "near_duplicate", "ties_both_sides", "contaminated", "too_long")


def key(text: str) -> int:
    """64 bits of a text: at a million rows two that differ share one with a chance of 3 in 100 million."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def shingles(tokens: list[str]) -> list[str]:
    return [" ".join(tokens[n:n + SHINGLE]) for n in range(max(1, len(tokens) - SHINGLE + 1))]


def signatures(rows: list[list[str]]) -> np.ndarray:
    """MinHash signatures, uint32 of shape (rows, HASHES), of rows given as shingles."""
    import rensa

    return np.array(rensa.RMinHash.digests_from_token_sets(rows, HASHES, SEED), np.uint32).reshape(-1, HASHES)


def keys(messages: list[dict[str, str]]) -> dict[str, Any]:
    """What a cleaned row is compared by: whole text, question, answer and vital words as 64 bits each, and its words.

    The answer key is 0 for a conversation of several exchanges: no single answer of it is a row's answer.
    """
    turns = [(m["role"], m["content"], words(m["content"])) for m in messages if m["role"] != "system"]
    spoken = [word for _, _, part in turns for word in part]
    (_, question, asked), (_, answer, replied) = turns[0], turns[-1]
    return {"exact": key("\n".join(f"{m['role']}:{normalised(m['content'])}" for m in messages)), "question": key(" ".join(asked) or question),
            "answer": key(" ".join(replied) or answer) if len(turns) == 2 else 0, "vital": key(" ".join(VITAL.findall(" ".join(spoken)))),
            "answer_length": sum(len(text) for role, text, _ in turns if role == "assistant"), "words": spoken}


def bands(signature: np.ndarray) -> np.ndarray:
    """One uint64 a band, shape (rows, BANDS): equal where all hashes of the band are."""
    odd = np.random.default_rng(SEED).integers(1, 2**63, HASHES // BANDS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    return (signature.reshape(-1, BANDS, HASHES // BANDS).astype(np.uint64) * odd).sum(axis=2, dtype=np.uint64)


def near(banded: np.ndarray, signature: np.ndarray, columns: dict[str, np.ndarray], job: Params, made: "Decisions", bar: Any = iter) -> np.ndarray:
    """Hold each row, in order, against every kept earlier one that shares a band with it.

    One that is much like such a row, and differs from it in no number and no negation, is dropped by the policy. Returned are the pairs
    (earlier, later) of kept rows much alike, int64 of shape (pairs, 2). `signature` (low 16 bits of each hash) may lie on disk.
    """
    rows, buckets, offset = made.kept(), np.full(banded.shape, -1, np.int32), 0
    for band in range(banded.shape[1]):
        _, inverse, counts = np.unique(banded[rows, band], return_inverse=True, return_counts=True)
        buckets[rows, band] = np.where(counts[inverse] > 1, inverse + offset, -1)  # a bucket of one row meets nobody
        offset += len(counts)
    meeting = rows[(buckets[rows] >= 0).any(axis=1)]
    members: dict[int, list[int]] = {}
    pairs: list[tuple[int, int]] = []
    for row in bar(meeting.tolist()):
        mine = [b for b in buckets[row].tolist() if b >= 0]
        if met := sorted({other for b in mine for other in members.get(b, ())}):
            others = np.array(met)
            alike = others[(signature[others] == signature[row]).mean(axis=1) >= job.near_duplicate_threshold]
            same = alike[columns["vital"][alike] == columns["vital"][row]]
            if len(same) and job.near_duplicates == "drop":
                made.drop(row, "near_duplicate", int(same[0]))
                continue
            pairs += [(int(other), row) for other in alike]
        for b in mine:
            if len(held := members.setdefault(b, [])) < MOST_IN_BUCKET:
                held.append(row)
    return np.array(pairs, np.int64).reshape(-1, 2)


# ---------------------------------------------------------------------------------------------------------------------
# decisions


class Decisions:
    """What becomes of each row.

    `reason` indexes REASONS, 0 keeps the row; `by` is the row that decided it, or -1; `side` indexes prepared.SPLITS, -1 is none.
    """

    def __init__(self, count: int):
        self.reason, self.by, self.side = np.zeros(count, np.int8), np.full(count, -1, np.int64), np.full(count, -1, np.int8)

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
        first = first_of(columns["exact"])
        again = np.flatnonzero(first != np.arange(len(first)))
        made.drop(again, "exact_duplicate", first[again])
    if job.same_question != "all":
        rows = made.kept()
        rows = rows[columns["answer"][rows] != 0]
        # the longest answer first where that is asked for, then the order of the rows
        order = rows[np.lexsort((rows, -columns["answer_length"][rows]))] if job.same_question == "longest" else rows
        first = order[first_of(columns["question"][order])]
        made.drop(order[first != order], "same_question", first[first != order])
    if job.answer_cap:
        rows = made.kept()
        rows = rows[columns["answer"][rows] != 0]
        order = rows[np.argsort(columns["answer"][rows], kind="stable")]
        values = columns["answer"][order]
        begins = np.maximum.accumulate(np.where(np.r_[True, values[1:] != values[:-1]][:len(values)], np.arange(len(values)), 0))
        over = np.arange(len(values)) - begins >= job.answer_cap
        made.drop(order[over], "answer_repeated", order[begins[over]])


def split(pairs: np.ndarray, columns: dict[str, np.ndarray], job: Params, made: Decisions) -> None:
    """The side of each kept row: that of the kept earlier rows with its question or much like it; without any, a seeded hash of its question.

    A row that is tied to both sides of the split is dropped: it would carry the one into the other.
    """
    rows, own = made.kept(), side_of(columns["question"], job)
    tied: dict[int, list[int]] = {}
    first = rows[first_of(columns["question"][rows])]
    for row, earlier in zip(rows[first != rows].tolist(), first[first != rows].tolist(), strict=True):
        tied.setdefault(row, []).append(earlier)
    for earlier, later in pairs.tolist():
        if not made.reason[earlier] and not made.reason[later]:
            tied.setdefault(later, []).append(earlier)
    made.side[rows] = own[rows]
    for row in sorted(tied):
        sides = {int(made.side[e]) for e in tied[row] if made.side[e] >= 0}
        if len(sides) > 1:
            made.drop(row, "ties_both_sides", tied[row][0])
        elif sides:
            made.side[row] = sides.pop()


def side_of(question_keys: np.ndarray, job: Params) -> np.ndarray:
    """Index into prepared.SPLITS by a seeded mix of the question's key (splitmix64, Steele, Lea, Flood 2014)."""
    z = question_keys.astype(np.uint64) + np.uint64((job.seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    u = (z ^ (z >> np.uint64(31))).astype(np.float64) / 2**64
    return np.where(u < job.test_size, 2, np.where(u < job.test_size + job.validation_size, 1, 0)).astype(np.int8)
