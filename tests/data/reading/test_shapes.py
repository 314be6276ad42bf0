"""Shapes of rows: the messages each becomes, and the error for a row without a known shape.

python -m pytest tests/data/reading/test_shapes.py
"""

import json

import pytest

from helpers.row_shapes import LATER, MODEL, SHARED, SYSTEM, USER, A, Q, said
from lib.common.errors import UserError
from lib.data.reading import shapes
from lib.data.reading.row_parts import fields
from lib.data.reading.row_parts.fields import BadRow

TURNS = [USER, MODEL, *LATER]


@pytest.mark.parametrize(
    "row",
    [
        {"question": Q, "answer": A},
        {"prompt": Q, "completion": A},
        {"instruction": Q, "output": A},
        {"instruction": Q, "input": "", "output": A},
        {"instruction": Q, "input": None, "output": A},
        {"instruction": Q, "input": "<noinput>", "output": A},
        {"input": Q, "output": A},
        {"input": Q, "output": A, "context": None},
        {"messages": [USER, MODEL]},
        {"messages": [{**USER, "name": "x"}, {**MODEL, "tool_calls": None}]},
        {"conversations": SHARED},
        {"conversations": [{"from": "user", "value": Q}, {"from": "assistant", "value": A}]},
        {"messages": [USER, {"role": "model", "content": A}]},
        {"conversations": [USER, MODEL]},
        {"conversation": [USER, MODEL]},
        {"messages": SHARED},
        {"messages": [{"from": "human", "content": Q}, {"role": "Assistant", "value": A}]},
        {"messages": {"role": ["user", "assistant"], "content": [Q, A]}},  # a Sequence of datasets
        {"conversations": json.dumps(SHARED)},  # in a table
        {"messages": str([USER, MODEL])},
        {"Question": Q, "Answer": A},
        {" QUESTION ": Q, "answer": A},
        {"query": Q, "response": A, "history": []},
        {"instruction": Q, "context": "", "response": A},
        {"prompt": [USER], "completion": [MODEL]},
        {"prompt": Q, "completion": [MODEL]},
        {"prompt": [USER], "completion": A},
        {"prompt": str([USER]), "completion": str([MODEL])},
        {"prompt": Q, "completion": A, "label": True},
        {"prompt": Q, "chosen": A, "rejected": "Butter."},
        {"prompt": [USER], "chosen": [MODEL], "rejected": [{**MODEL, "content": "Butter."}]},
        {"prompt": Q, "chosen": [USER, MODEL], "rejected": [USER, MODEL]},
        {"chosen": [USER, MODEL], "rejected": [USER, MODEL]},
        {"conversations": SHARED[:1], "chosen": SHARED[1], "rejected": SHARED[1]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": Q}]},
                {"role": "assistant", "content": [{"type": "text", "text": A}]},
            ]
        },
        {
            "question": Q,
            "answer": A,
            "id": 7,
            "topic": "burns",
            "extra": {"any": ["thing"]},
            "system": None,
            "options": None,
        },
    ],
)
def test_every_shape_becomes_the_same_messages(row):
    assert shapes.to_messages(row) == [USER, MODEL]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS},
        {
            "conversations": [
                {"from": "human" if t["role"] == "user" else "gpt", "value": t["content"]}
                for t in TURNS
            ]
        },
    ],
)
def test_several_turns_stay_in_order(row):
    assert shapes.to_messages(row) == TURNS


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [SYSTEM, USER, MODEL]},
        {"messages": [SYSTEM, USER, MODEL], "system": "Another."},
        {"conversations": [{"from": "system", "value": "Be brief."}, *SHARED]},
        {"messages": [USER, MODEL], "system": "Be brief."},
        {"conversations": SHARED, "system": "Be brief."},
        {"question": Q, "answer": A, "system": "Be brief."},
        {"prompt": Q, "completion": A, "system_prompt": "Be brief."},
    ],
)
def test_a_system_message_comes_first_and_once(row):
    assert shapes.to_messages(row) == [SYSTEM, USER, MODEL]


