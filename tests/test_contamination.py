"""Runs of words and near copies shared with what is held out.

    python -m pytest tests/test_contamination.py
"""

import random

import numpy as np
from test_duplicates import sentence

from lib import contamination


def test_grams_are_equal_for_equal_runs_and_only_for_those():
    rng = random.Random(6)
    a, b = sentence(rng, 40), sentence(rng, 40)
    shared = [*b[:10], *a[5:25], *b[10:]]
    numbers = {}
    x, y, z = (set(contamination.grams(t, 13, numbers).tolist()) for t in (a, shared, b))
    assert len(x & y) == 20 - 12
    assert not x & z
    assert len(contamination.grams(a[:12], 13, numbers)) == 0
    assert contamination.grams(a, 13, {}).tolist() == contamination.grams(a, 13, numbers).tolist(), "hashes are those of the words, in every process"
    assert contamination.grams(a[:13], 13, {}).tolist() != contamination.grams([*a[1:13], a[0]], 13, {}).tolist(), "order counts"


def test_contaminated_rows_are_found_and_runs_that_are_common_phrases_are_not_contamination():
    numbers, rng = {}, random.Random(8)
    held, phrase = sentence(rng, 40), sentence(rng, 14)
    owners = contamination.held_out([(contamination.grams(held, 13, numbers), 5), (contamination.grams(phrase, 13, numbers), 6)])
    train = {0: sentence(rng), 1: [*sentence(rng, 9), *held[10:24]], **{n: [*sentence(rng, 5), *phrase] for n in range(2, 13)}}
    found = [(n, contamination.find(owners.hashes, contamination.grams(words, 13, numbers))) for n, words in train.items()]
    leaks, common = contamination.contaminated(found, owners)
    assert ({row: owners.owners[place] for row, place in leaks.items()}, common) == ({1: 5}, 2)
    run = owners.hashes[leaks[1]]
    assert contamination.shared([{"role": "user", "content": " ".join(train[1])}], 13, run) in " ".join(held)
    leaks, common = contamination.contaminated(found[:12], owners)
    assert ({row: owners.owners[place] for row, place in leaks.items()}, common) == ({n: 5 if n == 1 else 6 for n in range(1, 12)}, 0), "ten rows are not yet common"
    assert contamination.contaminated([], owners) == ({}, 0)
    nothing = contamination.held_out([])
    assert len(contamination.find(nothing.hashes, found[0][1].astype(np.uint64))) == 0
