"""Ids that a file uses twice.

python -m pytest tests/data/reading/test_row_ids.py
"""

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from helpers.preparing import job, jsonl, made_up, prepare, stored
from lib.data import prepare as data
from lib.data.reading.row_ids import rename_repeated


@given(st.lists(st.sampled_from(["a", "b", "c", "a#2", "a#3", "b#4"]), max_size=12))
def test_every_row_gets_an_id_of_its_own_and_the_first_keeps_its(ids):
    known = np.empty(0, np.uint64)
    after = []
    renamed = []
    for start in range(0, len(ids), 5):  # in parts, as chunks come
        part = [{"id": row_id} for row_id in ids[start : start + 5]]
        own, known = rename_repeated(part, known, start)
        after += [row["id"] for row in part]
        renamed += own
    assert len(set(after)) == len(ids) == len(known)
    assert list(known) == sorted(known)
    assert [pair for pair in zip(ids, after, strict=True) if pair[0] != pair[1]] == renamed
    assert all(after[ids.index(row_id)] == row_id for row_id in set(ids) & {"a", "b", "c"})


def test_repeated_ids_are_counted_and_shown(bundled_base, cache, tmp_path):
    texts = made_up(30)
    for n, row in enumerate(texts):
        row["id"] = f"r{n % 28}"
    rows, results = prepare(job(jsonl(tmp_path / "d.jsonl", texts)), bundled_base, tmp_path / "run")
    assert results["changed"] == {"repeated_id": 2}
    assert results["rows_kept"] == 30 == len(stored(tmp_path / "run"))
    card = data.describe_data(rows, results, "hash")
    assert card["changed"]["repeated_id"] == {
        "rows": 2,
        "examples": [
            {"id": "r0#29", "before": "r0", "after": "r0#29"},
            {"id": "r1#30", "before": "r1", "after": "r1#30"},
        ],
    }
    assert json.dumps(card)
