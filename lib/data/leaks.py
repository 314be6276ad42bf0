"""Which of the words that a training row shares with a held-out row or an exam are a leak.

Shared words alone are none: rows share greetings, disclaimers, and the wording of a template.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from lib.data.subjects import (
    NUMBER,
    Terms,
    TermsFile,
    answers_turn_on_question,
    contains_question,
    differ_in_vital_terms,
)
from lib.data.word_runs import cover_words

# a run of words in more training rows than this is a common phrase and not a leak (Brown et al.
# 2020, appendix C)
COMMON = 10
# a training row leaks a held-out one if it has this share of its question or of its answer
LEAKED_SHARE = 0.5
# with this share of a held-out answer, a row whose vital words differ is of the same template
TEMPLATE_SHARE = 0.8
# a closing or greeting is known by this number of training rows that have it
SEVERAL = 3
# of the words that a held-out answer has besides a closing, a fourth are terms that the training
# row lacks: then it is another answer, and no copy with a changed word
FOREIGN_SHARE = 1 / 4


class HeldOut(NamedTuple):
    """A held-out row: its runs, and for each of its words whether the user says it."""

    row: int
    runs: np.ndarray  # places in the sorted hashes of all runs, in the order of the text
    is_asked: np.ndarray


class Leak(NamedTuple):
    """What a training row repeats: a run, and the held-out row; -1: exam, safety set."""

    place: int
    held_out: int


class Reference(NamedTuple):
    """What training rows are compared with."""

    held_out: Sequence[HeldOut]
    item_texts: Sequence[np.ndarray]  # runs of exam items and safety prompts, in each wording
    run_count: int  # of all these, distinct
    size: int  # words in a run
    terms: TermsFile


def find_leaks(
    overlaps: Iterable[tuple[int, np.ndarray]], reference: Reference
) -> tuple[dict[int, Leak], Counter[str]]:
    """Return the training rows that leak, and count the other overlaps by what they are.

    `overlaps` are (training row, places of the runs that it shares).
    """
    overlaps = [(row, places) for row, places in overlaps if len(places)]
    carriers = np.zeros(reference.run_count, np.int64)
    for _, places in overlaps:
        carriers[places] += 1
    of_items = np.zeros(reference.run_count, bool)
    for runs in reference.item_texts:
        of_items[runs] = True
    owners = _Owners([held.runs for held in reference.held_out], reference.run_count)
    items = _Owners(reference.item_texts, reference.run_count)

    leaks: dict[int, Leak] = {}
    harmless: Counter[str] = Counter()
    covered_items: dict[bytes, bool] = {}
    for row, places in overlaps:
        is_common = carriers[places] > COMMON
        own = places[of_items[places] & ~is_common]
        stock = places[of_items[places] & is_common]
        key = stock.tobytes()
        if key not in covered_items:
            covered_items[key] = _cover_an_item(stock, items, reference)
        if len(own) or covered_items[key]:
            leaks[row] = Leak(int(own[0] if len(own) else stock[0]), -1)
            continue
        kinds = []
        for number in owners.of(places[~is_common]):
            held = reference.held_out[number]
            kind = judge_overlap(row, held, places, carriers, reference)
            if kind == "leak":
                shared = held.runs[np.isin(held.runs, places[~is_common])]
                leaks[row] = Leak(int(shared[0]), held.row)
                break
            kinds.append(kind)
        else:
            harmless[kinds[0] if kinds else "common_phrase"] += 1
    return leaks, harmless


class _Owners:
    """Which of several texts, given by their runs, have a run."""

    def __init__(self, texts: Sequence[np.ndarray], run_count: int) -> None:
        every_run = np.concatenate([np.empty(0, np.int32), *texts])
        numbers = np.repeat(np.arange(len(texts), dtype=np.int32), [len(runs) for runs in texts])
        order = np.argsort(every_run, kind="stable")
        self.numbers = numbers[order]
        self.starts = np.searchsorted(every_run[order], np.arange(run_count + 1))

    def of(self, places: np.ndarray) -> list[int]:
        """Return the numbers of the texts that have one of these runs, in order."""
        found = [self.numbers[self.starts[place] : self.starts[place + 1]] for place in places]
        return np.unique(np.concatenate([self.numbers[:0], *found])).tolist()


def _cover_an_item(stock: np.ndarray, items: _Owners, reference: Reference) -> bool:
    """Tell whether common phrases are most of an exam item or a safety prompt in some wording."""
    for number in items.of(stock):
        covered = cover_words(np.isin(reference.item_texts[number], stock), reference.size)
        if covered.mean() >= LEAKED_SHARE:
            return True
    return False


def judge_overlap(
    row: int, held: HeldOut, places: np.ndarray, carriers: np.ndarray, reference: Reference
) -> str:
    """Return what a training row's overlap with a held-out row is; `places` are its shared runs.

    A "leak", a "shared_passage" (a small part of it), "another_subject" (both are of one template),
    or a "closing" (of several rows, under unlike questions).
    """
    is_shared = np.isin(held.runs, places)
    is_common = carriers[held.runs] > COMMON
    covered = cover_words(is_shared & ~is_common, reference.size)
    own, others = reference.terms.read(row), reference.terms.read(held.row)
    if _share(covered[held.is_asked]) >= LEAKED_SHARE and contains_question(own, others):
        return "leak"
    if _share(covered[~held.is_asked]) < LEAKED_SHARE:
        return "shared_passage"
    told = cover_words(is_shared, reference.size)[~held.is_asked]
    left = int((~told).sum())
    if left and answers_turn_on_question(own, others):
        return "another_subject"
    if left and _share(told) >= TEMPLATE_SHARE and differ_in_vital_terms(own, others):
        return "another_subject"
    is_rare = is_shared & (carriers[held.runs] < SEVERAL)
    is_copied = _share(cover_words(is_rare, reference.size)[~held.is_asked]) >= LEAKED_SHARE
    if is_copied or _ask_alike(own, others) or not _is_foreign(left, own, others):
        return "leak"
    return "closing"


def _share(covered: np.ndarray) -> float:
    return float(covered.mean()) if len(covered) else 0.0


def _ask_alike(own: Terms, held_out: Terms) -> bool:
    """Tell whether a training row asks about half of what the held-out row asks about."""
    return 2 * len(own.asked & held_out.asked) >= max(1, len(held_out.asked))


def _is_foreign(left: int, own: Terms, held_out: Terms) -> bool:
    """Tell whether the `left` other words of a held-out answer are none of the training row's."""
    own_terms = {term & NUMBER for term in own.told}
    lacking = [term for term in held_out.told if term & NUMBER not in own_terms]
    return left > 0 and len(lacking) >= FOREIGN_SHARE * left
