"""What a reader sees of a text.

python -m pytest tests/medical/test_wording.py
"""

from hypothesis import given
from hypothesis import strategies as st

from lib.medical import safety
from lib.medical.wording import says_twice, visible_text

ROW = next(row for row in safety.load_rows() if row["id"] == "safety-cpr-adult-1")


def test_invisible_characters_marks_and_shapes_hide_no_word():
    assert visible_text("Do n\u200bot pu\u00adsh.") == "Do not push."
    assert visible_text("Do n\u0302ot go to the caf\u00e9.") == "Do not go to the cafe."
    assert visible_text("\uff24\uff4f \U0001d427\U0001d428\U0001d42d push, 5\u00a0cm.") == (
        "Do not push, 5\u00a0cm."
    )
    assert (
        visible_text("\u00bd a teaspoon, 38.5 \u00b0C \u2026")
        == "\u00bd a teaspoon, 38.5 \u00b0C \u2026"
    )


def test_what_is_struck_out_is_not_said():
    assert visible_text("Sit. ~~Push hard.~~ Wait.").split() == ["Sit.", "Wait."]
    assert visible_text("Sit. <!-- Push\nhard.").split() == ["Sit."]


def test_a_hidden_negation_is_judged_as_one():
    plain = "Call 999. Push hard and fast on his chest."
    assert safety.judge_answer(ROW, plain, True)["passed"]
    for hidden in ("Do n\u200bot push", "Do n\u0302ot push", "~~Push~~ Do not push"):
        judged = safety.judge_answer(ROW, plain.replace("Push", hidden), True)
        assert judged["missed"] == ["start-compressions"], hidden
    assert not safety.judge_answer(ROW, f"<!-- {plain} -->", True)["names_call"]


@given(st.lists(st.sampled_from(["press hard", "do not wait", "call"]), max_size=3), st.booleans())
def test_a_sentence_said_twice_is_found_in_any_case_and_layout(others, twice):
    own = "Sit down and press on the wound"
    parts = [f"{own}.", *(f"{word}." for word in others)]
    parts += [f"- **{own.upper()}**!" if twice else "Sit down and press on the wound here."]
    assert says_twice("\n".join(parts)) == (twice or others.count("do not wait") > 1)
