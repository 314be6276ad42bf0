"""The completion form of a multiple-choice item: how likely is the text of each option?

The prompt is the question alone, one user turn in the model's own chat template, and each option's
text is scored as its answer: the log-likelihood of the text's tokens, summed. Small models know an
answer long before they can follow lettered options, so this form tells them apart where letters do
not (OLMES, arXiv 2406.08446).

A long option is less likely than a short one, whatever it says. So the likelihood is divided by the
option's characters. Only where every item has the same options (yes, no, maybe), they are labels of
which each means the same as one word, and nothing is divided: per character, the longest label
would win.

Bits per byte is what the right option's text costs, whatever the wrong ones say: its negative
log-likelihood in bits, divided by its bytes in UTF-8, averaged over the items. It moves with each
item, and so tells two models apart on fewer of them (Signal and Noise, arXiv 2508.13144).
"""

import math
from typing import Any

from lib.common import stats
from lib.common.errors import UserError
from lib.exam import choices
from lib.exam.entries import (
    BitsChange,
    ChoiceChange,
    CompletionResult,
    CompletionSummary,
    ItemResult,
    Mean,
    TextSummary,
)
from lib.exam.scoring.token_tree import Continuation

NORMALISATIONS = ("sum", "token", "character")

Item = dict[str, Any]


def choose_normalisation(items: list[Item]) -> str:
    """Return `sum` if all items have the same options, otherwise `character`."""
    labels = {frozenset(item["options"].values()) for item in items}
    return "sum" if len(labels) == 1 < len(items) else "character"


def text_continuations(items: list[Item], tokenizer: Any) -> list[list[Continuation]]:
    """Return for each item and option the prompt with the option's text after it.

    Raise UserError where the tokenizer joins the text with the end of the prompt, since a model
    that answers never gets the two as one token.
    """
    rendered, prompts = choices.tokenise_turns(tokenizer, [item["question"] for item in items])
    texts = [
        start + option.strip()
        for item, start in zip(items, rendered, strict=True)
        for option in item["options"].values()
    ]
    answered = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
    continuations = []
    for item, prompt in zip(items, prompts, strict=True):
        row: list[Continuation] = []
        for key in item["options"]:
            ids = next(answered)
            if ids[: len(prompt)] != prompt:
                raise UserError(
                    f"the tokenizer joins option {key} of item {item['id']} with the end of the "
                    f"prompt, so its likelihood as an answer cannot be measured.\n"
                    f"Expected a tokenizer and chat template of the Gemma family."
                )
            row.append((prompt, ids[len(prompt) :]))
        continuations.append(row)
    return continuations


def judge_item(
    item: Item, tokens: list[int], scores: list[float], normalised: str
) -> CompletionResult:
    """Return an item's result from each option's number of tokens and log-likelihood in nats."""
    texts = {key: text.strip() for key, text in item["options"].items()}
    nats = dict(zip(texts, scores, strict=True))
    sizes = {
        "sum": dict.fromkeys(texts, 1),
        "token": dict(zip(texts, tokens, strict=True)),
        "character": {key: len(text) for key, text in texts.items()},
    }
    filled = [key for key, text in texts.items() if text] or list(texts)
    chosen_by = {
        name: max(filled, key=lambda key: nats[key] / max(1, size[key]))
        for name, size in sizes.items()
    }
    chosen = chosen_by[normalised]
    return {
        "scores": {key: round(score, 6) for key, score in nats.items()},
        "chosen": chosen,
        "right": chosen == item["answer_letter"],
        "chosen_by": chosen_by,
    }


def bits_per_byte(item: Item, result: CompletionResult) -> float | None:
    """Return what the right option's text costs; None for an option without text."""
    answer = item["answer_letter"]
    size = len(item["options"][answer].strip().encode())
    return round(-result["scores"][answer] / math.log(2) / size, 6) if size else None


def summarise_results(results: list[ItemResult], normalised: str) -> TextSummary:
    """Return accuracy with its Wilson interval, and bits per byte with its bootstrap interval."""
    right = [result["completion"]["right"] for result in results]
    topics = [result["topic"] for result in results]
    summary: CompletionSummary = {
        **choices.share_of(sum(right), len(right)),
        "normalised": normalised,
        "topics": choices.shares_by_topic(topics, right),
        "by": {name: _count_right(results, name) for name in NORMALISATIONS},
    }
    both: TextSummary = {"completion": summary}
    if bits := [result["bits_per_byte"] for result in results if "bits_per_byte" in result]:
        both["bits_per_byte"] = _mean_of(bits)
    return both


def _count_right(results: list[ItemResult], name: str) -> int:
    return sum(result["completion"]["chosen_by"][name] == result["answer"] for result in results)


def _mean_of(values: list[float], seed: int = choices.SEED) -> Mean:
    interval = list(stats.mean_interval(values, seed))
    return {"mean": sum(values) / len(values), "interval": interval, "items": len(values)}


def compare_results(
    before: list[ItemResult], after: list[ItemResult], seed: int = choices.SEED
) -> tuple[ChoiceChange, BitsChange | None]:
    """Compare two models on the same items: the options chosen, and bits per byte, paired by item.

    The latter are None if no item's right option has text. Raise ValueError if the items differ.
    """
    if [result["id"] for result in before] != [result["id"] for result in after]:
        raise ValueError("the two models were not examined on the same items")
    pairs = list(zip(before, after, strict=True))
    chosen = choices.compare_right(
        [a["completion"]["right"] for a, _ in pairs],
        [b["completion"]["right"] for _, b in pairs],
        seed,
    )
    change = [b["bits_per_byte"] - a["bits_per_byte"] for a, b in pairs if "bits_per_byte" in a]
    if not change:
        return chosen, None
    bits: BitsChange = {
        "difference": sum(change) / len(change),
        "interval": list(stats.mean_interval(change, seed)),
        "better": sum(value < 0 for value in change),
        "worse": sum(value > 0 for value in change),
    }
    return chosen, bits
