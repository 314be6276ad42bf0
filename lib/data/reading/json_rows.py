"""Read rows from JSON and JSON Lines files."""

import io
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

from lib.common.text import find_encoding
from lib.data.reading.row_parts.fields import BadRow

NumberedRows = Iterator[tuple[int, Any]]
BLANKS = re.compile(r"\s*")
A_LINE = "Expected one JSON object a line."
A_LIST = "Expected one list of rows, or one object a line."


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


DECODER = json.JSONDecoder(object_pairs_hook=_unique_fields)


def read_jsonl(file: Any) -> NumberedRows:
    """Yield (line, values) of a file with one object a line.

    A file with another ending than its content, a list or objects over several lines, is read as
    what it is; its text is held in memory.
    """
    lines = _read_lines(file)
    head: list[bytes] = []
    begun: list[bytes] = []  # the first two lines that are not blank
    for line in lines:
        head.append(line)
        if line.strip():
            begun.append(line)
        if len(begun) == 2:
            break
    if _is_one_document(begun):
        text = _decode(b"".join(itertools.chain(head, lines)), "utf-8")
        yield from _scan(text)
        return
    for number, line in enumerate(itertools.chain(head, lines), 1):
        try:
            text = line.decode().strip()
            if text:
                yield number, DECODER.decode(text)
        except (ValueError, RecursionError) as error:
            yield number, BadRow(_explain(error, A_LINE))


def _read_lines(file: Any) -> Iterator[bytes]:
    """Yield the lines of a file in UTF-8, without a byte order mark."""
    encoding = find_encoding(file.peek(4)[:4])
    if encoding == "utf-8":
        yield from file
        return
    if encoding == "utf-8-sig":
        file.read(3)
        yield from file
        return
    decoded = io.TextIOWrapper(file, encoding, newline="\n")
    try:
        for text in decoded:
            yield text.encode(errors="surrogatepass")
    except UnicodeDecodeError as error:
        raise BadRow(f"not {encoding.upper()} ({error.reason}). Save the file as UTF-8.") from None
    finally:
        decoded.detach()  # else the file is closed while its reader still asks where it is


def _is_one_document(begun: list[bytes]) -> bool:
    """Tell by the first two filled lines whether a list, or an object, goes over several lines.

    A first line that was torn off is not taken for one: what follows it is an object of its own.
    """
    if not begun:
        return False
    first, second = [*begun, b""][:2]
    is_torn = first.lstrip()[:1] == b"{" and _is_whole(second)[0]
    is_whole, values = _is_whole(first)
    if is_whole:  # a list of turns in each line is a row each
        return isinstance(values, list) and not second
    return values == "unfinished" and not is_torn


def _is_whole(line: bytes) -> tuple[bool, Any]:
    """Return whether a line is JSON, and its value; "unfinished" if only its end is missing."""
    try:
        text = line.decode().strip()
        return True, DECODER.decode(text)
    except json.JSONDecodeError as error:
        # within a text no line ends
        ends = error.pos >= len(text) and text[:1] in ("{", "[")
        return False, "unfinished" if ends else None
    except (ValueError, RecursionError):
        return False, None


def read_json(file: Any) -> NumberedRows:
    """Yield (row, values) of a file with a list of rows, or with one object after the other.

    The text of the file is held in memory: large sets belong in .jsonl.
    """
    content = file.read()
    text = _decode(content, find_encoding(content[:4]))
    rows = _scan(text)
    head = list(itertools.islice(rows, 2))
    if text.lstrip()[:1] not in ("[", "") and len(head) == 1:
        raise BadRow(_explain_single(head[0][1]))
    for number, (_, values) in enumerate(itertools.chain(head, rows), 1):
        yield number, values


def _explain_single(values: Any) -> str:
    """Say what a file should have that is one value but no list."""
    expected = "expected a JSON list of rows: [{...}, {...}], or one object a line"
    if not isinstance(values, dict):
        return f"{expected}; it is a value of type {type(values).__name__}."
    lists = [f"{name} ({len(own)})" for name, own in values.items() if isinstance(own, list)]
    found = (
        f"lists {', '.join(lists)}"
        if lists
        else f"fields {', '.join(map(str, values)) or '(none)'}"
    )
    return f"{expected}; it is a single object, with {found}. Save each list as a file of its own."


def _decode(content: bytes, encoding: str) -> str:
    try:
        return content.decode(encoding)
    except ValueError as error:
        raise BadRow(_explain(error, "")) from None


def _scan(text: str) -> NumberedRows:
    """Yield (line, value) of the elements of a list, or of values one after the other.

    Raise BadRow where the text is not JSON: nothing after it can be read.
    """
    place = _skip_blanks(text, 0)
    is_list = text[place : place + 1] == "["
    line, counted = 1, 0
    is_first = True
    if is_list:
        place = _skip_blanks(text, place + 1)
    while place < len(text) or is_list:
        try:
            if is_list:
                if text[place : place + 1] == "]":
                    _require_end(text, _skip_blanks(text, place + 1))
                    return
                place = place if is_first else _skip_comma(text, place)
            line += text.count("\n", counted, place)
            counted = place
            value, place = DECODER.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            number = f"line {error.lineno}: " if isinstance(error, json.JSONDecodeError) else ""
            raise BadRow(number + _explain(error, A_LIST)) from None
        yield line, value
        is_first = False
        place = _skip_blanks(text, place)


def _skip_blanks(text: str, place: int) -> int:
    match = BLANKS.match(text, place)
    return match.end() if match else place


def _skip_comma(text: str, place: int) -> int:
    if text[place : place + 1] != ",":
        raise json.JSONDecodeError("Expecting ',' delimiter", text, place)
    return _skip_blanks(text, place + 1)


def _require_end(text: str, place: int) -> None:
    if place < len(text):
        raise json.JSONDecodeError("Extra data", text, place)


def _explain(error: ValueError | RecursionError, expected: str) -> str:
    if isinstance(error, UnicodeDecodeError):
        return (
            f"not {error.encoding.upper()} ({error.reason}, at byte {error.start + 1}). Convert "
            f"the file to UTF-8."
        )
    if isinstance(error, json.JSONDecodeError):
        if "\0" in error.doc[:100]:
            return "not JSON, but with NUL characters, as UTF-16 has. Save the file as UTF-8."
        return f"not JSON: {error.msg} (column {error.colno}). {expected}"
    return (
        "JSON that cannot be read: it is nested too deeply, or a number in it has thousands of "
        "digits."
    )
