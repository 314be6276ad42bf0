"""Turns, the weight of an answer, pictures and tools in them, and the history before a question.

python -m pytest tests/data/reading/row_parts/test_chats.py
"""

import pytest

from helpers.row_shapes import LATER, MODEL, SHARED, SYSTEM, USER, A, Q, said
from lib.data.reading import shapes
from lib.data.reading.row_parts.fields import BadRow, DroppedRow


@pytest.mark.parametrize(
    "history",
    [
        [["One?", "First."], ["Two?", "Second."]],
        [("One?", "First."), ("Two?", "Second.")],
        '[["One?", "First."], ["Two?", "Second."]]',
        "[['One?', 'First.'], ['Two?', 'Second.']]",
        [{"question": "One?", "answer": "First."}, {"user": "Two?", "assistant": "Second."}],
        [
            {"role": "user", "content": "One?"},
            {"role": "assistant", "content": "First."},
            {"from": "human", "value": "Two?"},
            {"from": "gpt", "value": "Second."},
        ],
    ],
)
def test_history_comes_before_the_question_as_turns(history):
    earlier = [
        ("user", "One?"),
        ("assistant", "First."),
        ("user", "Two?"),
        ("assistant", "Second."),
    ]
    now = [("user", Q), ("assistant", A)]
    assert said({"instruction": Q, "output": A, "history": history}) == earlier + now
    assert said({"query": Q, "response": A, "history": history}) == earlier + now
    assert said({"messages": [SYSTEM, USER, MODEL], "history": history}) == [
        ("system", "Be brief."),
        *earlier,
        *now,
    ]
    assert said(
        {"q": Q, "a": A, "h": history}, {"question": "q", "answer": "a", "history": "h"}
    ) == (earlier + now)


@pytest.mark.parametrize("nothing", [None, "", [], "[]", float("nan")])
def test_no_history_adds_nothing(nothing):
    assert said({"instruction": Q, "output": A, "history": nothing}) == [
        ("user", Q),
        ("assistant", A),
    ]


@pytest.mark.parametrize(
    "history",
    ["52 years old, asthma", ["One?", "First."], [["One?"]], [["One?", None]], {"asthma": True}, 3],
)
def test_a_history_of_another_form_is_refused_with_what_to_do(history):
    with pytest.raises(BadRow) as error:
        shapes.to_messages({"Question": Q, "Answer": A, "History": history})
    assert not isinstance(error.value, DroppedRow)
    assert "columns: {context: History}" in str(error.value)
    if isinstance(history, str):
        row = {"question": Q, "answer": A, "History": history}
        assert said(row, {"context": "History"})[0] == ("user", f"{Q}\n\n{history}")


@pytest.mark.parametrize(
    ("weight", "trained"),
    [(0, False), (0.0, False), (False, False), ("0", False), (1, True), (1.0, True), (None, True)],
)
@pytest.mark.parametrize("key", ["weight", "train", "training", "loss", "loss_mask", "lossMask"])
def test_an_answer_of_weight_0_is_masked(weight, trained, key):
    turns = [USER, {**MODEL, key: weight}, *LATER]
    expected = [USER, MODEL if trained else {**MODEL, "masked": "yes"}, *LATER]
    assert shapes.to_messages({"messages": turns}) == expected
    shared = [SHARED[0], {**SHARED[1], key: weight}]
    assert shapes.to_messages({"conversations": shared}) == expected[:2]


def test_other_ways_to_say_that_an_answer_is_not_trained():
    masked = [USER, {**MODEL, "masked": "yes"}]
    assert shapes.to_messages({"messages": [USER, {**MODEL, "no_loss": True}]}) == masked
    assert shapes.to_messages({"messages": [USER, {**MODEL, "no_loss": False}]}) == [USER, MODEL]
    for field in ("mask", "train_detail"):
        with pytest.raises(BadRow, match=f"a turn's {field} is 1, which is not read"):
            shapes.to_messages({"messages": [USER, {**MODEL, field: 1}]})


@pytest.mark.parametrize("mark", [{"is_correct": "no"}, {"flagged": True}, {"isWrong": 1}])
def test_an_answer_that_its_turn_marks_as_wrong_drops_the_row(mark):
    with pytest.raises(DroppedRow) as dropped:
        shapes.to_messages({"messages": [USER, {**MODEL, **mark}]})
    assert dropped.value.reason == "marked_wrong"
    assert shapes.to_messages({"messages": [{**USER, **mark}, MODEL]}) == [USER, MODEL]


@pytest.mark.parametrize("field", ["chat_history", "chatHistory", "conversation_history"])
def test_a_history_under_another_name(field):
    row = {"question": Q, "answer": A, field: [["One?", "First."]]}
    expected = [("user", "One?"), ("assistant", "First."), ("user", Q), ("assistant", A)]
    assert said(row) == expected
    assert said({**row, "history": [["One?", "First."]]}) == expected
    with pytest.raises(BadRow, match="hold different earlier exchanges"):
        said({**row, "history": [["Two?", "First."]]})
    with pytest.raises(BadRow, match=f"columns: {{context: {field}}}"):
        said({**row, field: "asthma"})


def test_a_weight_of_a_question_changes_nothing_as_it_is_never_trained():
    assert shapes.to_messages({"messages": [{**USER, "weight": 0}, {**MODEL, "weight": 1}]}) == [
        USER,
        MODEL,
    ]


def test_a_conversation_of_weight_0_is_dropped():
    row = {"messages": [USER, MODEL]}
    assert shapes.to_messages(row | {"weight": 1}) == [USER, MODEL]
    with pytest.raises(DroppedRow) as dropped:
        shapes.to_messages(row | {"weight": 0})
    assert dropped.value.reason == "nothing_trained"
    with pytest.raises(BadRow, match="its weight is 0.5; expected 0"):
        shapes.to_messages(row | {"weight": 0.5})
    # in a table it may be kilograms
    assert shapes.to_messages({"question": Q, "answer": A, "weight": 71}) == [USER, MODEL]


@pytest.mark.parametrize("weight", [0.5, -1, 2, "high"])
def test_a_weight_that_cannot_be_honoured_is_refused(weight):
    with pytest.raises(BadRow, match="a turn's weight is .*expected 0"):
        shapes.to_messages({"messages": [USER, {**MODEL, "weight": weight}]})


@pytest.mark.parametrize("parts", [[{"type": "image_url", "image_url": "x"}], [{"type": "audio"}]])
def test_a_turn_with_a_picture_drops_its_row(parts):
    with pytest.raises(DroppedRow) as dropped:
        shapes.to_messages({"messages": [{"role": "user", "content": parts}, MODEL]})
    assert dropped.value.reason == "image_not_read"


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "tool", "content": "37.2"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"from": "function_call", "value": "{}"},
        {"from": "observation", "value": "37.2"},
    ],
)
def test_a_conversation_with_a_tool_is_dropped(turn):
    with pytest.raises(DroppedRow) as dropped:
        shapes.to_messages({"messages": [USER, turn, MODEL]})
    assert dropped.value.reason == "tool_call"


def test_a_preferred_conversation_that_answers_another_prompt_is_refused():
    other = [{"role": "user", "content": "How do I cool soup?"}, MODEL]
    with pytest.raises(BadRow, match='begins with "How do I cool soup'):
        shapes.to_messages({"prompt": Q, "chosen": other, "rejected": other})
