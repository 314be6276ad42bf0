"""A multiple-choice exam on a report's first screen: its first form, and bits per byte."""

from typing import Any

from lib.common import stats
from lib.common.text import format_value
from lib.exam import forms
from lib.exam.choice_tables import FORMS

Number = dict[str, Any]


def exam_numbers(entry: dict[str, Any], model: str) -> list[Number]:
    """Return a model's right answers, and what the right options' text costs, beside the base's."""
    numbers = [_right_number(entry, model)]
    if "bits_per_byte" in entry["models"][model]:
        numbers.append(_bits_number(entry, model))
    return numbers


def _right_number(entry: dict[str, Any], model: str) -> Number:
    form, *others = forms.list_forms(entry["models"])
    count, total = _count_right(entry["models"][model], form)
    low, high = stats.wilson(count, total)
    note = f"{count / total:.0%}, 95 % {_format_span(100 * low, 100 * high)}; "
    note += _describe_base(entry, form)
    if pair := find_pair(entry, "base", model):
        change = forms.part_of_form(pair, form)
        note += f", p = {change['p']:.2g} (McNemar)"
    for other in others:
        right, _ = _count_right(entry["models"][model], other)
        note += f"; {FORMS[other]} {right}, {_describe_base(entry, other)}"
    shown = f" {FORMS[form]}" if others else ""
    return _number(f"exam {entry['exam']}, right{shown} ({model})", f"{count} of {total}", note)


def _describe_base(entry: dict[str, Any], form: str) -> str:
    models = entry["models"]
    return f"base {_count_right(models['base'], form)[0] if 'base' in models else 'not measured'}"


def _count_right(result: dict[str, Any], form: str) -> tuple[int, int]:
    share = forms.part_of_form(result, form)
    return share["right"], share["of"]


def _bits_number(entry: dict[str, Any], model: str) -> Number:
    models = entry["models"]
    name = f"exam {entry['exam']}, bits per byte of the right option ({model})"
    after = models[model]["bits_per_byte"]
    note = f"fewer are better; 95 % {_format_span(*after['interval'])}"
    base = models.get("base", {}).get("bits_per_byte")
    if base is None:
        return _number(name, f"{after['mean']:.3f}", note)
    pair = find_pair(entry, "base", model) or {}
    if change := pair.get("bits_per_byte"):
        low, high = change["interval"]
        note = (
            f"fewer are better; {change['difference']:+.3f}, 95 % {low:+.3f} to {high:+.3f}; "
            f"better on {change['better']} of {after['items']}, paired"
        )
    return _number(name, f"{base['mean']:.3f} → {after['mean']:.3f}", note)


def find_pair(entry: dict[str, Any], before: str, after: str) -> dict[str, Any] | None:
    """Return an exam's comparison of two models, if any."""
    for pair in entry.get("comparisons", []):
        if (pair["before"], pair["after"]) == (before, after):
            return pair
    return None


def _format_span(low: float, high: float) -> str:
    return f"{format_value(low)} to {format_value(high)}"


def _number(name: str, value: str, note: str) -> Number:
    return {"name": name, "value": value, "note": note}
