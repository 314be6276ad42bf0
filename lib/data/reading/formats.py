"""Stream rows from JSON, CSV, parquet and Arrow files.

for where, values in read_file(path, columns): ...

`values` is a row's fields by name, or a BadRow if only this row is unreadable.
"""

import gzip
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from lib.common import files
from lib.common.errors import UserError
from lib.data.reading import columnar, csv_rows, json_rows
from lib.data.reading.shapes import BadRow

NumberedRows = Iterator[tuple[int, Any]]
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
BATCH = 1000  # rows from one report of the bytes read to the next


def suffix_of(path: pathlib.Path) -> str:
    """Return a file's suffix, without .gz."""
    is_packed = path.suffix.lower() == ".gz"
    return (pathlib.Path(path.stem).suffix if is_packed else path.suffix).lower()


def read_file(
    path: pathlib.Path,
    columns: dict[str, str],
    report_bytes: Callable[[int], None] = lambda done: None,
) -> Iterator[tuple[str, Any]]:
    """Yield (where, values) of the rows of a file.

    Raise UserError when the rest of it cannot be read; it names the last line that was read.
    `report_bytes` is called every BATCH rows with the bytes read so far.
    """
    name = files.format_path(path)
    suffix = suffix_of(path)
    unit = "line" if suffix in (".jsonl", ".csv", ".tsv") else "row"
    last = 0
    try:
        with open(path, "rb") as raw:
            file: Any = gzip.GzipFile(fileobj=raw) if path.suffix.lower() == ".gz" else raw
            for n, (last, values) in enumerate(_read_rows(file, suffix, columns)):
                if n % BATCH == 0:
                    report_bytes(raw.tell())
                yield f"{name}, {unit} {last}", values
    except BadRow as error:
        raise UserError(f"{name}: {error}") from None
    except (EOFError, zlib.error, OSError) as error:
        raise UserError(
            f"{name}, after {unit} {last}: cannot be read: {error}. If the file is cut off or "
            f"damaged, write or fetch it again."
        ) from None


def _read_rows(file: BinaryIO, suffix: str, columns: dict[str, str]) -> NumberedRows:
    """Yield (number, values); raise BadRow when nothing after a row can be read."""
    if suffix == ".jsonl":
        return json_rows.read_jsonl(file)
    if suffix == ".json":
        return json_rows.read_json(file)
    if suffix == ".parquet":
        return columnar.read_parquet(file)
    if suffix == ".arrow":
        return columnar.read_arrow(file)
    return csv_rows.read_csv(file, columns, "\t" if suffix == ".tsv" else "")
