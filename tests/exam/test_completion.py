"""The completion form: the prompt's end, how an option's length counts, bits per byte.

python -m pytest tests/exam/test_completion.py
"""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lib.common.errors import UserError
from lib.data.reading import exam_items
from lib.exam import completion


@pytest.fixture(scope="module")
def tokenizer(tiny_gemma3n):
    return AutoTokenizer.from_pretrained(tiny_gemma3n)


def item(options, answer="A", number=1):
    keys = "ABCDE"[: len(options)]
    return {
        "id": f"q{number}",
        "topic": "burns",
        "question": "What now?",
        "options": dict(zip(keys, options, strict=True)),
        "answer_letter": answer,
    }


def test_the_question_alone_is_asked_and_the_option_is_the_answer(tokenizer):
    """The prompt is what a model that answers would get, and the whole is the template's own."""
    items = [item(["cool it", " a dry cloth\n"]), item(["stop", "wait for help"], number=2)]
    for asked, row in zip(items, completion.text_continuations(items, tokenizer), strict=True):
        user = {"role": "user", "content": asked["question"]}
        prompt = tokenizer.apply_chat_template([user], add_generation_prompt=True)["input_ids"]
        for (ids, answer), text in zip(row, asked["options"].values(), strict=True):
            assert ids == prompt
            assert tokenizer.decode(answer) == text.strip()
            turns = [user, {"role": "assistant", "content": text.strip()}]
            whole = tokenizer.apply_chat_template(turns)["input_ids"]
            assert whole[: len(ids + answer)] == ids + answer


def test_pubmedqas_answers_are_single_words_behind_the_abstract(tokenizer):
    row = exam_items.convert_pubmedqa(
        {
            "pubid": 7,
            "context": {"contexts": ["Cold water cools a burn.", "Ice does not."]},
            "question": "Is ice better?",
            "final_decision": "no",
        }
    )
    asked = exam_items._to_item(row, "row 1", exam_items.multiple_choice.find_habits([("", row)]))
    (options,) = completion.text_continuations([asked], tokenizer)
    assert [tokenizer.decode(answer) for _, answer in options] == ["yes", "no", "maybe"]
    assert "Ice does not.\n\nIs ice better?<end_of_turn>" in tokenizer.decode(options[0][0])
    two = [asked, asked | {"id": "8"}]
    assert completion.choose_normalisation(two) == "sum", "labels: maybe is no longer answer"
    assert completion.choose_normalisation([asked, item(["a", "b"])]) == "character"
    assert completion.choose_normalisation([asked]) == "character"


def test_a_tokenizer_that_joins_prompt_and_option_is_refused(tokenizer):
    class Joins:
        def apply_chat_template(self, *args, **options):
            return tokenizer.apply_chat_template(*args, **options) + "the wat"

        def __call__(self, texts, **options):
            return tokenizer(texts, **options)

    with pytest.raises(UserError, match="joins option A of item q1 with the end of the prompt"):
        completion.text_continuations([item(["er", "x"])], Joins())


def test_each_length_chooses_as_it_says():
    asked = item(["ab", "abcdefghij", "é"])
    judged = completion.judge_item(asked, [1, 5, 1], [-4.0, -10.0, -2.5], "character")
    assert judged["chosen_by"] == {"sum": "C", "token": "B", "character": "B"}
    assert (judged["chosen"], judged["right"]) == ("B", False)
    assert completion.judge_item(asked, [1, 5, 1], [-4.0, -10.0, -2.5], "sum")["chosen"] == "C"
    assert judged["scores"] == {"A": -4.0, "B": -10.0, "C": -2.5}


def test_bits_are_per_byte_of_the_right_options_text():
    """é has one character and two bytes."""
    asked = item(["x", "é"], "B")
    judged = completion.judge_item(asked, [1, 1], [-1.0, -3 * math.log(2)], "character")
    assert completion.bits_per_byte(asked, judged) == pytest.approx(1.5)


def test_an_option_without_text_is_never_chosen_and_has_no_bits():
    asked = item([" ", "press", "wait"])
    judged = completion.judge_item(asked, [0, 2, 2], [0.0, -9.0, -8.0], "character")
    assert set(judged["chosen_by"].values()) <= {"B", "C"}
    assert completion.bits_per_byte(asked, judged) is None


def results(rows):
    """Return results from (right, bits per byte)."""
    found = []
    for number, (right, bits) in enumerate(rows):
        asked = item(["a", "b"], number=number)
        judged = completion.judge_item(
            asked, [1, 1], [-1.0, -2.0] if right else [-2.0, -1.0], "sum"
        )
        found.append(
            {
                "id": asked["id"],
                "topic": "burns" if number % 2 else "bites",
                "answer": "A",
                "completion": judged,
                **({} if bits is None else {"bits_per_byte": bits}),
            }
        )
    return found


def test_the_summary_counts_every_length_and_averages_the_bits():
    found = completion.summarise_results(
        results([(True, 1.0), (False, 2.0), (True, 1.5), (True, None)]), "sum"
    )
    assert (found["completion"]["right"], found["completion"]["of"]) == (3, 4)
    assert found["completion"]["by"] == {"sum": 3, "token": 3, "character": 3}
    assert found["completion"]["topics"]["burns"]["right"] == 1
    assert found["completion"]["interval"][0] < 0.75 < found["completion"]["interval"][1]
    bits = found["bits_per_byte"]
    assert (bits["mean"], bits["items"]) == (1.5, 3)
    assert 1.0 <= bits["interval"][0] < 1.5 < bits["interval"][1] <= 2.0


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.floats(-1, 1)), min_size=2, max_size=20))
def test_two_models_are_paired_by_item(rows):
    before = results([(old, 1.0) for old, _, _ in rows])
    after = results([(new, 1.0 + change) for _, new, change in rows])
    chosen, bits = completion.compare_results(before, after)
    assert chosen["gained"] == sum(new and not old for old, new, _ in rows)
    assert chosen["lost"] == sum(old and not new for old, new, _ in rows)
    changes = [b["bits_per_byte"] - a["bits_per_byte"] for a, b in zip(before, after, strict=True)]
    assert bits["difference"] == pytest.approx(sum(changes) / len(changes))
    assert bits["better"] == sum(change < 0 for change in changes)
    low, high = bits["interval"]
    assert min(changes) - 1e-9 <= low <= high <= max(changes) + 1e-9
    with pytest.raises(ValueError, match="same items"):
        completion.compare_results(before, after[1:])
