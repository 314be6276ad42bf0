"""Multiple choice by log-likelihood, one harness for a model in transformers, its adapter, its merged folder and each GGUF.

What is scored: the question, its options each after a letter and INSTRUCTION are one user turn of the model's own chat template, without
examples before it. An option's score is the log-probability, in nats and over the whole vocabulary, that the answer's first token is
its letter; the option with the highest one is chosen. Every item is asked in the order it is written in, which is what counts, and with
its options shuffled, which shows whether a model prefers a letter.

    results = choices.take(exam_items.read("bundled:exam"), tokenizer, functools.partial(choices.model_scores, net))
    choices.summary(results)
"""

import math
import random
import string
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from lib.common import stats
from lib.common.errors import UserError
from lib.common.progress import progress_bar
from lib.model import llama
from lib.training import loss

INSTRUCTION = "Answer with the letter of the right option alone."
LETTERS = string.ascii_uppercase
TOKENS_AT_ONCE = {
    "cpu": 1024,
    "cuda": 16384,
}  # padding included; on a CPU 4096 take a tenth more time, they leave its caches
SEED = 3407
Prompts, Wanted = (
    list[list[int]],
    list[list[int]],
)  # ids of each prompt, and of the letters asked for after it
Score = Callable[[Prompts, Wanted, Callable[[int], Any]], list[list[float]]]


# ---------------------------------------------------------------------------------------------------------------------
# what is asked


def question(item: dict[str, Any], order: list[str]) -> str:
    """The user turn: options by their keys in `order`, lettered anew from A."""
    listed = "\n".join(
        f"{letter}) {item['options'][key]}" for letter, key in zip(LETTERS, order, strict=False)
    )
    return f"{item['question']}\n\n{listed}\n\n{INSTRUCTION}"


def orders(item: dict[str, Any], shuffles: int, seed: int) -> list[list[str]]:
    """The options' keys as written, and shuffled so many times by seed and id, whatever other items there are."""
    keys = list(item["options"])
    return [
        keys,
        *(
            random.Random(f"{seed} {n} {item['id']}").sample(keys, len(keys))
            for n in range(shuffles)
        ),
    ]


def tokenise(tokenizer: Any, texts: list[str], counts: list[int]) -> tuple[Prompts, Wanted]:
    """Ids of user turns up to the model's answer, and of as many letters as each asks for; UserError unless a letter is one token there."""
    rendered = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        for text in texts
    ]
    encode = partial(tokenizer, add_special_tokens=False)
    prompts, letters = encode(rendered)["input_ids"], []
    for letter in LETTERS[: max(counts)]:
        after = encode(rendered[0] + letter)["input_ids"]
        if len(after) != len(prompts[0]) + 1 or after[:-1] != prompts[0]:
            raise UserError(
                f"the tokenizer does not write the answer {letter} as one token of its own, so it cannot be examined by letters.\n"
                f"Expected a tokenizer and chat template of the Gemma family."
            )
        letters.append(after[-1])
    return prompts, [letters[:count] for count in counts]


# ---------------------------------------------------------------------------------------------------------------------
# engines: log-probabilities of the letters after each prompt


