r"""Templated texts read back into turns, and those that are not.

python -m pytest tests/data/reading/test_templated.py
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.cleaning import row
from helpers.odd_texts import any_of, any_text
from lib.data.cleaning.control_tokens import has_control_token
from lib.data.reading.templated import read_turns

SYSTEM = [{"role": "system", "content": "Be brief."}]
TWO = row("It bleeds?", "Press on it.\n\nHold it.", "And then?", "Wait.")
ALPACA = "Below is an instruction that describes a task. Write a response that completes it.\n\n"
VICUNA = "A chat between a user and an assistant. The assistant helps."


def write(messages, form):
    """Return a conversation with each turn in the form of its role."""
    return "".join(form[m["role"]].format(m["content"]) for m in messages)


def chatml(name, first="<|im_start|>", closer="\n", end="<|im_end|>\n"):
    return {
        role: f"{first}{name.get(role, role)}{closer}{{}}{end}"
        for role in ("system", "user", "assistant")
    }


GEMMA = chatml({"assistant": "model"}, "<start_of_turn>", "\n", "<end_of_turn>\n")
GEMMA_4 = chatml({"assistant": "model"}, "<|turn>", "\n", "<turn|>\n")
LLAMA_3 = chatml({}, "<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>")
LLAMA_4 = chatml({}, "<|header_start|>", "<|header_end|>\n\n", "<|eot|>")
GRANITE = chatml({}, "<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>\n")
PHI = chatml({}, "<|", "|>\n", "<|end|>\n")
ZEPHYR = chatml({}, "<|", "|>\n", "</s>\n")
DEEPSEEK = {
    "system": "{}",
    "user": "<｜User｜>{}",
    "assistant": "<｜Assistant｜>{}<｜end▁of▁sentence｜>",
}


@pytest.mark.parametrize("messages", [TWO, TWO[:2], SYSTEM + TWO, SYSTEM + TWO[:2]])
@pytest.mark.parametrize(
    ("before", "form"),
    [
        ("<bos>", GEMMA),
        ("", GEMMA),
        ("<bos>", GEMMA_4),
        ("", chatml({})),
        ("<|begin_of_text|>", LLAMA_3),
        ("<|begin_of_text|>", LLAMA_4),
        ("", GRANITE),
        ("", PHI),
        ("<s>", ZEPHYR),
        ("<｜begin▁of▁sentence｜>", DEEPSEEK),
    ],
)
def test_turns_with_control_tokens_are_read_back(messages, before, form):
    assert read_turns(before + write(messages, form)) == messages


def test_turns_of_llama_2_are_read_back():
    asked = (
        "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nIt bleeds? [/INST] Press on it.\n\nHold it. </s>"
    )
    more = "<s>[INST] And then? [/INST] Wait. </s>"
    assert read_turns("<s>" + asked + more) == SYSTEM + TWO
    assert read_turns("[INST] It bleeds? [/INST] Press.") == row("It bleeds?", "Press.")
    assert read_turns("[INST] HR <60 [a] ok? [/INST] Yes, [b] <60.</s>") == row(
        "HR <60 [a] ok?", "Yes, [b] <60."
    )


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        (ALPACA + "### Instruction:\nIt bleeds?\n\n### Response:\nPress.<eos>", row("It bleeds?", "Press.")),
        (
            ALPACA + "### Instruction:\nWhat now?\n\n### Input:\nIt bleeds.\n\n### Response:\nPress.</s>",
            row("What now?\n\nIt bleeds.", "Press."),
        ),
        ("### Human: It bleeds?\n### Assistant: Press.", row("It bleeds?", "Press.")),
        ("Human: It bleeds?\n\nAssistant: Press.", row("It bleeds?", "Press.")),
        ("Question: It bleeds?\nAnswer: Press.", row("It bleeds?", "Press.")),
        (
            VICUNA + " USER: It bleeds? ASSISTANT: Press.</s>USER: Then? ASSISTANT: Wait.</s>",
            [{"role": "system", "content": VICUNA}, *row("It bleeds?", "Press.", "Then?", "Wait.")],
        ),
        # the last turn's end token was left for the tokenizer to add
        ("<|im_start|>user\nIt bleeds?<|im_end|>\n<|im_start|>assistant\nPress.", row("It bleeds?", "Press.")),
        # and a padded text
        (write(TWO[:2], chatml({})) + "<|endoftext|><|endoftext|>", TWO[:2]),
        # the head of a turn that the model should write
        (write(TWO, GEMMA) + "<start_of_turn>model\n", TWO),
    ],
)  # fmt: skip
def test_other_ways_to_write_turns_are_read_back(text, turns):
    assert read_turns(text) == turns


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Press on the wound.",
        "<s>Press on the wound.</s>",
        "Question: a\nAnswer: b\nQuestion: c\nAnswer: d",
        "A: airway\nB: breathing",
        write(TWO, GEMMA).replace("<end_of_turn>\n<start_of_turn>model", "<start_of_turn>model", 1),
        "junk " + write(TWO, GEMMA),
        write(TWO, GEMMA) + "junk",
        write(TWO, chatml({})).replace("user", "ipython", 1),
        write(TWO[:1], GEMMA),
        # cut off by a length limit
        "<start_of_turn>user\nIt bleeds?<end_of_turn>\n<start_of_turn>model\nPress on the wou",
        # one template within another
        write(row("It bleeds?", "Press.</s><s>[INST] And? [/INST] Wait."), GEMMA),
        write(row("It bleeds?", "Press.<|im_end|> More."), GEMMA),
        ALPACA + "### Instruction:\na\n\n### Response:\nb\n\n### Instruction:\nc",
        "[INST] a [/INST] b </s> [INST] c",
    ],
)
def test_what_is_no_template_or_not_clear_is_not_read(text):
    assert read_turns(text) is None


@any_of
@given(st.lists(any_text, min_size=2, max_size=4), st.sampled_from([GEMMA, PHI, LLAMA_3, ZEPHYR]))
def test_what_is_read_is_what_was_written(texts, form):
    messages = row(*(texts if len(texts) % 2 == 0 else texts[:-1]))
    turns = read_turns(write(messages, form))
    if turns is not None:
        assert not any(has_control_token(turn["content"]) for turn in turns)
        contents = [m["content"].strip() for m in messages]
        # an empty last turn is one that the model should write
        assert [t["content"] for t in turns] == (contents if contents[-1] else contents[:-1])


@pytest.mark.parametrize(
    "sign",
    ["<start_of_turn>user\n", "[INST]", "<s>", "### Human: a\n", "USER: a ", "A chat between. ", "<|user|>\n</s>", ". "],
)  # fmt: skip
def test_no_text_takes_more_than_linear_time(sign):
    assert read_turns(sign * (900_000 // len(sign))) is None
