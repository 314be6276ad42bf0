"""Drop training rows that repeat what the model will be measured on.

They share runs of words with held-out rows, exam items or safety prompts, or are near copies of
exam items or safety prompts.
"""

import functools
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lib.common import files, workers
from lib.common.progress import progress_bar
from lib.common.words import words_of
from lib.data import duplicates
from lib.data.chunks import EXAMPLES, load_messages
from lib.data.reading import shapes
from lib.data.rows import Rows
from lib.medical import safety

# a run of words in more training rows than this is a common phrase and not a leak (Brown et al.
# 2020, appendix C)
COMMON = 10
FACTOR = 0x100000001B3  # odd: the prime of the FNV hash
NO_RUNS = np.empty(0, np.uint64)
# scratch files from which the workers read what rows are compared with
RUNS_FILE = "held_out.npy"
ITEMS_FILE = "measured.json"


# -------------------------------------------------------------------------------------------------
# runs of words


def hash_runs(words: Sequence[str], size: int, word_hashes: dict[str, int]) -> np.ndarray:
    """Return 64-bit hashes of every run of `size` words, in order.

    `word_hashes` keeps the hashes of single words from one call to the next.
    """
    if len(words) < size:
        return NO_RUNS
    for word in words:
        if word not in word_hashes:
            word_hashes[word] = duplicates.hash_text(word)
    hashes = np.fromiter((word_hashes[word] for word in words), np.uint64, len(words))
    powers = np.array([pow(FACTOR, n, 2**64) for n in range(size)], np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(hashes, size)
    return (windows * powers).sum(axis=1, dtype=np.uint64)


def find_places(hashes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the places in the sorted `hashes` of the distinct values of `wanted` that it has."""
    wanted = np.unique(wanted)
    places = np.searchsorted(hashes, wanted)
    if not len(hashes):
        return places[:0]
    is_present = hashes[np.minimum(places, len(hashes) - 1)] == wanted
    return places[is_present]


def find_leaks(
    overlaps: Iterable[tuple[int, np.ndarray]], hashes: np.ndarray, always: np.ndarray
) -> tuple[dict[int, int], int]:
    """Return {row: place of its first leaked run}, and how many runs are common phrases.

    `overlaps` are (training row, places of its runs in `hashes`). Runs in `always` (exam, safety
    set) are always leaks, runs of held-out rows only if they are no common phrases.
    """
    overlaps = [(row, places) for row, places in overlaps if len(places)]
    counts = np.zeros(len(hashes), int)
    if overlaps:
        every_place = np.concatenate([places for _, places in overlaps])
        counts = np.bincount(every_place, minlength=len(hashes))
    is_common = (counts > COMMON) & ~np.isin(hashes, always)
    leaks = {}
    for row, places in overlaps:
        rare = places[~is_common[places]]
        if len(rare):
            leaks[row] = int(rare[0])
    return leaks, int(is_common.sum())


def find_shared_words(messages: list[dict[str, str]], size: int, run: np.uint64) -> str:
    """Return the words of the row's run with this hash, or ""."""
    words = spoken_words(messages)
    for n, own in enumerate(hash_runs(words, size, {})):
        if own == run:
            return " ".join(words[n : n + size])
    return ""


def spoken_words(messages: list[dict[str, str]]) -> list[str]:
    """Return the words of a conversation without its system message."""
    return [w for m in messages if m["role"] != "system" for w in words_of(m["content"])]


# -------------------------------------------------------------------------------------------------
# exam items and prompts


class Measured(NamedTuple):
    """An exam item or a safety prompt, in the wordings in which training rows may contain it."""

    name: str
    texts: list[str]
    runs: np.ndarray  # hashes, sorted


def exam_texts(item: dict[str, Any]) -> list[str]:
    """Return an exam item in the wordings in which training rows may contain it.

    These are the question, the question with the right answer, and both with the options in
    between. A question with a context is also tried without it.
    """
    answer = item["options"][item["answer_letter"]]
    texts = []
    for question in dict.fromkeys((item["question"], item.get("stem", item["question"]))):
        messages = shapes.to_messages({**item, "question": question})
        texts += [question, f"{question} {answer}", *_asked_and_answered(messages)]
    return texts


def _asked_and_answered(messages: list[dict[str, str]]) -> list[str]:
    """Return each question of a conversation, alone and with its answer."""
    turns = [m["content"] for m in messages if m["role"] != "system"]
    texts = []
    for question, answer in zip(turns[::2], turns[1::2], strict=True):
        texts += [question, f"{question} {answer}"]
    return texts


def _list_measured(exam: list[dict[str, Any]], safety_rows: list[Any], size: int) -> list[Measured]:
    named = [(f"exam {item['id']}", exam_texts(item)) for item in exam]
    named += [(f"safety set {row['id']}", [row["prompt"]]) for row in safety_rows]
    measured = []
    for name, texts in named:
        runs = [hash_runs(words_of(text), size, {}) for text in texts]
        measured.append(Measured(name, texts, np.unique(np.concatenate(runs))))
    return measured


def _sketch(word_sets: list[set[str]]) -> Any:
    """Return rensa's MinHash of each set of words."""
    import rensa  # only the prepare stage needs it

    # rensa rejects an empty set
    tokens = [sorted(words) or [""] for words in word_sets]
    return rensa.RMinHash.from_token_sets(tokens, duplicates.HASHES, duplicates.SEED)


@functools.cache
def _index_items(
    path: pathlib.Path, stamp: int, threshold: float
) -> tuple[list[tuple[int, set[str]]], Any]:
    """Return (item number, words) of every text of exam and safety set, and an LSH index of them.

    `stamp` is the file's time of change, so that a later run's file is not taken from the cache.
    """
    import rensa  # only the prepare stage needs it

    texts_of_items = json.loads(path.read_text(encoding="utf-8"))
    items = [(n, set(words_of(text))) for n, texts in enumerate(texts_of_items) for text in texts]
    index = rensa.RMinHashLSH(threshold, duplicates.HASHES, duplicates.BANDS)
    sketches = _sketch([words for _, words in items]) if items else []
    index.insert_pairs(list(enumerate(sketches)))
    return items, index


# -------------------------------------------------------------------------------------------------
# on a chunk, in a worker


def hash_chunk_runs(path: pathlib.Path, places: np.ndarray, size: int) -> np.ndarray:
    """Return the distinct runs of words of the rows at these places in a chunk, sorted."""
    word_hashes: dict[str, int] = {}
    _, conversations = load_messages(path, places)
    runs = [hash_runs(spoken_words(m), size, word_hashes) for m in conversations]
    return np.unique(np.concatenate([NO_RUNS, *runs]))


def find_run_owners(
    path: pathlib.Path, places: np.ndarray, size: int, wanted: np.ndarray
) -> dict[int, str]:
    """Return {place in the sorted `wanted`: id of the first row that has this run}."""
    owners: dict[int, str] = {}
    for row_id, messages in zip(*load_messages(path, places), strict=True):
        for place in find_places(wanted, hash_runs(spoken_words(messages), size, {})).tolist():
            owners.setdefault(place, row_id)
    return owners


def find_chunk_overlaps(
    path: pathlib.Path, places: np.ndarray, size: int, scratch: pathlib.Path, threshold: float
) -> tuple[list[tuple[int, np.ndarray]], list[tuple[int, int]]]:
    """Return what the rows at `places` in a chunk share with what the model is measured on.

    First (n, places of shared runs in the hashes of RUNS_FILE) of rows that share some, then (n,
    item number) of rows that are near copies of that item. n is an index into `places`.
    """
    hashes = np.load(scratch / RUNS_FILE, mmap_mode="r")
    _, conversations = load_messages(path, places)
    word_hashes: dict[str, int] = {}
    overlaps = []
    for n, messages in enumerate(conversations):
        shared_places = find_places(hashes, hash_runs(spoken_words(messages), size, word_hashes))
        if len(shared_places):
            overlaps.append((n, shared_places))
    return overlaps, _find_near_items(conversations, scratch / ITEMS_FILE, threshold)


def _find_near_items(
    conversations: list[list[dict[str, str]]], items_file: pathlib.Path, threshold: float
) -> list[tuple[int, int]]:
    """Return (conversation number, item number) of near copies, by Jaccard similarity."""
    items, index = _index_items(items_file, items_file.stat().st_mtime_ns, threshold)
    if not items or not conversations:
        return []
    exchanges = [
        (n, set(words_of(text)))
        for n, messages in enumerate(conversations)
        for text in _asked_and_answered(messages)
    ]
    near = []
    for (n, words), sketch in zip(exchanges, _sketch([w for _, w in exchanges]), strict=True):
        for other in index.query(sketch):
            number, item_words = items[other]
            if len(words & item_words) >= threshold * len(words | item_words):
                near.append((n, number))
    return near


# -------------------------------------------------------------------------------------------------
# over all chunks


def drop_leaks(rows: Rows) -> dict[int, dict[str, str]]:
    """Drop contaminated training rows, and return for each whose words it repeats.

    The first rows also get the repeated words, as examples.
    """
    size = rows.job.decontaminate
    safety_rows = safety.load_rows()
    measured = _list_measured(rows.exam, safety_rows, size)
    measured_runs = np.unique(np.concatenate([NO_RUNS, *(item.runs for item in measured)]))
    held_out = _select_held_out(rows, size)
    runs_of_chunks = workers.map_in_order(rows.pool, hash_chunk_runs, held_out)
    hashes = np.unique(np.concatenate([measured_runs, *runs_of_chunks]))
    np.save(rows.scratch / RUNS_FILE, hashes)
    files.write_json(rows.scratch / ITEMS_FILE, [item.texts for item in measured])

    overlaps, near = _find_overlaps(rows, size)
    leaks, common = find_leaks(overlaps, hashes, measured_runs)
    rows.facts |= {
        "exam_items": len(rows.exam),
        "safety_prompts": len(safety_rows),
        "held_out_exam_and_safety_runs": len(hashes),
        "runs_that_are_common_phrases": common,
        "rows_near_exam_items_or_safety_prompts": len(near),
    }

    because = {
        row: {"by": measured[number].name, "shared": "nearly the whole item"}
        for row, number in near.items()
    }
    leaked = hashes[np.unique(np.array(list(leaks.values()), np.int64))]
    owners = _find_owners(rows, leaked, measured, held_out)
    for row, place in leaks.items():
        because[row] = {"by": owners[int(np.searchsorted(leaked, hashes[place]))]}
    for row in sorted(leaks)[:EXAMPLES]:
        messages = _load_row(rows, row)
        because[row]["shared"] = find_shared_words(messages, size, hashes[leaks[row]])
    rows.decisions.drop(np.array(sorted(because), np.int64), "contaminated")
    return because


def _select_held_out(rows: Rows, size: int) -> list[tuple[pathlib.Path, np.ndarray, int]]:
    """Return (file, places of its held-out rows, size) of each chunk with held-out rows."""
    held_out = []
    for path, _, sides in rows.iterate_chunks():
        places = np.flatnonzero(sides > 0)
        if len(places):
            held_out.append((path, places, size))
    return held_out


def _find_overlaps(rows: Rows, size: int) -> tuple[list[tuple[int, np.ndarray]], dict[int, int]]:
    """Return (row, places of its shared runs) of training rows, and {row: item it is near}."""
    trained = [
        (path, start, np.flatnonzero(sides == 0)) for path, start, sides in rows.iterate_chunks()
    ]
    threshold = rows.job.near_duplicate_threshold
    tasks = ((path, places, size, rows.scratch, threshold) for path, _, places in trained)
    results = workers.map_in_order(rows.pool, find_chunk_overlaps, tasks)
    bar = progress_bar("overlap with what it is measured on", total=len(trained), unit="chunk")
    overlaps: list[tuple[int, np.ndarray]] = []
    near: dict[int, int] = {}
    for (_, start, places), (chunk_overlaps, near_items) in zip(trained, results, strict=True):
        overlaps += [(int(start + places[n]), shared) for n, shared in chunk_overlaps]
        near |= {int(start + places[n]): number for n, number in near_items}
        bar.update()
    bar.close()
    return overlaps, near


def _find_owners(
    rows: Rows,
    leaked: np.ndarray,
    measured: list[Measured],
    held_out: list[tuple[pathlib.Path, np.ndarray, int]],
) -> dict[int, str]:
    """Return {place in the sorted `leaked`: name of the first item or row with that run}."""
    owners: dict[int, str] = {}
    if not len(leaked):
        return owners
    for item in measured:
        for place in find_places(leaked, item.runs).tolist():
            owners.setdefault(place, item.name)
    tasks = ((*chunk, leaked) for chunk in held_out)
    for chunk_owners in workers.map_in_order(rows.pool, find_run_owners, tasks):
        owners = chunk_owners | owners
    return owners


def _load_row(rows: Rows, row: int) -> list[dict[str, str]]:
    path, start = next((path, start) for path, start in reversed(rows.parts) if start <= row)
    _, conversations = load_messages(path, [row - start])
    return conversations[0]