def model_scores(
    net: Any, prompts: Prompts, wanted: Wanted, tick: Callable[[int], Any]
) -> list[list[float]]:
    """By a model in transformers, with or without an adapter: one pass a prompt, the output layer at its last position only.

    Prompts of similar length go together, the longest first, padded on the right: causal attention never sees the padding.
    """
    body, weight, softcap = loss.split_model(net)
    room, order, found = (
        TOKENS_AT_ONCE[net.device.type],
        sorted(range(len(prompts)), key=lambda n: -len(prompts[n])),
        {},
    )
    letters = sorted({letter for row in wanted for letter in row})
    rows_of_letters = weight[letters].float()
    while order:
        width = len(prompts[order[0]])
        now = order[: max(1, room // width)]
        ids = torch.tensor(
            [prompts[n] + [0] * (width - len(prompts[n])) for n in now], device=net.device
        )
        last = torch.tensor([len(prompts[n]) - 1 for n in now], device=net.device)
        try:
            with torch.inference_mode():
                hidden = (
                    body(input_ids=ids, use_cache=False)
                    .last_hidden_state[torch.arange(len(now), device=net.device), last]
                    .to(weight.dtype)
                )
                whole, few = (
                    (hidden @ weight.T).float(),
                    hidden.float() @ rows_of_letters.T,
                )  # in 16 bit two letters would often tie
                whole, few = (loss.cap_logits(logits, softcap) for logits in (whole, few))
                scores = (few - torch.logsumexp(whole, 1, keepdim=True)).tolist()
        except torch.OutOfMemoryError:
            if len(now) == 1:
                raise
            room = len(now) // 2 * width
            torch.cuda.empty_cache()
            continue
        for n, row in zip(now, scores, strict=True):
            found[n] = [row[letters.index(letter)] for letter in wanted[n]]
            tick(len(prompts[n]))
        order = order[len(now) :]
    return [found[n] for n in range(len(prompts))]


def gguf_scores(
    engine: llama.Engine, prompts: Prompts, wanted: Wanted, tick: Callable[[int], Any]
) -> list[list[float]]:
    """By llama.cpp, from the same token ids: among its 1,000 likeliest tokens, or the whole vocabulary (seconds) where a letter is none of them."""
    found = []
    for ids, letters in zip(prompts, wanted, strict=True):
        likely = engine.next_token_logprobs(ids)
        if not set(letters) <= likely.keys():
            likely = engine.next_token_logprobs(ids, 2**20)
        found.append([likely.get(letter, math.nan) for letter in letters])
        tick(len(ids))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# results


def take(
    items: list[dict[str, Any]],
    tokenizer: Any,
    score: Score,
    name: str = "exam",
    shuffles: int = 1,
    seed: int = SEED,
) -> list[dict[str, Any]]:
    """Every item asked as written and shuffled: id, topic, answer (a key), scores {key: nats}, chosen, right, and for each shuffle
    {order, scores, chosen}. UserError when a score is no number."""
    asked = [(item, order) for item in items for order in orders(item, shuffles, seed)]
    prompts, wanted = tokenise(
        tokenizer, [question(*pair) for pair in asked], [len(order) for _, order in asked]
    )
    tokens = sum(map(len, prompts))
    with progress_bar(name, total=tokens, unit=" tokens", unit_scale=True) as bar:
        scores = score(prompts, wanted, bar.update)
    sittings = []
    for (item, order), row in zip(asked, scores, strict=True):
        if not all(map(math.isfinite, row)):
            raise UserError(
                f"{name} gives no likelihood for the letters after item {item['id']} ({row}): its weights have gone bad. "
                f"Look at the training's loss, and export again."
            )
        sittings.append(
            {
                "order": order,
                "scores": {key: round(value, 6) for key, value in zip(order, row, strict=True)},
                "chosen": order[max(range(len(row)), key=row.__getitem__)],
            }
        )
    each = [sittings[n : n + 1 + shuffles] for n in range(0, len(sittings), 1 + shuffles)]
    return [
        {
            "id": item["id"],
            "topic": item["topic"],
            "answer": item["answer_letter"],
            "chosen": first["chosen"],
            "right": first["chosen"] == item["answer_letter"],
            "scores": first["scores"],
            "shuffled": later,
        }
        for item, (first, *later) in zip(items, each, strict=True)
    ]


def share(right: int, of: int) -> dict[str, Any]:
    return {
        "right": right,
        "of": of,
        "accuracy": right / of,
        "interval": list(stats.wilson(right, of)),
    }


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy with its Wilson interval, by topic, and by order with each letter's share of choices beside its share of right answers.

    `by_chance` is what guessing gives. `letter_mass` is the mean probability that the answer begins with one of the letters at all: where it
    is small, the scores compare what the model would hardly say.
    """
    topics = {
        topic: [r["right"] for r in results if r["topic"] == topic]
        for topic in sorted({r["topic"] for r in results})
    }
    return {
        **share(sum(r["right"] for r in results), len(results)),
        "by_chance": sum(1 / len(r["scores"]) for r in results) / len(results),
        "letter_mass": sum(math.exp(score) for r in results for score in r["scores"].values())
        / len(results),
        "topics": {topic: share(sum(right), len(right)) for topic, right in topics.items()}
        if len(topics) > 1
        else {},
        "orders": [_order(results, n) for n in range(1 + len(results[0]["shuffled"]))],
    }


def _order(results: list[dict[str, Any]], number: int) -> dict[str, Any]:
    sittings = [
        (r["answer"], ({"order": list(r["scores"]), "chosen": r["chosen"]}, *r["shuffled"])[number])
        for r in results
    ]
    chosen, right = (
        Counter(LETTERS[s["order"].index(key)] for key, s in pairs)
        for pairs in (((s["chosen"], s) for _, s in sittings), sittings)
    )
    letters = {
        letter: {"chosen": chosen[letter] / len(results), "right": right[letter] / len(results)}
        for letter in sorted(chosen | right)
    }
    return {
        "order": f"shuffled {number}" if number else "as written",
        **share(sum(s["chosen"] == answer for answer, s in sittings), len(results)),
        "letters": letters,
    }


def compare(
    before: list[dict[str, Any]], after: list[dict[str, Any]], seed: int = SEED
) -> dict[str, Any]:
    """The same items before and after: difference of accuracy with its bootstrap interval, items gained and lost, McNemar's exact p."""
    if [r["id"] for r in before] != [r["id"] for r in after]:
        raise ValueError("the two were not examined on the same items")
    was, now = ([r["right"] for r in results] for results in (before, after))
    change = [int(b) - int(a) for a, b in zip(was, now, strict=True)]
    return {
        "difference": sum(change) / len(change),
        "interval": list(stats.mean_interval(change, seed)),
        **stats.changes(was, now),
    }
