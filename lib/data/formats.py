"""Rows out of files of every kind, as a stream: (where, values); values is a BadRow where one row alone is unreadable."""

import csv
import gzip
import io
import itertools
import json
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from lib.common import files
from lib.common.errors import UserError
from lib.data import shapes
from lib.data.shapes import BadRow

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
BATCH = 1000  # rows of a parquet or Arrow file held at a time
SAMPLE = 2**18  # characters of a csv file its dialect is told by
csv.field_size_limit(
    2**28
)  # characters a field; its own limit of 131,072 is for hand-made tables, none lets an open quote fill the memory


def suffix_of(path: pathlib.Path) -> str:
    """The kind of a file by its name, .gz left aside."""
    return (pathlib.Path(path.stem).suffix if path.suffix.lower() == ".gz" else path.suffix).lower()


def rows(
    path: pathlib.Path, columns: dict[str, str], tick: Callable[[int], None] = lambda done: None
) -> Iterator[tuple[str, Any]]:
    """The rows of a file; UserError names the line after which the rest cannot be read. `tick` is told the bytes read so far."""
    shown, suffix, last = files.shown(path), suffix_of(path), 0
    unit = "line" if suffix in (".jsonl", ".csv", ".tsv") else "row"
    try:
        with open(path, "rb") as raw:
            file = gzip.GzipFile(fileobj=raw) if path.suffix.lower() == ".gz" else raw
            reader = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet, ".arrow": _arrow}.get(
                suffix
            )
            rows = reader(file) if reader else _csv(file, columns, "\t" if suffix == ".tsv" else "")
            for n, (last, values) in enumerate(rows):
                if n % BATCH == 0:
                    tick(raw.tell())
                yield f"{shown}, {unit} {last}", values
    except BadRow as error:
        raise UserError(f"{shown}: {error}") from None
    except (EOFError, zlib.error, OSError) as error:
        raise UserError(
            f"{shown}, after {unit} {last}: cannot be read: {error}. If it is cut off or damaged, write or fetch it again."
        ) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any] | BadRow:
    """An object's fields; in the place of one with a field named twice, of which json keeps the last in silence, the BadRow."""
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    names = [name for name, _ in pairs]
    return BadRow(
        f"the field `{next(n for n in names if names.count(n) > 1)}` is named twice; rename or remove one."
    )


def _jsonl(file: BinaryIO) -> Iterator[tuple[int, Any]]:
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    for number, line in enumerate(file, 1):
        try:
            if text := line.decode("utf-8-sig" if number == 1 else "utf-8").strip():
                yield number, decoder.decode(text)
        except (ValueError, RecursionError) as error:
            yield number, BadRow(_not_json(error, "Expected one JSON object a line."))


def _json(file: BinaryIO) -> Iterator[tuple[int, Any]]:
    """A list of rows; read whole, as JSON has no other way: large sets belong into .jsonl."""
    try:
        text = file.read().decode("utf-8-sig")
        values = json.loads(text, object_pairs_hook=_unique) if text.strip() else []
    except (ValueError, RecursionError) as error:
        line = f"line {error.lineno}: " if isinstance(error, json.JSONDecodeError) else ""
        raise BadRow(
            f"{line}{_not_json(error, 'Expected one list of rows; one object a line is .jsonl.')}"
        ) from None
    if not isinstance(values, list):
        raise BadRow("expected a JSON list of rows: [{...}, {...}]. One object a line is .jsonl.")
    yield from enumerate(values, 1)


def _not_json(error: ValueError | RecursionError, expected: str) -> str:
    if isinstance(error, UnicodeDecodeError):
        return (
            f"not UTF-8 ({error.reason}, byte {error.start + 1} of it). Convert the file to UTF-8."
        )
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} (column {error.colno}). {expected}"
    return "JSON that cannot be read: it is nested too deeply, or a number in it has thousands of digits."


def _csv(file: BinaryIO, columns: dict[str, str], delimiter: str) -> Iterator[tuple[int, Any]]:
    # surrogateescape: a byte that is not UTF-8 is found in its row, so that the row can be named
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    header: list[str] = []
    for line, values in _records(
        csv.reader(text, strict=True, **_dialect(text, columns, delimiter))
    ):
        if isinstance(values, BadRow):
            if not header:
                raise BadRow(f"line {line}: {values}")
            yield line, values
        elif not header:
            header = [name.strip() for name in values]
            if twice := next((name for name in header if header.count(name) > 1), None):
                raise BadRow(f"line {line}: the column `{twice}` is named twice; rename one.")
        elif len(values) != len(header):
            yield (
                line,
                BadRow(
                    f"{len(values)} fields, the header has {len(header)}: {', '.join(header)}. "
                    f"A field with the delimiter or a line end in it must be quoted."
                ),
            )
        else:
            yield line, dict(zip(header, values, strict=True))


