"""Read rows from CSV and TSV files."""

import csv
import io
import itertools
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from lib.data.reading import shapes
from lib.data.reading.shapes import BadRow

NumberedRows = Iterator[tuple[int, Any]]
SAMPLE = 2**18  # characters of a csv file from which its dialect is guessed
# Characters of a field. csv's own limit of 131,072 suits tables typed by hand; without any limit,
# an open quote would fill the memory.
csv.field_size_limit(2**28)


def read_csv(file: BinaryIO, columns: dict[str, str], delimiter: str) -> NumberedRows:
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
