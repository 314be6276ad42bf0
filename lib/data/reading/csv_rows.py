"""Read rows from CSV and TSV files."""

import csv
import io
import itertools
import re
from collections.abc import Iterator
from typing import Any

from lib.common.text import find_encoding
from lib.data.reading import shapes
from lib.data.reading.row_parts.fields import BadRow

NumberedRows = Iterator[tuple[int, Any]]
SAMPLE = 2**18  # characters of a csv file from which its dialect is guessed
# Characters of a field. csv's own limit of 131,072 suits tables typed by hand; without any limit,
# an open quote would fill the memory.
csv.field_size_limit(2**28)
DELIMITERS = ",;\t|"  # those that are found; others are named
NAMED_DELIMITER = re.compile(r'"?sep=(.)"?[ \t]*\r?(?:\n|$)', re.IGNORECASE)
SAVE = "Excel does so as `CSV UTF-8`."


def read_csv(file: Any, columns: dict[str, str], delimiter: str) -> NumberedRows:
    """Yield (line, values) of a file whose first line names the columns.

    `delimiter` is "" where it has to be found. Raise BadRow when the rest cannot be read.
    """
    encoding = find_encoding(file.peek(4)[:4])
    # surrogateescape, so that a byte that is not UTF-8 is noticed in its row, which can be named
    encoding = "utf-8-sig" if encoding == "utf-8" else encoding
    text = io.TextIOWrapper(file, encoding=encoding, errors="surrogateescape", newline="")
    try:
        sample = text.read(SAMPLE)
        is_cut = len(sample) == SAMPLE
        begun = sample + text.readline()
    except UnicodeDecodeError as error:
        raise BadRow(f"not {encoding.upper()} ({error.reason}). Save the file as UTF-8.") from None
    if "\0" in sample[:100]:
        raise BadRow("it has NUL characters, as UTF-16 has. Save the file as UTF-8.")
    # Excel's own first line: it names the delimiter, and is no row
    named = NAMED_DELIMITER.match(sample)
    before = 0
    if named:
        before, delimiter = 1, named[1]
        sample, begun = sample[named.end() :], begun[named.end() :]
    dialect = _find_dialect(sample, is_cut, columns, delimiter)
    tried = delimiter or DELIMITERS
    lines = itertools.chain(io.StringIO(begun, newline=""), text)
    header: list[str] = []
    for line, values in _read_records(csv.reader(lines, strict=True, **dialect), before):
        if isinstance(values, BadRow):
            if not header:
                raise BadRow(f"line {line}: {values}")
            yield line, values
        elif not header:
            header = _check_header(line, values, columns, tried)
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


def _check_header(line: int, values: list[str], columns: dict[str, str], tried: str) -> list[str]:
    """Return the names of the columns.

    Raise BadRow if one comes twice, if the line is a row, or if none of the delimiters that were
    `tried` is in it.
    """
    header = [name.strip() for name in values]
    if len(header) == 1 and not names_a_shape(header, columns) and header[0]:
        raise BadRow(_explain_one_column(line, header[0], columns, tried))
    if not names_a_shape(header, columns) and any(map(_is_sentence, header)):
        raise BadRow(
            f"line {line} names no known column: {', '.join(header)[:200]}. If it is a row, write "
            f"a line with the columns' names above it, such as question,answer. If it is the "
            f"header, name its columns by columns: {{question: ..., answer: ...}}."
        )
    for name in header:
        if header.count(name) > 1:
            raise BadRow(f"line {line}: the column `{name}` is named twice; rename one.")
    return header


def _explain_one_column(line: int, header: str, columns: dict[str, str], tried: str) -> str:
    marks = [mark for mark in dict.fromkeys(header) if not mark.isalnum() and mark not in "_-'\""]
    splits = {mark: [name.strip() for name in header.split(mark)] for mark in marks}
    found = next((mark for mark, names in splits.items() if names_a_shape(names, columns)), None)
    names = {"\t": "a tab", ",": "a comma", " ": "a blank"}
    listed = ", ".join(names.get(mark, mark) for mark in tried)
    if found == "\t":
        way = "End the file's name in .tsv"
    elif found:
        way = f"It seems to be {names.get(found, found)}: write sep={found} as a line above it"
    else:
        way = (
            "If it is another character, write it as a line above, for example sep=^. If the file "
            "has one column, it needs another for the answer"
        )
    return (
        f"the delimiter was not found: line {line}, which names the columns, holds none of "
        f"{listed}: {header[:200]}. {way}, or save the file with commas. If line {line} is a row, "
        f"write a line with the columns' names above it, such as question,answer."
    )


def names_a_shape(header: list[str], columns: dict[str, str]) -> bool:
    """Tell whether a header has the columns that are named, or else those of a known shape."""
    if columns:
        return set(columns.values()) <= set(header)
    return shapes.has_known_shape(header)


def _is_sentence(name: str) -> bool:
    return name.endswith(("?", ".", "!")) or len(name.split()) > 6


def _read_records(reader: Any, before: int) -> Iterator[tuple[int, list[str] | BadRow]]:
    """Yield each non-blank record of a csv reader, with the line on which it begins.

    `before` is the number of lines that the reader did not get.
    """
    while True:
        line = before + reader.line_num + 1
        try:
            values = next(reader)
            if values:
                "".join(values).encode()
                yield line, values
        except StopIteration:
            return
        except UnicodeDecodeError as error:
            raise BadRow(f"line {line}: not {error.encoding.upper()}. {SAVE}") from None
        except UnicodeEncodeError:
            yield line, BadRow(f"not UTF-8. Convert the file to UTF-8. {SAVE}")
        except csv.Error as error:
            if before + reader.line_num > line or str(error).startswith(
                ("unexpected end", "field larger")
            ):
                # an open quote has swallowed other rows, so more than one row would be skipped
                raise BadRow(
                    f"line {line}: a quote that opens in this row is not closed where its field "
                    f"ends (line {before + reader.line_num}: {error}). Close it, or double the "
                    f"quotes inside a field."
                ) from None
            yield line, BadRow(f"{error}. Double the quotes inside a quoted field.")


def _find_dialect(
    sample: str, is_cut: bool, columns: dict[str, str], delimiter: str
) -> dict[str, Any]:
    """Return the delimiter and quote that suit the first rows best.

    A header with a known shape comes first, then the share of rows that fit it, then the number of
    quoted fields. If no header has a known shape, the one with the most columns wins.
    """
    best_score: tuple[bool, float, int] = (False, 0.0, -1)
    best: dict[str, Any] = {}
    for quote, mark in itertools.product("\"'", delimiter or DELIMITERS):
        reader = csv.reader(io.StringIO(sample, newline=""), delimiter=mark, quotechar=quote)
        rows = [row for row in reader if row]
        if is_cut and len(rows) > 1:
            rows.pop()
        header = [name.strip() for name in rows[0]] if rows else []
        has_shape = names_a_shape(header, columns)
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
