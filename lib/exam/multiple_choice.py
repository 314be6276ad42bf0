"""Exam format: put a multiple-choice exam and the held-out rows to each model of a run."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lib.common import stats
from lib.common.progress import progress_bar
from lib.data import splits
from lib.exam import choices
from lib.exam.entries import ChoiceResult, Comparison, HeldOut
from lib.exam.models import Loaded
from lib.training import evaluate

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
    results = choices.ask_items(
        items, tokenizer, loaded.score, name, settings["shuffles"], settings["seed"]
    )
    held_out = None if loaded.net is None else _measure_held_out(loaded.net, run_folder, name)
    return {**choices.summarise_results(results), "held_out": held_out, "results": results}


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
    if first["held_out"] and second["held_out"]:
        ratio, interval = stats.perplexity_ratio(
            np.array(first["held_out"]["losses"]), np.array(second["held_out"]["losses"]), seed
        )
        comparison["perplexity_ratio"] = ratio
        comparison["perplexity_interval"] = list(interval)
    return comparison
