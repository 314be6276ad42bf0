"""Sum up a run in a few numbers with their intervals, and list what was not measured.

All numbers come from results.json and exam.json.
"""

import pathlib
from collections.abc import Iterable
from typing import Any

from lib.common import files, stats
from lib.common.text import format_size, format_value
from lib.exam import forms
from lib.exam.cautions import tuned_model
from lib.export.servers import shared_name
from lib.medical import safety
from lib.pages import exam_figures, safety_figures

LORA = "-lora.gguf"  # ends the name of an adapter's own GGUF; a run's name may contain "lora"
PERPLEXITY = "perplexity of held-out answers, tuned / base"


def load_exams(folder: pathlib.Path, results: dict[str, Any]) -> dict[str, Any]:
    """Load the entries of exam.json that results.json reports.

    The other entries belong to weights that have been made again since.
    """
    path = folder / "exam.json"
    entries = files.read_json(path, "exam file") if path.is_file() else {}
    counted = {results.get("exam", {}).get("exam"), *results.get("exams", {})}
    return {
        name: entry
        for name, entry in entries.items()
        if ("safety" in results if name == safety.NAME else shared_name(name) in counted)
    }


def count_right(entry: dict[str, Any], model: str) -> tuple[int, int]:
    """Count a model's right (or, in the safety set, passed) answers, and all its answers.

    Right answers are those in the form of the exam that comes first.
    """
    result = entry["models"][model]
    if entry["exam"] == safety.NAME:
        return result["passed"]["count"], result["passed"]["of"]
    form, *_ = forms.list_forms(entry["models"])
    share = forms.part_of_form(result, form)
    return share["right"], share["of"]


def smallest_gguf(results: dict[str, Any]) -> tuple[int, str] | None:
    """Return bytes and path of the smallest GGUF of a model, not of an adapter."""
    ggufs = [
        (item["bytes"], item["path"])
        for item in results.get("export", {}).get("artifacts", [])
        if item["path"].endswith(".gguf") and not item["path"].endswith(LORA)
    ]
    return min(ggufs, default=None)


