"""Write and read the prepared splits: Arrow files in the layout of datasets.save_to_disk.

split = SplitWriter(folder / "train"); split.write(table); split.close()
rows = load_split(folder, "train")
"""

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
# rows of another source (`forgetting`), which has a folder only if a job names one
FORGETTING = "forgetting"
SIDES = (*SPLITS, FORGETTING)
SHARD = 2**28  # bytes of one Arrow file of a split
# `length` (tokens) serves to sort rows into buckets
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


class SplitWriter:
    """Writes one split to disk, table by table, and keeps none of it in memory."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.shards = 0
        self.rows = 0
        self.file: Any = None
        self.writer: Any = None
        folder.mkdir(parents=True)

    def write(self, table: Any) -> None:
        """Append a table of SCHEMA; start a new file when the last one is full."""
        if self.writer and self.file.tell() > SHARD:
            self._end_shard()
        if not self.writer:
            self.file = pa.OSFile(str(self.folder / f"{self.shards}.arrow"), "wb")
            self.writer = pa.ipc.new_stream(self.file, table.schema)
            self.shards += 1
        self.writer.write_table(table)
        self.rows += table.num_rows

    def _end_shard(self) -> None:
        self.writer.close()
        self.file.close()
        self.writer = None

    def close(self) -> None:
        """Write the files that `datasets` expects, and give the Arrow files their final names."""
        import datasets  # takes a second; only the end of the stage needs it

        datasets.disable_progress_bars()
        if not self.writer:
            self.write(SCHEMA.empty_table())
        self._end_shard()
        # let `datasets` write its files for an empty set, then enter our Arrow files into them
        empty = self.folder / "empty"
        datasets.Dataset(SCHEMA.empty_table()).save_to_disk(str(empty))
        names = [f"data-{n:05d}-of-{self.shards:05d}.arrow" for n in range(self.shards)]
        state = files.read_json(empty / "state.json", "Arrow state")
        state |= {
            "_data_files": [{"filename": name} for name in names],
            "_fingerprint": hashlib.sha256(str(self.rows).encode()).hexdigest()[:16],
        }
        files.write_json(self.folder / "state.json", state)
        os.replace(empty / "dataset_info.json", self.folder / "dataset_info.json")
        shutil.rmtree(empty)
        for n, name in enumerate(names):
            os.replace(self.folder / f"{n}.arrow", self.folder / name)


def load_split(folder: pathlib.Path, split: str) -> Any:
    """Open one split as a datasets.Dataset; raise UserError when it is missing or unreadable."""
    import datasets  # takes a second; commands that open no split should not wait for it

    path = folder / split
    if not path.is_dir():
        raise UserError(f"`{files.format_path(path)}` is missing: run prepare first.")
    try:
        data = datasets.load_from_disk(str(path))
        data["length"][:]
    except Exception as error:  # Arrow and datasets raise errors of many kinds
        raise UserError(
            f"`{files.format_path(path)}` cannot be read: {str(error).splitlines()[0][:200]}\n"
            f"Make it again with `make prepare FORCE=1`."
        ) from None
    return data


def hash_split(folder: pathlib.Path, split: str) -> str | None:
    """Return sha256 over a split's tokens and labels, in order; None without a split or rows."""
    if not (folder / split).is_dir():
        return None
    data = load_split(folder, split)
    if not len(data):
        return None
    digest = hashlib.sha256()
    for batch in data.select_columns(["input_ids", "labels"]).iter(256):
        digest.update(json.dumps([batch["input_ids"], batch["labels"]]).encode())
    return digest.hexdigest()
