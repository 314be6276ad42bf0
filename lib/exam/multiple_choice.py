"""A multiple-choice exam and the held-out rows, put to each model of a run, and what changed between two of them."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lib.common import stats
from lib.common.progress import progress_bar
from lib.data import splits
from lib.exam import choices
from lib.exam.models import Loaded
from lib.training import evaluate

SKIPPED: tuple[str, ...] = ()  # all models of a run


def settings(shuffles: int = 1, seed: int = choices.SEED) -> dict[str, Any]:
    """What decides a result besides the items and the model."""
    return {"instruction": choices.INSTRUCTION, "seed": seed, "shuffles": shuffles}


def sit(
    loaded: Loaded,
    items: list[dict[str, Any]],
    tokenizer: Any,
    name: str,
    how: dict[str, Any],
    run_folder: Path,
) -> dict[str, Any]:
    """`choices.summary`, every item's result, and the held-out rows' losses where the model is one of transformers."""
    results = choices.take(items, tokenizer, loaded.score, name, how["shuffles"], how["seed"])
    return {
        **choices.summary(results),
        "held_out": None if loaded.net is None else _held_out(loaded.net, run_folder, name),
        "results": results,
    }


def _held_out(net: Any, folder: Path, name: str) -> dict[str, Any] | None:
    """Response loss and tokens of each row of the split never looked at in training, without one of the other; None without either."""
    for split in ("test", "validation"):
        data = splits.load_split(folder / "data", split)
        if len(data):
            bar = partial(progress_bar, f"{name}, held-out rows")
            rows = evaluate.row_losses(net, data, bar=bar)
            return {
                "split": split,
                "rows": len(rows),
                "tokens": int(rows[:, 1].sum()),
                "perplexity": math.exp(rows[:, 0].sum() / rows[:, 1].sum()),
                "losses": rows.round(6).tolist(),
            }
    return None


def compare(models: dict[str, Any], how: dict[str, Any]) -> list[dict[str, Any]]:
    """Each model beside the base, and each GGUF beside the merged folder it was made from: `choices.compare`, and where both have
    the held-out rows the ratio of perplexities with its bootstrap interval."""
    pairs = [("base", name) for name in models if name != "base"] + [
        ("merged", name) for name in models if name not in ("base", "adapter", "merged")
    ]
    found = []
    for before, after in pairs:
        found.append(
            {
                "before": before,
                "after": after,
                **choices.compare(models[before]["results"], models[after]["results"], how["seed"]),
            }
        )
        rows = [models[name]["held_out"] for name in (before, after)]
        if all(rows):
            ratio, interval = stats.perplexity_ratio(
                *(np.array(r["losses"]) for r in rows), how["seed"]
            )
            found[-1] |= {"perplexity_ratio": ratio, "perplexity_interval": list(interval)}
    return found
