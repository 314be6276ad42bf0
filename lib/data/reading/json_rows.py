"""Read rows from JSON and JSON Lines files."""

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from lib.data.reading.shapes import BadRow

NumberedRows = Iterator[tuple[int, Any]]


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


def read_jsonl(file: BinaryIO) -> NumberedRows:
    decoder = json.JSONDecoder(object_pairs_hook=_unique_fields)
    for number, line in enumerate(file, 1):
        try:
            # a byte order mark may stand before the first line
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            if text:
                yield number, decoder.decode(text)
        except (ValueError, RecursionError) as error:
            yield number, BadRow(_explain_json(error, "Expected one JSON object a line."))


def read_json(file: BinaryIO) -> NumberedRows:
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
