"""Score a multiple-choice set without a model, as what any model's score has to beat.

    measure_baselines(items, splits.load_split(run_folder / "data", "train")["answer"])

They depend only on the items and the training rows, so an exam has them once, for all models:
chance, always the longest or the shortest option, the words of the options alone, and the nearest
training answer. Equal candidates are drawn from by the item's id, so the results never vary.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from lib.common import stats
from lib.common.progress import progress_bar
from lib.common.words import words_of
from lib.exam.entries import Baseline, Baselines

SEED = 3407
# with more, an exam of thousands of items would take minutes; those compared are spread evenly
MOST_ANSWERS = 20_000

Item = dict[str, Any]
Points = Callable[[Item, str], float]  # of an option, by its key; the option with the most is taken


def measure_baselines(items: list[Item], answers: Sequence[str]) -> Baselines:
    """Return every baseline with its Wilson interval; `answers` are those trained on."""
    compared = spread_evenly(answers, MOST_ANSWERS)
    look_up = weigh_by_answers(compared)
    # the only one that takes seconds
    bar = progress_bar("baseline: nearest training answer", items, unit="item")
    return {
        "chance": sum(1 / len(item["options"]) for item in items) / len(items),
        "longest": _score(items, lambda item, key: len(item["options"][key])),
        "shortest": _score(items, lambda item, key: -len(item["options"][key])),
        "options_only": _score(items, weigh_options(items)),
        "nearest_answer": _score(items, look_up, bar),
        "answers_compared": len(compared),
        "answers": len(answers),
    }


def _score(items: list[Item], points: Points, shown: Iterable[Item] | None = None) -> Baseline:
    """Let a rule choose in every item; `shown` are the items under a progress bar."""
    chosen = [_choose(item, points) for item in shown or items]
    pairs = zip(items, chosen, strict=True)
    right = sum(key == item["answer_letter"] for item, key in pairs)
    return {
        "right": right,
        "of": len(items),
        "accuracy": right / len(items),
        "interval": list(stats.wilson(right, len(items))),
        "chosen": chosen,
    }


def _choose(item: Item, points: Points) -> str:
    keys = list(item["options"])
    in_drawn_order = random.Random(f"{SEED} {item['id']}").sample(keys, len(keys))
    # rounded, since sums of the same numbers in another order differ in their last digits
    return max(in_drawn_order, key=lambda key: round(points(item, key), 9))


def spread_evenly(texts: Sequence[Any], most: int) -> list[Any]:
    """Return all texts, or `most` of them at equal distances."""
    if len(texts) <= most:
        return list(texts)
    return [texts[n * len(texts) // most] for n in range(most)]


# --------------------------------------------------------------------------------------------------
# the options alone


def weigh_options(items: list[Item]) -> Points:
    """Return a naive Bayes classifier of options that is trained on all items but the one asked.

    It never sees a question. It knows which words and pairs of words stand in an option, and adds
    one to each of their counts. Items that share all options with the one asked are left out too
    (`_find_sets`): there, an option that is right for another item is likely wrong, and a
    classifier that knew this would be below chance by construction. Leaving out is exact, and costs
    only a subtraction.
    Source: A. McCallum and K. Nigam, A comparison of event models for naive Bayes text
    classification, AAAI-98 workshop on learning for text categorization (1998), here with each
    word counted once per option.
    """
    right, wrong = _count_all(items)
    known = len(right | wrong)
    all_right, all_wrong = right.total() + known, wrong.total() + known
    counted = {shared: _count_all(those) for shared, those in _find_sets(items).items()}

    def weigh(item: Item, key: str) -> float:
        own_right, own_wrong = counted.get(_options_of(item)) or _count_features(item)
        others_right = all_right - own_right.total()
        others_wrong = all_wrong - own_wrong.total()
        return sum(
            math.log((right[feature] - own_right[feature] + 1) / others_right)
            - math.log((wrong[feature] - own_wrong[feature] + 1) / others_wrong)
            for feature in _features(item["options"][key])
        )

    return weigh


def _find_sets(items: list[Item]) -> dict[frozenset[str], list[Item]]:
    """Return the items that share all their options, at most one for each option, by the options.

    With more, as where every item is answered by yes, no or maybe, the options are a scale.
    """
    sets: dict[frozenset[str], list[Item]] = {}
    for item in items:
        sets.setdefault(_options_of(item), []).append(item)
    return {shared: those for shared, those in sets.items() if len(those) <= len(shared)}


def _options_of(item: Item) -> frozenset[str]:
    return frozenset(item["options"].values())


def _count_all(items: list[Item]) -> tuple[Counter[Any], Counter[Any]]:
    """Return the features of all items' right options, and those of the others."""
    right: Counter[Any] = Counter()
    wrong: Counter[Any] = Counter()
    for item in items:
        own_right, own_wrong = _count_features(item)
        right.update(own_right)
        wrong.update(own_wrong)
    return right, wrong


def _count_features(item: Item) -> tuple[Counter[Any], Counter[Any]]:
    """Return the features of the right option, and those of the others."""
    options = {key: _features(text) for key, text in item["options"].items()}
    right = options.pop(item["answer_letter"])
    return Counter(right), Counter(feature for own in options.values() for feature in own)


def _features(text: str) -> set[str | tuple[str, str]]:
    words = words_of(text)
    return {*words, *pairwise(words)}


# --------------------------------------------------------------------------------------------------
# the nearest training answer


def weigh_by_answers(answers: Sequence[str]) -> Points:
    """Return the highest cosine between an option after its question and any training answer.

    That is what looking things up would get, without learning.
    """
    compare = compare_with(answers)
    return lambda item, key: float(compare(f"{item['question']} {item['options'][key]}").max())


def compare_with(texts: Sequence[str]) -> Callable[[str], np.ndarray]:
    """Return a function that returns the cosine between its argument and each of the texts.

    A word's weight is (1 + ln of its count) x ln((1 + texts) / (1 + texts with it)), and 0 if no
    text has it.
    Source: G. Salton and C. Buckley, Term-weighting approaches in automatic text retrieval,
    Information Processing & Management 24 (1988) 513-523.
    """
    counts = [Counter(words_of(text)) for text in texts]
    having = Counter(word for own in counts for word in own)
    rarity = {word: math.log((1 + len(texts)) / (1 + n)) for word, n in having.items()}
    postings: dict[str, tuple[list[int], list[float]]] = {word: ([], []) for word in rarity}
    for number, own in enumerate(counts):
        for word, weight in _unit_vector(own, rarity):
            postings[word][0].append(number)
            postings[word][1].append(weight)
    columns = {word: (np.array(n), np.array(weights)) for word, (n, weights) in postings.items()}

    def compare(text: str) -> np.ndarray:
        cosines = np.zeros(max(1, len(texts)))
        for word, weight in _unit_vector(Counter(words_of(text)), rarity):
            numbers, weights = columns[word]
            cosines[numbers] += weight * weights
        return cosines

    return compare


def _unit_vector(counts: Counter[str], rarity: dict[str, float]) -> Iterable[tuple[str, float]]:
    """Return each known word with its weight, scaled so that their squares add up to 1."""
    weights = {
        word: (1 + math.log(count)) * rarity[word]
        for word, count in counts.items()
        if rarity.get(word)
    }
    length = math.hypot(*weights.values())
    return [(word, weight / length) for word, weight in weights.items()]
