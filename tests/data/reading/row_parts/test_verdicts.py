"""Fields that say a row must not be trained on: a mark of a wrong answer, a picture.

python -m pytest tests/data/reading/row_parts/test_verdicts.py
"""

import pytest

from helpers.reading import Read, jsonl, refused
from lib.data.reading import shapes
from lib.data.reading.row_parts.fields import BadRow, DroppedRow

Q, A = "How do I cool a burn?", "Under cool running water."
TURNS = [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]
PAIR = {"prompt": Q, "completion": A}
SHAPES = [
    PAIR,
    {"question": Q, "answer": A},
    {"instruction": Q, "output": A},
    {"messages": TURNS},
    {"prompt": TURNS[:1], "completion": TURNS[1:]},
    {"question": Q, "options": ["Ice", "Water"], "answer": "B"},
]


def reason(row, columns=None):
    try:
        assert shapes.to_messages(row, columns)
    except DroppedRow as dropped:
        return dropped.reason
    return ""


@pytest.mark.parametrize("row", SHAPES)
@pytest.mark.parametrize("field", ["label", "Label", "is_correct", "correct", "accepted"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (False, "marked_wrong"),
        ("false", "marked_wrong"),
        (True, ""),
        ("True", ""),
        (None, ""),
        ("", ""),
        (float("nan"), ""),
    ],
)
def test_a_row_marked_as_wrong_is_dropped(row, field, value, expected):
    if "options" in row and isinstance(value, str) and value and field.casefold() == "label":
        pytest.skip("a text in `label` beside options names one of them")
    assert reason({**row, field: value}) == expected


def test_a_label_of_0_and_1_is_a_mark_in_an_unpaired_preference_alone():
    assert [reason({**PAIR, "label": n}) for n in (0, 1, "0", 1.0)] == [
        "marked_wrong",
        "",
        "marked_wrong",
        "",
    ]
    for n in (0, 1):
        with pytest.raises(
            BadRow, match="which may mark a wrong answer, or may be the number"
        ) as error:
            shapes.to_messages({"question": Q, "answer": A, "label": n})
        assert not isinstance(error.value, DroppedRow)
        row = {"question": Q, "answer": A, "label": n}
        assert reason(row, {"question": "question", "answer": "answer"}) == ""
        assert reason({"question": Q, "answer": A, "is_answer": n}) == ("" if n else "marked_wrong")


@pytest.mark.parametrize("value", ["burns", 3, "positive", [1], {"a": 1}])
def test_a_label_that_is_no_mark_is_only_unread(value):
    assert reason({"question": Q, "answer": A, "label": value}) == ""


@pytest.mark.parametrize(
    "field", ["image", "images", "Image", "img_path", "image_url", "video", "audio", "Figure_path"]
)
@pytest.mark.parametrize("row", SHAPES)
def test_a_row_about_a_picture_is_dropped(row, field):
    for value in ({"bytes": "aGk=", "path": "0.png"}, "0.png", ["0.png"], b"png"):
        assert reason({**row, field: value}) == "image_not_read"
    for nothing in (None, "", [], {}, False):
        assert reason({**row, field: nothing}) == ""


def test_naming_the_columns_reads_the_texts_alone():
    row = {"question": Q, "answer": A, "image": "0.png"}
    assert reason(row, {"question": "question", "answer": "answer"}) == ""


@pytest.mark.parametrize("mark", ["<image>\nWhat is it?", "What is <image>?", "<audio> Who?"])
def test_a_text_that_stands_for_a_picture_drops_its_row(mark):
    assert reason({"question": mark, "answer": A}) == "image_not_read"
    assert reason({"question": Q, "answer": f"Write {mark}"}) == ""


def test_dropped_rows_are_named_and_no_error(tmp_path):
    path = jsonl(
        tmp_path / "rows.jsonl",
        {"id": "good", **PAIR, "label": True},
        {"id": "bad", **PAIR, "label": False},
        {"id": "seen", **PAIR, "image": "0.png"},
        {**PAIR, "label": False},
    )
    rows = Read(path)
    assert [row["id"] for row in rows] == ["good"]
    assert [(why, row_id) for why, row_id, _ in rows.dropped] == [
        ("marked_wrong", "bad"),
        ("image_not_read", "seen"),
        ("marked_wrong", "row-0000003"),
    ]
    assert "rows.jsonl, line 2: its `label` is false" in rows.dropped[0][2]
    assert "line 1: its history field" in refused(
        jsonl(tmp_path / "h.jsonl", {**PAIR, "history": "asthma"})
    )
