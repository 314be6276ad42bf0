"""Read rows from the sheets of Excel workbooks.

A cell whose text would not say what the cell shows is not read: the row is an error as soon as that
field is needed.
"""

import itertools
import pathlib
import re
import zipfile
from collections.abc import Iterator
from typing import Any, NamedTuple

from lib.common import files
from lib.common.errors import UserError
from lib.data.reading.row_parts.fields import BadRow

NumberedRows = Iterator[tuple[int, Any]]
# formats that show a number as it is, but for zeros and separators
PLAIN = re.compile(r"(?:general|@|\[[a-z]+\]|[#0?,._()*+\- ;/\\]|e[+-])*", re.IGNORECASE)
IN_THOUSANDS = re.compile(r"[#0?],+(?![#0?])")  # 5,000 is shown as 5
INLINE_FONT = re.compile(rb"<(?:\w+:)?(?:vertAlign|strike)\b")
PERCENT = re.compile(r"[#0?,]*\.?(0*)%")


class Sheet(NamedTuple):
    """A sheet of a workbook, and the names of its columns."""

    title: str
    header: list[str]
    is_hidden: bool


def list_sheets(path: pathlib.Path) -> list[Sheet]:
    """Return the sheets of a workbook that have any row; raise UserError if it is none."""
    listed = []
    try:
        with open(path, "rb") as file:
            workbook = _open(file)
            for sheet in workbook.worksheets:
                sheet.reset_dimensions()
                _, header = next(_filled_rows(sheet.iter_rows(values_only=True)), (0, []))
                if header:
                    names = ["" if name is None else str(name).strip() for name in header]
                    listed.append(Sheet(sheet.title, names, sheet.sheet_state != "visible"))
    except BadRow as error:
        raise UserError(f"{files.format_path(path)}: {error}") from None
    return listed


def read_sheet(file: Any, title: str) -> NumberedRows:
    """Yield (row, values) of a sheet whose first filled row names the columns.

    Formulas count by the results that are stored with them.
    """
    shown, written = _open(file), _open(file, formulas=True)
    _refuse_inline_fonts(file)
    if title not in shown.sheetnames:
        raise BadRow(f"it has no sheet `{title}`, only {', '.join(shown.sheetnames)}.")
    for sheet in (shown[title], written[title]):
        sheet.reset_dimensions()
    pairs = zip(shown[title].iter_rows(), written[title].iter_rows(), strict=True)
    header: list[str] = []
    for number, (cells, formulas) in enumerate(pairs, 1):
        if all(cell.value is None for cell in (*cells, *formulas)):
            continue
        values = [_read_cell(*both) for both in zip(cells, formulas, strict=True)]
        if header:
            yield number, _name_values(header, values)
        else:
            header = _check_header(number, values)


def _open(file: Any, formulas: bool = False) -> Any:
    """Return a workbook whose rows are read one by one; raise BadRow for a file that is none."""
    import openpyxl  # only such a file needs it

    try:
        return openpyxl.load_workbook(
            file, read_only=True, data_only=not formulas, keep_links=False, rich_text=True
        )
    except Exception as error:  # openpyxl raises errors of many kinds
        raise BadRow(
            f"not an Excel workbook, or one with a password: {error}. Save it as .xlsx, or as "
            f"`CSV UTF-8`."
        ) from None


def _refuse_inline_fonts(file: Any) -> None:
    """Raise BadRow for a sheet with fonts inside a text, as scripts write them.

    Excel keeps such texts elsewhere, where openpyxl also reads their fonts.
    """
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if not name.startswith("xl/worksheets/") or not name.endswith(".xml"):
                continue
            with archive.open(name) as sheet:
                end = b""
                while piece := sheet.read(2**20):
                    if INLINE_FONT.search(end + piece):
                        raise BadRow(
                            "raised or struck-out characters inside a cell cannot be read from "
                            "this file. Save it in Excel once."
                        )
                    end = piece[-20:]


def _filled_rows(rows: Any) -> Iterator[tuple[int, Any]]:
    return ((number, row) for number, row in enumerate(rows, 1) if any(v is not None for v in row))


def _check_header(number: int, values: list[Any]) -> list[str]:
    header = ["" if name is None else str(name).strip() for name in values]
    for name in header:
        if name and header.count(name) > 1:
            raise BadRow(f"row {number}: the column `{name}` is named twice; rename one.")
    return header


def _name_values(header: list[str], values: list[Any]) -> dict[str, Any] | BadRow:
    """Return a row's values by column; a BadRow if one stands outside the columns."""
    row = {}
    for name, value in itertools.zip_longest(header, values[: max(len(header), len(values))]):
        if name:
            row[name] = value
        elif value is not None:
            return BadRow(f"it has a value in a column without a name: {str(value)[:80]!r}.")
    return row


def _read_cell(cell: Any, formula: Any) -> Any:
    """Return a cell's value; a BadRow if its text alone would say something else than the cell."""
    value = cell.value
    if value is None:
        if formula.value is None:
            return None
        return _unusable(formula, "is a formula without a stored result: save it in Excel once")
    if cell.data_type == "e":
        return _unusable(cell, f"is the error {value}")
    if cell.font and cell.font.strike:
        return _unusable(cell, "is struck out: remove it, or its line")
    if not isinstance(value, str | bool | int | float | list):
        return _unusable(
            cell, f"is a date or time, {value}. Excel makes dates of texts such as 1-2: write text"
        )
    if isinstance(value, list):
        return _join_runs(cell, value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _show_number(cell, value)
    return str(value) if isinstance(value, str) else value


def _join_runs(cell: Any, runs: list[Any]) -> Any:
    """Return the text of a cell with several fonts."""
    for run in runs:
        font = getattr(run, "font", None)
        if font and font.strike:
            return _unusable(cell, f"has struck-out text, {str(run)[:40]!r}: remove it")
        if font and font.vertAlign == "superscript" and re.search(r"\d", str(run)):
            return _unusable(cell, "has raised digits, which a text would lose: write 10^6")
    return "".join(map(str, runs))


def _show_number(cell: Any, value: float) -> Any:
    """Return a number as the cell shows it, with 15 digits at most, as Excel keeps them."""
    form = cell.number_format or "General"
    if percent := PERCENT.fullmatch(form):
        digits = len(percent[1])
        if abs(value * 100 - round(value * 100, digits)) > 1e-9:
            return f"{float(f'{value * 100:.15g}'):g}%"
        return f"{value:.{digits}%}"
    if not PLAIN.fullmatch(form) or IN_THOUSANDS.search(form):
        return _unusable(cell, f"is {value:g}, but shown by the format `{form}`: write it as text")
    return value if isinstance(value, int) else float(f"{value:.15g}")


def _unusable(cell: Any, what: str) -> BadRow:
    return BadRow(f"cell {cell.coordinate} {what}.")
