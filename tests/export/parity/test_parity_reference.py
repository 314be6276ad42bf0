"""The rows, positions and texts with which GGUFs are compared.

python -m pytest tests/export/test_reference.py
"""

import numpy as np

from helpers import export_runs
from lib.data import chat, label_mask, splits
from lib.export.base_needs import odd_texts
from lib.export.parity import reference


def test_positions_are_trained_tokens_of_distinct_held_out_rows(parity_run, small):
    merged, _, truth, data = parity_run
    held = [
        (row["input_ids"], row["labels"])
        for name in ("validation", "test")
        for row in splits.load_split(data, name)
    ]
    assert len(truth.rows) == len({tuple(ids) for ids in truth.rows}) == 4
    assert [tuple(ids) in {tuple(ids) for ids, _ in held[:3]} for ids in truth.rows] == [
        True
    ] * 3 + [False]
    for ids, where in zip(truth.rows, truth.positions, strict=True):
        labels = next(labels for other, labels in held if other == ids)
        assert len(where) == 4 == len(set(where))
        assert where == sorted(where)
        assert all(labels[n] != label_mask.IGNORED for n in where)
    assert truth.logprobs.shape == (16, 2048)
    assert np.allclose(np.exp(truth.logprobs).sum(1), 1, atol=1e-4)
    assert reference.draw_sample(data, merged, 1) == (
        truth.rows,
        truth.positions,
        truth.texts,
        truth.source,
    )
    assert reference.draw_sample(data, merged, 2)[:2] != (truth.rows, truth.positions)
    assert set(odd_texts.HARD) < set(truth.texts)
    assert {f"What about validation {n}?" for n in range(3)} < set(truth.texts)
    assert any(ord(letter) > 0x1F300 for text in truth.texts[20:] for letter in text)


def test_rows_beyond_reach_and_runs_without_held_out_rows(parity_run, small, tmp_path, monkeypatch):
    merged, _, truth, data = parity_run
    reach = truth.positions[0][-1]
    monkeypatch.setattr(reference, "REACH", reach)
    rows, positions, *_ = reference.draw_sample(data, merged, 1)
    assert rows
    assert all(0 < len(where) <= 4 and where[-1] < reach for where in positions)
    export_runs.write_split(tmp_path, "validation", [], chat.load_chat(merged))
    export_runs.write_split(tmp_path, "test", [], chat.load_chat(merged))
    monkeypatch.undo()
    rows, positions, texts, source = reference.draw_sample(tmp_path, merged, 1)
    assert len(rows) == len(positions)
    assert len(rows) > 0
    assert source.startswith("the bundled first-aid set")
    assert len(texts) == reference.TEXTS
