"""Large files: reading is a stream, and a row of 50 megabytes takes seconds.

python -m pytest tests/data/reading/test_large_files.py
"""

import gzip
import json
import random
import time
import tracemalloc

import pytest

from helpers.reading import (
    Q,
    Read,
    columnar,
    delimited,
    numbered,
)
from lib import params
from lib.common.errors import UserError
from lib.data.reading import formats, source_rows, sources


@pytest.mark.parametrize(
    "write",
    [
        lambda text: ("d.jsonl", json.dumps({"question": Q, "answer": text})),
        lambda text: ("d.csv", f'question,answer\n{Q},"{text}"\n'),
        lambda text: ("d.csv", f"question,answer\n{Q},'{text}'\n"),
        lambda text: ("d.json", json.dumps([{"question": Q, "answer": text}])),
    ],
    ids=["jsonl", "csv", "csv in apostrophes", "json"],
)
def test_a_row_of_50_megabytes_is_read_in_seconds(tmp_path, write):
    text = "a line, of 25 characters\n" * 2_000_000
    name, content = write(text)
    (tmp_path / name).write_text(content)
    started = time.monotonic()
    assert Read(tmp_path / name).pairs == [(Q, text)]
    assert time.monotonic() - started < 8


def large(name, count):
    """A file of `count` rows of 1,000 characters that compress to half."""
    rows = [
        {"question": random.Random(n).randbytes(500).hex(), "answer": "a"} for n in range(count)
    ]
    if name.endswith(".gz"):
        return gzip.compress(
            delimited(rows)
            if "csv" in name
            else "".join(json.dumps(r) + "\n" for r in rows).encode(),
            1,
        )
    return columnar(name.split(".")[0], rows, group=count if "parquet" in name else 2000)


@pytest.fixture
def traced():
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["d.jsonl.gz", "d.csv.gz", "parquet.parquet", "stream.arrow", "file.arrow"]
)
def test_reading_is_a_stream(tmp_path, name, request):
    (tmp_path / name).write_bytes(large(name, 20_000))
    job, ticks = params.check_values({"dataset": str(tmp_path / name)}, "test"), []
    peak = request.getfixturevalue("traced")
    reading = source_rows.read_rows(job, None, ticks.append)
    next(reading)
    assert ticks[0] < sources.count_local_bytes(job) / 3 or name == "parquet.parquet", (
        "much of the file was read for the first row"
    )
    count = 1 + sum(1 for _ in reading)
    assert count == 20_000
    assert len(ticks) == count // formats.BATCH
    assert peak() < 8 * 2**20, f"{peak():,} bytes were held at a time, of 20 MB"


def test_the_first_rows_of_a_file_that_is_cut_off_arrive_before_the_error(tmp_path):
    (tmp_path / "d.jsonl.gz").write_bytes(
        gzip.compress("".join(json.dumps(r) + "\n" for r in numbered(50_000)).encode())[:-50]
    )
    reading = source_rows.read_rows(
        params.check_values({"dataset": str(tmp_path / "d.jsonl.gz")}, "test"), None
    )
    assert next(reading)["messages"][0]["content"] == "q0"
    with pytest.raises(UserError, match="cannot be read"):
        list(reading)
