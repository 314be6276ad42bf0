"""Training rows that repeat what the model will be measured on: runs of words they share with held-out rows,
exam items or prompts of the safety set, and near copies."""

import functools
import json
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from lib.common import files, workers
from lib.common.progress import progress_bar
from lib.common.words import words_of
from lib.data import duplicates, shapes
from lib.data.chunks import EXAMPLES, texts_of
from lib.data.rows import Rows, with_sides
from lib.medical import safety

COMMON = 10  # a run of words found in more training rows is a turn of phrase, not a leak (Brown et al. 2020, appendix C)


def grams(tokens: list[str], size: int, numbers: dict[str, int]) -> np.ndarray:
    """64-bit hashes of every run of `size` words, in order; `numbers` keeps the words' own hashes."""
    if len(tokens) < size:
        return np.empty(0, np.uint64)
    hashed = np.fromiter(
        (numbers.get(w) or numbers.setdefault(w, duplicates.key(w)) for w in tokens),
        np.uint64,
        len(tokens),
    )
    powers = np.array([pow(0x100000001B3, n, 2**64) for n in range(size)], np.uint64)
    return (np.lib.stride_tricks.sliding_window_view(hashed, size) * powers).sum(
        axis=1, dtype=np.uint64
    )


def find(hashes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Places in the sorted `hashes` of the distinct `wanted` that are among them."""
    wanted = np.unique(wanted)
    at = np.searchsorted(hashes, wanted)
    return at[hashes[np.minimum(at, len(hashes) - 1)] == wanted] if len(hashes) else at[:0]


def contaminated(
    found: Iterable[tuple[int, np.ndarray]], hashes: np.ndarray, always: np.ndarray
) -> tuple[dict[int, int], int]:
    """Of (training row, places of its runs in `hashes`): {row: the first place that counts}, and how many runs are common phrases.

    A run of `always` (exam, safety set) counts in any case, one of held-out rows unless it is a common phrase.
    """
    rows = [(row, at) for row, at in found if len(at)]
    counts = (
        np.bincount(np.concatenate([at for _, at in rows]), minlength=len(hashes))
        if rows
        else np.zeros(len(hashes), int)
    )
    common = (counts > COMMON) & ~np.isin(hashes, always)
    return {row: int(rare[0]) for row, at in rows if len(rare := at[~common[at]])}, int(
        common.sum()
    )


def shared(messages: list[dict[str, str]], size: int, run: np.uint64) -> str:
    """The words of a row whose run has this hash."""
    tokens = spoken(messages)
    return next(
        (" ".join(tokens[n : n + size]) for n, h in enumerate(grams(tokens, size, {})) if h == run),
        "",
    )


def spoken(messages: list[dict[str, str]]) -> list[str]:
    return [w for m in messages if m["role"] != "system" for w in words_of(m["content"])]


# ---------------------------------------------------------------------------------------------------------------------
# on a chunk


def chunk_runs(path: pathlib.Path, at: np.ndarray, size: int) -> np.ndarray:
    """The distinct runs of words of some rows, sorted."""
    numbers: dict[str, int] = {}
    return np.unique(
        np.concatenate(
            [
                np.empty(0, np.uint64),
                *(grams(spoken(messages), size, numbers) for messages in texts_of(path, at)[1]),
            ]
        )
    )


def chunk_owners(
    path: pathlib.Path, at: np.ndarray, size: int, wanted: np.ndarray
) -> dict[int, str]:
    """{place in the sorted `wanted`: id of the first of some rows that has this run}."""
    owners: dict[int, str] = {}
    for row_id, messages in zip(*texts_of(path, at), strict=True):
        for place in find(wanted, grams(spoken(messages), size, {})).tolist():
            owners.setdefault(place, row_id)
    return owners


def chunk_overlaps(
    path: pathlib.Path, at: np.ndarray, size: int, scratch: pathlib.Path, threshold: float
) -> tuple[list[Any], list[tuple[int, int]]]:
    """(place in `at`, places of its runs among the held-out ones) of rows that have some; (place in `at`, number of the item it nearly is)."""
    import rensa

    hashes = np.load(scratch / "held_out.npy", mmap_mode="r")
    _, texts = texts_of(path, at)
    numbers: dict[str, int] = {}
    found = [
        (n, places)
        for n, messages in enumerate(texts)
        if len(places := find(hashes, grams(spoken(messages), size, numbers)))
    ]
    items, index = _index(
        scratch / "measured.json", (scratch / "measured.json").stat().st_mtime_ns, threshold
    )
    close: list[tuple[int, int]] = []
    if items and texts:
        parts = [
            (n, set(words_of(text)))
            for n, messages in enumerate(texts)
            for text in _asked_and_answered(messages)
        ]
        sketches = rensa.RMinHash.from_token_sets(
            [sorted(part) or [""] for _, part in parts], duplicates.HASHES, duplicates.SEED
        )
        for (n, part), sketch in zip(parts, sketches, strict=True):
            close += [
                (n, items[other][0])
                for other in index.query(sketch)
                if len(part & items[other][1]) >= threshold * len(part | items[other][1])
            ]
    return found, close


def _asked_and_answered(messages: list[dict[str, str]]) -> list[str]:
    """Each question of a conversation, alone and with its answer."""
    turns = [m["content"] for m in messages if m["role"] != "system"]
    return [
        text
        for question, answer in zip(turns[::2], turns[1::2], strict=True)
        for text in (question, f"{question} {answer}")
    ]


def exam_texts(item: dict[str, Any]) -> list[str]:
    """An exam item as training rows may hold it: its question, the question with the right answer, both with the options between; and where
    the question has a context, the same without it.
    """
    answer, texts = item["options"][item["answer_letter"]], []
    for question in dict.fromkeys((item["question"], item.get("stem", item["question"]))):
        texts += [
            question,
            f"{question} {answer}",
            *_asked_and_answered(shapes.messages({**item, "question": question})),
        ]
    return texts


@functools.cache
def _index(
    path: pathlib.Path, stamp: int, threshold: float
) -> tuple[list[tuple[int, set[str]]], Any]:
    """(number of its item, words) of every text of exam and safety set, and an index of them; `stamp` tells one run's file from another's."""
    import rensa

    items = [
        (n, set(words_of(text)))
        for n, texts in enumerate(json.loads(path.read_text(encoding="utf-8")))
        for text in texts
    ]
    index = rensa.RMinHashLSH(threshold, duplicates.HASHES, duplicates.BANDS)
    sketches = (
        rensa.RMinHash.from_token_sets(
            [sorted(words) or [""] for _, words in items], duplicates.HASHES, duplicates.SEED
        )
        if items
        else []
    )
    index.insert_pairs(list(enumerate(sketches)))
    return items, index


# ---------------------------------------------------------------------------------------------------------------------
# over all chunks


def drop_leaks(rows: Rows) -> dict[int, dict[str, str]]:
    """Drop contaminated training rows; for each, whose words it repeats, and for the first ones which."""
    size, asked = rows.job.decontaminate, safety.load_rows()
    measured = [(f"exam {item['id']}", exam_texts(item)) for item in rows.exam]
    measured += [(f"safety set {row['id']}", [row["prompt"]]) for row in asked]
    names, texts = [name for name, _ in measured], [own for _, own in measured]
    own_runs = [
        np.unique(np.concatenate([grams(words_of(text), size, {}) for text in own]))
        for own in texts
    ]
    always = np.unique(np.concatenate([np.empty(0, np.uint64), *own_runs]))
    parts = [
        (path, start, np.flatnonzero(sides > 0), np.flatnonzero(sides == 0))
        for path, start, sides in with_sides(rows)
    ]
    held = [(path, at, size) for path, _, at, _ in parts if len(at)]
    hashes = np.unique(np.concatenate([always, *workers.map_in_order(rows.pool, chunk_runs, held)]))
    np.save(rows.scratch / "held_out.npy", hashes)
    files.write_json(rows.scratch / "measured.json", texts)
    overlaps, close, bar = (
        [],
        {},
        progress_bar("overlap with what it is measured on", total=len(parts), unit="chunk"),
    )
    for (_, start, _, at), (found, near) in zip(
        parts,
        workers.map_in_order(
            rows.pool,
            chunk_overlaps,
            (
                (path, at, size, rows.scratch, rows.job.near_duplicate_threshold)
                for path, _, _, at in parts
            ),
        ),
        strict=True,
    ):
        overlaps += [(int(start + at[n]), places) for n, places in found]
        close |= {int(start + at[n]): item for n, item in near}
        bar.update()
    bar.close()
    leaks, common = contaminated(overlaps, hashes, always)
    rows.facts |= {
        "exam_items": len(rows.exam),
        "safety_prompts": len(asked),
        "held_out_exam_and_safety_runs": len(hashes),
        "runs_that_are_common_phrases": common,
        "rows_near_exam_items_or_safety_prompts": len(close),
    }
    wanted = hashes[np.unique(np.array(list(leaks.values()), np.int64))]
    owners: dict[int, str] = {}
    for name, runs in zip(names, own_runs, strict=True):
        owners = dict.fromkeys(find(wanted, runs).tolist(), name) | owners
    for found in (
        workers.map_in_order(rows.pool, chunk_owners, ((*part, wanted) for part in held))
        if len(wanted)
        else []
    ):
        owners = found | owners
    because = {
        row: {"by": names[item], "shared": "nearly the whole item"} for row, item in close.items()
    }
    because |= {
        row: {"by": owners[int(np.searchsorted(wanted, hashes[place]))]}
        for row, place in leaks.items()
    }
    for row in sorted(leaks)[:EXAMPLES]:
        path, start = next((p, s) for p, s in reversed(rows.parts) if s <= row)
        because[row]["shared"] = shared(
            texts_of(path, np.array([row - start]))[1][0], size, hashes[leaks[row]]
        )
    rows.made.drop(np.array(sorted(because), np.int64), "contaminated")
    return because
