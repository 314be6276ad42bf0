"""Excel workbooks: the same rows as from other files, and cells whose text would say something else.

python -m pytest tests/data/reading/test_sheets.py
"""

import datetime
import re
import zipfile

import openpyxl
import pytest
from openpyxl.cell.rich_text import CellRichText, TextBlock
from openpyxl.cell.text import InlineFont
from openpyxl.styles import Font

from helpers.reading import PAIRS, ROWS, A, Q, Read, refused


def workbook(path, *sheets):
    """Write a workbook of (title, rows) sheets; a cell is a value, or (value, number format)."""
    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, rows in sheets:
        sheet = book.create_sheet(title)
        for number, row in enumerate(rows, 1):
            for column, value in enumerate(row, 1):
                cell = sheet.cell(number, column)
                cell.value, form = value if isinstance(value, tuple) else (value, None)
                if form:
                    cell.number_format = form
    book.save(path)
    return path


def table(*rows):
    return [("question", "answer"), *rows]


def table_of(rows):
    return [[*rows[0]], *([*row.values()] for row in rows)]


def test_a_sheet_gives_the_same_rows_as_other_files(tmp_path):
    rows = [*table_of(ROWS)]
    assert Read(workbook(tmp_path / "d.xlsx", ("Sheet1", rows))).pairs == PAIRS
    spread = [[], ["", *rows[0]], *([None, *row] for row in rows[1:]), [], [None]]
    assert Read(workbook(tmp_path / "spread.xlsx", ("Sheet1", spread))).pairs == PAIRS


def test_columns_ids_and_places_of_a_sheet(tmp_path):
    path = workbook(
        tmp_path / "d.xlsx",
        ("Data", [("nr", "ask", "reply"), (7, Q, A), (), (8.0, "q", {1: 2}.get(2))]),
    )
    rows = Read(path, columns={"question": "ask", "answer": "reply", "id": "nr"})
    assert [(row["id"], *pair) for row, pair in zip(rows, rows.pairs, strict=True)] == [
        ("7", Q, A),
        ("8", "q", ""),
    ]
    assert "d.xlsx, sheet Data, row 2: no known shape; its fields are nr, ask, reply." in refused(
        path
    )


def test_sheets_are_splits_by_their_names_and_others_are_named(tmp_path):
    path = workbook(
        tmp_path / "d.xlsx",
        ("Notes", [("How these were made",)]),
        ("Train", table(("a", "b"))),
        ("Test", table(("c", "d"))),
        ("Empty", []),
    )
    rows = Read(path)
    assert [(row.get("split"), *pair) for row, pair in zip(rows, rows.pairs, strict=True)] == [
        ("test", "c", "d"),
        (None, "a", "b"),
    ]
    assert [e["name"].rpartition(", ")[2] for e in rows.inputs if e["unread"]] == ["sheet Notes"]


def test_a_hidden_sheet_is_not_read_and_named(tmp_path):
    path = workbook(tmp_path / "d.xlsx", ("A", table(("a", "b"))), ("B", table(("c", "d"))))
    book = openpyxl.load_workbook(path)
    book["B"].sheet_state = "hidden"
    book.save(path)
    rows = Read(path)
    assert rows.pairs == [("a", "b")]
    assert [entry["unread"] for entry in rows.inputs] == ["", "hidden"]


@pytest.mark.parametrize(
    ("value", "form", "expected"),
    [
        (30, None, "30"),
        (37.5, "0.00", "37.5"),
        (0.1 + 0.2, None, "0.3"),
        (0.5, "0%", "50%"),
        (0.125, "0.0%", "12.5%"),
        (0.125, "0%", "12.5%"),
        (1200, "#,##0", "1200"),
        (-5, "0;[Red]-0", "-5"),
        ("00123", "@", "00123"),
        ("1-2 tablets", None, "1-2 tablets"),
    ],
)
def test_a_number_reads_as_the_cell_shows_it(tmp_path, value, form, expected):
    path = workbook(tmp_path / "d.xlsx", ("S", table((Q, (value, form)))))
    assert Read(path).pairs == [(Q, expected)]