@pytest.mark.parametrize(
    ("row", "question"),
    [
        ({"input": Q, "context": "A: ice B: water", "output": A}, f"{Q}\n\nA: ice B: water"),
        ({"question": Q, "context": " On skin. ", "answer": A}, f"{Q}\n\nOn skin."),
        ({"instruction": "Answer.", "input": Q, "output": A}, f"Answer.\n\n{Q}"),
        (
            {"instruction": "Answer.", "input": Q, "context": "On skin.", "output": A},
            f"Answer.\n\n{Q}\n\nOn skin.",
        ),
    ],
)
def test_context_and_input_join_the_question(row, question):
    assert said(row) == [("user", question), ("assistant", A)]


def test_text_parts_are_lines_and_numbers_are_text():
    parts = [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}]
    assert said({"messages": [USER, {"role": "assistant", "content": parts}]})[1] == (
        "assistant",
        "One.\nTwo.",
    )
    assert said({"question": "How many compressions?", "answer": 30}) == [
        ("user", "How many compressions?"),
        ("assistant", "30"),
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"question": Q, "answer": None},
        {"question": Q, "answer": float("nan")},
        {"messages": [USER, {"role": "assistant", "content": None}]},
        {"conversations": [SHARED[0], {"from": "gpt", "value": None}]},
        {"question": Q, "answer": ""},
    ],
)
def test_a_null_answer_is_empty_text_to_be_dropped_later(row):
    assert said(row) == [("user", Q), ("assistant", "")]


EMPTY = dict.fromkeys(
    [
        "question",
        "answer",
        "prompt",
        "completion",
        "instruction",
        "input",
        "output",
        "messages",
        "conversations",
        "options",
        "context",
    ]
)


@pytest.mark.parametrize(
    "row",
    [
        {"question": Q, "answer": A},
        {"prompt": Q, "completion": A},
        {"instruction": Q, "output": A},
        {"input": Q, "output": A},
        {"messages": [USER, MODEL]},
        {"conversations": SHARED},
    ],
)
@pytest.mark.parametrize("nothing", [None, ""])
def test_in_a_table_of_mixed_shapes_the_filled_columns_count(row, nothing):
    blank = {k: nothing if k not in ("messages", "conversations") else None for k in EMPTY}
    assert shapes.to_messages({**blank, **row}) == [USER, MODEL]


WORDS = ["Ice", "Water", "Butter", "Toothpaste"]
CHOICE = {"question": Q, "options": WORDS, "answer_letter": "B"}


# ---------------------------------------------------------------------------------------------------------------------
# columns, and rows that have no shape


@pytest.mark.parametrize(
    ("row", "columns", "expected"),
    [
        ({"ask": Q, "reply": A}, {"question": "ask", "answer": "reply"}, [USER, MODEL]),
        (
            {
                "ask": Q,
                "reply": A,
                "messages": [MODEL],
                "options": WORDS,
                "context": "not asked for",
            },
            {"question": "ask", "answer": "reply"},
            [USER, MODEL],
        ),
        (
            {"question": Q, "long_answer": A, "answer": "yes"},
            {"answer": "long_answer"},
            [USER, MODEL],
        ),
        (
            {"chat": [USER, MODEL], "question": "?", "answer": "!"},
            {"messages": "chat"},
            [USER, MODEL],
        ),
        (
            {"chat": SHARED, "rules": "Be brief."},
            {"conversations": "chat", "system": "rules"},
            [SYSTEM, USER, MODEL],
        ),
        (
            {"prompt": Q, "completion": A, "rules": "Be brief."},
            {"system": "rules"},
            [SYSTEM, USER, MODEL],
        ),
        ({"messages": [USER, MODEL], "subject": "burns"}, {"topic": "subject"}, [USER, MODEL]),
        (
            {"q": Q, "passage": "On skin.", "a": A},
            {"question": "q", "context": "passage", "answer": "a"},
            [{"role": "user", "content": f"{Q}\n\nOn skin."}, MODEL],
        ),
        (
            {"q": Q, "four": WORDS, "key": "B", "answer": "Butter"},
            {"question": "q", "options": "four", "answer_letter": "key"},
            [
                {"role": "user", "content": f"{Q}\n\nA) Ice\nB) Water\nC) Butter\nD) Toothpaste"},
                {"role": "assistant", "content": "Water"},
            ],
        ),
    ],
)
def test_columns_give_the_data_our_names(row, columns, expected):
    assert shapes.to_messages(row, columns) == expected


