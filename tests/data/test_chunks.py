"""Chunks: the cache reuses what did not change, makes again what is damaged, and keeps its limit.

python -m pytest tests/data/test_chunks.py
"""

import os
import time

from helpers.preparing import job, jsonl, made_up, prepare
from lib.data import chunk_cache, chunks, label_mask
from lib.data import prepare as data


def count_encoded(monkeypatch):
    """Return a list that collects the number of rows of each call of encode_all."""
    calls = []
    real = label_mask.encode_all

    def counting(gemma, rows):
        calls.append(len(list(rows)))
        return real(gemma, rows)

    monkeypatch.setattr(label_mask, "encode_all", counting)
    return calls


def test_the_cache_reuses_what_did_not_change(bundled_base, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CHUNK_ROWS", 50)
    cleaned, real = [], chunks.clean.clean_row
    monkeypatch.setattr(
        chunks.clean,
        "clean_row",
        lambda messages, job_: (cleaned.append(1), real(messages, job_))[1],
    )
    encoded = count_encoded(monkeypatch)

    def work(path, **values):
        cleaned.clear()
        encoded.clear()
        _, results = prepare(job(path, **values), bundled_base, tmp_path / "run")
        return len(cleaned), sum(encoded), results

    rows = made_up(100)
    rows[10]["answer"] += " Write to a@example.org."
    path = jsonl(tmp_path / "d.jsonl", rows)
    first = work(path)
    assert first[:2] == (100, 100)
    again = work(path)
    assert again[:2] == (0, 0)
    assert {k: v for k, v in again[2].items() if "seconds" not in k} == {
        k: v for k, v in first[2].items() if "seconds" not in k
    }
    assert work(path, seed=9, near_duplicate_threshold=0.9)[:2] == (0, 0), (
        "decisions are made anew, rows are not"
    )
    assert work(path, personal_data="keep")[:2] == (100, 1), (
        "a changed rule cleans anew; only the row that differs is tokenised"
    )
    jsonl(path, [*rows, *made_up(20, 3, 100)])
    assert work(path)[:2] == (20, 20), "appended rows alone"


def test_a_damaged_cache_file_is_made_again(bundled_base, cache, tmp_path):
    path = jsonl(tmp_path / "d.jsonl", made_up(30))
    rows, _ = prepare(job(path), bundled_base, tmp_path / "a")
    for file in cache.iterdir():
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
    assert (
        prepare(job(path), bundled_base, tmp_path / "b")[0].facts["fingerprint"]
        == rows.facts["fingerprint"]
    )


def test_the_cache_is_kept_within_its_limit(cache, monkeypatch):

    cache.mkdir()
    for n, days in enumerate((9, 5, 0)):
        (cache / f"{n}").write_bytes(b"x" * 1000)
        os.utime(cache / f"{n}", (time.time() - 86400 * days,) * 2)
    for limit, left in ((5000, {"0", "1", "2"}), (2500, {"1", "2"}), (10, {"2"})):
        monkeypatch.setattr(chunk_cache, "CACHE_LIMIT", limit)
        chunk_cache.prune_cache()
        assert {p.name for p in cache.iterdir()} == left, (
            "nothing of the last day goes: another run may be reading it"
        )
