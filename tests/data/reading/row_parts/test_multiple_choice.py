"""Which option is right: every form of options and answers, and what only the whole source tells.

python -m pytest tests/data/reading/row_parts/test_multiple_choice.py
"""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.reading import Read, jsonl, refused
from lib.common.errors import UserError
from lib.data.reading import exam_items, shapes
from lib.data.reading.row_parts import multiple_choice
from lib.data.reading.row_parts.fields import BadRow, DroppedRow, Fields
from lib.data.reading.row_parts.multiple_choice import UndecidedRow

Q = "How do I cool a burn?"
WORDS = ["Ice", "Water", "Butter", "Toothpaste"]
LETTERS = dict(zip("ABCD", WORDS, strict=True))
COLUMNS = {"opa": "Ice", "opb": "Water", "opc": "Butter", "opd": "Toothpaste"}
ASKED = f"{Q}\n\nA) Ice\nB) Water\nC) Butter\nD) Toothpaste"


def choose(row, *others):
    """The letter of the right option of a row, whose source has these other rows."""
    habits = multiple_choice.find_habits((f"line {n}", r) for n, r in enumerate([row, *others], 1))
    return multiple_choice.to_choice(Fields(row), habits)["answer_letter"]


def ask(answer, options=WORDS, field="answer"):
    return {"question": Q, "options": options, field: answer}


@pytest.mark.parametrize(
    "row",
    [
        {"question": Q, "options": LETTERS, "answer_letter": "B"},
        {"question": Q, "options": WORDS, "answer_letter": "B"},
        {  # MedQA
            "question": Q,
            "options": LETTERS,
            "answer": "Water",
            "answer_idx": "B",
            "meta_info": "step1",
            "metamap_phrases": ["x"],
        },
        {  # MedQA, as bigbio has it
            "question": Q,
            "options": [{"key": k, "value": v} for k, v in LETTERS.items()],
            "answer_idx": "B",
            "answer": "Water",
        },
        {  # as `datasets` gives a Sequence of these
            "question": Q,
            "options": {"key": list("ABCD"), "value": WORDS},
            "answer_idx": "B",
        },
        {"question": Q, "choices": {"label": list("ABCD"), "text": WORDS}, "answerKey": "B"},  # ARC
        {"question": Q, "options": {**LETTERS, "E": None}, "answer_idx": "B"},  # in parquet
        {"question": Q, "options": json.dumps(LETTERS), "answer_idx": "B"},  # in a table
        {"question": Q, "options": str(LETTERS), "answer_idx": "B"},
        {"question": Q, "options": str(WORDS), "answer": "B"},
        {"question": Q, "options": "A) Ice B) Water C) Butter D) Toothpaste", "answer": "B"},
        {"question": Q, "options": "A. Ice\nB. Water\nC. Butter\nD. Toothpaste", "answer": "B"},
        {"question": Q, **COLUMNS, "answer": "B"},
        {"Question": Q, "A": "Ice", "B": "Water", "C": "Butter", "D": "Toothpaste", "Answer": "b"},
        {
            "question": Q,
            "option_1": "Ice",
            "option_2": "Water",
            "option_3": "Butter",
            "option_4": "Toothpaste",
            "answer": "water.",
        },
        {"question": Q, "options": LETTERS, "answer": " Water"},
        {"question": Q, "options": LETTERS, "answer": "b"},
        {"question": Q, "choices": WORDS, "answer": "(B)"},
        {"question": Q, "choices": WORDS, "answer": "Option B"},
        {"question": Q, "choices": WORDS, "answer": "B) Water"},
        {"question": Q, "options": None, "choices": WORDS, "answer_idx": None, "answer": "B"},
        # prose that explains the right option does not contradict it
        {
            "question": Q,
            "options": LETTERS,
            "answer": "Running water takes heat.",
            "answer_idx": "B",
        },
        # two fields agree on one of the meanings of a number
        {"question": Q, "options": WORDS, "answer": "Water", "answer_idx": 1},
        {"question": Q, "options": WORDS, "answer": "Water", "answer_idx": 2},
        {"question": Q, "options": WORDS, "answer_letter": "B", "label": 1},
        # a mark of a good row beside the answer is not an option
        {"question": Q, "options": WORDS, "answer": "B", "label": True},
    ],
)
def test_multiple_choice_is_asked_with_its_options_and_answered_in_words(row):
    assert shapes.to_messages(row) == [
        {"role": "user", "content": ASKED},
        {"role": "assistant", "content": "Water"},
    ]
    item = multiple_choice.to_choice(Fields(row))
    assert item == {"question": Q, "options": LETTERS, "answer_letter": "B"}


