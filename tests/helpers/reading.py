"""Read rows of a data set as the stage does, and write small files to read."""

import csv
import io
import json

import pytest

from lib import params
from lib.common.errors import UserError
from lib.data.reading import source_rows


class Read(list):
    """The rows of a dataset; `dropped` are the skipped rows, `commits` those of hub sources.

    `inputs` are the files that were read or not.
    """

    def __init__(self, dataset, **more):
        self.dropped, self.commits, self.ticks, self.inputs = [], {}, [], []
        job = params.check_values(
            {"dataset": dataset if isinstance(dataset, list | dict) else str(dataset), **more},
            "test",
        )
        super().__init__(
            source_rows.read_rows(
                job,
                lambda *what: self.dropped.append(what),
                self.ticks.append,
                self.commits,
                self.inputs,
            )
        )

    @property
    def pairs(self):
        return [tuple(turn["content"] for turn in row["messages"]) for row in self]


def refused(dataset, **more):
    with pytest.raises(UserError) as error:
        Read(dataset, **more)
    assert str(error.value).encode(), "cannot be printed"
    return str(error.value)


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def numbered(count, start=0):
    return [{"question": f"q{n}", "answer": f"a{n}"} for n in range(start, start + count)]


Q, A = "How do I cool a burn?", "Under cool running water."
ROWS = [
    {"question": Q, "answer": 'He said "no", twice\nand left; then, a\ttab | a bar'},
    {"question": "Überhitzt? 🔥", "answer": "It's 20'"},
    {"question": "q", "answer": ""},
]
PAIRS = [(r["question"], r["answer"]) for r in ROWS]
GOOD = b'{"question": "a", "answer": "b"}\n'
HEAD = b"question,answer\n"


def delimited(rows=ROWS, **dialect):
    text = io.StringIO(newline="")
    writer = csv.writer(text, **dialect)
    writer.writerow(rows[0])
    writer.writerows(r.values() for r in rows)
    return text.getvalue().encode()


def columnar(kind, rows=ROWS, group=2):
    import pyarrow
    import pyarrow.parquet

    table, file = pyarrow.Table.from_pylist(rows), io.BytesIO()
    if kind == "parquet":
        pyarrow.parquet.write_table(table, file, row_group_size=group)
    else:
        with (pyarrow.ipc.new_file if kind == "file" else pyarrow.ipc.new_stream)(
            file, table.schema
        ) as writer:
            writer.write_table(table, max_chunksize=group)
    return file.getvalue()