@pytest.mark.parametrize(
    ("value", "form", "expected"),
    [
        (datetime.date(2026, 2, 1), None, "cell B2 is a date or time"),
        (datetime.time(8, 30), None, "cell B2 is a date or time"),
        (5, '0 "mg"', 'cell B2 is 5, but shown by the format `0 "mg"`: write it as text'),
        (5000, "0,", "cell B2 is 5000, but shown by the format `0,`"),
        ("=1/0", None, "cell B2 is a formula without a stored result"),
        ("#N/A", None, "cell B2 is the error #N/A"),
    ],
)
def test_a_cell_whose_text_would_say_something_else_is_refused(tmp_path, value, form, expected):
    path = workbook(tmp_path / "d.xlsx", ("S", table((Q, (value, form)), ("a", "b"))))
    assert f"d.xlsx, sheet S, row 2: {expected}" in refused(path)
    rows = Read(path, skip_bad_lines=1)
    assert (rows.pairs, len(rows.dropped)) == ([("a", "b")], 1)


def test_such_a_cell_in_a_column_that_is_not_used_stops_nothing(tmp_path):
    rows = [("question", "answer", "when"), (Q, A, datetime.date(2026, 2, 1))]
    assert Read(workbook(tmp_path / "d.xlsx", ("S", rows))).pairs == [(Q, A)]


def test_struck_out_cells_and_texts_are_refused(tmp_path):
    path = workbook(tmp_path / "d.xlsx", ("S", table((Q, "Give 5 ml."))))
    book = openpyxl.load_workbook(path)
    book["S"]["B2"].font = Font(strike=True)
    book.save(path)
    assert "cell B2 is struck out" in refused(path)
    text = CellRichText("Give ", TextBlock(InlineFont(strike=True), "5 ml"), " 2 ml")
    path = workbook(tmp_path / "inline.xlsx", ("S", table((Q, text))))
    assert "cannot be read from this file. Save it in Excel once" in refused(path)


@pytest.mark.parametrize(
    ("font", "expected"),
    [
        ("<strike/>", "cell B2 has struck-out text, '6'"),
        ('<vertAlign val="superscript"/>', "cell B2 has raised digits"),
        ('<vertAlign val="subscript"/>', ""),
        ("<b/>", ""),
    ],
)
def test_fonts_inside_a_text_as_excel_keeps_them(tmp_path, font, expected):
    path = workbook(tmp_path / "d.xlsx", ("S", table((Q, "106 cells"))))
    space = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    shared = "xl/sharedStrings.xml"
    runs = f"<r><t>10</t></r><r><rPr>{font}</rPr><t>6</t></r><r><t> cells</t></r>"
    changes = {  # openpyxl itself writes every text into its cell
        "xl/worksheets/sheet1.xml": (
            '<c r="B2" t="inlineStr"><is><t>106 cells</t></is></c>',
            '<c r="B2" t="s"><v>0</v></c>',
        ),
        "[Content_Types].xml": (
            "</Types>",
            f'<Override PartName="/{shared}" ContentType="application/vnd.openxmlformats-'
            'officedocument.spreadsheetml.sharedStrings+xml"/></Types>',
        ),
    }
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(tmp_path / "r.xlsx", "w") as rich:
        for name in plain.namelist():
            content = plain.read(name).decode()
            if name in changes:
                assert changes[name][0] in content
                content = content.replace(*changes[name])
            rich.writestr(name, content)
        rich.writestr(shared, f"<sst {space}><si>{runs}</si></sst>")
    if expected:
        assert expected in refused(tmp_path / "r.xlsx")
    else:
        assert Read(tmp_path / "r.xlsx").pairs == [(Q, "106 cells")]


def test_a_stored_result_of_a_formula_is_read(tmp_path):
    path = workbook(tmp_path / "d.xlsx", ("S", table((Q, "=B3"), ("a", "b"))))
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(tmp_path / "f.xlsx", "w") as stored:
        for name in plain.namelist():
            content = plain.read(name).decode()
            if name.startswith("xl/worksheets/"):
                content, count = re.subn(
                    r'<c r="B2"[^>]*><f>B3</f><v ?/?>(</v>)?',
                    '<c r="B2" t="str"><f>B3</f><v>b</v>',
                    content,
                )
                assert count == 1, content
            stored.writestr(name, content)
    assert Read(tmp_path / "f.xlsx").pairs == [(Q, "b"), ("a", "b")]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            [("question", "answer", "answer"), ("a", "b", "c")],
            "row 1: the column `answer` is named twice",
        ),
        (
            [("question", "answer"), ("a", "b", "c")],
            "row 2: it has a value in a column without a name: 'c'",
        ),
        ([("question", "answer")], "has no rows"),
        ([], "has no .jsonl, .ndjson"),
    ],
)
def test_sheets_that_are_no_tables_say_so(tmp_path, rows, expected):
    assert expected in refused(workbook(tmp_path / "d.xlsx", ("S", rows)))
