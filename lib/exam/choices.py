"""Multiple choice by log-likelihood: the same questions for transformers, adapters and GGUF files.

A question is one user turn in the model's own chat template: the question, its lettered options,
and INSTRUCTION, without examples before it. An option's score is the log-probability, in nats and
over the whole vocabulary, that the answer's first token is its letter. The option with the highest
score is chosen. Accuracy refers to the options in their original order. Each item is also asked
with its options shuffled, which shows whether a model prefers a letter.

    items = exam_items.read_items("bundled:exam")
    results = choices.ask_items(items, tokenizer, functools.partial(choices.score_by_model, net))
    choices.summarise_results(results)
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
from lib.exam.entries import (
    ChoiceChange,
    ChoiceSummary,
    ItemResult,
    OrderSummary,
    Share,
    Sitting,
)
from lib.model import llama
from lib.training import loss

INSTRUCTION = "Answer with the letter of the right option alone."
LETTERS = string.ascii_uppercase
# with padding; a CPU takes a tenth longer with 4,096, because they no longer fit its caches
TOKENS_AT_ONCE = {"cpu": 1024, "cuda": 16384}
SEED = 3407

Item = dict[str, Any]
Prompts = list[list[int]]  # the token ids of each prompt
Wanted = list[list[int]]  # for each prompt, the token ids of the letters to score after it
Tick = Callable[[int], Any]  # called with the number of further tokens or answers that are done
Score = Callable[[Prompts, Wanted, Tick], list[list[float]]]


# --------------------------------------------------------------------------------------------------
# questions


def write_question(item: Item, order: list[str]) -> str:
    """Return the user turn, with the options in `order` lettered from A."""
    options = [item["options"][key] for key in order]
    lines = [f"{letter}) {text}" for letter, text in zip(LETTERS, options, strict=False)]
    return "\n\n".join([item["question"], "\n".join(lines), INSTRUCTION])


def option_orders(item: Item, shuffles: int, seed: int) -> list[list[str]]:
    """Return the options' keys in their original order, then `shuffles` shuffled orders.

    A shuffle depends only on the seed and the item's id, not on the other items.
    """
    keys = list(item["options"])
    orders = [keys]
    for number in range(shuffles):
        draw = random.Random(f"{seed} {number} {item['id']}")
        orders.append(draw.sample(keys, len(keys)))
    return orders


def tokenise_questions(
    tokenizer: Any, texts: list[str], counts: list[int]
) -> tuple[Prompts, Wanted]:
    """Return the prompt ids of each user turn, and the ids of its first `count` letters.

    Raise UserError unless the tokenizer writes each letter there as one token of its own.
    """
    rendered = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        for text in texts
    ]
    encode = partial(tokenizer, add_special_tokens=False)
    prompts = encode(rendered)["input_ids"]
    letters = []
    for letter in LETTERS[: max(counts)]:
        answered = encode(rendered[0] + letter)["input_ids"]
        if len(answered) != len(prompts[0]) + 1 or answered[:-1] != prompts[0]:
            raise UserError(
                f"the tokenizer does not write the answer {letter} as one token of its own, so the "
                f"model cannot be examined by letters.\n"
                f"Expected a tokenizer and chat template of the Gemma family."
            )
        letters.append(answered[-1])
    return prompts, [letters[:count] for count in counts]


# --------------------------------------------------------------------------------------------------
# engines: the log-probabilities of the letters after each prompt


def score_by_model(net: Any, prompts: Prompts, wanted: Wanted, tick: Tick) -> list[list[float]]:
    """Score with a model in transformers, with or without an adapter, in one pass for each prompt.

    Prompts of similar length are computed together, the longest first, padded on the right: causal
    attention never sees the padding. The output layer is computed at the last position only.
    """
    body, weight, softcap = loss.split_model(net)
    letters = sorted({letter for row in wanted for letter in row})
    letter_weight = weight[letters].float()
    tokens_at_once = TOKENS_AT_ONCE[net.device.type]
    remaining = sorted(range(len(prompts)), key=lambda n: -len(prompts[n]))
    scores: dict[int, list[float]] = {}
    while remaining:
        width = len(prompts[remaining[0]])
        batch = remaining[: max(1, tokens_at_once // width)]
        ids, last = _padded([prompts[n] for n in batch], width, net.device)
        try:
            with torch.inference_mode():
                hidden = _states_at(body, ids, last).to(weight.dtype)
                rows = _log_probabilities(hidden, weight, letter_weight, softcap).tolist()
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            tokens_at_once = len(batch) // 2 * width
            torch.cuda.empty_cache()
            continue
        for n, row in zip(batch, rows, strict=True):
            scores[n] = [row[letters.index(letter)] for letter in wanted[n]]
            tick(len(prompts[n]))
        remaining = remaining[len(batch) :]
    return [scores[n] for n in range(len(prompts))]


def _padded(prompts: Prompts, width: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids as (prompts, width), zeros on the right, and each prompt's last position."""
    ids = [prompt + [0] * (width - len(prompt)) for prompt in prompts]
    last = [len(prompt) - 1 for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(last, device=device)


def _states_at(body: Any, ids: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Return the hidden states (prompts, hidden size) at each prompt's last token."""
    states = body(input_ids=ids, use_cache=False).last_hidden_state
    return states[torch.arange(len(ids), device=ids.device), last]


def _log_probabilities(
    hidden: torch.Tensor, weight: torch.Tensor, letter_weight: torch.Tensor, softcap: float | None
) -> torch.Tensor:
    """Return log-probabilities (prompts, letters) over the whole vocabulary from hidden states."""
    logits = (hidden @ weight.T).float()
    # the letters are computed again in float32, since two would often tie in 16 bits
    letter_logits = hidden.float() @ letter_weight.T
    logits = loss.cap_logits(logits, softcap)
    letter_logits = loss.cap_logits(letter_logits, softcap)
    return letter_logits - torch.logsumexp(logits, 1, keepdim=True)


def score_by_gguf(
    engine: llama.Engine, prompts: Prompts, wanted: Wanted, tick: Tick
) -> list[list[float]]:
    """Score with llama.cpp from the same token ids.

    It returns its 1,000 likeliest tokens. The whole vocabulary takes seconds, and is requested only
    if a letter is not among these.
    """
    scores = []
    for ids, letters in zip(prompts, wanted, strict=True):
        likely = engine.next_token_logprobs(ids)
        if not set(letters) <= likely.keys():
            likely = engine.next_token_logprobs(ids, 2**20)
        scores.append([likely.get(letter, math.nan) for letter in letters])
        tick(len(ids))
    return scores


# --------------------------------------------------------------------------------------------------
# results


def ask_items(
    items: list[Item],
    tokenizer: Any,
    score: Score,
    name: str = "exam",
    shuffles: int = 1,
    seed: int = SEED,
) -> list[ItemResult]:
    """Ask every item as written and shuffled; raise UserError when a score is not finite.

    `name` is the model's name, for the progress bar and the error.
    """
    asked = [(item, order) for item in items for order in option_orders(item, shuffles, seed)]
    texts = [write_question(item, order) for item, order in asked]
    prompts, wanted = tokenise_questions(tokenizer, texts, [len(order) for _, order in asked])
    tokens = sum(map(len, prompts))
    with progress_bar(name, total=tokens, unit=" tokens", unit_scale=True) as bar:
        scores = score(prompts, wanted, bar.update)
    sittings = []
    for (item, order), row in zip(asked, scores, strict=True):
        if not all(map(math.isfinite, row)):
            raise UserError(
                f"{name} gives no finite likelihood for the letters after item {item['id']} "
                f"({row}): its weights are damaged. Look at the training's loss, and export again."
            )
        sittings.append(_sitting(order, row))
    per_item = 1 + shuffles
    starts = range(0, len(sittings), per_item)
    by_item = [sittings[start : start + per_item] for start in starts]
    return [_item_result(item, sat) for item, sat in zip(items, by_item, strict=True)]


def _sitting(order: list[str], scores: list[float]) -> Sitting:
    best = max(range(len(scores)), key=scores.__getitem__)
    rounded = {key: round(score, 6) for key, score in zip(order, scores, strict=True)}
    return {"order": order, "scores": rounded, "chosen": order[best]}


def _item_result(item: Item, sittings: list[Sitting]) -> ItemResult:
    as_written, *shuffled = sittings
    return {
        "id": item["id"],
        "topic": item["topic"],
        "answer": item["answer_letter"],
        "chosen": as_written["chosen"],
        "right": as_written["chosen"] == item["answer_letter"],
        "scores": as_written["scores"],
        "shuffled": shuffled,
    }


def summarise_results(results: list[ItemResult]) -> ChoiceSummary:
    """Return accuracy with its Wilson interval: in total, by topic and by order of the options.

    `by_chance` is the accuracy of guessing. `letter_mass` is the mean probability that the answer
    begins with one of the letters at all. If it is small, the scores compare answers that the model
    would hardly give.
    """
    count = len(results)
    letter_scores = [score for result in results for score in result["scores"].values()]
    orders = range(1 + len(results[0]["shuffled"]))
    return {
        **_share(sum(result["right"] for result in results), count),
        "by_chance": sum(1 / len(result["scores"]) for result in results) / count,
        "letter_mass": sum(math.exp(score) for score in letter_scores) / count,
        "topics": _shares_by_topic(results),
        "orders": [_summarise_order(results, number) for number in orders],
    }


def _share(right: int, total: int) -> Share:
    interval = list(stats.wilson(right, total))
    return {"right": right, "of": total, "accuracy": right / total, "interval": interval}


def _shares_by_topic(results: list[ItemResult]) -> dict[str, Share]:
    """Return each topic's share of right answers; {} if all items have one topic."""
    topics = sorted({result["topic"] for result in results})
    if len(topics) < 2:
        return {}
    shares = {}
    for topic in topics:
        right = [result["right"] for result in results if result["topic"] == topic]
        shares[topic] = _share(sum(right), len(right))
    return shares


def _summarise_order(results: list[ItemResult], number: int) -> OrderSummary:
    """Return accuracy and letters for the items as written (number 0) or in a shuffled order."""
    chosen: Counter[str] = Counter()
    right: Counter[str] = Counter()
    hits = 0
    for result in results:
        if number:
            sitting = result["shuffled"][number - 1]
            order, choice = sitting["order"], sitting["chosen"]
        else:
            order, choice = list(result["scores"]), result["chosen"]
        chosen[LETTERS[order.index(choice)]] += 1
        right[LETTERS[order.index(result["answer"])]] += 1
        hits += choice == result["answer"]
    count = len(results)
    letters = {
        letter: {"chosen": chosen[letter] / count, "right": right[letter] / count}
        for letter in sorted(chosen | right)
    }
    name = f"shuffled {number}" if number else "as written"
    return {"order": name, **_share(hits, count), "letters": letters}


def compare_results(
    before: list[ItemResult], after: list[ItemResult], seed: int = SEED
) -> ChoiceChange:
    """Compare two models on the same items; raise ValueError if the items differ.

    Return the difference in accuracy with its bootstrap interval, the numbers of items gained and
    lost, and McNemar's exact p.
    """
    if [result["id"] for result in before] != [result["id"] for result in after]:
        raise ValueError("the two models were not examined on the same items")
    right_before = [result["right"] for result in before]
    right_after = [result["right"] for result in after]
    change = [int(b) - int(a) for a, b in zip(right_before, right_after, strict=True)]
    return {
        "difference": sum(change) / len(change),
        "interval": list(stats.mean_interval(change, seed)),
        **stats.changes(right_before, right_after),
    }