def test_a_choice_with_context_as_pubmedqa_has_it():
    row = {
        "question": "Does it help?",
        "context": "A study.",
        "options": {"A": "yes", "B": "no", "C": "maybe"},
        "answer": "maybe",
        "answer_idx": "C",
    }
    own = {
        "pubid": 7,
        "question": "Does it help?",
        "context": {"contexts": ["A study."], "labels": ["METHODS"]},
        "long_answer": "Perhaps.",
        "final_decision": "maybe",
    }
    expected = [
        {"role": "user", "content": "A study.\n\nDoes it help?\n\nA) yes\nB) no\nC) maybe"},
        {"role": "assistant", "content": "maybe"},
    ]
    assert shapes.to_messages(row) == shapes.to_messages(own) == expected
    fields = Fields(own)
    shapes.read_messages(fields)
    assert fields.split()[1] == ("pubid", "long_answer", "context.labels")
    named = {"question": "question", "context": "context", "answer": "long_answer"}
    assert shapes.to_messages(own, named)[1]["content"] == "Perhaps."


# ---------------------------------------------------------------------------------------------------------------------
# numbers: what they mean is decided over the whole source


@pytest.mark.parametrize(
    ("answer", "others", "letter"),
    [
        (0, [], "A"),
        (4, [], "D"),
        (1, [0], "B"),
        (1, [4], "A"),
        (1, [3, 2, 0], "B"),
        (3, [2, 2, 4], "C"),
        ("1", ["0"], "B"),
        ("1", ["4"], "A"),
        (1.0, [4.0], "A"),  # a column with an empty cell
    ],
)
def test_one_row_of_a_source_tells_from_where_all_are_counted(answer, others, letter):
    for field in ("answer", "answer_idx", "cop", "label", "answer_letter"):
        rows = [ask(other, field=field) for other in others]
        assert choose(ask(answer, field=field), *rows) == letter
    columns = {"question": Q, **COLUMNS}
    assert choose(columns | {"cop": answer}, *(columns | {"cop": n} for n in others)) == letter


@pytest.mark.parametrize("answer", [1, 2, 3, "2", 1.0])
def test_a_number_whose_base_no_row_tells_is_refused(answer):
    with pytest.raises(UndecidedRow, match="no row of the set tells which"):
        choose(ask(answer), ask(2), ask(1), ask(3))
    with pytest.raises(UndecidedRow):
        multiple_choice.to_choice(Fields(ask(answer)))


def test_a_source_that_counts_from_0_and_from_1_is_refused_with_both_places():
    for answer in (0, 1, 4):
        with pytest.raises(UndecidedRow) as error:
            choose(ask(answer), ask(0), ask(4))
        assert "other answers are not counted from" in str(error.value)
        assert "in line " in str(error.value)


@given(
    st.integers(0, 1),
    st.lists(st.tuples(st.integers(0, 4), st.integers(2, 5)), min_size=1, max_size=12),
)
def test_a_number_is_never_read_as_another_option(first, drawn):
    """Whatever the rows, the option that was meant is chosen, or nothing is."""
    rows = []
    for place, count in drawn:
        place %= count
        rows.append(ask(place + first, [f"text {n}" for n in range(count)]))
    for row, (place, count) in zip(rows, drawn, strict=True):
        try:
            assert choose(row, *rows) == "ABCDE"[place % count]
        except UndecidedRow:
            edge = 0 if first == 0 else count
            assert all(r["answer"] != (0 if first == 0 else len(r["options"])) for r in rows), edge


@pytest.mark.parametrize(
    ("answer", "options", "others", "letter"),
    [
        # counted from 0 it is "3", from 1 "2"; its text is "2"
        (2, ["1", "2", "3", "4"], [ask(0)], "C"),
        (2, ["1", "2", "3", "4"], [ask(4)], "B"),
        ("2", ["1", "2", "3", "4"], [ask(20, ["10", "20", "30"])], "B"),
        (30, ["30", "15"], [], "A"),
        (0, ["30", 15], [], "A"),
        # blood groups: the letter A, or the text A
        ("A", ["O", "A", "AB"], [ask("C"), ask("D")], "A"),
        ("A", ["O", "A", "AB"], [ask("Water"), ask("Ice")], "B"),
        # an option that is null keeps its number
        (2, ["Ice", None, "Water", "Butter"], [ask(0)], "C"),
        # the row's own numbers
        ("2", {"1": "one", "2": "two"}, [], "2"),
        (2, {"1": "one", "2": "two"}, [], "2"),
    ],
)
def test_the_other_rows_tell_text_letter_and_number_apart(answer, options, others, letter):
    assert choose(ask(answer, options), *others) == letter


