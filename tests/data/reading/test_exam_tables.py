"""An exam as a table: CSV, TSV or a workbook, with a column for each option.

.venv/bin/python -m pytest tests/data/reading/test_exam_tables.py
"""

import csv
import json

import pytest

from lib.common.errors import UserError
from lib.data.reading import exam_items

HEADS = {
    "letters": ["id", "question", "A", "B", "C", "answer"],
    "named": ["id", "question", "option_a", "option_b", "option_c", "answer_letter"],
    "spoken": ["ID", "Question", "Option A", "Option B", "Option C", "Answer"],
    "medmcqa": ["id", "question", "opa", "opb", "opc", "answer"],
}
ROWS = [
    ["q1", "What stops bleeding?", "Pressure", "Prayer", "Walking", "A"],
    ["q2", "Whom do you call?", "Nobody", "The emergency number", "", "B"],
]


def write_csv(path, head, rows, delimiter=","):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([head, *rows])
    return str(path)


def write_xlsx(path, head, rows):
    import openpyxl

    book = openpyxl.Workbook()
    for row in [head, *rows]:
        book.active.append([value or None for value in row])
    book.save(path)
    return str(path)


def answers(items):
    return [(i["id"], list(i["options"].values()), i["options"][i["answer_letter"]]) for i in items]


WANTED = [
    ("q1", ["Pressure", "Prayer", "Walking"], "Pressure"),
    ("q2", ["Nobody", "The emergency number"], "The emergency number"),
]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", ["csv", "semicolons", "tsv", "xlsx"])
def test_each_row_is_an_item(tmp_path, head, kind):
    if kind == "xlsx":
        name = write_xlsx(tmp_path / "exam.xlsx", HEADS[head], ROWS)
    else:
        mark = {"csv": ",", "semicolons": ";", "tsv": "\t"}[kind]
        suffix = "tsv" if kind == "tsv" else "csv"
        name = write_csv(tmp_path / f"exam.{suffix}", HEADS[head], ROWS, mark)
    assert answers(exam_items.read_items(name)) == WANTED


def test_options_may_be_one_column_of_json(tmp_path):
    rows = [["q1", "Q?", json.dumps({"A": "a", "B": "b"}), "B"]]
    name = write_csv(tmp_path / "exam.csv", ["id", "question", "options", "answer"], rows)
    assert answers(exam_items.read_items(name)) == [("q1", ["a", "b"], "b")]


def test_the_answer_may_be_the_text_of_an_option(tmp_path):
    rows = [[*ROWS[0][:5], "Prayer"]]
    name = write_csv(tmp_path / "exam.csv", HEADS["letters"], rows)
    assert answers(exam_items.read_items(name))[0][2] == "Prayer"


@pytest.mark.parametrize("answer", ["", "D", "Running"])
def test_a_row_without_a_right_option_is_an_error_with_its_place(tmp_path, answer):
    name = write_csv(tmp_path / "exam.csv", HEADS["letters"], [ROWS[1], [*ROWS[0][:5], answer]])
    with pytest.raises(UserError, match=r"exam\.csv, line 3"):
        exam_items.read_items(name)
