"""Format values, sizes and tables as text for people."""

import codecs
from typing import Any

# UTF-32's mark begins with that of UTF-16, so it comes first
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}


def find_encoding(head: bytes) -> str:
    """Return the encoding that a file's first four bytes name by a byte order mark, or utf-8."""
    return next((name for mark, name in MARKS.items() if head.startswith(mark)), "utf-8")


def shorten(text: str, longest: int = 120) -> str:
    """Return a text for a message: of a long one, the beginning and how long it is."""
    if len(text) <= longest:
        return text
    return f"{text[:longest]}... ({len(text):,} characters)"


def format_value(value: Any) -> str:
    """Return a value with 4 significant digits and separated thousands; None is `not measured`."""
    if value is None:
        return "not measured"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if abs(value) < 0.01 and value:
        return f"{value:.3g}"
    if abs(value) < 1000:
        return f"{value:,.4g}"
    return f"{value:,.0f}"


def format_size(count: int) -> str:
    """Return bytes in KiB under one MiB, and in MiB otherwise."""
    if count < 2**20:
        return f"{count / 2**10:,.1f} KiB"
    return f"{count / 2**20:,.1f} MiB"


def aligned_table(rows: list[dict[str, Any]]) -> str:
    """Return rows with the same keys as columns for a terminal, with numbers aligned right."""
    if not rows:
        return ""
    columns = [_aligned_column(key, [row[key] for row in rows]) for key in rows[0]]
    lines = zip(*columns, strict=True)
    return "\n".join("  ".join(cells).rstrip() for cells in lines)


def _aligned_column(key: str, values: list[Any]) -> list[str]:
    cells = [key, *(format_value(value) for value in values)]
    width = max(map(len, cells))
    if any(isinstance(value, int | float) for value in values):
        return [cell.rjust(width) for cell in cells]
    return [cell.ljust(width) for cell in cells]
