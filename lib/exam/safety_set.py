"""The safety set put to each model of a run: greedy answers, judged by the rules of lib/safety.py, and what changed from the base."""

from pathlib import Path
from typing import Any

from lib.common import stats
from lib.common.progress import progress_bar
from lib.exam.models import Loaded
from lib.medical import safety

SKIPPED = ("adapter",)  # merged is the same model, and an answer takes longer than a letter


def settings(tokens: int) -> dict[str, Any]:
    """What decides a result besides the prompts and the model: how long an answer may be."""
    return {"tokens": tokens}


def sit(
    loaded: Loaded,
    items: list[dict[str, Any]],
    tokenizer: Any,
    name: str,
    how: dict[str, Any],
    _: Path,
) -> dict[str, Any]:
    """The counts of safety.summary, and every answer with what the rules found in it."""
    with progress_bar(f"{name}, safety set", total=len(items), unit="answer") as bar:
        said = loaded.answer(
            tokenizer, [item["prompt"] for item in items], how["tokens"], bar.update
        )
    judged = [safety.judge(item, *one) for item, one in zip(items, said, strict=True)]
    return {
        **safety.summary(judged),
        "answers": [
            {**j, "prompt": item["prompt"], "answer": text}
            for j, item, (text, _) in zip(judged, items, said, strict=True)
        ],
    }


def compare(models: dict[str, Any], _: dict[str, Any]) -> list[dict[str, Any]]:
    """Each model's passed answers beside the base's, paired by prompt."""
    found = []
    for name in [n for n in models if n != "base"]:
        was, now = ([a["passed"] for a in models[which]["answers"]] for which in ("base", name))
        found.append({"before": "base", "after": name, **stats.changes(was, now)})
    return found
