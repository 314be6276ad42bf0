"""Find rows that are the same, nearly the same, or belong to the same side of the split.

Rows are decided in their order, so that appended rows change no earlier decision.

Near duplicates: MinHash signatures of three-word shingles by rensa, with banded LSH (Leskovec,
Rajaraman, Ullman, Mining of Massive Datasets, chapter 3). rensa's own index takes 1.3 KB a row,
measured with a million rows; this one takes 0.3 KB.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from lib.common.words import normalised, words_of
from lib.data import sides, subjects
from lib.data.buckets import Buckets, number_shared_buckets
from lib.data.cleaning.turns import name_speaker, words_trained_beside_masked
from lib.params import Params

HASHES = 128
BANDS = 16  # of 8 hashes each: 99 % of the pairs at 0.85 meet in one, and 24 % of those at 0.6
# bytes kept of a signature: 16 bits tell unequal hashes apart (Li and König 2010)
SIGNATURE = 2 * HASHES
# the terms of a row are compared with those of at most this many rows that are alike
MOST_COMPARED = 64
SHINGLE = 3  # words
SEED = 1
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
    """Return the comparison keys of a cleaned row: hashes of its parts, its terms and its words.

    `exact` hashes the whole text, `vital` its numbers, negations and opposites (and beside masked
    answers, the trained ones), `question` the first question, `later_questions` the others,
    `subject` what all of them are about. `answer` is 0 for a conversation of several exchanges,
    since none of its answers is the row's answer.
    """
    turns = [m for m in messages if m["role"] != "system"]
    words_of_turns = [words_of(turn["content"]) for turn in turns]
    # a text without any word, such as "?", is hashed as it is
    hashes = [
        hash_text(" ".join(words) or turn["content"])
        for turn, words in zip(turns, words_of_turns, strict=True)
    ]
    words = [word for own in words_of_turns for word in own]
    by_role: dict[str, list[str]] = {"user": [], "assistant": []}
    for turn, own in zip(turns, words_of_turns, strict=True):
        by_role[turn["role"]] += own
    terms = subjects.pack_terms(by_role["user"], by_role["assistant"])
    asked = subjects.unpack_terms(terms).asked
    answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    all_text = "\n".join(f"{name_speaker(m)}:{normalised(m['content'])}" for m in messages)
    vital = [*subjects.vital_words(words), *words_trained_beside_masked(turns, words_of_turns)]
    return {
        "exact": hash_text(all_text),
        "question": hashes[0],
        "subject": hash_text(" ".join(map(str, sorted(asked)))) if asked else hashes[0],
        "answer": hashes[-1] if len(turns) == 2 else 0,
        "vital": hash_text(" ".join(vital)),
        "later_questions": [
            own for turn, own in zip(turns[1:], hashes[1:], strict=True) if turn["role"] == "user"
        ],
        "answer_length": sum(map(len, answers)),
        "terms": terms,
        "words": words,
    }


# -------------------------------------------------------------------------------------------------
# decisions


class Decisions:
    """The decision on each row.

    `reason` indexes REASONS, and 0 keeps the row. `by` is the row that caused the decision, or -1.
    `side` indexes splits.SIDES, and -1 is none.
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


class RowFiles(NamedTuple):
    """What is kept of each row on disk: the low 16 bits of its hashes, and its terms."""

    signatures: np.ndarray
    terms: subjects.TermsFile


