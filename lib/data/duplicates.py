"""Find rows that are the same, nearly the same, or belong to the same side of the split.

Rows are decided in their order, so that appended rows change no earlier decision.

Near duplicates: MinHash signatures of three-word shingles by rensa, with banded LSH (Leskovec,
Rajaraman, Ullman, Mining of Massive Datasets, chapter 3). rensa's own index takes 1.3 KB a row,
measured with a million rows; this one takes 0.3 KB.
"""

import hashlib
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from lib.common.words import normalised, words_of
from lib.data import sides
from lib.params import Params

HASHES = 128
BANDS = 16  # of 8 hashes each: 99 % of the pairs at 0.85 meet in one, and 24 % of those at 0.6
# bytes kept of a signature: 16 bits tell unequal hashes apart (Li and König 2010)
SIGNATURE = 2 * HASHES
# a row is compared with at most this many rows of a bucket: boilerplate text fills its buckets
MOST_IN_BUCKET = 256
SHINGLE = 3  # words
SEED = 1
# Rows that differ in one of these are never duplicates: 30 compressions are not 15.
# "don't" is two words here, don and t.
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
SHORT_ANSWER = 20  # characters: "yes" and "Staphylococcus" can answer any number of questions


# -------------------------------------------------------------------------------------------------
# what rows are compared by


def hash_text(text: str) -> int:
    """Return a 64-bit hash of a text.

    The chance that any two of a million different texts collide is 3 in 100 million.
    """
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def shingles(words: list[str]) -> list[str]:
    """Return every run of SHINGLE words, or all words if there are fewer."""
    count = max(1, len(words) - SHINGLE + 1)
    return [" ".join(words[n : n + SHINGLE]) for n in range(count)]


def minhash_signatures(rows: list[list[str]]) -> np.ndarray:
    """Return MinHash signatures, uint32 of shape (rows, HASHES), of rows given as shingles."""
    import rensa  # only the prepare stage needs it

    digests = rensa.RMinHash.digests_from_token_sets(rows, HASHES, SEED)
    return np.array(digests, np.uint32).reshape(-1, HASHES)


def hash_bands(signatures: np.ndarray) -> np.ndarray:
    """Return uint64 hashes of shape (rows, BANDS), equal where all of a band's hashes are equal."""
    width = HASHES // BANDS
    drawn = np.random.default_rng(SEED).integers(1, 2**63, width, dtype=np.uint64)
    odd_factors = drawn * np.uint64(2) + np.uint64(1)
    banded = signatures.reshape(-1, BANDS, width).astype(np.uint64)
    return (banded * odd_factors).sum(axis=2, dtype=np.uint64)


def comparison_keys(messages: list[dict[str, str]]) -> dict[str, Any]:
    """Return the comparison keys of a cleaned row: hashes of its parts, and its words.

    `exact` hashes the whole text, `vital` its numbers and negations, `question` the first question,
    `later_questions` the others. `answer` is 0 for a conversation of several exchanges, since none
    of its answers is the row's answer.
    """
    turns = [m for m in messages if m["role"] != "system"]
    words_of_turns = [words_of(turn["content"]) for turn in turns]
    # a text without any word, such as "?", is hashed as it is
    hashes = [
        hash_text(" ".join(words) or turn["content"])
        for turn, words in zip(turns, words_of_turns, strict=True)
    ]
    words = [word for own in words_of_turns for word in own]
    answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    all_text = "\n".join(f"{m['role']}:{normalised(m['content'])}" for m in messages)
    return {
        "exact": hash_text(all_text),
        "question": hashes[0],
        "answer": hashes[-1] if len(turns) == 2 else 0,
        "vital": hash_text(" ".join(VITAL.findall(" ".join(words)))),
        "later_questions": [
            own for turn, own in zip(turns[1:], hashes[1:], strict=True) if turn["role"] == "user"
        ],
        "answer_length": sum(map(len, answers)),
        "words": words,
    }


# -------------------------------------------------------------------------------------------------
# decisions


class Decisions:
    """The decision on each row.

    `reason` indexes REASONS, and 0 keeps the row. `by` is the row that caused the decision, or -1.
    `side` indexes splits.SPLITS, and -1 is none.
    """

    def __init__(self, count: int) -> None:
        self.reason = np.zeros(count, np.int8)
        self.by = np.full(count, -1, np.int64)
        self.side = np.full(count, -1, np.int8)

    def kept(self) -> np.ndarray:
        """Return the numbers of the rows that are kept."""
        return np.flatnonzero(self.reason == 0)

    def drop(self, rows: Any, reason: str, by: Any = -1) -> None:
        """Drop one or several rows; `by` is the row that caused it, or one for each dropped row."""
        self.reason[rows] = REASONS.index(reason)
        self.by[rows] = by
        self.side[rows] = -1


def drop_same(
    columns: dict[str, np.ndarray],
    decisions: Decisions,
    skip_rules: Iterable[str],
    same_question: str,
    answer_cap: int,
) -> None:
    """Drop exact duplicates, further answers to a question, and answers repeated too often."""
    if "exact_duplicate" not in skip_rules:
        kept = decisions.kept()
        _drop_repeats(columns["exact"], kept, "exact_duplicate", decisions)
    if same_question != "all":
        kept = decisions.kept()
        order = kept[columns["answer"][kept] != 0]
        if same_question == "longest":
            length = columns["answer_length"][order]
            # a held-out row is never dropped in favour of one that is trained on
            is_free = columns["given_side"][order] == 0
            order = order[np.lexsort((order, -length, is_free))]
        _drop_repeats(columns["question"], order, "same_question", decisions)
    if answer_cap:
        _drop_over_cap(columns, answer_cap, decisions)


