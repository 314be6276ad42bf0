"""The letter form, against a tokenizer's own template and scores whose outcome is known.

python -m pytest tests/exam/test_choices.py
"""

import math

import pytest
from transformers import AutoTokenizer

from lib.common.errors import UserError
from lib.exam import choices

ITEMS = [
    {
        "id": f"q{n}",
        "topic": ("burns", "bites")[n % 2],
        "question": " ".join(["what stops the blood"] * (1 + 5 * (n % 3)) + ["now"] * n) + "?",
        "options": {
            key: text
            for key, text in zip(
                "ABCDE", ("press", "wait for help", "rinse with water", "walk", "sit"), strict=True
            )
            if key < "ABCDE"[2 + n % 3]
        },
        "answer_letter": "AB"[n % 2],
    }
    for n in range(8)
]


@pytest.fixture(scope="module")
def tiny(tiny_gemma3n):
    return AutoTokenizer.from_pretrained(tiny_gemma3n)


def asked(tokenizer):
    return choices.letter_continuations(ITEMS[:5], tokenizer, shuffles=1)


def test_the_question_is_one_user_turn_with_its_options_lettered_in_the_order_given():
    assert choices.write_question(ITEMS[1] | {"question": "Q?"}, ["C", "A", "B"]) == (
        "Q?\n\nA) rinse with water\nB) press\nC) wait for help\n\nAnswer with the letter of the right option alone."
    )


def test_prompts_end_where_the_letter_begins(tiny):
    """By the tokenizer's own template: one <bos>, and the letter after it is one token."""
    continuations = asked(tiny)
    text = choices.write_question(ITEMS[0], ["A", "B"])
    prompt, _ = continuations[0][0][0]
    assert (
        prompt
        == tiny.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
    )
    flat = [pair for orders in continuations for options in orders for pair in options]
    assert all(ids.count(tiny.bos_token_id) == 1 for ids, _ in flat)
    letters = [letter for _, (letter,) in continuations[2][0]]
    assert tiny.convert_ids_to_tokens(letters) == list("ABCD")
    assert [[len(options) for options in orders] for orders in continuations] == [
        [2, 2],
        [3, 3],
        [4, 4],
        [2, 2],
        [3, 3],
    ]


def test_a_tokenizer_that_joins_the_letter_to_what_is_before_it_is_refused(tiny):
    class Joins:
        def apply_chat_template(self, *args, **options):
            return tiny.apply_chat_template(*args, **options) + "the answer is option "

        def __call__(self, text, **options):
            return (
                tiny(text, **options)
                if isinstance(text, list)
                else tiny(text.replace("option A", "optional"), **options)
            )

    with pytest.raises(UserError, match="does not write the answer A as one token"):
        asked(Joins())


def test_shuffles_are_permutations_by_seed_and_id_alone():
    item = ITEMS[2]
    assert choices.option_orders(item, 0, 1) == [["A", "B", "C", "D"]]
    some = choices.option_orders(item, 40, 1)
    assert some[:6] == choices.option_orders(dict(item), 5, 1)
    assert all(sorted(order) == ["A", "B", "C", "D"] for order in some)
    assert len({tuple(order) for order in some}) > 12
    assert some != choices.option_orders(item, 40, 2)
    assert some[1:] != choices.option_orders(item | {"id": "other"}, 40, 1)[1:]


def judged(scores, shuffles):
    """Judge each item by `scores(item, order)`, its letters' log-probabilities."""
    results = []
    for item in ITEMS:
        orders = choices.option_orders(item, shuffles, 7)
        results.append(choices.judge_item(item, orders, [scores(item, o) for o in orders]))
    return results


def test_options_are_followed_through_the_shuffle():
    """A model that knows the answers is right in every order, whatever the letter of the answer."""

    def knows(item, order):
        return [-1.0 if key == item["answer_letter"] else -2.0 - n for n, key in enumerate(order)]

    results = judged(knows, 3)
    assert all(
        r["right"]
        and r["scores"][r["answer"]] == -1
        and all(
            s["chosen"] == r["answer"] and s["scores"][r["answer"]] == -1 for s in r["shuffled"]
        )
        for r in results
    )
    found = choices.summarise_results(results)
    assert [o["accuracy"] for o in found["orders"]] == [1, 1, 1, 1]
    assert all(
        share["chosen"] == share["right"]
        for o in found["orders"]
        for share in o["letters"].values()
    )


def test_a_model_that_always_says_a_shows_it():
    results = judged(lambda item, order: [math.log(0.5) - n for n in range(len(order))], 2)
    found = choices.summarise_results(results)
    assert (found["right"], found["of"], found["accuracy"]) == (
        4,
        8,
        0.5,
    )  # every other item's answer is A
    assert found["topics"]["burns"]["right"] == 4
    assert found["topics"]["bites"]["right"] == 0
    assert found["orders"][0]["letters"]["A"] == {"chosen": 1.0, "right": 0.5}
    assert found["by_chance"] == pytest.approx((3 / 2 + 3 / 3 + 2 / 4) / 8)
    assert found["letter_mass"] == pytest.approx(
        0.5
        * (
            3 * (1 + math.exp(-1))
            + 3 * (1 + math.exp(-1) + math.exp(-2))
            + 2 * sum(math.exp(-n) for n in range(4))
        )
        / 8,
        abs=1e-5,
    )
    for number, shown in enumerate(found["orders"][1:], 1):
        drawn = [
            choices.option_orders(item, 2, 7)[number][0] == item["answer_letter"] for item in ITEMS
        ]
        assert shown["accuracy"] == sum(drawn) / 8 == shown["letters"]["A"]["right"]


def test_before_and_after_are_paired():
    def results(right):
        return [{"id": n, "right": r} for n, r in enumerate(right)]

    found = choices.compare_results(
        results([True, True, False, False, False, False, False]),
        results([True, False, True, True, True, True, False]),
    )
    assert (found["gained"], found["lost"], found["difference"]) == (4, 1, pytest.approx(3 / 7))
    assert found["p"] == pytest.approx(
        2 * (1 + 5) / 2**5
    )  # 0 or 1 of 5, and as far to the other side
    assert found["interval"][0] < 3 / 7 < found["interval"][1]
    with pytest.raises(ValueError, match="same items"):
        choices.compare_results(results([True]), results([True, False]))
