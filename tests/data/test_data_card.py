"""The data card names every field of the sources, and counts what their fields changed.

python -m pytest tests/data/test_data_card.py
"""

import io
from collections import Counter

import pytest

from helpers import preparing
from lib.common.errors import UserError
from lib.data import data_card, splits
from lib.data.rows import Rows


@pytest.fixture(scope="module")
def prepared(bundled_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    plain = preparing.made_up(40)
    rows = [
        *({**row, "source": "WHO"} for row in plain[:30]),
        *({**row, "id": f"bad{n}", "label": False} for n, row in enumerate(plain[30:33])),
        *({**row, "id": f"seen{n}", "image": "0.png"} for n, row in enumerate(plain[33:35])),
    ]
    chats = []
    for n, (first, last) in enumerate(zip(plain[:4], plain[35:39], strict=True)):
        turns = [
            {"role": "user", "content": f"{n}: {first['question']}", "name": "Ann"},
            {"role": "assistant", "content": f"Wrong. {first['answer']}", "weight": 0},
            {"role": "user", "content": f"And then? {last['question']}"},
            {"role": "assistant", "content": f"So then. {last['answer']}", "weight": 1},
        ]
        chats.append({"id": f"chat{n}", "messages": turns})
    sources = [
        str(preparing.jsonl(folder / "pairs.jsonl", rows)),
        str(preparing.jsonl(folder / "chats.jsonl", chats)),
    ]
    job = preparing.job("", dataset=sources, language="", validation_size=0, test_size=0)
    return (*preparing.prepare(job, bundled_base, folder / "run"), folder / "run")


def test_every_field_is_read_or_named_as_unread(prepared):
    rows, results, _ = prepared
    card = data_card.describe_data(rows, results, "hash")
    assert card["sources"][0]["fields"] == {
        "id": {"read": 30, "unread": 0},
        "question": {"read": 30, "unread": 0},
        "answer": {"read": 30, "unread": 0},
        "source": {"read": 0, "unread": 30},
    }
    assert card["sources"][1]["fields"] == {
        "id": {"read": 4, "unread": 0},
        "messages": {"read": 4, "unread": 0},
        "messages[].name": {"read": 0, "unread": 4},
    }
    table = data_card.list_fields(rows)
    assert table[0] == {
        "source": rows.job.dataset[0],
        "field": "source",
        "read in rows": 0,
        "unread": 30,
    }
    assert len(table) == 7
    assert card["dropped"]["marked_wrong"]["rows"] == 3
    assert card["dropped"]["image_not_read"]["rows"] == 2
    assert results["rows_read"] == 39


def test_a_masked_answer_is_in_the_row_and_not_trained(prepared, bundled_base):
    from lib.data import chat

    rows, _, folder = prepared
    base = chat.load_chat(bundled_base)
    kept = [r for r in splits.load_split(folder / "data", "train").to_list() if "chat" in r["id"]]
    assert len(kept) == 4
    for row in kept:
        text = base.decode(row["input_ids"])
        trained = base.decode([label for label in row["labels"] if label != -100])
        assert "Wrong. Then" in text
        assert trained.startswith("So then. Then")
        assert "Wrong" not in trained


def test_a_first_row_with_a_masked_answer_is_a_table(bundled_base, tmp_path):
    turns = [
        {"role": "user", "content": "How do I cool a burn?"},
        {"role": "assistant", "content": "With butter.", "weight": 0},
        {"role": "user", "content": "Is that so?"},
        {"role": "assistant", "content": "No: under cool running water."},
    ]
    path = preparing.jsonl(tmp_path / "one.jsonl", [{"messages": turns}])
    job = preparing.job(path, language="", validation_size=0, test_size=0)
    rows, _ = preparing.prepare(job, bundled_base, tmp_path / "run")
    assert [turn["masked"] for turn in rows.first["messages"]] == ["no", "yes", "no", "no"]


def test_a_source_of_pictures_alone_is_an_error_that_names_them(bundled_base, tmp_path):
    rows = [{**row, "image": "0.png"} for row in preparing.made_up(4)]
    path = preparing.jsonl(tmp_path / "vqa.jsonl", rows)
    with pytest.raises(
        UserError, match=r"no row is left of the 4 read .*\n.*image_not_read +4 +columns: "
    ):
        preparing.prepare(preparing.job(path), bundled_base, tmp_path / "run")


def test_the_review_of_our_own_texts_is_not_named_as_unread(tmp_path):
    """`make review` writes it, and a set with a rejected text is refused."""

    def told(dataset):
        fields = [Counter({(("question", "answer"), ("review",)): 733})]
        rows = Rows(preparing.job(dataset), tmp_path, None, io.StringIO(), fields=fields)
        return data_card.describe_fields(rows)

    assert told("bundled:first-aid") == ""
    assert "`review` in 733 rows of d.jsonl" in told("d.jsonl")


def test_the_terminal_names_the_fields_that_may_decide_what_is_trained(tmp_path):
    rows = Rows(
        preparing.job("d.jsonl", columns={"question": "ask", "answer": "reply"}),
        tmp_path,
        None,
        dropped_file=io.StringIO(),
        fields=[
            Counter(
                {
                    (("ask", "reply"), ("is_correct", "output", "source")): 20,
                    (("ask", "reply"), ("prompt", "rejected", "messages[].label")): 5,
                }
            )
        ],
    )
    assert data_card.describe_fields(rows).splitlines() == [
        "not read: `is_correct` in 20 rows of d.jsonl, which is named as if it judged the answer. "
        "If it marks wrong answers, have it read: columns: {question: ask, answer: reply, "
        "is_correct: is_correct}",
        "not read: `output` in 20 rows of d.jsonl, which may be the answer too; another field was "
        "read as the answer. If this one counts, name it: columns: {question: ..., answer: output}",
        "not read: `prompt` in 5 rows of d.jsonl, which may belong to the question; another field "
        "was read as the question. If this one counts, name it: columns: {question: prompt, "
        "answer: ...}",
        "not read: `messages[].label` in 5 rows of d.jsonl, which is named as if it judged the "
        "answer. It is in the turns, where no such field is read: move it to the row.",
    ]
    rows.note_dropped("marked_wrong", "r1", {"text": 'its `is_correct` is "no"'})
    assert data_card.describe_fields(rows).startswith(
        'dropped: 1 rows, marked as wrong; the first: its `is_correct` is "no"\n'
    )