def test_a_wrong_column_names_what_the_row_has():
    with pytest.raises(BadRow, match="`columns` names ask, reply; the row has question, answer"):
        shapes.to_messages({"question": Q, "answer": A}, {"question": "ask", "answer": "reply"})
    with pytest.raises(BadRow, match=r"the row has \(nothing\)"):
        shapes.to_messages({}, {"question": "ask"})


def test_columns_that_are_no_field_of_ours_are_named_with_those_that_are():
    with pytest.raises(
        UserError,
        match="`reply` is not a known field; expected some of question, answer, context",
    ):
        fields.check_columns({"question": "ask", "reply": "answer"})
    fields.check_columns(dict.fromkeys(fields.FIELDS, "theirs"))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"ask": Q, "reply": A},
            "no known shape; its fields are ask, reply.\nKnown shapes: messages or conversations",
        ),
        ({"ask": Q, "reply": A}, "columns: {question: ask, answer: reply}"),
        ({"question": Q}, "its fields are question."),
        ({}, "its fields are (none)."),
        ({"messages": None}, "its fields are messages."),
        (
            {"messages": "user: hello"},
            'its messages field is "user: hello"; expected a list of turns',
        ),
        (
            {"messages": [{"role": "nurse", "content": "x"}]},
            'a turn is {"role": "nurse", "content": "x"}; expected role or from (one of human, user, prompter, gpt, assistant, model, bot, system, developer) and content or value.',
        ),
        ({"messages": [{"role": "user"}]}, "and content or value."),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "expected role"),
        ({"messages": ["hello"]}, 'a turn is "hello"'),
        ({"messages": [None]}, "a turn is null"),
        ({"question": {"stem": Q}, "answer": A}, f'a text field is {{"stem": "{Q}"}}'),
        (
            {"question": Q, "context": {"passages": ["One."]}, "answer": A},
            'a text field is {"passages": ["One."]}; expected a string',
        ),
        ({"question": Q, "answer": ["One.", "Two."]}, 'a text field is ["One.", "Two."]'),
        ({"question": Q, "answer": b"bytes"}, "expected a string"),
        ({"\ud800": Q}, "its fields are \\ud800."),
    ],
)
def test_a_row_without_a_known_shape_shows_what_it_has_and_what_is_known(row, expected):
    with pytest.raises(BadRow) as error:
        shapes.to_messages(row)
    assert expected in str(error.value)
    assert str(error.value).encode()


def test_known_tells_headers_that_hold_a_shape():
    assert all(
        map(
            shapes.has_known_shape,
            (
                ["question", "answer"],
                ["id", "input", "output"],
                ["messages"],
                ["question", "choices"],
                ["conversations"],
            ),
        )
    )
    assert not any(
        map(
            shapes.has_known_shape,
            ([], ["question"], ["question;answer"], ["ask", "reply"], ["options", "answer"]),
        )
    )


# ---------------------------------------------------------------------------------------------------------------------
# fields


def test_a_row_that_is_a_bare_list_of_turns_is_told_to_name_them():
    with pytest.raises(BadRow, match='write {"messages": '):
        fields.require_fields([USER, MODEL])


def test_every_field_is_read_or_named():
    row = fields.Fields(
        {
            "ID": 3,
            "Question": Q,
            "answer": A,
            "Source": "WHO",
            "score": 0,
            "reviewed": False,
            "empty": None,
            "blank": " ",
            "none": [],
        }
    )
    shapes.read_messages(row)
    assert row.split() == (("Question", "answer"), ("ID", "Source", "score", "reviewed"))
    row = fields.Fields(
        {"messages": [{**USER, "name": "Ann"}, {**MODEL, "weight": 0}], "lang": "en"}
    )
    shapes.read_messages(row)
    assert row.split() == (("messages",), ("lang", "messages[].name"))
    row = fields.Fields({"q": Q, "reply": A, "context": "x"}, {"question": "q", "answer": "reply"})
    shapes.read_messages(row)
    assert row.split() == (("q", "reply"), ("context",))
    row = fields.Fields({"prompt": Q, "chosen": A, "rejected": "Butter."})
    shapes.read_messages(row)
    assert row.split()[1] == ("rejected",)


