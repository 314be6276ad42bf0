"""Drop training rows that repeat what the model will be measured on.

They have most of a held-out row's question or answer, or a run of words of an exam item or a safety
prompt, or they are near copies of one. The rules are in leaks.py.
"""

import functools
import itertools
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from lib.common import files, workers
from lib.common.progress import progress_bar
from lib.common.words import words_of
from lib.data import duplicates, leaks, subjects
from lib.data.chunks import EXAMPLES, load_messages
from lib.data.reading import shapes
from lib.data.rows import Rows
from lib.data.word_runs import (
    NO_RUNS,
    find_places,
    find_shared_words,
    hash_runs,
    mark_asked,
    spoken_words,
    words_of_turns,
)
from lib.medical import safety

# scratch files from which the workers read what rows are compared with
RUNS_FILE = "held_out.npy"
ITEMS_FILE = "measured.json"
# overlaps that are no leak, as the record names them
KINDS = {
    "shared_passage": "a_passage",
    "another_subject": "a_template",
    "closing": "a_closing",
    "common_phrase": "a_common_phrase",
}


# -------------------------------------------------------------------------------------------------
# exam items and prompts


class Measured(NamedTuple):
    """An exam item or a safety prompt, in the wordings in which training rows may contain it."""

    name: str
    texts: list[str]
    runs: list[np.ndarray]  # hashes of each text's runs, in order


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
        measured.append(Measured(name, texts, runs))
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


def hash_held_out(
    path: pathlib.Path, places: np.ndarray, size: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (hashes of its runs in order, which words the user says) of rows in a chunk."""
    word_hashes: dict[str, int] = {}
    _, conversations = load_messages(path, places)
    return [
        (hash_runs(spoken_words(messages), size, word_hashes), mark_asked(messages))
        for messages in conversations
    ]


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
    turns = [words_of_turns(messages) for messages in conversations]
    for n, own in enumerate(turns):
        words = list(itertools.chain.from_iterable(own))
        shared_places = find_places(hashes, hash_runs(words, size, word_hashes))
        if len(shared_places):
            overlaps.append((n, shared_places))
    return overlaps, _find_near_items(turns, scratch / ITEMS_FILE, threshold)


def _find_near_items(
    turns: list[list[list[str]]], items_file: pathlib.Path, threshold: float
) -> list[tuple[int, int]]:
    """Return (conversation number, item number) of near copies, by Jaccard similarity.

    `turns` are the words of each turn of the conversations.
    """
    items, index = _index_items(items_file, items_file.stat().st_mtime_ns, threshold)
    if not items or not turns:
        return []
    exchanges = [
        (n, words)
        for n, own in enumerate(turns)
        for question, answer in zip(own[::2], own[1::2], strict=True)
        for words in (set(question), {*question, *answer})
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
    held_out, hashes = _read_held_out(rows, size, [runs for item in measured for runs in item.runs])
    np.save(rows.scratch / RUNS_FILE, hashes)
    files.write_json(rows.scratch / ITEMS_FILE, [item.texts for item in measured])

    overlaps, near = _find_overlaps(rows, size)
    terms = subjects.TermsFile(rows.scratch / "terms", rows.columns["terms_end"])
    item_runs = [np.searchsorted(hashes, runs) for item in measured for runs in item.runs]
    reference = leaks.Reference(held_out, item_runs, len(hashes), size, terms)
    found, harmless = leaks.find_leaks(overlaps, reference)
    terms.close()
    rows.facts |= {
        "exam_items": len(rows.exam),
        "safety_prompts": len(safety_rows),
        "held_out_exam_and_safety_runs": len(hashes),
        "rows_near_exam_items_or_safety_prompts": len(near),
        **{f"kept_rows_that_only_share_{KINDS[kind]}": harmless[kind] for kind in KINDS},
    }

    because = {
        row: {"by": measured[number].name, "shared": "nearly the whole item"}
        for row, number in near.items()
    }
    for row, leak in found.items():
        if leak.held_out < 0:
            because[row] = {"by": _name_owner(measured, hashes[leak.place])}
            rows.decisions.drop(row, "contaminated")
        else:
            because[row] = {}
            rows.decisions.drop(row, "contaminated", leak.held_out)
    rows.decisions.drop(np.array(sorted(near.keys() - found.keys()), np.int64), "contaminated")
    for row in sorted(found)[:EXAMPLES]:
        messages = _load_row(rows, row)
        because[row]["shared"] = find_shared_words(messages, size, hashes[found[row].place])
    return because


def _read_held_out(
    rows: Rows, size: int, item_runs: list[np.ndarray]
) -> tuple[list[leaks.HeldOut], np.ndarray]:
    """Return the held-out rows, and the sorted hashes of all runs, theirs and the items'."""
    chosen = [
        (path, start, places)
        for path, start, sides in rows.iterate_chunks()
        if len(places := np.flatnonzero(sides > 0))
    ]
    tasks = ((path, places, size) for path, _, places in chosen)
    results = list(workers.map_in_order(rows.pool, hash_held_out, tasks))
    every_run = [runs for chunk in results for runs, _ in chunk]
    hashes = np.unique(np.concatenate([NO_RUNS, *item_runs, *every_run]))
    held_out = [
        leaks.HeldOut(start + int(place), np.searchsorted(hashes, runs).astype(np.int32), is_asked)
        for (_, start, places), chunk in zip(chosen, results, strict=True)
        for place, (runs, is_asked) in zip(places, chunk, strict=True)
        if len(runs)
    ]
    return held_out, hashes


def _name_owner(measured: list[Measured], run: np.uint64) -> str:
    """Return the name of the first exam item or safety prompt with this run."""
    return next(item.name for item in measured if any(run in runs for runs in item.runs))


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


def _load_row(rows: Rows, row: int) -> list[dict[str, str]]:
    path, start = next((path, start) for path, start in reversed(rows.parts) if start <= row)
    _, conversations = load_messages(path, [row - start])
    return conversations[0]