def _drop_repeats(values: np.ndarray, order: np.ndarray, reason: str, decisions: Decisions) -> None:
    """Drop each row in `order` that has the same value as an earlier one."""
    first = order[_first_places(values[order])]
    repeats = first != order
    decisions.drop(order[repeats], reason, first[repeats])


def _first_places(values: np.ndarray) -> np.ndarray:
    """Return, for each place, the first place with the same value."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return first[inverse]


def _drop_over_cap(columns: dict[str, np.ndarray], answer_cap: int, decisions: Decisions) -> None:
    """Drop all rows with the same answer after the first `answer_cap`."""
    kept = decisions.kept()
    has_answer = columns["answer"][kept] != 0
    long_enough = columns["answer_length"][kept] >= SHORT_ANSWER
    kept = kept[has_answer & long_enough]
    order = kept[np.argsort(columns["answer"][kept], kind="stable")]
    answers = columns["answer"][order]
    places = np.arange(len(order))
    is_first = np.ones(len(order), bool)
    is_first[1:] = answers[1:] != answers[:-1]
    first_place = np.maximum.accumulate(np.where(is_first, places, 0))
    over = places - first_place >= answer_cap
    decisions.drop(order[over], "answer_repeated", order[first_place[over]])


# -------------------------------------------------------------------------------------------------
# near duplicates and sides


class _Buckets:
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


def assign_sides(
    columns: dict[str, np.ndarray],
    signatures: np.ndarray,
    later_questions: dict[int, list[int]],
    job: Params,
    decisions: Decisions,
    show_progress: Callable[[list[int]], Iterable[int]] = iter,
) -> None:
    """Put each kept row, in order, on the side of the earlier rows that it belongs to.

    A row belongs to those that share a question with it or are much like it. Without any, its side
    is a seeded hash of its question. A row that belongs to both sides is dropped, since it would
    leak one into the other. Rows of held-out files keep their side, and another row that belongs to
    one of these is dropped, too. With near_duplicates `drop`, a row is also dropped if it is much
    like an earlier one and has the same numbers and negations.

    `signatures`, the low 16 bits of each hash, may be on disk. `later_questions` has the questions
    after the first, for rows with several.
    """
    kept = decisions.kept()
    given = columns["given_side"]
    decisions.side[kept] = sides.find_own_sides(columns, job)[kept]
    bucket_numbers = _number_shared_buckets(columns["bands"], kept)
    shared_questions = _find_shared_questions(columns["question"][kept], kept, later_questions)
    meets_another = (
        (bucket_numbers >= 0).any(axis=1)
        | np.isin(columns["question"][kept], shared_questions)
        | np.isin(kept, list(later_questions))
    )
    # most rows meet no other and keep the side of their hash
    meeting = kept[meets_another]
    buckets = _Buckets(bucket_numbers[meets_another])
    shared = set(shared_questions.tolist())
    question_ties: dict[int, tuple[int, int]] = {}  # (side, row) of each question's first row

    for place, row in enumerate(show_progress(meeting.tolist())):
        own_buckets = buckets.of_row(place)
        others = meeting[buckets.rows_in(own_buckets)]
        alike = _find_alike(others, signatures, row, job.near_duplicate_threshold)

        same_vital = alike[columns["vital"][alike] == columns["vital"][row]]
        if len(same_vital) and job.near_duplicates == "drop":
            decisions.drop(row, "near_duplicate", int(same_vital[0]))
            continue

        questions = [int(columns["question"][row]), *later_questions.get(row, ())]
        questions = [question for question in questions if question in shared]
        ties = [(int(decisions.side[other]), int(other)) for other in alike]
        ties += [question_ties[q] for q in questions if q in question_ties]
        if ties:
            side = int(given[row]) or ties[0][0]
            # a row next to a held-out file's own is not added to that file
            opposed = [
                other
                for other_side, other in ties
                if other_side != side or (given[other] and not given[row])
            ]
            if opposed:
                decisions.drop(row, "ties_both_sides", opposed[0])
                continue
            decisions.side[row] = side

        for question in questions:
            question_ties.setdefault(question, (int(decisions.side[row]), row))
        buckets.add(place, own_buckets)


def _number_shared_buckets(bands: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Number the bucket of each row and band, -1 where no other row is in it.

    Return int32 of shape (rows, bands).
    """
    numbers = np.full((len(rows), bands.shape[1]), -1, np.int32)
    offset = 0
    for band in range(bands.shape[1]):
        _, inverse, counts = np.unique(bands[rows, band], return_inverse=True, return_counts=True)
        is_shared = counts > 1
        number = np.cumsum(is_shared) - 1 + offset
        numbers[:, band] = np.where(is_shared[inverse], number[inverse], -1)
        offset += int(is_shared.sum())
    return numbers


def _find_shared_questions(
    first_questions: np.ndarray, rows: np.ndarray, later_questions: dict[int, list[int]]
) -> np.ndarray:
    """Return the questions that are asked more than once in `rows`, sorted."""
    several = rows[np.isin(rows, list(later_questions))]
    later = [question for row in several.tolist() for question in later_questions[row]]
    asked = np.concatenate([first_questions, np.array(later, np.uint64)])
    questions, counts = np.unique(asked, return_counts=True)
    return questions[counts > 1]


def _find_alike(
    others: np.ndarray, signatures: np.ndarray, row: int, threshold: float
) -> np.ndarray:
    """Return those of `others` whose estimated similarity to the row reaches the threshold."""
    if not len(others):
        return others
    similarity = (signatures[others] == signatures[row]).mean(axis=1)
    return others[similarity >= threshold]