def test_of_two_columns_that_differ_in_case_ours_counts():
    assert said({"Question": "?", "question": Q, "answer": A}) == [("user", Q), ("assistant", A)]


GEMMA = f"<bos><start_of_turn>user\n{Q}<end_of_turn>\n<start_of_turn>model\n{A}<end_of_turn>\n"


@pytest.mark.parametrize(
    "row",
    [
        {"text": GEMMA},
        {"Text": GEMMA, "id": 5},
        {"text": f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n{A}<|im_end|>\n"},
        {"text": f"<s>[INST] {Q} [/INST] {A}</s>"},
        {"text": f"### Instruction:\n{Q}\n\n### Response:\n{A}"},
        {"text": f"Question: {Q}\nAnswer: {A}"},
        {"prompt": GEMMA[: GEMMA.index(A)], "completion": GEMMA[GEMMA.index(A) :]},
        {"prompt": f"<s>[INST] {Q} [/INST]", "completion": f" {A}</s>"},
        {"question": Q, "answer": A, "text": GEMMA.replace(A, "Ice.")},
    ],
)
def test_templated_text_is_read_back_into_turns(row):
    assert said(row) == [("user", Q), ("assistant", A)]


def test_a_named_column_may_hold_templated_text():
    assert said({"formatted": GEMMA}, {"text": "formatted"}) == [("user", Q), ("assistant", A)]
    turns = [("system", "Be brief."), ("user", Q), ("assistant", A)]
    assert said({"text": GEMMA, "system": "Be brief."}) == turns


def test_unclear_templated_text_is_dropped_with_a_reason_and_plain_text_is_refused():
    for text in (GEMMA[: GEMMA.index(A) + 8], GEMMA + "More.", "[INST] a [/INST] b [INST]"):
        with pytest.raises(fields.DroppedRow) as dropped:
            said({"text": text})
        assert dropped.value.reason == "templated_text"
    with pytest.raises(BadRow, match="no known shape; its fields are text") as refused:
        said({"text": "Cool a burn under running water."})
    assert not isinstance(refused.value, fields.DroppedRow)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": f"### Instruction:\n{Q}\n\n### Response:\n", "completion": A},
        {"prompt": f"Human: {Q}\n\nAssistant:", "chosen": f" {A}", "rejected": " Ice."},
        {"prompt": f"\n\nHuman: {Q}\n\nAssistant:", "chosen": A},
        {"prompt": f"Human: {Q}\n\nAssistant:", "chosen": f"Human: {Q}\n\nAssistant: {A}"},
        {"chosen": f"\n\nHuman: {Q}\n\nAssistant: {A}", "rejected": "..."},
        {"prompt": f"### Human: {Q}\n### Assistant:", "response": A},
        {"instruction": f"USER: {Q} ASSISTANT:", "output": A},
        {"question": f"Question: {Q}\nAnswer:", "answer": A},
        {"question": f"Q: {Q}\nA:", "answer": A},
    ],
)
def test_a_prompt_that_ends_where_its_template_has_the_answer_begin(row):
    assert said(row) == [("user", Q), ("assistant", A)]


def test_a_prompt_whose_template_is_not_clear_is_dropped_and_a_plain_one_stays():
    for row in (
        {"prompt": f"{Q}\n### Response:", "completion": A},
        {"instruction": f"### Instruction:\n{Q}\n\n### Response:", "input": "Now.", "output": A},
    ):
        with pytest.raises(fields.DroppedRow) as dropped:
            said(row)
        assert dropped.value.reason == "templated_text"
    for text in ("Who is an assistant?", "The vitamin is A:", "What does it say?\nAnswer: help"):
        assert said({"question": text, "answer": A}) == [("user", text), ("assistant", A)]