@pytest.mark.parametrize(
    ("answer", "options"),
    [
        (2, ["1", "2", "3", "4"]),
        ("2", ["1", "2", "3", "4"]),
        ("A", ["O", "A", "AB"]),
        (1, ["False", "True"]),  # counted from 0 "True", from 1 "False"
        (0, ["True", "False"]),  # counted from 0 "True", as a boolean "False"
        (1, {"0": "x", "1": "y"}),  # as the row numbers them, y; its source also has 2 of 2
    ],
)
def test_an_answer_that_can_mean_two_options_is_refused(answer, options):
    with pytest.raises(UndecidedRow):
        choose(ask(answer, options), *([ask(2, options)] if isinstance(options, dict) else []))


def test_words_and_numbers_of_one_source_are_decided_apart():
    rows = [ask("Water"), ask("C"), ask(0)]
    assert [choose(row, *rows) for row in (*rows, ask(1))] == ["B", "C", "A", "B"]


# ---------------------------------------------------------------------------------------------------------------------
# booleans


@pytest.mark.parametrize("options", [["True", "False"], ["false", "true"], ["Yes", "No", "Maybe"]])
@pytest.mark.parametrize("answer", [True, False, "true", "False"])
def test_a_boolean_is_the_option_that_says_so(options, answer):
    letter = choose(ask(answer, options))
    said = options["ABC".index(letter)].casefold()
    assert said in (("true", "yes") if str(answer).casefold() == "true" else ("false", "no"))


@pytest.mark.parametrize("answer", [True, False])
def test_a_boolean_beside_other_options_is_refused(answer):
    with pytest.raises(BadRow, match=f"its answer is {json.dumps(answer)}; expected one of A, B"):
        choose(ask(answer))


# ---------------------------------------------------------------------------------------------------------------------
# contradictions, and what is no option


@pytest.mark.parametrize(
    "more",
    [
        {"answer": "Butter", "answer_idx": "B"},
        {"answer": "Butter", "answer_letter": "B"},
        {"answer_letter": "A", "answer": "B"},
        {"answer_idx": 0, "answer": "Butter"},
        {"answer_idx": "B", "label": "C"},
        {"cop": 3, "answer": "A"},
    ],
)
def test_fields_that_name_different_options_are_refused(more):
    with pytest.raises(BadRow) as error:
        choose({"question": Q, "options": WORDS, **more})
    assert "its fields name different options as right: `" in str(error.value)
    assert "columns: {question: question, options: options, answer_letter: " in str(error.value)


def test_naming_the_column_that_counts_settles_a_contradiction():
    row = {"question": Q, "options": WORDS, "answer": "Butter", "answer_idx": "B"}
    named = {"question": "question", "options": "options", "answer_letter": "answer_idx"}
    assert shapes.to_messages(row, named)[1]["content"] == "Water"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (
            {"options": LETTERS, "answer": "Sand"},
            'its answer is "Sand"; expected one of A, B, C, D, the number of an option, or its text',
        ),
        ({"options": LETTERS, "answer": "E"}, 'its answer is "E"'),
        ({"options": LETTERS, "answer": "B) Ice"}, 'its answer is "B) Ice"'),
        ({"options": LETTERS, "answer": "Sand", "answer_idx": "B"}, 'its answer is "Sand"'),
        ({"options": WORDS, "answer": 5}, "its answer is 5"),
        ({"options": WORDS, "answer": -1}, "its answer is -1 (-1 stands for an answer that is not"),
        ({"options": WORDS, "answer": None}, "its answer is null"),
        ({"options": WORDS, "answer": ["A"]}, 'its answer is ["A"]'),
        ({"options": WORDS, "answer": {"A": 1}}, 'its answer is {"A": 1}'),
        ({"options": WORDS, "answer": "9" * 400}, 'its answer is "999'),
        (
            {"options": "ice or water", "answer": "A"},
            'its options are "ice or water"; expected a list of texts, or {letter: text}',
        ),
        ({"options": "A) Ice C) Water", "answer": "A"}, 'its options are "A) Ice C) Water"'),
        ({"options": ["Ice"], "answer": 0}, 'its options are {"A": "Ice"}'),
        ({"options": {"A": "Ice", "B": None}, "answer": "A"}, "its options are"),
        ({"options": [["Ice"], ["Water"]], "answer": 0}, "its options are"),
        ({"options": ["Ice", {"key": "B", "value": "Water"}], "answer": 0}, "its options are"),
        ({"options": '{"A": "Ice", "A": "Water"}', "answer": "A"}, "`A` is named twice"),
    ],
)
def test_a_choice_without_options_or_without_a_right_one_shows_what_it_has(more, expected):
    with pytest.raises(BadRow) as error:
        choose({"question": Q, **more})
    assert expected in str(error.value)


# ---------------------------------------------------------------------------------------------------------------------
# whole files, as data and as exam


def answers(rows):
    return [row["messages"][-1]["content"] for row in rows]


