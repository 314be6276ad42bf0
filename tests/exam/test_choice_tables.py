"""Both forms of an exam as tables and as a section of results.json.

python -m pytest tests/exam/test_choice_tables.py
"""

import pytest

from helpers import two_forms
from lib.exam import choice_tables, tables


@pytest.fixture
def entry():
    return two_forms.entry()


def test_both_forms_are_shown_and_the_headline_is_the_first(entry):
    (first, rows), (second, letters), *_ = choice_tables.score_tables(entry)
    assert "by the options' text (likelihood per character)" in first
    assert "base begins its answer with one of the letters" in first
    assert "by letter" in second
    assert [row["right"] for row in rows] == ["1 of 4", "3 of 4", "3 of 4"]
    assert [row["bits per byte"] for row in rows] == ["2.000", "1.500", "1.500"]
    assert [row["right"] for row in letters] == ["2 of 4"] * 3
    assert "perplexity" in rows[0]
    assert "perplexity" not in letters[0]


def test_letters_come_first_where_the_models_answer_with_letters(entry):
    for result in entry["models"].values():
        result["letter_mass"] = 0.9
        for order in result["orders"]:
            order["letters"] = {"A": {"chosen": 0.5, "right": 0.5}}
    (first, rows), (second, _), *_ = choice_tables.score_tables(entry)
    assert "by letter: every model answers with letters, and prefers none" in first
    assert "by the options' text" in second
    assert "perplexity" in rows[0]
    section = choice_tables.exam_section(entry)
    assert section["headline"] == "letters"
    changed = choice_tables.comparison_rows(entry)
    assert [row["form"] for row in changed] == ["by letter"] * 2 + ["by the options' text"] * 2


def test_what_changed_has_a_row_for_each_pair_and_form(entry):
    rows = choice_tables.comparison_rows(entry)
    assert [(row["after"], row["form"], row["gained"]) for row in rows] == [
        ("merged", "by the options' text", 2),
        ("q8_0", "by the options' text", 2),
        ("merged", "by letter", 0),
        ("q8_0", "by letter", 0),
    ]
    assert (rows[0]["bits per byte"], rows[2]["bits per byte"]) == ("-0.500", "-")


def test_the_section_keeps_the_letters_keys_and_has_the_others_below(entry):
    section = choice_tables.exam_section(entry)
    assert (section["base_correct"], section["tuned_correct"], section["gained"]) == (2, 2, 0)
    for pair in (section, section["q8_0"]):
        assert pair["completion"]["normalised"] == "character"
        assert (pair["completion"]["base_correct"], pair["completion"]["tuned_correct"]) == (1, 3)
        assert (pair["completion"]["gained"], pair["completion"]["lost"]) == (2, 0)
        bits = pair["bits_per_byte"]
        assert (bits["base"], bits["tuned"], bits["difference"]) == (2.0, 1.5, -0.5)
        assert (bits["better"], bits["worse"]) == (4, 0)
    assert section["headline"] == "completion"


def test_a_record_of_letters_alone_has_neither(entry):
    for result in entry["models"].values():
        del result["completion"], result["bits_per_byte"]
    for pair in entry["comparisons"]:
        del pair["completion"], pair["bits_per_byte"]
    ((caption, rows),) = choice_tables.score_tables(entry)
    assert "by letter: the likelihood of the texts was not measured" in caption
    assert len(choice_tables.comparison_rows(entry)) == 2
    assert "form" not in choice_tables.comparison_rows(entry)[0]
    assert not {"headline", "completion", "bits_per_byte"} & set(choice_tables.exam_section(entry))


def test_the_terminal_shows_what_the_page_shows(entry):
    text = tables.format_entry(entry)
    for caption, rows in tables.exam_tables({"bundled:exam": entry}):
        for row in rows:
            assert all(str(value) in text for value in row.values()), caption
