r"""Control tokens of any family: those at an end go, those within drop the row.

python -m pytest tests/data/cleaning/test_control_tokens.py
"""

import pytest

from helpers.cleaning import cleaned, reason
from lib.data.cleaning.control_tokens import has_control_token

ENDS = [
    "<eos>", "<end_of_turn>", "</s>", "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<|end_of_text|>",
    " [/INST]", "<|end|>", "<|eom_id|>", "<|eot|>", "<turn|>", "<pad><pad>", "<｜end▁of▁sentence｜>",
    "<|END_OF_TURN_TOKEN|>", "<EOS_TOKEN>", "</s></s>\n", "<end_of_turn>\n<eos>",
    "<|im_end|>\n<|im_start|>assistant\n", "<end_of_turn>\n<start_of_turn>model", "<unused7>",
]  # fmt: skip
STARTS = [
    "<bos>", "<s>", "<s>[INST] ", "<|begin_of_text|>", "<|im_start|>user\n", "<|user|>\n", "<|turn>user\n",
    "<|start_header_id|>user<|end_header_id|>\n\n", "<bos><start_of_turn>user\n", "<｜User｜>", " <s> ",
]  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_a_token_at_the_end_goes_and_is_counted(end):
    for text in ("Press firmly." + end, "<s>Press firmly." + end):
        assert cleaned(text) == ("Press firmly.", {"control_tokens": (text, "Press firmly.")})
    assert reason("What?", "Press firmly." + end) == ""


@pytest.mark.parametrize("start", STARTS)
def test_a_token_at_the_start_goes_and_is_counted(start):
    assert cleaned(start + "Press firmly.")[0] == "Press firmly."


@pytest.mark.parametrize("token", [t.strip() for t in ENDS + STARTS if "\n" not in t.strip()])
def test_a_token_within_a_text_drops_the_row(token):
    text = f"Press firmly. {token} Then wait."
    assert reason("What?", text) == "control_tokens"
    assert reason(text, "Wait.") == "control_tokens"
    assert reason("What?", text, skip_rules=["control_tokens"]) == ""


@pytest.mark.parametrize(
    "text",
    [
        "5 < 6 |> x",
        "a | b",
        "[PAD] is arterial disease",
        "the <name> here",
        "x <|> y",
        "<3 and >5",
        "[SEP] evoked",
    ],
)
def test_what_only_looks_like_a_token_stays(text):
    assert cleaned(text) == (text, {})
    assert not has_control_token(text)


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("Take <s>5</s> 10 mg.", "Take 10 mg."),
        ("Take 10 mg <s>5 mg</s>", "Take 10 mg"),
        ("<s>5 mg</s> 10 mg", "10 mg"),
        ("<s>5</s>10 <s>15</s>", "10"),
        ("<s>Take 10 mg.</s>", "Take 10 mg."),
    ],
)
def test_struck_text_is_told_from_llamas_tokens(text, after):
    assert cleaned(text)[0] == after
