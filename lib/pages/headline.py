"""A run in a few numbers, with their intervals, and what was not measured: from results.json and exam.json alone."""

import pathlib
from collections.abc import Iterable
from typing import Any

from lib.common import files, stats
from lib.common.text import format_size, format_value
from lib.export.servers import shared_name
from lib.medical import safety

TUNED = ("merged", "adapter")  # the tuned model in an exam, the first that was examined


def examined(folder: pathlib.Path, results: dict[str, Any]) -> dict[str, Any]:
    """The entries of exam.json that results.json has the counts of: others are of weights that were made again since."""
    path = folder / "exam.json"
    entries = files.read_json(path, "exam file") if path.is_file() else {}
    known = {results.get("exam", {}).get("exam"), *results.get("exams", {})}
    return {
        name: entry
        for name, entry in entries.items()
        if ("safety" in results if name == safety.NAME else shared_name(name) in known)
    }


def tuned(entry: dict[str, Any]) -> str | None:
    """The tuned model in an exam's entry, the first of TUNED that was examined."""
    return next((name for name in TUNED if name in entry.get("models", {})), None)


def right(entry: dict[str, Any], model: str) -> tuple[int, int]:
    """How many answers of a model are right, or pass the safety set, and of how many."""
    one = entry["models"][model]
    return (
        (one["passed"]["count"], one["passed"]["of"])
        if entry["exam"] == safety.NAME
        else (one["right"], one["of"])
    )


def smallest(results: dict[str, Any]) -> tuple[int, str] | None:
    """Bytes and path of the smallest GGUF of a model, an adapter's not counted."""
    return min(
        (
            (a["bytes"], a["path"])
            for a in results.get("export", {}).get("artifacts", [])
            if a["path"].endswith(".gguf") and "lora" not in a["path"]
        ),
        default=None,
    )


def headline(results: dict[str, Any], exams: dict[str, Any]) -> list[dict[str, Any]]:
    """The few numbers a reviewer asks for first: {name, value, note}; value is None where nothing was measured."""
    train, prepare = results.get("train", {}), results.get("prepare", {})
    before, after = train.get("eval_loss_before"), train.get("eval_loss_after")
    loss = {
        "name": "held-out response loss, before → after",
        "value": None,
        "note": "nats a trained token",
    }
    if before is not None and after is not None:
        ends = [
            f"{when} {span(train[f'eval_loss_{when}_ci95'])}"
            for when in ("before", "after")
            if train.get(f"eval_loss_{when}_ci95")
        ]
        loss |= {
            "value": f"{before:.3f} → {after:.3f}",
            "note": f"{(after - before) / before:+.1%}, "
            f"{prepare.get('validation', '?')} validation rows; 95 % interval: {', '.join(ends) or 'not measured'}",
        }
    found = [loss, *_examined(exams)]
    rows, steps, epochs = prepare.get("train"), train.get("steps"), train.get("epochs")
    sessions = train.get("sessions", 1)
    found.append(
        {
            "name": "trained for",
            "value": None if steps is None else f"{steps:,} steps",
            "note": ""
            if steps is None
            else f"{format_value(epochs)} epoch{'s' * (epochs != 1)} of {format_value(rows)} rows, "
            f"{sessions} session{'s' * (sessions != 1)}",
        }
    )
    speed = train.get("samples_per_second")
    found.append(
        {
            "name": "training speed",
            "value": None if speed is None else f"{format_value(speed)} samples/s",
            "note": ""
            if speed is None
            else f"{format_value(train.get('tokens_per_second'))} tokens/s on {train.get('devices') or 1} × "
            f"{train.get('device') or 'not recorded'}",
        }
    )
    memory = train.get("peak_memory_gib")
    found.append(
        {
            "name": "peak memory in training",
            "value": None if memory is None else f"{format_value(memory)} GiB",
            "note": "" if memory is None else f"of the {train.get('memory_of') or 'process'}",
        }
    )
    file = smallest(results)
    found.append(
        {
            "name": "smallest model file",
            "value": format_size(file[0]) if file else None,
            "note": file[1].removeprefix("gguf/") if file else "no GGUF exported",
        }
    )
    return found


def _examined(exams: dict[str, Any]) -> list[dict[str, Any]]:
    found, held = (
        [],
        {
            "name": "perplexity of held-out answers, tuned / base",
            "value": None,
            "note": "make exam",
        },
    )
    for name, entry in exams.items():
        if (model := tuned(entry)) is None:
            continue
        pair = next(
            (
                c
                for c in entry.get("comparisons", [])
                if (c["before"], c["after"]) == ("base", model)
            ),
            None,
        )
        count, of = right(entry, model)
        was = right(entry, "base")[0] if "base" in entry["models"] else "not measured"
        ends = f"95 % {span(stats.wilson(count, of), 100)}; "
        what = "safety set, answers that pass" if name == safety.NAME else f"exam {name}, right"
        found.append(
            {
                "name": f"{what} ({model})",
                "value": f"{count} of {of}",
                "note": f"{count / of:.0%}, {ends}base {was}"
                + (f", p = {pair['p']:.2g} (McNemar)" if pair else ""),
            }
        )
        if pair and "perplexity_ratio" in pair:
            rows = entry["models"][model]["held_out"]
            held = {
                "name": "perplexity of held-out answers, tuned / base",
                "value": f"× {pair['perplexity_ratio']:.3f}",
                "note": f"95 % {span(pair['perplexity_interval'])}, {rows['rows']} {rows['split']} rows, paired",
            }
    for missing, present in (
        ("exam, right answers", set(exams) - {safety.NAME}),
        ("safety set, answers that pass", safety.NAME in exams),
    ):
        if not present:
            found.append(
                {
                    "name": missing,
                    "value": None,
                    "note": "make exam" + " EXAM=bundled:safety" * missing.startswith("safety"),
                }
            )
    return [held, *found]


def span(ends: Iterable[float], times: float = 1) -> str:
    """An interval for people."""
    low, high = (format_value(times * end) for end in ends)
    return f"{low} to {high}"


def not_measured(results: dict[str, Any], exams: dict[str, Any]) -> list[str]:
    """What a reviewer might take for granted."""
    export = results.get("export", {})
    return [
        text
        for text, missing in (
            (
                "held-out loss before and after training",
                results.get("train", {}).get("eval_loss_after") is None,
            ),
            ("an exam before and after (make exam)", not set(exams) - {safety.NAME}),
            ("safety of the answers (make exam EXAM=bundled:safety)", safety.NAME not in exams),
            (
                "distribution parity of the GGUF with the 16-bit model",
                not any("kl_mean" in c for c in export.get("parity", {}).values()),
            ),
            ("memory and speed of the files on a small machine", not export.get("edge")),
            ("whether a clinician finds the answers safe", True),
        )
        if missing
    ]