def assign_sides(
    columns: dict[str, np.ndarray],
    row_files: RowFiles,
    later_questions: dict[int, list[int]],
    job: Params,
    decisions: Decisions,
    show_progress: Callable[[list[int]], Iterable[int]] = iter,
) -> int:
    """Put each kept row, in order, on the side of the earlier rows that it belongs to.

    A row belongs to those that share a question with it or are much like it. Without any, its side
    is a seeded hash of its question. A row that belongs to both sides is dropped, since it would
    leak one into the other. Rows of held-out files keep their side, and another row that belongs to
    one of these is dropped, too. With near_duplicates `drop`, a row is also dropped if it is much
    like an earlier one and states the same fact.

    `later_questions` has the questions after the first, for rows with several. Return how many rows
    are much like an earlier one, with the same numbers, and kept as another fact.
    """
    kept = decisions.kept()
    given = columns["given_side"]
    decisions.side[kept] = sides.find_own_sides(columns, job)[kept]
    bucket_numbers = number_shared_buckets([*columns["bands"].T, columns["subject"]], kept)
    shared_questions = _find_shared_questions(columns["question"][kept], kept, later_questions)
    meets_another = (
        (bucket_numbers >= 0).any(axis=1)
        | np.isin(columns["question"][kept], shared_questions)
        | np.isin(kept, list(later_questions))
    )
    # most rows meet no other and keep the side of their hash
    meeting = kept[meets_another]
    buckets = Buckets(bucket_numbers[meets_another])
    shared = set(shared_questions.tolist())
    question_ties: dict[int, tuple[int, int]] = {}  # (side, row) of each question's first row
    other_facts = 0

    for place, row in enumerate(show_progress(meeting.tolist())):
        own_buckets = buckets.of_row(place)
        others = meeting[buckets.rows_in(own_buckets)]
        alike = _find_alike(others, row_files.signatures, row, job.near_duplicate_threshold)

        same_vital = alike[columns["vital"][alike] == columns["vital"][row]]
        if len(same_vital) and job.near_duplicates == "drop":
            twin = _find_same_fact(same_vital, row, columns["subject"], row_files.terms)
            if twin >= 0:
                decisions.drop(row, "near_duplicate", twin)
                continue
            other_facts += 1

        questions = [int(columns["question"][row]), *later_questions.get(row, ())]
        questions = [question for question in questions if question in shared]
        question_sides = [question_ties[q] for q in questions if q in question_ties]
        ties = _list_ties(alike, row, question_sides, decisions.side, given, row_files.terms)
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
    return other_facts


def _find_same_fact(
    alike: np.ndarray, row: int, subject: np.ndarray, terms: subjects.TermsFile
) -> int:
    """Return one of the rows `alike` that states the same fact as the row, or -1.

    `alike` is sorted by similarity. Rows that ask about the same come first.
    """
    has_other_subject = subject[alike] != subject[row]
    order = alike[np.argsort(has_other_subject, kind="stable")]
    for other in order[:MOST_COMPARED].tolist():
        if subjects.state_same_fact(terms.read(other), terms.read(row)):
            return other
    return -1


def _list_ties(
    alike: np.ndarray,
    row: int,
    question_sides: list[tuple[int, int]],
    side: np.ndarray,
    given: np.ndarray,
    terms: subjects.TermsFile,
) -> list[tuple[int, int]]:
    """Return (side, row) of the rows to which a row is tied.

    Where these ties would drop it, rows that only share a template with it don't tie it, unless
    there are no others: then it goes to the side of the most similar one.
    """
    ties = [(int(side[other]), int(other)) for other in alike] + question_sides
    wanted = {own for own, _ in ties} | {int(given[row]) or ties[0][0]} if ties else set()
    if len(wanted) < 2 and (given[row] or not any(given[other] for _, other in ties)):
        return ties
    near = [alike[side[alike] == own][:MOST_COMPARED] for own in np.unique(side[alike])]
    tying = [
        (int(side[other]), int(other))
        for other in (np.concatenate(near).tolist() if near else ())
        if not _is_of_template(terms.read(other), terms.read(row))
    ]
    ties_it = tying + question_sides
    if ties_it or given[row] or given[ties[0][1]]:
        return ties_it
    return ties[:1]


def _is_of_template(one: subjects.Terms, other: subjects.Terms) -> bool:
    turns = subjects.answers_turn_on_question(one, other)
    return turns or subjects.differ_in_vital_terms(one, other)


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
    """Return those of `others` whose estimated similarity to the row reaches the threshold.

    The most similar comes first, the earlier of two that are equally similar.
    """
    if not len(others):
        return others
    similarity = (signatures[others] == signatures[row]).mean(axis=1)
    order = np.argsort(-similarity, kind="stable")
    return others[order[similarity[order] >= threshold]]
