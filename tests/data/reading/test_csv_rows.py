"""CSV and TSV: delimiters, quotes and encodings are found; lines that name no columns are noticed.

python -m pytest tests/data/reading/test_csv_rows.py
"""

import csv
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from helpers.reading import Read, delimited, refused

# not QUOTE_MINIMAL with \n: Python 3.11 then writes a \r unquoted, which no reader can tell from a line end
DIALECTS = [
    {"delimiter": mark, "quotechar": quote, "quoting": quoting, "lineterminator": end}
    for mark, quote, (quoting, end) in itertools.product(
        ",;\t|",
        "\"'",
        [(csv.QUOTE_MINIMAL, "\r\n"), (csv.QUOTE_ALL, "\r\n"), (csv.QUOTE_ALL, "\n")],
    )
]
TEXT = some.text(
    some.one_of(
        some.sampled_from(",;\t|\"'\n\r \\ab"),
        some.characters(exclude_characters="\0", exclude_categories=["Cs"]),
    ),
    max_size=12,
)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(some.lists(some.tuples(TEXT, TEXT, TEXT), max_size=5), some.sampled_from(DIALECTS))
def test_what_a_csv_writer_writes_comes_back(tmp_path_factory, rows, dialect):
    # the first row holds every mark: without one, files are the same bytes under two quotes, e.g. a,'b'
    rows = [("""a 'b' "c", d; e|f\tg\n""", "x", "y"), *rows]
    path = tmp_path_factory.getbasetemp() / "d.csv"
    path.write_bytes(
        delimited(
            [
                {"id": i, "question": q, "answer": a}
                for i, q, a in [("id", "question", "answer"), *rows]
            ][1:],
            **dialect,
        )
    )
    read = Read(path)
    assert read.pairs == [(q.strip(), a) for _, q, a in rows]
    assert [r["id"] for r in read] == [i or f"row-{n:07d}" for n, (i, _, _) in enumerate(rows)]


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        (
            "question,answer\nthe patients',yes\n'tis,no\n",
            [("the patients'", "yes"), ("'tis", "no")],
        ),
        ("question;answer\nIs it 1,5 or 2,5?;1,5\n", [("Is it 1,5 or 2,5?", "1,5")]),
        ("question|answer\na, b|c; d\n", [("a, b", "c; d")]),
        (
            "question,answer\n\"take,'ice','salt',or none\",a\n",
            [("take,'ice','salt',or none", "a")],
        ),
        ("question,answer\nplain,plain\n'a, b','it''s'\n", [("plain", "plain"), ("a, b", "it's")]),
        (" question , answer \na,b\n", [("a", "b")]),
        ("question,answer\na,b", [("a", "b")]),
        ("question,answer\ra,b\r", [("a", "b")]),
        ("question,answer,\na,b,\n", [("a", "b")]),
        ('question,answer\n5 "x" 3,b\n', [('5 "x" 3', "b")]),
    ],
)
def test_csv_by_hand(tmp_path, text, pairs):
    (tmp_path / "d.csv").write_text(text, newline="")
    assert Read(tmp_path / "d.csv").pairs == pairs


def test_columns_also_tell_a_csv_apart(tmp_path):
    (tmp_path / "d.csv").write_text("'ask;me';reply\na, b, c;d\n")
    assert Read(tmp_path / "d.csv", columns={"question": "ask;me", "answer": "reply"}).pairs == [
        ("a, b, c", "d")
    ]


@pytest.mark.parametrize(
    ("content", "pairs"),
    [
        (b"sep=;\r\nquestion;answer\r\na, b;c\r\n", [("a, b", "c")]),
        (b'"sep=;"\nquestion;answer\na;b\n', [("a", "b")]),
        (b"SEP=,\nquestion,answer\na,b\n", [("a", "b")]),
        (b"sep=\t\nquestion\tanswer\na\tb\n", [("a", "b")]),
        (b"\xef\xbb\xbfsep=|\nquestion|answer\na|b\n", [("a", "b")]),
        ("question\tanswer\nHeiß?\tKühlen 🔥\n".encode("utf-16"), [("Heiß?", "Kühlen 🔥")]),
        ("sep=;\nquestion;answer\na;b\n".encode("utf-16"), [("a", "b")]),
    ],
)
def test_excels_first_line_and_its_utf_16_are_read(tmp_path, content, pairs):
    (tmp_path / "d.csv").write_bytes(content)
    assert Read(tmp_path / "d.csv").pairs == pairs