def _records(reader: Any) -> Iterator[tuple[int, list[str] | BadRow]]:
    """Every record of a csv reader that is not blank, with the line it begins on."""
    while True:
        line = reader.line_num + 1
        try:
            if values := next(reader):
                "".join(values).encode()
                yield line, values
        except StopIteration:
            return
        except UnicodeEncodeError:
            yield line, BadRow("not UTF-8. Convert the file to UTF-8.")
        except csv.Error as error:
            if reader.line_num > line or str(error).startswith(("unexpected end", "field larger")):
                # what an open quote took in are other rows: not one bad row to pass over
                raise BadRow(
                    f"line {line}: a quote opens in this row that is not closed where its field ends (line {reader.line_num}: {error}). "
                    f"Close it, or double the quotes inside a field."
                ) from None
            yield line, BadRow(f"{error}. Double the quotes inside a quoted field.")


def _dialect(text: io.TextIOWrapper, columns: dict[str, str], delimiter: str) -> dict[str, str]:
    """The delimiter and quote under which the header holds a shape, most of the first rows fit it and most fields are quoted.

    Where the header holds none, those under which it has the most columns.
    """
    sample = text.read(SAMPLE)
    text.seek(0)
    cut = len(sample) == SAMPLE
    best, found = (False, 0.0, -1), {}
    for quote, mark in itertools.product("\"'", delimiter or ",;\t|"):
        rows = [
            row
            for row in csv.reader(io.StringIO(sample, newline=""), delimiter=mark, quotechar=quote)
            if row
        ]
        if cut and len(rows) > 1:
            rows.pop()
        header = [name.strip() for name in rows[0]] if rows else []
        wanted = set(columns.values()) <= set(header) if columns else shapes.known(header)
        fit = sum(len(row) == len(header) for row in rows) / max(1, len(rows))
        at = re.escape(mark)
        ends = f"{quote}(?={at}|\r?$)" + (r"|\Z" if cut else "")
        quoted = len(
            re.findall(
                f"(?:^|{at}){quote}(?:[^{quote}]|{quote}{quote})*(?:{ends})", sample, re.MULTILINE
            )
        )
        # an apostrophe is a quote only where fields are seen in it: else a file with an open quote would be one without quotes
        if (quote == '"' or quoted) and (
            score := (wanted, fit if wanted else len(header), quoted)
        ) > best:
            best, found = score, {"delimiter": mark, "quotechar": quote}
    return found


def _parquet(file: BinaryIO) -> Iterator[tuple[int, Any]]:
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(
            file, pre_buffer=False, buffer_size=2**20
        )  # its defaults hold the whole file
        yield from _batches(table.schema_arrow, table.iter_batches(BATCH))
    except pyarrow.ArrowException as error:
        raise BadRow(f"not a parquet file: {error}") from None


def _arrow(file: BinaryIO) -> Iterator[tuple[int, Any]]:
    import pyarrow.ipc

    try:
        head = file.read(6)
        file.seek(0)
        if head == b"ARROW1":
            table = pyarrow.ipc.open_file(file)
            batches = (table.get_batch(n) for n in range(table.num_record_batches))
        else:
            batches = table = pyarrow.ipc.open_stream(file)
        yield from _batches(table.schema, batches)
    except pyarrow.ArrowException as error:
        raise BadRow(f"not an Arrow file: {error}") from None


def _batches(schema: Any, batches: Any) -> Iterator[tuple[int, Any]]:
    if twice := next((n for n in schema.names if schema.names.count(n) > 1), None):
        raise BadRow(f"the column `{twice}` is named twice; rename one.")
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH):
            for values in _values(batch.slice(start, BATCH)):
                number += 1
                yield number, values


def _values(rows: Any) -> list[Any]:
    """The rows of a batch; for one with text that is not UTF-8, or a date that Python has not, its BadRow."""
    try:
        return rows.to_pylist()
    except (ValueError, OverflowError) as error:
        if rows.num_rows == 1:
            return [BadRow(f"a value cannot be read: {error}")]
        return [value for n in range(rows.num_rows) for value in _values(rows.slice(n, 1))]
