"""Values, sizes and tables as text for people."""

from typing import Any


def format_value(value: Any) -> str:
    """A value for people: 4 significant digits, thousands separated, `not measured` for None."""
    if value is None:
        return "not measured"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return (
        f"{value:.3g}"
        if abs(value) < 0.01 and value
        else f"{value:,.4g}"
        if abs(value) < 1000
        else f"{value:,.0f}"
    )


def format_size(count: int) -> str:
    """Bytes for people: KiB under a MiB, MiB otherwise."""
    return f"{count / 2**10:,.1f} KiB" if count < 2**20 else f"{count / 2**20:,.1f} MiB"


def aligned_table(rows: list[dict[str, Any]]) -> str:
    """A list of like-keyed dicts as text for a terminal, in columns; numbers to the right."""
    if not rows:
        return ""
    columns = [[key, *(format_value(row[key]) for row in rows)] for key in rows[0]]
    right = [any(isinstance(row[key], int | float) for row in rows) for key in rows[0]]
    widths = [max(map(len, column)) for column in columns]
    return "\n".join(
        "  ".join(
            cell.rjust(w) if r else cell.ljust(w)
            for cell, w, r in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in zip(*columns, strict=True)
    )
