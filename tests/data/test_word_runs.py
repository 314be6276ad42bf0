"""Runs of words: equal hashes for equal runs only, and the words that they cover.

python -m pytest tests/data/test_word_runs.py
"""

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from helpers.sentences import sentence
from lib.data import word_runs


def test_grams_are_equal_for_equal_runs_and_only_for_those():
    rng = random.Random(6)
    a, b = sentence(rng, 40), sentence(rng, 40)
    shared = [*b[:10], *a[5:25], *b[10:]]
    numbers = {}
    x, y, z = (set(word_runs.hash_runs(t, 13, numbers).tolist()) for t in (a, shared, b))
    assert len(x & y) == 20 - 12
    assert not x & z
    assert len(word_runs.hash_runs(a[:12], 13, numbers)) == 0
    assert (
        word_runs.hash_runs(a, 13, {}).tolist() == word_runs.hash_runs(a, 13, numbers).tolist()
    ), "hashes are those of the words, in every process"
    assert (
        word_runs.hash_runs(a[:13], 13, {}).tolist()
        != word_runs.hash_runs([*a[1:13], a[0]], 13, {}).tolist()
    ), "order counts"


def test_places_are_those_of_the_distinct_values_that_are_there():
    hashes = np.array([2, 5, 9], np.uint64)
    assert word_runs.find_places(hashes, np.array([9, 5, 9, 7], np.uint64)).tolist() == [1, 2]
    assert len(word_runs.find_places(word_runs.NO_RUNS, hashes)) == 0


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 15))
def test_a_word_is_covered_by_the_runs_that_begin_at_most_a_run_before_it(has_run, size):
    expected = [
        any(has_run[max(0, word - size + 1) : word + 1]) for word in range(len(has_run) + size - 1)
    ]
    assert word_runs.cover_words(np.array(has_run), size).tolist() == expected


def test_words_of_the_user_are_marked_and_those_of_the_system_left_out():
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Does it hurt?"},
        {"role": "assistant", "content": "A little."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So."},
    ]
    marks = word_runs.mark_asked(messages).tolist()
    assert marks == [True] * 3 + [False] * 2 + [True, False]
    assert len(word_runs.spoken_words(messages)) == len(marks)
