"""Splits on disk: what `datasets` reads, and what is not readable.

python -m pytest tests/data/test_splits.py
"""

import pytest

from lib.common.errors import UserError
from lib.data import splits


def test_saved_splits_are_datasets_with_many_shards_too(tmp_path, monkeypatch):
    import datasets
    import pyarrow as pa

    monkeypatch.setattr(splits, "SHARD", 2000)
    out = splits.SplitWriter(tmp_path / "data" / "train")
    rows = [
        {
            "id": f"r{n}",
            "topic": "",
            "question": "q",
            "answer": "a",
            "input_ids": [n] * 30,
            "labels": [-100] * 30,
            "length": 30,
        }
        for n in range(100)
    ]
    for n in range(0, 100, 10):
        out.write(pa.Table.from_pylist(rows[n : n + 10], splits.SCHEMA))
    out.close()
    assert len(list((tmp_path / "data/train").glob("data-*.arrow"))) > 2
    assert (
        datasets.load_from_disk(str(tmp_path / "data/train")).to_list()
        == splits.load_split(tmp_path / "data", "train").to_list()
        == rows
    )
    empty = splits.SplitWriter(tmp_path / "data" / "test")
    empty.close()
    assert len(splits.load_split(tmp_path / "data", "test")) == 0
    with pytest.raises(UserError, match="run prepare first"):
        splits.load_split(tmp_path, "train")


@pytest.mark.parametrize("damage", ["truncated", "no state", "not Arrow"])
def test_an_unreadable_split_says_so_and_what_to_do(tmp_path, damage):
    split = splits.SplitWriter(tmp_path / "train")
    split.write(splits.SCHEMA.empty_table())
    split.close()
    file = next((tmp_path / "train").glob("*.arrow"))
    {
        "truncated": lambda: file.write_bytes(file.read_bytes()[:40]),
        "no state": (tmp_path / "train" / "state.json").unlink,
        "not Arrow": lambda: file.write_text("hello"),
    }[damage]()
    with pytest.raises(UserError, match="(?s)train` cannot be read.*make prepare FORCE=1"):
        splits.load_split(tmp_path, "train")
