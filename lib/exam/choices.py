"""The letter form of a multiple-choice item: which letter does the model answer with?

A question is one user turn in the model's own chat template: the question, its lettered options,
and INSTRUCTION, without examples before it. An option's score is the log-probability, in nats and
over the whole vocabulary, that the answer's first token is its letter. The option with the highest
score is chosen. Accuracy refers to the options in their original order. Each item is also asked
with its options shuffled, which shows whether a model prefers a letter.

    asked = choices.letter_continuations(items, tokenizer)
    results = [choices.judge_item(item, orders, scores) for ...]
    choices.summarise_results(results)
"""

import math
import random
import string
from collections import Counter
from typing import Any

from lib.common import stats
from lib.common.errors import UserError
from lib.exam.entries import (
    ChoiceChange,
    ItemResult,
    LetterSummary,
    OrderSummary,
    Share,
    Sitting,
)
from lib.exam.scoring.token_tree import Continuation

INSTRUCTION = "Answer with the letter of the right option alone."
LETTERS = string.ascii_uppercase
SEED = 3407

Item = dict[str, Any]


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


def letter_continuations(
    items: list[Item], tokenizer: Any, shuffles: int = 1, seed: int = SEED
) -> list[list[list[Continuation]]]:
    """Return for each item, order and option the prompt with the option's letter after it.

    Raise UserError unless the tokenizer writes each letter there as one token of its own.
    """
    asked = [[(item, order) for order in option_orders(item, shuffles, seed)] for item in items]
    texts = [write_question(*pair) for pairs in asked for pair in pairs]
    rendered, prompts = tokenise_turns(tokenizer, texts)
    most = max(len(item["options"]) for item in items)
    letters = _letter_tokens(tokenizer, rendered[0], prompts[0], most)
    following = iter(prompts)
    return [
        [
            [(prompt, [letter]) for letter in letters[: len(order)]]
            for (_, order), prompt in zip(pairs, following, strict=False)
        ]
        for pairs in asked
    ]


def tokenise_turns(tokenizer: Any, texts: list[str]) -> tuple[list[str], list[list[int]]]:
    """Return each user turn as the template writes it before an answer, and its token ids."""
    rendered = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        for text in texts
    ]
    return rendered, tokenizer(rendered, add_special_tokens=False)["input_ids"]


def _letter_tokens(tokenizer: Any, rendered: str, prompt: list[int], count: int) -> list[int]:
    letters = []
    for letter in LETTERS[:count]:
        answered = tokenizer(rendered + letter, add_special_tokens=False)["input_ids"]
        if len(answered) != len(prompt) + 1 or answered[:-1] != prompt:
            raise UserError(
                f"the tokenizer does not write the answer {letter} as one token of its own, so the "
                f"model cannot be examined by letters.\n"
                f"Expected a tokenizer and chat template of the Gemma family."
            )
        letters.append(answered[-1])
    return letters


# --------------------------------------------------------------------------------------------------
# results


def judge_item(item: Item, orders: list[list[str]], scores: list[list[float]]) -> ItemResult:
    """Return an item's result from its letters' log-probabilities in each order."""
    sittings = [_sitting(order, row) for order, row in zip(orders, scores, strict=True)]
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


def _sitting(order: list[str], scores: list[float]) -> Sitting:
    best = max(range(len(scores)), key=scores.__getitem__)
    rounded = {key: round(score, 6) for key, score in zip(order, scores, strict=True)}
    return {"order": order, "scores": rounded, "chosen": order[best]}


def summarise_results(results: list[ItemResult]) -> LetterSummary:
    """Return accuracy with its Wilson interval: in total, by topic and by order of the options.

    `by_chance` is the accuracy of guessing. `letter_mass` is the mean probability that the answer
    begins with one of the letters at all. If it is small, the scores compare answers that the model
    would hardly give.
    """
    count = len(results)
    right = [result["right"] for result in results]
    letter_scores = [score for result in results for score in result["scores"].values()]
    orders = range(1 + len(results[0]["shuffled"]))
    return {
        **share_of(sum(right), count),
        "by_chance": sum(1 / len(result["scores"]) for result in results) / count,
        "letter_mass": sum(math.exp(score) for score in letter_scores) / count,
        "topics": shares_by_topic([result["topic"] for result in results], right),
        "orders": [_summarise_order(results, number) for number in orders],
    }


def share_of(right: int, total: int) -> Share:
    interval = list(stats.wilson(right, total))
    return {"right": right, "of": total, "accuracy": right / total, "interval": interval}


def shares_by_topic(topics: list[str], right: list[bool]) -> dict[str, Share]:
    """Return each topic's share of right answers; {} if all items have one topic."""
    names = sorted(set(topics))
    if len(names) < 2:
        return {}
    shares = {}
    for name in names:
        of_topic = [hit for topic, hit in zip(topics, right, strict=True) if topic == name]
        shares[name] = share_of(sum(of_topic), len(of_topic))
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
    return {"order": name, **share_of(hits, count), "letters": letters}


def compare_results(
    before: list[ItemResult], after: list[ItemResult], seed: int = SEED
) -> ChoiceChange:
    """Compare two models' letters on the same items; raise ValueError if the items differ."""
    if [result["id"] for result in before] != [result["id"] for result in after]:
        raise ValueError("the two models were not examined on the same items")
    return compare_right(
        [result["right"] for result in before], [result["right"] for result in after], seed
    )


def compare_right(before: list[bool], after: list[bool], seed: int = SEED) -> ChoiceChange:
    """Return the difference in accuracy with its bootstrap interval, and the items that changed.

    These are the numbers gained and lost, with McNemar's exact p.
    """
    change = [int(b) - int(a) for a, b in zip(before, after, strict=True)]
    return {
        "difference": sum(change) / len(change),
        "interval": list(stats.mean_interval(change, seed)),
        **stats.changes(before, after),
    }
