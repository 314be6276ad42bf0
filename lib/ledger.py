"""metrics.jsonl: the append-only ledger, and every headline number computed from it.

One JSON object a line, `event` is session, step, eval or end. transformers' TrainOutput is never a source: after a
resume it divides a few steps' loss by all steps, and all samples by the last session's seconds.
"""

import json
import os
import pathlib
from typing import Any

from lib.params import UserError


class Ledger:
    """The open ledger of a session; every line is on disk when `write` returns."""

    def __init__(self, path: pathlib.Path):
        _end_torn_line(path)
        self.session = max((e["session"] for e in read(path)), default=0) + 1
        self.path = path

    def write(self, event: str, **values: Any) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "session": self.session, **values}, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def entries(self) -> list[dict[str, Any]]:
        return read(self.path)


def _end_torn_line(path: pathlib.Path) -> None:
    """Cut off a last line whose writing was cut off: it has no newline, so it never was a line."""
    if path.exists() and not (data := path.read_bytes()).endswith(b"\n") and data:
        os.truncate(path, data.rfind(b"\n") + 1)


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """All lines; a torn last one is left out, any other damage is an error with its line number."""
    if not path.exists():
        return []
    entries = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is torn or empty
        try:
            entry = json.loads(line)
            entry["session"], entry["event"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"ledger `{path.name}`, line {number} is damaged: {line[:80]!r}. Its numbers cannot be trusted; "
                            f"train again with FORCE=1.") from None
        entries.append(entry)
    return entries


def steps(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The logged steps the weights went through, in order: what a session ran past the point from which a later one
    resumed is left out, whichever steps the later lines fall on."""
    kept: list[dict[str, Any]] = []
    for entry in entries:
        if entry["event"] == "session":
            kept = [e for e in kept if e["step"] <= entry["start_step"]]
        elif entry["event"] == "step":
            kept.append(entry)
    return kept


def summary(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The `train` section of results.json: losses in nats a trained token, rates over the steps that really ran.

    loss_mean weighs each step once; loss_first and loss_last are means over the first and last tenth (at least one
    logged line), since one step of 16 rows is noisy. Rates count real tokens, not padding, and only time inside steps.
    """
    kept, every = steps(entries), [e for e in entries if e["event"] == "step"]
    evals = {e["when"]: e["eval_loss"] for e in entries if e["event"] == "eval"}
    tenth = max(1, len(kept) // 10)
    seconds = sum(e["seconds"] for e in every)

    def mean(part: list[dict[str, Any]]) -> float | None:
        return sum(e["loss"] * e["steps"] for e in part) / sum(e["steps"] for e in part) if part else None

    start = next((e for e in entries if e["event"] == "session"), {})
    return {
        "steps": kept[-1]["step"] if kept else 0, "epochs": kept[-1]["epoch"] if kept else 0.0,
        "sessions": len({e["session"] for e in entries if e["event"] == "session"}),
        "steps_repeated": sum(e["steps"] for e in every) - sum(e["steps"] for e in kept),
        "loss_first": mean(kept[:tenth]), "loss_last": mean(kept[-tenth:]), "loss_mean": mean(kept),
        "eval_loss_before": evals.get("before"), "eval_loss_after": evals.get("after"),
        "samples_per_second": sum(e["rows"] for e in every) / seconds if seconds else None,
        "tokens_per_second": sum(e["tokens"] for e in every) / seconds if seconds else None,
        "padding_share": 1 - sum(e["tokens"] for e in every) / sum(e["padded"] for e in every) if every else None,
        "trainable_parameters": start.get("trainable_parameters"), "total_parameters": start.get("total_parameters"),
        "peak_memory_gib": max((e["memory_gib"] for e in every), default=None), "memory_of": start.get("memory_of"),
        "seconds": round(seconds, 3),
    }
