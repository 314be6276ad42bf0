"""Exam format: put a multiple-choice exam and the held-out rows to each model of a run.

Each item is asked in two forms, by letter (`choices.py`) and by the text of its options
(`completion.py`). What they have in common, above all the question, is computed once.
"""

import math
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from lib.common import stats
from lib.common.errors import UserError
from lib.common.progress import progress_bar
from lib.data import splits
from lib.exam import choices, completion
from lib.exam.entries import ChoiceResult, Comparison, HeldOut, ItemResult
from lib.exam.models import Loaded
from lib.exam.scoring.likelihood import Score
from lib.exam.scoring.token_tree import build_tree
from lib.training import evaluate

# all orders of an item are one tree, whose mask has the square of its tokens
MOST_SHUFFLES = 20
SKIPPED_MODELS: tuple[str, ...] = ()  # all models of a run are examined


def exam_settings(shuffles: int = 1, seed: int = choices.SEED) -> dict[str, Any]:
    """Return the settings that affect a result besides the items and the model."""
    return {"instruction": choices.INSTRUCTION, "seed": seed, "shuffles": shuffles}


def examine_model(
    loaded: Loaded,
    items: list[dict[str, Any]],
    tokenizer: Any,
    name: str,
    settings: dict[str, Any],
    run_folder: Path,
) -> ChoiceResult:
    """Return the summary, every item's result, and a transformers model's held-out loss."""
    results = ask_items(
        items, tokenizer, loaded.score, name, settings["shuffles"], settings["seed"]
    )
    held_out = None if loaded.net is None else _measure_held_out(loaded.net, run_folder, name)
    return {
        **choices.summarise_results(results),
        **completion.summarise_results(results, completion.choose_normalisation(items)),
        "held_out": held_out,
        "results": results,
    }


def ask_items(
    items: list[dict[str, Any]],
    tokenizer: Any,
    score: Score,
    name: str = "exam",
    shuffles: int = 1,
    seed: int = choices.SEED,
) -> list[ItemResult]:
    """Ask every item in both forms, letters also shuffled; raise UserError for no finite score.

    `name` is the model's name, for the progress bar and the error.
    """
    letters = choices.letter_continuations(items, tokenizer, shuffles, seed)
    texts = completion.text_continuations(items, tokenizer)
    trees = [
        build_tree([*chain.from_iterable(orders), *options])
        for orders, options in zip(letters, texts, strict=True)
    ]
    tokens = sum(len(tree.ids) for tree in trees)
    with progress_bar(name, total=tokens, unit=" tokens", unit_scale=True) as bar:
        scores = score(trees, bar.update)
    normalised = completion.choose_normalisation(items)
    results = []
    for item, options, row in zip(items, texts, scores, strict=True):
        if not all(map(math.isfinite, row)):
            raise UserError(
                f"{name} gives no finite likelihood for the options of item {item['id']} "
                f"({row}): its weights are damaged. Look at the training's loss, and export again."
            )
        orders = choices.option_orders(item, shuffles, seed)
        values = iter(row)
        by_letter = [[next(values) for _ in order] for order in orders]
        result = choices.judge_item(item, orders, by_letter)
        sizes = [len(answer) for _, answer in options]
        result["completion"] = completion.judge_item(item, sizes, list(values), normalised)
        bits = completion.bits_per_byte(item, result["completion"])
        if bits is not None:
            result["bits_per_byte"] = bits
        results.append(result)
    return results


def _measure_held_out(net: Any, run_folder: Path, name: str) -> HeldOut | None:
    """Measure the response loss on the test rows, which training never looks at.

    A run without a test split is measured on its validation rows; without either, return None.
    """
    for split in ("test", "validation"):
        data = splits.load_split(run_folder / "data", split)
        if not len(data):
            continue
        bar = partial(progress_bar, f"{name}, held-out rows")
        rows = evaluate.measure_row_losses(net, data, bar=bar)
        return {
            "split": split,
            "rows": len(rows),
            "tokens": int(rows[:, 1].sum()),
            "perplexity": math.exp(rows[:, 0].sum() / rows[:, 1].sum()),
            "losses": rows.round(6).tolist(),
        }
    return None


def compare_models(models: dict[str, ChoiceResult], settings: dict[str, Any]) -> list[Comparison]:
    """Compare each model with the base, and each GGUF with the merged folder it was made from.

    If both were measured on the held-out rows, add the ratio of their perplexities with its
    bootstrap interval.
    """
    ggufs = [name for name in models if name not in ("base", "adapter", "merged")]
    pairs = [("base", name) for name in models if name != "base"]
    pairs += [("merged", name) for name in ggufs]
    return [_compare_pair(models, before, after, settings["seed"]) for before, after in pairs]


def _compare_pair(
    models: dict[str, ChoiceResult], before: str, after: str, seed: int
) -> Comparison:
    first, second = models[before], models[after]
    comparison: Comparison = {
        "before": before,
        "after": after,
        **choices.compare_results(first["results"], second["results"], seed),
    }
    if "completion" in first and "completion" in second:
        chosen, bits = completion.compare_results(first["results"], second["results"], seed)
        comparison["completion"] = chosen
        if bits:
            comparison["bits_per_byte"] = bits
    if first["held_out"] and second["held_out"]:
        ratio, interval = stats.perplexity_ratio(
            np.array(first["held_out"]["losses"]), np.array(second["held_out"]["losses"]), seed
        )
        comparison["perplexity_ratio"] = ratio
        comparison["perplexity_interval"] = list(interval)
    return comparison
