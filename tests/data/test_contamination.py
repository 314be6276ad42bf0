"""Runs of words and near copies shared with what is held out.

python -m pytest tests/test_contamination.py
"""

import random

import numpy as np
from test_duplicates import sentence

from lib.data import contamination


def test_grams_are_equal_for_equal_runs_and_only_for_those():
    rng = random.Random(6)
    a, b = sentence(rng, 40), sentence(rng, 40)
    shared = [*b[:10], *a[5:25], *b[10:]]
    numbers = {}
    x, y, z = (set(contamination.grams(t, 13, numbers).tolist()) for t in (a, shared, b))
    assert len(x & y) == 20 - 12
    assert not x & z
    assert len(contamination.grams(a[:12], 13, numbers)) == 0
    assert (
        contamination.grams(a, 13, {}).tolist() == contamination.grams(a, 13, numbers).tolist()
    ), "hashes are those of the words, in every process"
    assert (
        contamination.grams(a[:13], 13, {}).tolist()
        != contamination.grams([*a[1:13], a[0]], 13, {}).tolist()
    ), "order counts"


def test_contaminated_rows_are_found_and_common_phrases_are_not_contamination_unless_of_the_exam():
    numbers, rng = {}, random.Random(8)
    held, phrase = sentence(rng, 40), sentence(rng, 14)
    hashes = np.unique(
        np.concatenate([contamination.grams(t, 13, numbers) for t in (held, phrase)])
    )
    nothing, own = np.empty(0, np.uint64), np.unique(contamination.grams(phrase, 13, numbers))
    train = {
        0: sentence(rng),
        1: [*sentence(rng, 9), *held[10:24]],
        **{n: [*sentence(rng, 5), *phrase] for n in range(2, 13)},
    }
    found = [
        (n, contamination.find(hashes, contamination.grams(words, 13, numbers)))
        for n, words in train.items()
    ]
    leaks, common = contamination.contaminated(found, hashes, nothing)
    assert (set(leaks), common) == ({1}, 2)
    assert contamination.shared(
        [{"role": "user", "content": " ".join(train[1])}], 13, hashes[leaks[1]]
    ) in " ".join(held)
    assert set(contamination.contaminated(found[:12], hashes, nothing)[0]) == set(range(1, 12)), (
        "ten rows are not yet common"
    )
    leaks, common = contamination.contaminated(found, hashes, own)
    assert (set(leaks), common) == (set(range(1, 13)), 0), "the exam's own words always count"
    assert contamination.contaminated([], hashes, nothing) == ({}, 0)
    assert len(contamination.find(nothing, hashes)) == 0


def test_an_exam_item_is_known_in_every_form_training_rows_have_it():
    item = {
        "question": "Which is right?",
        "options": {"A": "Ice", "B": "Cool water"},
        "answer_letter": "B",
    }
    assert contamination.exam_texts(item) == [
        "Which is right?",
        "Which is right? Cool water",
        "Which is right?\n\nA) Ice\nB) Cool water",
        "Which is right?\n\nA) Ice\nB) Cool water Cool water",
    ]
    with_context = contamination.exam_texts(
        item | {"question": "It burns.\n\nWhich is right?", "stem": "Which is right?"}
    )
    assert with_context[4:] == contamination.exam_texts(item), (
        "rows hold the question without its context too"
    )
    assert with_context[:2] == [
        "It burns.\n\nWhich is right?",
        "It burns.\n\nWhich is right? Cool water",
    ]
