"""Read rows from parquet and Arrow files."""

from collections.abc import Iterator
from typing import Any, BinaryIO

from lib.data.reading.row_parts.fields import BadRow

NumberedRows = Iterator[tuple[int, Any]]
BATCH = 1000  # rows of a parquet or Arrow file that are held at a time


def read_parquet(file: BinaryIO) -> NumberedRows:
    import pyarrow.parquet  # only such a file needs it

    try:
        # with its defaults, pyarrow would hold the whole file in memory
        table = pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=2**20)
        yield from _read_batches(table.schema_arrow, table.iter_batches(BATCH))
    except pyarrow.ArrowException as error:
        raise BadRow(f"not a parquet file: {error}") from None


def read_arrow(file: BinaryIO) -> NumberedRows:
    import pyarrow.ipc  # only such a file needs it

    try:
        head = file.read(6)
        file.seek(0)
        if head == b"ARROW1":
            table = pyarrow.ipc.open_file(file)
            batches = (table.get_batch(n) for n in range(table.num_record_batches))
        else:
            batches = table = pyarrow.ipc.open_stream(file)
        yield from _read_batches(table.schema, batches)
    except pyarrow.ArrowException as error:
        raise BadRow(f"not an Arrow file: {error}") from None


def _read_batches(schema: Any, batches: Any) -> NumberedRows:
    for name in schema.names:
        if schema.names.count(name) > 1:
            raise BadRow(f"the column `{name}` is named twice; rename one.")
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH):
            for values in _read_values(batch.slice(start, BATCH)):
                number += 1
                yield number, values


def _read_values(rows: Any) -> list[Any]:
    """Return the rows of a batch, with a BadRow for each that Python cannot represent.

    Such a row has text that is not UTF-8, or a date outside Python's range.
    """
    try:
        return rows.to_pylist()
    except (ValueError, OverflowError) as error:
        if rows.num_rows == 1:
            return [BadRow(f"a value cannot be read: {error}")]
        return [value for n in range(rows.num_rows) for value in _read_values(rows.slice(n, 1))]