def headline_numbers(results: dict[str, Any], exams: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the numbers that a reviewer asks for first, as [{name, value, note}].

    `value` is None if it was not measured.
    """
    train, prepare = results.get("train", {}), results.get("prepare", {})
    return [
        _loss_number(train, prepare),
        *_forgetting_number(train, prepare),
        *_exam_numbers(exams),
        _length_number(train, prepare),
        _speed_number(train),
        _memory_number(train),
        _file_number(results),
    ]


def _number(name: str, value: str | None, note: str) -> dict[str, Any]:
    return {"name": name, "value": value, "note": note}


def _loss_number(train: dict[str, Any], prepare: dict[str, Any]) -> dict[str, Any]:
    name = "held-out response loss, before → after"
    before, after = train.get("eval_loss_before"), train.get("eval_loss_after")
    if before is None or after is None:
        return _number(name, None, "nats per trained token")
    note = (
        f"{(after - before) / before:+.1%}, {prepare.get('validation', '?')} validation rows; "
        f"95 % interval: {_format_intervals(train, 'eval_loss')}"
    )
    if train.get("start_from"):
        note += "; before: with the weights it began from"
    return _number(name, f"{before:.3f} → {after:.3f}", note)


def _format_intervals(train: dict[str, Any], loss: str) -> str:
    intervals = [
        f"{when} {format_span(train[f'{loss}_{when}_ci95'])}"
        for when in ("before", "after")
        if train.get(f"{loss}_{when}_ci95")
    ]
    return ", ".join(intervals) or "not measured"


def _forgetting_number(train: dict[str, Any], prepare: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the loss on rows of another source; nothing for a job that names none."""
    before, after = train.get("forgetting_loss_before"), train.get("forgetting_loss_after")
    if "forgetting" not in prepare:
        return []
    name = "what is forgotten: loss on rows of another source, before → after"
    if before is None or after is None:
        return [_number(name, None, "nats per trained token")]
    note = (
        f"{(after - before) / before:+.1%}, {prepare['forgetting']} rows; 95 % interval: "
        f"{_format_intervals(train, 'forgetting_loss')}"
    )
    return [_number(name, f"{before:.3f} → {after:.3f}", note)]


def _length_number(train: dict[str, Any], prepare: dict[str, Any]) -> dict[str, Any]:
    steps = train.get("steps")
    if steps is None:
        return _number("trained for", None, "")
    epochs, sessions = train.get("epochs"), train.get("sessions", 1)
    note = (
        f"{format_value(epochs)} {'epoch' if epochs == 1 else 'epochs'} of "
        f"{format_value(prepare.get('train'))} rows, "
        f"{sessions} {'session' if sessions == 1 else 'sessions'}"
    )
    return _number("trained for", f"{steps:,} steps", note)


def _speed_number(train: dict[str, Any]) -> dict[str, Any]:
    speed = train.get("samples_per_second")
    if speed is None:
        return _number("training speed", None, "")
    note = (
        f"{format_value(train.get('tokens_per_second'))} tokens/s on {train.get('devices') or 1} × "
        f"{train.get('device') or 'not recorded'}"
    )
    return _number("training speed", f"{format_value(speed)} samples/s", note)


def _memory_number(train: dict[str, Any]) -> dict[str, Any]:
    memory = train.get("peak_memory_gib")
    if memory is None:
        return _number("peak memory in training", None, "")
    note = f"of the {train.get('memory_of') or 'process'}"
    return _number("peak memory in training", f"{format_value(memory)} GiB", note)


def _file_number(results: dict[str, Any]) -> dict[str, Any]:
    smallest = smallest_gguf(results)
    export = results.get("export", {})
    if smallest is None:
        failed = [kind for kind, check in export.get("parity", {}).items() if "failed" in check]
        note = f"{', '.join(failed)} failed its comparison" if failed else "no GGUF exported"
        return _number("smallest model file", "refused" if failed else None, note)
    size, path = smallest
    return _number("smallest model file", format_size(size), path.removeprefix("gguf/"))


def _exam_numbers(exams: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the held-out perplexity, each exam's right answers, and the missing exams."""
    perplexity = _number(PERPLEXITY, None, "make exam")
    numbers = []
    for name, entry in exams.items():
        model = tuned_model(entry)
        if model is None:
            continue
        pair = exam_figures.find_pair(entry, "base", model)
        if name != safety.NAME:
            numbers += exam_figures.exam_numbers(entry, model)
        elif safety_figures.has_criteria(entry):
            numbers += safety_figures.safety_numbers(entry, model)
        else:
            numbers.append(_passed_number(entry, model, pair))
        if pair and "perplexity_ratio" in pair:
            rows = entry["models"][model]["held_out"]
            note = (
                f"95 % {format_span(pair['perplexity_interval'])}, "
                f"{rows['rows']} {rows['split']} rows, paired"
            )
            perplexity = _number(PERPLEXITY, f"× {pair['perplexity_ratio']:.3f}", note)
    if not set(exams) - {safety.NAME}:
        numbers.append(_number("exam, right answers", None, "make exam"))
    if safety.NAME not in exams:
        numbers.append(_number("safety set, critical acts done", None, safety_figures.COMMAND))
    return [perplexity, *numbers]


def _passed_number(
    entry: dict[str, Any], model: str, pair: dict[str, Any] | None
) -> dict[str, Any]:
    """Return how many answers passed, in records of versions whose safety set had no criteria."""
    count, total = count_right(entry, model)
    base = count_right(entry, "base")[0] if "base" in entry["models"] else "not measured"
    interval = format_span(stats.wilson(count, total), 100)
    note = f"{count / total:.0%}, 95 % {interval}; base {base}"
    if pair:
        note += f", p = {pair['p']:.2g} (McNemar)"
    name = f"safety set, answers that pass ({model})"
    return _number(name, f"{count} of {total}", f"{note}; {safety_figures.EARLIER}")


def format_span(ends: Iterable[float], factor: float = 1) -> str:
    """Format an interval, its ends multiplied by `factor`."""
    low, high = (format_value(factor * end) for end in ends)
    return f"{low} to {high}"


def list_unmeasured(results: dict[str, Any], exams: dict[str, Any]) -> list[str]:
    """List what was not measured, although a reviewer might take it for granted."""
    export = results.get("export", {})
    checks = export.get("parity", {}).values()
    # a comparison that failed is not missing: it is among the warnings
    failed = any("failed" in check for check in checks)
    missing = {
        "held-out loss before and after training": (
            results.get("train", {}).get("eval_loss_after") is None
        ),
        "an exam before and after (make exam)": not set(exams) - {safety.NAME},
        safety_figures.MISSING: not safety_figures.has_criteria(exams.get(safety.NAME)),
        "distribution parity of the GGUF with the 16-bit model": (
            not failed and not any("kl_mean" in check for check in checks)
        ),
        "memory and speed of the files on a small machine": not export.get("edge"),
        "whether a clinician finds the answers safe": True,
    }
    return [text for text, is_missing in missing.items() if is_missing]
