"""Files of every format: the same rows from each, and files that cannot be read.

python -m pytest tests/data/reading/test_formats.py
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile

import pyarrow
import pytest

from helpers.reading import (
    GOOD,
    HEAD,
    PAIRS,
    ROWS,
    A,
    Q,
    Read,
    columnar,
    delimited,
    jsonl,
    refused,
)

# ---------------------------------------------------------------------------------------------------------------------
# kinds of files


KINDS = {
    "d.jsonl": lambda: "".join(json.dumps(r) + "\n" for r in ROWS).encode(),
    "unescaped.jsonl": lambda: "\n".join(json.dumps(r, ensure_ascii=False) for r in ROWS).encode(),
    "bom, blank lines, CRLF.jsonl": lambda: (
        b"\xef\xbb\xbf\r\n" + b"\r\n\r\n".join(json.dumps(r).encode() for r in ROWS)
    ),
    "d.ndjson": lambda: "".join(json.dumps(r) + "\n" for r in ROWS).encode(),
    "a list.jsonl": lambda: json.dumps(ROWS).encode(),
    "a list, indented.jsonl": lambda: json.dumps(ROWS, indent=2).encode(),
    "a list, a row a line.jsonl": lambda: (
        b"[" + b",\n".join(json.dumps(r).encode() for r in ROWS) + b"]\n"
    ),
    "a list, brackets alone.jsonl": lambda: (
        b"[\n" + b",\n".join(json.dumps(r).encode() for r in ROWS) + b"\n]\n"
    ),
    "objects, indented.jsonl": lambda: "\n".join(json.dumps(r, indent=4) for r in ROWS).encode(),
    "objects, indented, bom.jsonl": lambda: "\r\n\r\n".join(
        json.dumps(r, indent="\t") for r in ROWS
    ).encode("utf-8-sig"),
    "utf-16.jsonl": lambda: "".join(json.dumps(r) + "\n" for r in ROWS).encode("utf-16"),
    "utf-16, big end first.jsonl": lambda: (
        b"\xfe\xff"
        + "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in ROWS).encode("utf-16-be")
    ),
    "d.json": lambda: json.dumps(ROWS, indent=2).encode(),
    "a row a line.json": lambda: "".join(json.dumps(r) + "\n" for r in ROWS).encode(),
    "utf-16.json": lambda: json.dumps(ROWS).encode("utf-16"),
    "utf-32.json": lambda: json.dumps(ROWS).encode("utf-32"),
    "bom.json": lambda: json.dumps(ROWS).encode("utf-8-sig"),
    "comma.csv": delimited,
    "semicolon.csv": lambda: delimited(delimiter=";"),
    "tab.csv": lambda: delimited(delimiter="\t", lineterminator="\n"),
    "bar.csv": lambda: delimited(delimiter="|"),
    "apostrophe.csv": lambda: delimited(quotechar="'", quoting=csv.QUOTE_ALL),
    "apostrophe, where needed.csv": lambda: delimited(quotechar="'", delimiter=";"),
    "bom.csv": lambda: b"\xef\xbb\xbf" + delimited(quoting=csv.QUOTE_ALL),
    "blank lines.csv": lambda: b"\r\n\r\n" + delimited() + b"\r\n\r\n",
    "utf-16, as Excel's Unicode text.csv": lambda: (
        delimited(delimiter="\t").decode().encode("utf-16")
    ),
    "delimiter named.csv": lambda: b"sep=;\r\n" + delimited(delimiter=";"),
    "delimiter named, bom.csv": lambda: b"\xef\xbb\xbfsep=|\n" + delimited(delimiter="|"),
    "d.tsv": lambda: delimited(delimiter="\t"),
    "d.parquet": lambda: columnar("parquet"),
    "file.arrow": lambda: columnar("file"),
    "stream.arrow": lambda: columnar("stream"),
    "UPPER.CSV": delimited,
}


PACKERS = {
    "gz": gzip.compress,
    "xz": lzma.compress,
    "bz2": bz2.compress,
    "zst": lambda content: pyarrow.compress(content, "zstd", asbytes=True),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_the_same_rows_also_compressed(tmp_path, name):
    content = KINDS[name]()
    (tmp_path / name).write_bytes(content)
    for ending, pack in PACKERS.items():
        (tmp_path / f"{name}.{ending}").write_bytes(pack(content))
        (tmp_path / f"two members.{name}.{ending}").write_bytes(
            pack(content[:50]) + pack(content[50:])
        )
    with zipfile.ZipFile(tmp_path / "one.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"folder/{name}", content)
    for ending in PACKERS:
        assert Read(tmp_path / f"{name}.{ending}").pairs == PAIRS, ending
        assert Read(tmp_path / f"two members.{name}.{ending}").pairs == PAIRS, ending
    assert Read(tmp_path / name).pairs == PAIRS
    assert Read(tmp_path / "one.zip").pairs == PAIRS


def test_mixed_shapes_in_one_file(tmp_path):
    turns = [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]
    rows = [
        {"question": Q, "answer": A},
        {"prompt": Q, "completion": A},
        {"messages": turns},
        {"instruction": Q, "input": "", "output": A},
    ]
    assert Read(jsonl(tmp_path / "d.jsonl", *rows)).pairs == [(Q, A)] * 4
    for kind, name in (("parquet", "d.parquet"), ("stream", "d.arrow")):
        (tmp_path / name).write_bytes(
            columnar(
                kind, [{**dict.fromkeys(k for row in rows for k in row), **row} for row in rows]
            )
        )
        assert Read(tmp_path / name).pairs == [(Q, A)] * 4
    (tmp_path / "d.csv").write_text("prompt,completion,question,answer\na,b,,\n,,c,d\n")
    assert Read(tmp_path / "d.csv").pairs == [("a", "b"), ("c", "d")]


# ---------------------------------------------------------------------------------------------------------------------
# what cannot be read


def invalid_text():
    """Make a parquet file whose second row is not UTF-8."""
    import pyarrow
    import pyarrow.parquet

    texts, file = (
        pyarrow.StringArray.from_buffers(
            3, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pyarrow.py_buffer(b"a\xffc")
        ),
        io.BytesIO(),
    )
    pyarrow.parquet.write_table(pyarrow.table({"question": texts, "answer": ["x", "y", "z"]}), file)
    return file.getvalue()


def twice(kind):
    import pyarrow
    import pyarrow.parquet

    table, file = (
        pyarrow.Table.from_arrays(
            [pyarrow.array(["a"])] * 3, names=["question", "answer", "answer"]
        ),
        io.BytesIO(),
    )
    if kind == "parquet":
        pyarrow.parquet.write_table(table, file)
    else:
        with pyarrow.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    return file.getvalue()


BROKEN = [
    ("d.jsonl", b"", "has no rows"),
    ("d.jsonl", b"\n \n\r\n", "has no rows"),
    ("d.jsonl", b"\xef\xbb\xbf", "has no rows"),
    ("d.json", b"", "has no rows"),
    ("d.json", b"[]", "has no rows"),
    ("d.csv", b"", "has no rows"),
    ("d.csv", b"\n\n\n", "has no rows"),
    ("d.csv", HEAD, "has no rows"),
    ("d.jsonl.gz", b"", "has no rows"),
    ("d.jsonl.gz", gzip.compress(b""), "has no rows"),
    ("d.parquet", b"", "not a parquet file"),
    ("d.arrow", b"", "not an Arrow file"),
    (
        "d.jsonl",
        GOOD + b'{"question": \n"a", "answer": "b"}\n',
        "d.jsonl, line 2: not JSON: Expecting value (column 13). Expected one JSON object a line.",
    ),
    ("d.jsonl", GOOD + GOOD.strip() + GOOD, "d.jsonl, line 2: not JSON: Extra data"),
    ("d.jsonl", HEAD + b"a,b\n", "line 1: not JSON"),
    (
        "d.jsonl",
        b'\n\n{"q": 1, "a": 2}\n',
        "d.jsonl, line 3: no known shape; its fields are q, a.\nKnown shapes: messages",
    ),
    ("d.jsonl", b"[1]\n[2]\n", "line 1: its type is list; expected an object with named fields"),
    ("d.jsonl", b"[1]\n", "line 1: its type is int; expected an object with named fields"),
    (
        "d.jsonl",
        b'[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]\n' * 2,
        'line 1: its type is list; expected an object with named fields. It is a bare list of turns: write {"messages": [...]} around each.',
    ),
    (
        "d.json",
        b'[[{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]]',
        'row 1: its type is list; expected an object with named fields. It is a bare list of turns: write {"conversations": [...]} around each.',
    ),
    (
        "d.json",
        b'[["question", "answer"], ["a", "b"]]',
        'row 1: its type is list; expected an object with named fields. It is a list of texts: name them, as in {"question": "...", "answer": "..."}.',
    ),
    (
        "d.json",
        b'{"train": [{"question": "a", "answer": "b"}], "test": []}',
        "it is a single object, with lists train (1), test (0). Save each list as a file of its own.",
    ),
    ("d.jsonl", b'{"question": \n' + GOOD, "d.jsonl, line 1: not JSON: Expecting value"),
    ("d.jsonl", b"[\n" + GOOD.strip() + b",\n", "d.jsonl: line 3: not JSON: Expecting value"),
    (
        "d.jsonl",
        b"[" + GOOD.strip() + b"\n" + GOOD + b"]",
        "d.jsonl: line 2: not JSON: Expecting ',' delimiter",
    ),
    (
        "d.jsonl",
        b'{\n"question": "a",\n"answer": "b"\n}\n{\n"question": ',
        "d.jsonl: line 6: not JSON",
    ),
    ("d.jsonl", b"null\n", "line 1: its type is NoneType; expected an object with named fields"),
    ("d.jsonl", b'{"messages": [{"role": "nurse", "content": "x"}]}\n', "line 1: a turn is"),
    (
        "d.jsonl",
        GOOD + b'{"question": "\xff", "answer": "b"}\n',
        "d.jsonl, line 2: not UTF-8 (invalid start byte, at byte 15). Convert the file to UTF-8.",
    ),
    ("d.jsonl", GOOD.decode().encode("utf-16")[:-1], "d.jsonl: not UTF-16 (truncated data)"),
    ("d.jsonl", GOOD.decode().encode("utf-16-le"), "line 1: not JSON, but with NUL characters"),
    (
        "d.jsonl",
        GOOD + b'{"question": "\\ud83d", "answer": "b"}\n',
        "d.jsonl, line 2: its text has half of a character pair",
    ),
    (
        "d.jsonl",
        b'{"question": "a", "answer": "b", "topic": "\\ude00"}\n',
        "line 1: its text has half of a character pair",
    ),
    ("d.jsonl", b'{"\\ud83d": "a"}\n', "line 1: no known shape; its fields are \\ud83d"),
    (
        "d.jsonl",
        b'{"question": "a", "options": ["\\ud83d"], "answer": "b"}\n',
        "line 1: its options are",
    ),
    (
        "d.jsonl",
        GOOD + b'{"question": "a", "answer": "b", "answer": "c"}\n',
        "d.jsonl, line 2: the field `answer` is named twice; rename or remove one.",
    ),
    (
        "d.jsonl",
        b'{"messages": [{"role": "user", "content": "a", "content": "b"}]}\n',
        "the field `content` is named twice",
    ),
    (
        "d.jsonl",
        GOOD + b'{"question": ' + b"[" * 100_000 + b"\n",
        "d.jsonl, line 2: JSON that cannot be read: it is nested too deeply",
    ),
    (
        "d.jsonl",
        b'{"question": ' + b"[" * 900 + b"]" * 900 + b', "answer": 1}\n',
        "line 1: a text field is",
    ),
    (
        "d.jsonl",
        b'{"question": "a", "answer": ' + b"9" * 5000 + b"}\n",
        "line 1: JSON that cannot be read",
    ),
    (
        "d.json",
        b'{"question": 1}',
        "d.json: expected a JSON list of rows: [{...}, {...}], or one object a line; it is a single object, with fields question.",
    ),
    (
        "d.json",
        b"[" + GOOD + b"]" + GOOD,
        "d.json: line 2: not JSON: Extra data (column 2). Expected one list of rows, or one object a line.",
    ),
    (
        "d.json",
        b'[{"question": "a",\n "answer": ]',
        "d.json: line 2: not JSON: Expecting value (column 12)",
    ),
    (
        "d.json",
        b'[{"question": "a", "answer": "b"}, {"question": "a", "question": "b"}]',
        "d.json, row 2: the field `question` is named twice",
    ),
    (
        "d.json",
        b'[{"question": "a", "answer": "b"}, 7]',
        "d.json, row 2: its type is int; expected an object with named fields",
    ),
    ("d.json", b'["\xff"]', "d.json: not UTF-8 (invalid start byte, at byte 3)"),
    ("d.json", b"[" * 100_000, "d.json: JSON that cannot be read: it is nested too deeply"),
    (
        "d.csv",
        HEAD + b"a,b\nc\n",
        "d.csv, line 3: 1 fields, but the header has 2: question, answer. Quote a field that contains the delimiter or a line end.",
    ),
    ("d.csv", HEAD + b'"a\nb",c\n\nd,e,f\n', "d.csv, line 5: 3 fields, but the header has 2"),
    (
        "d.csv",
        b"question,answer,answer\na,b,c\n",
        "d.csv: line 1: the column `answer` is named twice; rename one.",
    ),
    (
        "d.csv",
        HEAD + b'a,b\n"open,b\nc,d\n',
        "d.csv: line 3: a quote that opens in this row is not closed where its field ends (line 4: unexpected end of data)",
    ),
    (
        "d.csv",
        HEAD + b'a,b\n"open,b\n"c",d\n',
        "d.csv: line 3: a quote that opens in this row is not closed where its field ends (line 4:",
    ),
    (
        "d.csv",
        HEAD + b'"a "word" b",c\n',
        "d.csv, line 2: ',' expected after '\"'. Double the quotes inside a quoted field.",
    ),
    ("d.csv", b'"question,answer\na,b\n', "d.csv: line 1: a quote that opens in this row"),
    ("d.csv", HEAD + b"a,b\n\xff,b\n", "d.csv, line 3: not UTF-8. Convert the file to UTF-8."),
    ("d.csv", "Frage,question,answer\nä,b,c\n".encode("latin-1"), "d.csv, line 2: not UTF-8"),
    ("d.csv", "question,answer,Schlüssel\na,b,c\n".encode("latin-1"), "d.csv: line 1: not UTF-8"),
    (
        "d.csv",
        "question,answer\na,b\n".encode("utf-16-le"),
        "d.csv: it has NUL characters, as UTF-16",
    ),
    ("d.csv", "question,answer\na,b\n".encode("utf-16")[:-1], "d.csv: not UTF-16 (truncated data)"),
    ("d.csv", b"ask;reply\na;b\n", "d.csv, line 2: no known shape; its fields are ask, reply."),
    (
        "d.tsv",
        b"question,answer\na,b\n",
        "d.tsv: the delimiter was not found: line 1, which names the columns, holds none of a tab",
    ),
    ("d.parquet", b"PAR1", "d.parquet: not a parquet file"),
    ("d.parquet", HEAD, "d.parquet: not a parquet file"),
    ("d.parquet", KINDS["d.parquet"]()[:-20], "d.parquet: not a parquet file"),
    ("d.arrow", HEAD, "d.arrow: not an Arrow file"),
    ("d.arrow", b"ARROW1\0\0", "d.arrow: not an Arrow file"),
    ("d.arrow", KINDS["stream.arrow"]()[:-200], "d.arrow"),
    ("d.parquet", twice("parquet"), "d.parquet: the column `answer` is named twice; rename one."),
    ("d.arrow", twice("stream"), "d.arrow: the column `answer` is named twice; rename one."),
    (
        "d.parquet",
        invalid_text(),
        "d.parquet, row 2: a value cannot be read: 'utf-8' codec can't decode byte 0xff",
    ),
    (
        "d.parquet",
        columnar("parquet", [{"ask": "a"}]),
        "d.parquet, row 1: no known shape; its fields are ask.",
    ),
    ("d.jsonl.gz", b"\x1f\x8b\x08\x00broken", "d.jsonl.gz, after line 0: cannot be read"),
    ("d.jsonl.gz", GOOD, "d.jsonl.gz, after line 0: cannot be read: Not a gzipped file"),
    ("d.csv.gz", HEAD, "d.csv.gz, after line 0: cannot be read: Not a gzipped file"),
    ("d.csv.zst", HEAD, "d.csv.zst, after line 0: cannot be read: ZSTD decompress failed"),
    ("d.csv.xz", HEAD, "d.csv.xz, after line 0: cannot be read: Input format not supported"),
    ("d.csv.bz2", HEAD, "d.csv.bz2, after line 0: cannot be read: Invalid data stream"),
    ("d.jsonl.zst", b"", "has no rows"),
    ("d.zip", HEAD, "d.zip: cannot be read: File is not a zip file"),
    ("d.xlsx", HEAD, "d.xlsx: not an Excel workbook, or one with a password"),
    ("d.docx", b"x", "ends in `.docx`; expected .jsonl, .ndjson, .json, .csv"),
]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    BROKEN,
    ids=[f"{name} {n}" for n, (name, _, _) in enumerate(BROKEN)],
)
def test_what_cannot_be_read_says_where_and_what_is_expected(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    error = refused(tmp_path / name)
    assert expected in error
    assert str(tmp_path) in error, "the file is not named"
    assert len(error) < 1000


def test_nesting_that_can_just_be_read_is_refused_all_the_same(tmp_path):
    for depth in range(
        900, 1000
    ):  # somewhere here lie the ends of what json reads and of what it writes
        (tmp_path / "d.jsonl").write_text(
            '{"question": "a", "options": ' + '{"a":' * depth + "1" + "}" * depth + "}"
        )
        assert "d.jsonl, line 1: " in refused(tmp_path / "d.jsonl")


@pytest.mark.parametrize(
    ("name", "row"),
    [("d.jsonl.gz", '{{"question": "a{}", "answer": "b"}}\n'), ("d.csv.gz", "a{},b\n")],
)
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-4],
        lambda data: data[: len(data) // 2],
        lambda data: data[:10] + b"\xff" * 40 + data[50:],
        lambda data: data + b"more",
    ],
)
def test_a_damaged_gzip_says_how_far_it_could_be_read(tmp_path, name, row, damage):
    (tmp_path / name).write_bytes(
        damage(
            gzip.compress(
                (HEAD if "csv" in name else b"")
                + "".join(row.format(n) for n in range(5000)).encode()
            )
        )
    )
    error = refused(tmp_path / name)
    assert f"{name}, after line" in error
    assert "cannot be read: " in error
    assert "write or fetch it again" in error
