"""Sources: shapes, files, and the errors of files that cannot be read.

    python -m pytest tests/test_sources.py
"""

import gzip
import json

import pytest

from lib import params, sources
from lib.params import UserError


def read(path, **more):
    return sources.read(params.check({"dataset": str(path), **more}, "test"))


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


Q, A = "How do I cool a burn?", "Under cool running water."
PAIR = [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]


@pytest.mark.parametrize("row", [
    {"question": Q, "answer": A}, {"prompt": Q, "completion": A}, {"instruction": Q, "input": "", "output": A}, {"input": Q, "output": A},
    {"input": Q, "output": A, "context": None}, {"messages": PAIR}, {"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]},
])
def test_every_shape_becomes_the_same_messages(tmp_path, row):
    assert read(jsonl(tmp_path / "d.jsonl", row))[0]["messages"] == PAIR


def test_context_and_input_join_the_question(tmp_path):
    rows = read(jsonl(tmp_path / "d.jsonl", {"input": Q, "context": "A: ice B: water", "output": A}, {"instruction": "Answer.", "input": Q, "output": A}))
    assert rows[0]["messages"][0]["content"] == f"{Q}\n\nA: ice B: water"
    assert rows[1]["messages"][0]["content"] == f"Answer.\n\n{Q}"


def test_a_null_answer_is_empty_text_to_be_dropped_later(tmp_path):
    assert read(jsonl(tmp_path / "d.jsonl", {"question": Q, "answer": None}))[0]["messages"][1]["content"] == ""


def test_csv_json_gz_parquet_and_folder_give_the_same(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"question": Q, "answer": 'He said "no", twice\nand left'}, {"question": "Überhitzt?", "answer": A}]
    (tmp_path / "f").mkdir()
    (tmp_path / "d.csv").write_text('question,answer\n"How do I cool a burn?","He said ""no"", twice\nand left"\nÜberhitzt?,Under cool running water.\n', encoding="utf-8-sig")
    (tmp_path / "d.json").write_text(json.dumps(rows))
    with gzip.open(tmp_path / "f" / "d.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(json.dumps(r) for r in rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    expected = [r["messages"] for r in read(jsonl(tmp_path / "d.jsonl", *rows))]
    for name in ("d.csv", "d.json", "d.parquet", "f", "f/d.jsonl.gz"):
        assert [r["messages"] for r in read(tmp_path / name)] == expected, name


def test_max_rows_and_fingerprint(tmp_path):
    path = jsonl(tmp_path / "d.jsonl", *({"question": f"q{n}", "answer": "a"} for n in range(9)))
    assert len(read(path, max_rows=4)) == 4
    job = params.check({"dataset": str(path)}, "test")
    before = sources.fingerprint(job)
    assert before == sources.fingerprint(job)
    jsonl(path, {"question": "other", "answer": "a"})
    assert before != sources.fingerprint(job)


@pytest.mark.parametrize(("name", "content", "expected"), [
    ("d.jsonl", b"", "has no rows"),
    ("d.jsonl", b'{"question": "a", "answer": "b"}\n{"question": \n', "d.jsonl, line 2: not JSON"),
    ("d.jsonl", b"question,answer\na,b\n", "line 1: not JSON"),
    ("d.jsonl", b'{"q": 1, "a": 2}\n', "its fields are q, a.\nKnown shapes: messages"),
    ("d.jsonl", b"[1]\n", "line 1: expected an object"),
    ("d.jsonl", b'{"messages": [{"role": "nurse", "content": "x"}]}\n', "expected role (one of human, user"),
    ("d.jsonl", b'{"question": "\xff", "answer": "b"}\n', "not UTF-8"),
    ("d.json", b'{"question": 1}', "expected a JSON list"),
    ("d.csv", b'question,answer\n"open,b\n', "unexpected end of data"),
    ("d.jsonl.gz", b"\x1f\x8b\x08\x00broken", "cannot be read"),
    ("d.jsonl.gz", b"plain", "cannot be read"),
    ("d.parquet", b"PAR1", "not a parquet file"),
    ("d.docx", b"x", "expected .jsonl, .json, .csv"),
])
def test_unreadable_files_say_where_and_what_is_expected(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read(tmp_path / name)
    assert expected in str(error.value)


def test_truncated_gzip(tmp_path):
    whole = gzip.compress(b'{"question": "a", "answer": "b"}\n' * 5000)
    (tmp_path / "d.jsonl.gz").write_bytes(whole[:-20])
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "d.jsonl.gz")


@pytest.mark.parametrize("name", ["nowhere.jsonl", "bundled:second-aid", "data/a/b", "./x"])
def test_unknown_datasets_name_what_is_expected(name):
    with pytest.raises(UserError, match=r"bundled:first-aid"):
        read(name)


def test_a_hub_id_without_network_says_what_to_do(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"could not be loaded[\s\S]*Check the id and the network[\s\S]*bundled:first-aid"):
        read("nobody-here/no-such-set")


def test_the_bundled_set_is_read():
    rows = read("bundled:first-aid")
    assert len(rows) >= 320
    assert all(len(r["messages"]) == 2 and r["topic"] for r in rows)
