"""Turns that do not alternate: joined, left out with a count, or left as they are to be dropped.

python -m pytest tests/data/cleaning/test_turn_order.py
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib import params
from lib.data.cleaning import clean, turn_order

SPEAKERS = {"s": "system", "u": "user", "a": "assistant", "m": "assistant"}


def talk(speakers):
    """A conversation of these speakers, with different texts; m is a masked answer."""
    return [
        {"role": SPEAKERS[who], "content": f"Turn {n} says this."}
        | ({"masked": "yes"} if who == "m" else {})
        for n, who in enumerate(speakers)
    ]


def order(turns):
    return "".join("m" if "masked" in t else t["role"][0] for t in turns)


@pytest.mark.parametrize(
    ("speakers", "mended", "rules"),
    [
        ("ua", "ua", []),
        ("sua", "sua", []),
        ("uaua", "uaua", []),
        ("uua", "ua", ["merged_turns"]),
        ("uaa", "ua", ["merged_turns"]),
        ("ssua", "sua", ["merged_turns"]),
        ("aua", "ua", ["opening_answer"]),
        ("saua", "sua", ["opening_answer"]),
        ("aaua", "ua", ["merged_turns", "opening_answer"]),
        ("uau", "ua", ["unanswered_question"]),
        ("auauu", "ua", ["merged_turns", "opening_answer", "unanswered_question"]),
        ("umm", "um", ["merged_turns"]),
        # these stay as they are, and are dropped
        ("u", "u", []),
        ("a", "a", []),
        ("au", "au", []),
        ("", "", []),
        ("uasua", "uasua", []),
        ("uma", "uma", []),
    ],
)
def test_turns_are_put_in_order(speakers, mended, rules):
    turns, changed = turn_order.mend_order(talk(speakers), [])
    assert (order(turns), sorted(changed)) == (mended, sorted(rules))
    assert turn_order.mend_order(talk(speakers), turn_order.RULES) == (talk(speakers), {})


def test_joined_turns_hold_both_texts_once():
    both = [{"role": "user", "content": "Hi"}, {"role": "user", "content": "How long?"}]
    turns, changed = turn_order.mend_order(
        [*both, {"role": "assistant", "content": "An hour."}], []
    )
    assert turns[0]["content"] == "Hi\n\nHow long?"
    assert changed == {"merged_turns": ("Hi | How long?", "Hi\n\nHow long?")}
    turns, _ = turn_order.mend_order(
        [both[0], both[0], {"role": "assistant", "content": "Yes?"}], []
    )
    assert turns[0]["content"] == "Hi"


@given(st.text("suam", max_size=9))
def test_no_text_is_lost_without_being_named(speakers):
    before = talk(speakers)
    after, changed = turn_order.mend_order(before, [])
    said = "\n".join(turn["content"] for turn in after)
    left_out = "\n".join(old for rule, (old, _) in changed.items() if rule != "merged_turns")
    for turn in before:
        assert turn["content"] in said or turn["content"] in left_out
    masked = [t["content"] for t in before if "masked" in t]
    for turn in after:
        if turn["role"] == "assistant" and "masked" not in turn:
            assert not any(text in turn["content"] for text in masked)


JOB = params.check_values({"language": ""}, "test")


@pytest.mark.parametrize(
    ("speakers", "reason"),
    [
        ("aua", ""),
        ("uau", ""),
        ("uaa", ""),
        ("uasua", "turns_out_of_order"),
        ("u", "turns_out_of_order"),
        ("uma", "turns_out_of_order"),
        ("um", "nothing_trained"),
        ("aum", "nothing_trained"),
        ("umua", ""),
    ],
)
def test_what_cannot_be_put_in_order_is_dropped_with_a_reason(speakers, reason):
    messages, found, _ = clean.clean_row(talk(speakers), JOB)
    assert found == reason
    if not reason:
        assert order(messages) == ("umua" if speakers == "umua" else "ua")
    skipping = params.check_values({"language": "", "skip_rules": list(turn_order.RULES)}, "test")
    if speakers in ("aua", "uau", "uaa"):
        assert clean.clean_row(talk(speakers), skipping)[1] == "turns_out_of_order"
