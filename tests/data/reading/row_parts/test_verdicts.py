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


KNOWN_FALSE = ["no", "n", "f", "bad", "not correct", "not_accepted", "✗", -1, "False", 0, "0.0"]


@pytest.mark.parametrize("value", KNOWN_FALSE)
def test_every_spelling_of_false_drops_the_row(value):
    for field in ("is_correct", "Accepted", "isCorrect", "is correct", "is_valid"):
        assert reason({"question": Q, "answer": A, field: value}) == "marked_wrong"


@pytest.mark.parametrize(
    ("field", "wrong", "right"),
    [
        ("incorrect", True, False),
        ("is_wrong", "yes", "no"),
        ("flagged", 1, 0),
        ("retracted", "true", "false"),
        ("rejected", True, False),
        ("status", "rejected", "published"),
        ("label", "bad", "good"),
        ("metadata", {"is_correct": False}, {"is_correct": True}),
        ("meta", '{"flagged": "yes"}', '{"flagged": "no"}'),
    ],
)
def test_marks_with_the_opposite_sense_in_words_and_inside(field, wrong, right):
    assert reason({"question": Q, "answer": A, field: wrong}) == "marked_wrong"
    assert reason({"question": Q, "answer": A, field: right}) == ""


@pytest.mark.parametrize("value", [2, "maybe", [False], "N/A"])
@pytest.mark.parametrize("field", ["is_correct", "flagged"])
def test_a_value_that_says_neither_stops_with_the_way_out(field, value):
    row = {"question": Q, "answer": A, field: value}
    with pytest.raises(BadRow, match=f"its `{field}` is .*expected true or false") as error:
        shapes.to_messages(row)
    assert not isinstance(error.value, DroppedRow)
    assert "columns: {question: ask, answer: reply}" in str(error.value)
    assert reason(row, {"question": "question", "answer": "answer"}) == ""


def labelled(tmp_path, field, *values):
    return jsonl(
        tmp_path / "rows.jsonl",
        *({"question": f"{Q} {n}", "answer": A, field: v} for n, v in enumerate(values)),
    )


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("label", ["burns", "bleeding", "no"]),
        ("label", ["yes", "no", "maybe"]),
        ("label", ["positive", "neutral", "negative"]),
        ("status", ["published", "draft"]),
        ("score", [0, 1, 5]),
        ("verified", [True, False]),
        ("correct", ["B", "A"]),
    ],
)
def test_an_open_name_that_holds_something_else_stops_nothing(tmp_path, field, values):
    assert len(Read(labelled(tmp_path, field, *values))) == len(values)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("label", ["burns", "wrong"]),
        ("label", ["wrong", "burns"]),
        ("status", ["draft", "published", "retracted"]),
        ("label", ["yes", "no"]),
        ("label", ["good", "no"]),
        ("score", [0, 1]),
        ("label", ["positive", "negative"]),
    ],
)
def test_an_open_name_that_may_judge_stops_also_with_skipped_lines(tmp_path, field, values):
    path = labelled(tmp_path, field, *values)
    said = refused(path, skip_bad_lines=10)
    assert f"`{field}` is " in said
    assert f"columns: {{is_correct: {field}}}" in said
    columns = {"question": "question", "answer": "answer"}
    assert len(Read(path, columns=columns)) == len(values)


def test_columns_have_a_field_read_as_a_mark(tmp_path):
    path = labelled(tmp_path, "mark", "yes", "no", "negative")
    assert len(Read(path, columns={"is_correct": "mark"})) == 1
    named = {"question": "question", "answer": "answer", "is_correct": "mark"}
    assert len(Read(path, columns=named)) == 1
    # an inverse name keeps its sense
    path = labelled(tmp_path, "is_wrong", "yes", "no", "no")
    assert len(Read(path, columns={"is_correct": "is_wrong"})) == 2


@pytest.mark.parametrize("field", ["weight", "sample_weight", "loss_mask", "trainable", "train"])
def test_a_row_that_says_it_is_not_trained_is_dropped(field):
    assert reason({"question": Q, "answer": A, field: 0}) == "nothing_trained"
    assert reason({"question": Q, "answer": A, field: 1}) == ""


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
