r"""Texts with lost characters, and answers that stop in the middle.

python -m pytest tests/data/cleaning/test_damage.py
"""

import time

import pytest

from helpers.cleaning import cleaned, job, reason, row
from lib.data.cleaning import clean, damage

LOST = ["Give 5 \ufffdg.", "don?t", "37 ?C", "(cid:3)ever", "Dose:\ufffc", "5 \ue123g", "5 ï¿½g"]
CUT = [
    "It may be that the level of the lactic acid dehy ChatDoctor.",
    "Take this to relieve the pai Chat Doctor.",
    "Give 5 mL of [truncated]",
    "Take aspirin [...]",
    "Lay the person down ... Read more »",
    "It is good.\nRead more",
    "Do the following:",
    "Press the wound and (hold",
    "Rinse, dry,",
    "Use a mild anti-",
    "Then you turn the",
    "Then you turn the person and",
]
WHOLE = [
    "Hope this helps. ChatDoctor.",
    "Best regards, Chat Doctor.",
    "Wish you good health ChatDoctor.",
    "Ask me on ChatDoctor.",
    "HCO3-",
    "CD5+, FMC7-",
    "t(9;22)(q34;q11)",
    "AG = [Na+] - ([Cl-] + [HCO3-])",
    "Get well soon :(",
    "Read more about it at the clinic.",
    'It is called "the"',
    "one and/or",
    "==Sources==",
    "See https://a.org/x-",
    "OR",
]


@pytest.mark.parametrize("text", LOST)
def test_a_text_with_lost_characters_is_dropped_flagged_or_left_as_told(text):
    assert reason("What?", text, damaged_text="drop") == "lost_characters"
    assert reason(text + "?", "Rest.", damaged_text="drop") == "lost_characters"
    _, why, changed = clean.clean_row(row("What?", text), job(damaged_text="flag"))
    assert why == ""
    assert changed["lost_characters_flagged"][1] == "characters were lost"
    assert reason("What?", text) == ""


@pytest.mark.parametrize("text", CUT)
def test_an_answer_that_stops_in_the_middle_is_dropped_flagged_or_left_as_told(text):
    assert reason("What?", text, damaged_text="drop", language="en") in ("cut_off", "link_list")
    _, why, changed = clean.clean_row(row("What?", text), job(damaged_text="flag", language="en"))
    assert why == ""
    assert changed["cut_off_flagged"] == (text[-100:], "stops in the middle")
    assert reason("What?", text) == ""
    assert reason(text, "Rest.", damaged_text="drop") == "", "a question may end as it likes"


@pytest.mark.parametrize("text", WHOLE)
def test_a_whole_answer_is_not_taken_for_one_that_stops(text):
    assert damage.find_cut(text, "en") == ""


def test_only_english_words_call_for_more():
    assert damage.find_cut("Rufen Sie den Notarzt an", "de") == ""
    assert damage.find_cut("Rufen Sie den Notarzt an", "") == ""
    assert damage.find_cut("Rufen Sie den Notarzt,", "de") == "Rufen Sie den Notarzt,"


@pytest.mark.parametrize(
    ("answer", "is_flagged"),
    [
        ("Cool it under water. Then cover the burn with a clean", True),
        ("Cool it under water. Then cover the burn with a clean cloth.", False),
        ("Cool it under water. A list:\n- then cover it with a cloth", False),
        ("Cool it under water. See the page https://a.org", False),
        ("Cool it under water. Gauze, tape, scissors, gloves", False),
        ("Cool it under water. The Red Cross", False),
        ("Intramuscular adrenaline into the outer thigh", False),
        ("冷却伤口。然后用干净的布盖住。", False),
    ],
)
def test_an_answer_of_sentences_without_a_last_mark_is_counted_and_kept(answer, is_flagged):
    _, why, changed = clean.clean_row(row("What?", answer), job(damaged_text="drop"))
    assert why == ""
    assert ("no_end_mark_flagged" in changed) == is_flagged


def test_symbols_of_known_fonts_are_no_loss():
    assert cleaned("5 \uf06dg")[0] == "5 µg"
    assert reason("What?", "5 \uf06dg", damaged_text="drop") == ""


@pytest.mark.parametrize("unit", ["(", "a ", "ab-", "(cid:", "?", "\n", "…", "[ "])
def test_long_texts_take_linear_time(unit):
    text = unit * (500_000 // len(unit))
    started = time.perf_counter()
    damage.find_lost_characters(text)
    damage.find_cut(text, "en")
    damage.find_missing_end(text + "x")
    assert time.perf_counter() - started < 5
