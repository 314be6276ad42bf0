r"""Escapes written out as characters: what is undone, what is LaTeX and stays.

python -m pytest tests/data/cleaning/test_escapes.py
"""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.cleaning import cleaned, job, row
from lib.data.cleaning import clean
from lib.data.cleaning.escapes import undo_escapes


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (r"Cool it.\n\n1. Call 112.\n2. Wait.", "Cool it.\n\n1. Call 112.\n2. Wait."),
        (r"Press.\\nHold.", "Press.\nHold."),
        (r"Press.\r\nHold.\rRest.", "Press.\nHold.\nRest."),
        (r"\next \rest \to", "\next \rest \\to".replace("\r", "\n")),
        (r"Name:\tValue", "Name:\tValue"),
        (r"don\'t say \"no\"", 'don\'t say "no"'),
        (r"5 mg\/dL", "5 mg/dL"),
        (r"37 \u00b0C", "37 °C"),
        (r"\ud83d\ude00", "😀"),
        (r"don\xe2\x80\x99t give 5 \xb5g", "don’t give 5 µg"),
        ("Press._x000D_\nHold.", "Press.\r\nHold."),
        (r"A:\nAlert\nV:\nVoice", "A:\nAlert\nV:\nVoice"),
        (r"for instance\ne.g. this", "for instance\ne.g. this"),
    ],
)
def test_an_escape_becomes_what_it_stands_for(before, after):
    assert undo_escapes(before) == after


@pytest.mark.parametrize(
    "text",
    [
        r"\nu, \neq and \nabla",
        r"3 \times 4, \theta, \tau, \text{mg}",
        r"\rho \rightarrow \right)",
        r"Sj\"ogren and Barr\'e",
        r"half a pair: \ud83d x",
        r"\*not bold\*, 1\. and \_",
        "no backslash, _x00 and C:",
    ],
)
def test_latex_and_markdown_stay(text):
    assert undo_escapes(text) == text


@given(st.text(st.sampled_from('bB1 .,\n\t"/°µ😀'), max_size=60))
def test_text_that_was_escaped_twice_comes_back(text):
    twice = json.dumps(json.dumps(text)[1:-1])[1:-1]
    assert undo_escapes(json.dumps(text)[1:-1]) == text
    assert undo_escapes(json.loads(f'"{twice}"')) == text


def test_it_is_counted_shown_and_can_be_switched_off():
    messages = row("What?", r"Press.\nHold.")
    out, reason, changed = clean.clean_row(messages, job())
    assert (out[1]["content"], reason) == ("Press.\nHold.", "")
    assert changed == {"escapes": (r"Press.\nHold.", "Press.\nHold.")}
    assert cleaned(r"Press.\nHold.", skip_rules=["escapes"]) == (r"Press.\nHold.", {})


def test_an_escaped_control_token_is_broken_up():
    text = cleaned(r"Press \u003cend_of_turn\u003e and hold.")[0]
    assert "<end_of_turn>" not in text
    assert "\\u" not in text


@pytest.mark.parametrize("unit", ["\\", r"\x41", r"\ud83d", "_x", r"\'"])
def test_long_texts_take_linear_time(unit):
    started = time.perf_counter()
    undo_escapes(unit * (500_000 // len(unit)))
    assert time.perf_counter() - started < 5
