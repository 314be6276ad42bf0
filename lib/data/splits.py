"""The prepared splits on disk: Arrow files in the layout of datasets.save_to_disk, written as they come."""

import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

import pyarrow as pa

from lib.common import files
from lib.common.errors import UserError

SPLITS = ("train", "validation", "test")
SHARD = 2**28  # bytes of one Arrow file of a split
# `length` (tokens) is for sorting rows into buckets
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("topic", pa.string()),
        ("question", pa.large_string()),
        ("answer", pa.large_string()),
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
        ("length", pa.int32()),
    ]
)


class Split:
    """One split on its way to disk; nothing of it is held."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.shards, self.rows, self.writer = folder, 0, 0, None
        folder.mkdir(parents=True)

    def write(self, table: Any) -> None:
        if self.writer and self.file.tell() > SHARD:
            self._end()
        if not self.writer:
            self.file = pa.OSFile(str(self.folder / f"{self.shards}.arrow"), "wb")
            self.writer, self.shards = pa.ipc.new_stream(self.file, table.schema), self.shards + 1
        self.writer.write_table(table)
        self.rows += table.num_rows

    def _end(self) -> None:
        self.writer.close()
        self.file.close()
        self.writer = None

    def close(self) -> None:
        import datasets

        datasets.disable_progress_bars()
        if not self.writer:
            self.write(SCHEMA.empty_table())
        self._end()
        # what `datasets` writes for no rows of these columns, with our files in it
        empty = datasets.Dataset(SCHEMA.empty_table())
        empty.save_to_disk(str(self.folder / "empty"))
        names = [f"data-{n:05d}-of-{self.shards:05d}.arrow" for n in range(self.shards)]
        state = files.read_json(self.folder / "empty" / "state.json", "Arrow state")
        files.write_json(
            self.folder / "state.json",
            {
                **state,
                "_data_files": [{"filename": name} for name in names],
                "_fingerprint": hashlib.sha256(str(self.rows).encode()).hexdigest()[:16],
            },
        )
        os.replace(self.folder / "empty" / "dataset_info.json", self.folder / "dataset_info.json")
        shutil.rmtree(self.folder / "empty")
        for n, name in enumerate(names):
            os.replace(self.folder / f"{n}.arrow", self.folder / name)


def load(folder: pathlib.Path, split: str) -> Any:
    """One split as a datasets.Dataset; UserError when prepare has not left it."""
    import datasets

    if not (folder / split).is_dir():
        raise UserError(f"`{files.shown(folder / split)}` is missing: run prepare first.")
    try:
        data = datasets.load_from_disk(str(folder / split))
        data["length"][:]
    except Exception as error:  # Arrow and datasets raise kinds of their own
        raise UserError(
            f"`{files.shown(folder / split)}` cannot be read: {str(error).splitlines()[0][:200]}\n"
            f"Make it again with `make prepare FORCE=1`."
        ) from None
    return data


def content(folder: pathlib.Path, split: str) -> str | None:
    """sha256 over the tokens and labels of a split, in order; None where it is not there, or is empty."""
    if not (folder / split).is_dir() or not len(data := load(folder, split)):
        return None
    digest = hashlib.sha256()
    for batch in data.select_columns(["input_ids", "labels"]).iter(256):
        digest.update(json.dumps([batch["input_ids"], batch["labels"]]).encode())
    return digest.hexdigest()