def test_medmcqa_is_read_from_0_and_from_1(tmp_path):
    row = {"question": Q, **COLUMNS, "exp": "Ans. is 'b'", "subject_name": "First aid"}
    for first in (0, 1):
        path = jsonl(
            tmp_path / f"from{first}.jsonl",
            *({**row, "id": str(i), "cop": n + first} for i, n in enumerate((1, 2, 1, 0, 3))),
        )
        read = Read(path)
        assert answers(read) == ["Water", "Butter", "Water", "Ice", "Toothpaste"]
        assert read[0]["topic"] == "First aid"
        assert read[0]["messages"][0]["content"] == ASKED
        items = exam_items.read_items(str(path))
        assert [item["answer_letter"] for item in items] == ["B", "C", "B", "A", "D"]
        assert items[0]["topic"] == "First aid"


def test_a_file_that_leaves_its_base_open_asks_for_it(tmp_path):
    path = jsonl(
        tmp_path / "open.jsonl", *({"question": Q, **COLUMNS, "cop": n} for n in (1, 2, 3))
    )
    told = refused(path)
    assert "open.jsonl, line 1: its `cop` 1 is option B counted from 0, A counted from 1" in told
    assert "answer_numbers: from_0, from_1 or text" in told
    assert answers(Read(path, answer_numbers="from_0")) == ["Water", "Butter", "Toothpaste"]
    assert answers(Read(path, answer_numbers="from_1")) == ["Ice", "Water", "Butter"]
    with pytest.raises(UserError, match="no row of the set tells which"):
        exam_items.read_items(str(path))


def test_answer_numbers_that_a_row_contradicts_is_refused(tmp_path):
    path = jsonl(tmp_path / "zero.jsonl", *({"question": Q, **COLUMNS, "cop": n} for n in (1, 0)))
    assert "not counted from 0 in answer_numbers (from_1)" in refused(path, answer_numbers="from_1")
    words = jsonl(tmp_path / "words.jsonl", ask("Water"), ask("C"), ask(1))
    assert answers(Read(words, answer_numbers="from_1")) == ["Water", "Butter", "Ice"]


def test_each_source_of_a_list_has_its_own_base(tmp_path):
    for first in (0, 1):
        jsonl(tmp_path / f"{first}.jsonl", *(ask(n + first) for n in (0, 1, 2, 3)))
    read = Read([str(tmp_path / "0.jsonl"), str(tmp_path / "1.jsonl")])
    assert answers(read) == WORDS * 2


def test_a_table_of_true_and_false_trains_what_it_says(tmp_path):
    path = jsonl(
        tmp_path / "burns.jsonl",
        {"question": "Butter is right.", "options": ["True", "False"], "answer": False},
        {"question": "Water is right.", "options": ["True", "False"], "answer": True},
    )
    assert answers(Read(path)) == ["False", "True"]
    assert [item["answer_letter"] for item in exam_items.read_items(str(path))] == ["B", "A"]
    table = tmp_path / "burns.csv"
    table.write_text("question,A,B,answer\nButter is right.,True,False,false\n")
    assert answers(Read(table)) == ["False"]


@pytest.mark.parametrize(
    "options",
    [
        [f"{letter}) {text}" for letter, text in LETTERS.items()],
        [f"({letter.lower()}) {text}" for letter, text in LETTERS.items()],
        [f"{letter}. {text.lower()}" for letter, text in LETTERS.items()],
        {letter: f"{letter}: {text}" for letter, text in LETTERS.items()},
    ],
)
@pytest.mark.parametrize("form", ["B", "B) Water", "Water"])
def test_an_options_own_letter_is_not_written_twice(options, form):
    asked, answered = shapes.to_messages(ask(form, options))
    assert asked["content"].lower() == ASKED.lower()
    assert answered["content"].lower() == "water"


@pytest.mark.parametrize(
    "options",
    [
        ["A. baumannii", "B. cereus"],
        ["A) Ice", "C) Water"],
        ["1.5 mg", "2 mg"],
        ["A fever", "B cells"],
        ["A) Ice", "Water"],
    ],
)
def test_a_letter_that_is_part_of_an_option_stays(options):
    asked = shapes.to_messages(ask(options[1], options))[0]["content"]
    assert asked == f"{Q}\n\nA) {options[0]}\nB) {options[1]}"


@pytest.mark.parametrize(
    "options", [["x", "x"], ["x", "y", " x "], {"A": "x", "B": "x"}, ["A) x", "B) x"]]
)
def test_a_row_with_two_options_that_are_the_same_is_dropped(options):
    with pytest.raises(DroppedRow, match="options A and [BC] are the same") as dropped:
        shapes.to_messages(ask("B", options))
    assert dropped.value.reason == "options_repeated"
    # genotypes differ in case alone
    assert shapes.to_messages(ask("B", ["AA", "Aa", "aa"]))[1]["content"] == "Aa"
