"""Runs of words as hashes: those of a text, where others have them, and what they cover."""

import functools
from collections.abc import Sequence

import numpy as np

from lib.common.words import words_of
from lib.data import duplicates

FACTOR = 0x100000001B3  # odd: the prime of the FNV hash
NO_RUNS = np.empty(0, np.uint64)


@functools.cache
def _powers(size: int) -> np.ndarray:
    return np.array([pow(FACTOR, n, 2**64) for n in range(size)], np.uint64)


def hash_runs(words: Sequence[str], size: int, word_hashes: dict[str, int]) -> np.ndarray:
    """Return 64-bit hashes of every run of `size` words, in order.

    `word_hashes` keeps the hashes of single words from one call to the next.
    """
    if len(words) < size:
        return NO_RUNS
    for word in set(words).difference(word_hashes):
        word_hashes[word] = duplicates.hash_text(word)
    hashes = np.array([word_hashes[word] for word in words], np.uint64)
    # the sum of each run's hashes, times the powers of the factor; whole numbers stay exact
    return np.correlate(hashes, _powers(size), "valid")


def find_places(hashes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the places in the sorted `hashes` of the distinct values of `wanted` that it has."""
    wanted = np.unique(wanted)
    places = np.searchsorted(hashes, wanted)
    if not len(hashes):
        return places[:0]
    is_present = hashes[np.minimum(places, len(hashes) - 1)] == wanted
    return places[is_present]


def find_shared_words(messages: list[dict[str, str]], size: int, run: np.uint64) -> str:
    """Return the words of the row's run with this hash, or ""."""
    words = spoken_words(messages)
    for n, own in enumerate(hash_runs(words, size, {})):
        if own == run:
            return " ".join(words[n : n + size])
    return ""


def spoken_words(messages: list[dict[str, str]]) -> list[str]:
    """Return the words of a conversation without its system message."""
    return [word for own in words_of_turns(messages) for word in own]


def words_of_turns(messages: list[dict[str, str]]) -> list[list[str]]:
    """Return the words of each turn of a conversation without its system message."""
    return [words_of(m["content"]) for m in messages if m["role"] != "system"]


def mark_asked(messages: list[dict[str, str]]) -> np.ndarray:
    """Return for each of the spoken words whether the user says it, as bool."""
    turns = [m for m in messages if m["role"] != "system"]
    lengths = [len(words_of(m["content"])) for m in turns]
    return np.repeat([m["role"] == "user" for m in turns], lengths)


def cover_words(has_run: np.ndarray, size: int) -> np.ndarray:
    """Return which words of a text lie in one of the runs that `has_run` marks, as bool."""
    return np.convolve(has_run, np.ones(size, np.int64)) > 0
