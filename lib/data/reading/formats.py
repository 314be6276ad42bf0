"""Stream rows from JSON, CSV, parquet and Arrow files.

for where, values in read_file(path, columns): ...

`values` is a row's fields by name, or a BadRow if only this row is unreadable.
"""

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
from lib.data.reading import shapes
from lib.data.reading.shapes import BadRow

NumberedRows = Iterator[tuple[int, Any]]
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
BATCH = 1000  # rows of a parquet or Arrow file that are held at a time
SAMPLE = 2**18  # characters of a csv file from which its dialect is guessed
# Characters of a field. csv's own limit of 131,072 suits tables typed by hand; without any limit,
# an open quote would fill the memory.
csv.field_size_limit(2**28)


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
        return _read_jsonl(file)
    if suffix == ".json":
        return _read_json(file)
    if suffix == ".parquet":
        return _read_parquet(file)
    if suffix == ".arrow":
        return _read_arrow(file)
    return _read_csv(file, columns, "\t" if suffix == ".tsv" else "")


# -------------------------------------------------------------------------------------------------
# JSON


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any] | BadRow:
    """Return an object's fields, or a BadRow if one is named twice.

    json itself would silently keep the last.
    """
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    return BadRow(f"the field `{twice}` is named twice; rename or remove one.")


def _read_jsonl(file: BinaryIO) -> NumberedRows:
    decoder = json.JSONDecoder(object_pairs_hook=_unique_fields)
    for number, line in enumerate(file, 1):
        try:
            # a byte order mark may stand before the first line
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            if text:
                yield number, decoder.decode(text)
        except (ValueError, RecursionError) as error:
            yield number, BadRow(_explain_json(error, "Expected one JSON object a line."))


def _read_json(file: BinaryIO) -> NumberedRows:
    """Yield the rows of a list. The whole file is read at once: large sets belong in .jsonl."""
    try:
        text = file.read().decode("utf-8-sig")
        values = json.loads(text, object_pairs_hook=_unique_fields) if text.strip() else []
    except (ValueError, RecursionError) as error:
        line = f"line {error.lineno}: " if isinstance(error, json.JSONDecodeError) else ""
        expected = "Expected one list of rows; one object a line is .jsonl."
        raise BadRow(line + _explain_json(error, expected)) from None
    if not isinstance(values, list):
        raise BadRow("expected a JSON list of rows: [{...}, {...}]. One object a line is .jsonl.")
    yield from enumerate(values, 1)


def _explain_json(error: ValueError | RecursionError, expected: str) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 ({error.reason}, at byte {error.start + 1}). Convert the file to UTF-8."
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} (column {error.colno}). {expected}"
    return (
        "JSON that cannot be read: it is nested too deeply, or a number in it has thousands of "
        "digits."
    )


# -------------------------------------------------------------------------------------------------
# CSV and TSV


def _read_csv(file: BinaryIO, columns: dict[str, str], delimiter: str) -> NumberedRows:
    # surrogateescape, so that a byte that is not UTF-8 is noticed in its row, which can be named
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    dialect = _find_dialect(text, columns, delimiter)
    header: list[str] = []
    for line, values in _read_records(csv.reader(text, strict=True, **dialect)):
        if isinstance(values, BadRow):
            if not header:
                raise BadRow(f"line {line}: {values}")
            yield line, values
        elif not header:
            header = _check_header(line, values)
        elif len(values) != len(header):
            yield (
                line,
                BadRow(
                    f"{len(values)} fields, but the header has {len(header)}: {', '.join(header)}. "
                    f"Quote a field that contains the delimiter or a line end."
                ),
            )
        else:
            yield line, dict(zip(header, values, strict=True))


def _check_header(line: int, values: list[str]) -> list[str]:
    header = [name.strip() for name in values]
    for name in header:
        if header.count(name) > 1:
            raise BadRow(f"line {line}: the column `{name}` is named twice; rename one.")
    return header


def _read_records(reader: Any) -> Iterator[tuple[int, list[str] | BadRow]]:
    """Yield each non-blank record of a csv reader, with the line on which it begins."""
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader)
            if values:
                "".join(values).encode()
                yield line, values
        except StopIteration:
            return
        except UnicodeEncodeError:
            yield line, BadRow("not UTF-8. Convert the file to UTF-8.")
        except csv.Error as error:
            if reader.line_num > line or str(error).startswith(("unexpected end", "field larger")):
                # an open quote has swallowed other rows, so more than one row would be skipped
                raise BadRow(
                    f"line {line}: a quote that opens in this row is not closed where its field "
                    f"ends (line {reader.line_num}: {error}). Close it, or double the quotes "
                    f"inside a field."
                ) from None
            yield line, BadRow(f"{error}. Double the quotes inside a quoted field.")


def _find_dialect(
    text: io.TextIOWrapper, columns: dict[str, str], delimiter: str
) -> dict[str, Any]:
    """Return the delimiter and quote that suit the first rows best.

    A header with a known shape comes first, then the share of rows that fit it, then the number of
    quoted fields. If no header has a known shape, the one with the most columns wins.
    """
    sample = text.read(SAMPLE)
    text.seek(0)
    is_cut = len(sample) == SAMPLE
    best_score: tuple[bool, float, int] = (False, 0.0, -1)
    best: dict[str, Any] = {}
    for quote, mark in itertools.product("\"'", delimiter or ",;\t|"):
        reader = csv.reader(io.StringIO(sample, newline=""), delimiter=mark, quotechar=quote)
        rows = [row for row in reader if row]
        if is_cut and len(rows) > 1:
            rows.pop()
        header = [name.strip() for name in rows[0]] if rows else []
        if columns:
            has_shape = set(columns.values()) <= set(header)
        else:
            has_shape = shapes.has_known_shape(header)
        fit = sum(len(row) == len(header) for row in rows) / max(1, len(rows))
        quoted = _count_quoted_fields(sample, quote, mark, is_cut)
        score = (has_shape, fit if has_shape else len(header), quoted)
        # An apostrophe counts as a quote only if it encloses fields; otherwise a file with an
        # open double quote would pass as one without quotes.
        may_be_quote = quote == '"' or quoted > 0
        if may_be_quote and score > best_score:
            best_score = score
            best = {"delimiter": mark, "quotechar": quote}
    return best


def _count_quoted_fields(sample: str, quote: str, delimiter: str, is_cut: bool) -> int:
    mark = re.escape(delimiter)
    end = f"{quote}(?={mark}|\r?$)" + (r"|\Z" if is_cut else "")
    field = f"(?:^|{mark}){quote}(?:[^{quote}]|{quote}{quote})*(?:{end})"
    return len(re.findall(field, sample, re.MULTILINE))


# -------------------------------------------------------------------------------------------------
# parquet and Arrow


def _read_parquet(file: BinaryIO) -> NumberedRows:
    import pyarrow.parquet  # only such a file needs it

    try:
        # with its defaults, pyarrow would hold the whole file in memory
        table = pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=2**20)
        yield from _read_batches(table.schema_arrow, table.iter_batches(BATCH))
    except pyarrow.ArrowException as error:
        raise BadRow(f"not a parquet file: {error}") from None


def _read_arrow(file: BinaryIO) -> NumberedRows:
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
