"""A multiple-choice exam on the first screen.

python -m pytest tests/pages/test_exam_figures.py
"""

from helpers import two_forms
from lib.exam.choice_tables import exam_section
from lib.pages import card_tables, exam_figures


def test_the_first_screen_has_the_first_form_and_the_bits():
    right, bits = exam_figures.exam_numbers(two_forms.entry(), "merged")
    assert right["name"] == "exam bundled:exam, right by the options' text (merged)"
    assert right["value"] == "3 of 4"
    assert "base 1, p = 0.5 (McNemar); by letter 2, base 2" in right["note"]
    assert bits["value"] == "2.000 → 1.500"
    assert "-0.500, 95 % -0.500 to -0.500; better on 4 of 4, paired" in bits["note"]


def test_a_record_of_letters_alone_has_one_number():
    entry = two_forms.entry()
    for result in entry["models"].values():
        del result["completion"], result["bits_per_byte"]
    (right,) = exam_figures.exam_numbers(entry, "merged")
    assert (right["name"], right["value"]) == ("exam bundled:exam, right (merged)", "2 of 4")
    del entry["models"]["base"]
    entry["comparisons"] = []
    assert "base not measured" in exam_figures.exam_numbers(entry, "merged")[0]["note"]


def test_a_card_has_a_table_for_each_form_the_first_first():
    tables = dict(card_tables.list_sections({"exam": exam_section(two_forms.entry())}))
    title = "Multiple-choice exam, same harness for all"
    shown = [name for name, table in tables.items() if name.startswith(title) and table]
    assert [name.removeprefix(f"{title}, ") for name in shown] == [
        "by the options' text",
        "by letter",
        "bits per byte of the right option",
    ]
    texts, letters, bits = ({row[0]: row[1:] for row in tables[name]} for name in shown)
    assert texts[""] == letters[""] == bits[""] == ["this run", "q8_0"]
    assert texts["tuned correct"] == ["3 of 4 (75.0%)"] * 2
    assert letters["tuned correct"] == ["2 of 4 (50.0%)"] * 2
    assert bits["difference"] == ["-0.5", "-0.5"]
    assert "headline" not in letters