def test_lines_are_counted_with_the_one_that_names_the_delimiter(tmp_path):
    (tmp_path / "d.csv").write_bytes(b"sep=;\nquestion;answer\na;b\nc\n")
    assert "d.csv, line 4: 1 fields, but the header has 2" in refused(tmp_path / "d.csv")


def test_a_first_row_instead_of_names_is_an_error_with_both_ways_on(tmp_path):
    (tmp_path / "d.csv").write_text("How do I cool a burn?,Under water.\nAnd a sting?,With ice.\n")
    for columns in ({}, {"question": "ask", "answer": "reply"}):
        error = refused(tmp_path / "d.csv", columns=columns)
        assert "d.csv: line 1 names no known column: How do I cool a burn?, Under water." in error
        assert "such as question,answer" in error
        assert "columns: {question: ..., answer: ...}" in error


def test_a_question_as_the_name_of_a_column_can_be_given_as_one(tmp_path):
    (tmp_path / "d.csv").write_text("When?,What happened to you?,What did you do?\n1,a,b\n")
    columns = {"question": "What happened to you?", "answer": "What did you do?"}
    assert Read(tmp_path / "d.csv", columns=columns).pairs == [("a", "b")]


def test_a_sample_that_ends_between_the_two_characters_of_a_line_end_loses_nothing(tmp_path):
    from lib.data.reading import csv_rows

    head = "question,answer\r\n"
    fill = csv_rows.SAMPLE - len(head) - len("a,\r")
    (tmp_path / "d.csv").write_bytes((head + "a," + "b" * fill + "\r\nc,d\r\n").encode())
    assert Read(tmp_path / "d.csv").pairs == [("a", "b" * fill), ("c", "d")]


@pytest.mark.parametrize("mark", ["^", "~", "#", " "])
def test_a_delimiter_that_is_not_found_is_named_with_the_way_to_give_it(tmp_path, mark):
    text = f"question{mark}answer\nIs it cold, or hot?{mark}Cold, then warm.\n"
    (tmp_path / "d.csv").write_text(text)
    said = refused(tmp_path / "d.csv")
    assert "d.csv: the delimiter was not found: line 1" in said
    assert f"write sep={mark} as a line above it" in said
    (tmp_path / "d.csv").write_text(f"sep={mark}\nquestion{mark}answer\nCold?{mark}Warm.\n")
    assert Read(tmp_path / "d.csv").pairs == [("Cold?", "Warm.")]


def test_a_file_of_one_unknown_column_is_told_both_ways(tmp_path):
    (tmp_path / "d.csv").write_text("notes\nfirst\nsecond\n")
    said = refused(tmp_path / "d.csv")
    assert "holds none of a comma, ;, a tab, |: notes." in said
    assert "for example sep=^" in said
    assert "needs another for the answer" in said


@pytest.mark.parametrize("text", ["", "question,answer\n"])
def test_a_file_without_rows_says_what_was_read_and_what_a_row_is(tmp_path, text):
    (tmp_path / "d.csv").write_text(text)
    said = refused(tmp_path / "d.csv")
    assert f"has no rows. Read: d.csv ({len(text)} bytes)." in said
    assert '{"question": "...", "answer": "..."}' in said


def test_the_first_unreadable_row_names_the_parameter_that_skips_it(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question": \n')
    said = refused(tmp_path / "d.jsonl")
    assert "With skip_bad_lines: 1, one such row is left out" in said
    assert len(Read(tmp_path / "d.jsonl", skip_bad_lines=1)) == 1
