"""Multiple choice by log-likelihood, against the model's own logits and against scores whose outcome is known.

python -m pytest tests/exam/test_choices.py
"""

import functools
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lib.common.errors import UserError
from lib.exam import choices
from lib.model import adapter
from lib.params import Params

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
    """Return (float32 model with an adapter that changes it, tokenizer)."""
    net = adapter.add(
        AutoModelForCausalLM.from_pretrained(tiny_gemma3n, dtype=torch.float32).requires_grad_(
            False
        ),
        Params(load_in_4bit=False, optim="adamw_torch"),
    )
    with torch.no_grad():
        for name, p in adapter.trainable(net).items():
            if "lora_B" in name:
                p.copy_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    return net.eval(), AutoTokenizer.from_pretrained(tiny_gemma3n)


def asked(tokenizer):
    pairs = [(item, list(item["options"])) for item in ITEMS[:5]]
    return choices.tokenise_questions(
        tokenizer,
        [choices.write_question(*pair) for pair in pairs],
        [len(order) for _, order in pairs],
    )


def test_the_question_is_one_user_turn_with_its_options_lettered_in_the_order_given():
    assert choices.write_question(ITEMS[1] | {"question": "Q?"}, ["C", "A", "B"]) == (
        "Q?\n\nA) rinse with water\nB) press\nC) wait for help\n\nAnswer with the letter of the right option alone."
    )


def test_prompts_end_where_the_letter_begins(tiny):
    """By the tokenizer's own template: one <bos>, and the prompt with a letter after it is the prompt's tokens and the letter's."""
    tokenizer = tiny[1]
    prompts, wanted = asked(tokenizer)
    text = choices.write_question(ITEMS[0], ["A", "B"])
    assert (
        prompts[0]
        == tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
    )
    assert all(ids.count(tokenizer.bos_token_id) == 1 for ids in prompts)
    assert tokenizer.convert_ids_to_tokens(wanted[2]) == list("ABCD")
    assert [len(letters) for letters in wanted] == [2, 3, 4, 2, 3]


def test_a_tokenizer_that_joins_the_letter_to_what_is_before_it_is_refused(tiny):
    class Joins:
        def apply_chat_template(self, *args, **options):
            return tiny[1].apply_chat_template(*args, **options) + "the answer is option "

        def __call__(self, text, **options):
            return (
                tiny[1](text, **options)
                if isinstance(text, list)
                else tiny[1](text.replace("option A", "optional"), **options)
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


def test_scores_are_the_log_softmax_of_the_models_own_logits(tiny):
    """The whole model, one prompt at a time, logits at every position: adapter and soft cap included."""
    net, tokenizer = tiny
    assert net.config.get_text_config().final_logit_softcapping
    prompts, wanted = asked(tokenizer)
    seen = []
    scores = choices.score_by_model(net, prompts, wanted, seen.append)
    with torch.no_grad():
        for ids, letters, row in zip(prompts, wanted, scores, strict=True):
            assert row == pytest.approx(
                torch.log_softmax(net(input_ids=torch.tensor([ids])).logits[0, -1].float(), 0)[
                    letters
                ].tolist(),
                abs=1e-4,
            )
    with net.disable_adapter():
        assert choices.score_by_model(net, prompts, wanted, seen.append)[0] != pytest.approx(
            scores[0], abs=1e-3
        )
    assert sum(seen) == 2 * sum(map(len, prompts))


def test_scores_do_not_depend_on_what_is_asked_together_nor_on_memory(tiny, monkeypatch):
    net, tokenizer = tiny
    prompts, wanted = asked(tokenizer)
    monkeypatch.setitem(choices.TOKENS_AT_ONCE, "cpu", 10**6)
    together = choices.score_by_model(net, prompts, wanted, lambda _: None)
    monkeypatch.setitem(choices.TOKENS_AT_ONCE, "cpu", 1)
    for one, other in zip(
        choices.score_by_model(net, prompts, wanted, lambda _: None), together, strict=True
    ):
        assert one == pytest.approx(other, abs=1e-4)
    body, weight, softcap = choices.loss.split_model(net)
    sizes = []

    def limited(most, input_ids, **more):
        sizes.append(len(input_ids))
        if len(input_ids) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return body(input_ids=input_ids, **more)

    monkeypatch.setitem(choices.TOKENS_AT_ONCE, "cpu", 10**6)
    monkeypatch.setattr(
        choices.loss, "split_model", lambda net: (functools.partial(limited, 2), weight, softcap)
    )
    for one, other in zip(
        choices.score_by_model(net, prompts, wanted, lambda _: None), together, strict=True
    ):
        assert one == pytest.approx(other, abs=1e-4)
    assert sizes[:2] == [5, 2]
    monkeypatch.setattr(
        choices.loss, "split_model", lambda net: (functools.partial(limited, 0), weight, softcap)
    )
    with pytest.raises(torch.OutOfMemoryError):
        choices.score_by_model(net, prompts, wanted, lambda _: None)


def test_letters_not_among_llama_cpps_likeliest_are_looked_up_in_the_whole_vocabulary():
    class Engine:
        def next_token_logprobs(self, ids, count=1000):
            return {n: -float(n) for n in range(min(count, 3000))}

    assert choices.score_by_gguf(Engine(), [[1], [1]], [[5, 7], [5, 2999]], lambda _: None) == [
        [-5, -7],
        [-5, -2999],
    ]
    assert math.isnan(choices.score_by_gguf(Engine(), [[1]], [[3001]], lambda _: None)[0][0])


def test_options_are_followed_through_the_shuffle(tiny):
    """A model that knows the answers is right in every order, whatever the letter of the answer."""
    tokenizer = tiny[1]
    right = {
        choices.write_question(item, order): order.index(item["answer_letter"])
        for item in ITEMS
        for order in choices.option_orders(item, 3, 7)
    }
    texts = [
        text
        for item in ITEMS
        for text in (
            choices.write_question(item, order) for order in choices.option_orders(item, 3, 7)
        )
    ]

    def knows(prompts, wanted, tick):
        return [
            [-1.0 if n == right[text] else -2.0 - n for n in range(len(letters))]
            for text, letters in zip(texts, wanted, strict=True)
        ]

    results = choices.ask_items(ITEMS, tokenizer, knows, shuffles=3, seed=7)
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


def test_a_model_that_always_says_a_shows_it(tiny):
    results = choices.ask_items(
        ITEMS,
        tiny[1],
        lambda prompts, wanted, tick: [[math.log(0.5) - n for n in range(len(w))] for w in wanted],
        shuffles=2,
    )
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
            choices.option_orders(item, 2, choices.SEED)[number][0] == item["answer_letter"]
            for item in ITEMS
        ]
        assert shown["accuracy"] == sum(drawn) / 8 == shown["letters"]["A"]["right"]


def test_no_number_is_an_error_and_not_a_choice(tiny):
    with pytest.raises(UserError, match="no finite likelihood for the letters after item q0"):
        choices.ask_items(
            ITEMS, tiny[1], lambda prompts, wanted, tick: [[math.nan] * len(w) for w in wanted]
        )


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
