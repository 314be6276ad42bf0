"""A multiple-choice exam as tables for people, and as a section of results.json.

Both forms are shown, the one that `forms.choose_form` names first.
"""

from collections.abc import Iterable
from typing import Any

from lib.exam import cautions, forms
from lib.exam.entries import (
    BitsChange,
    ChoiceChange,
    ChoiceResult,
    Comparison,
    ExamEntry,
    HeldOut,
    Mean,
    Share,
)
from lib.export.servers import shared_name
from lib.record.schema import BitsPair, ChoicePair, ExamPair, ExamResults

Row = dict[str, Any]

FORMS = {"completion": "by the options' text", "letters": "by letter"}
NOTES = {
    "completion": (
        "bits per byte: what the right option's text costs the model, whatever the wrong ones say; "
        "fewer are better."
    ),
    "letters": (
        "on letters: the probability that the answer begins with one of the letters at all; "
        "shuffled: accuracy with the options in other orders."
    ),
}
LENGTHS = {"character": "likelihood per character", "sum": "likelihood of the whole text"}
TOPIC_ITEMS = 10  # a topic with fewer items tells nothing


# --------------------------------------------------------------------------------------------------
# for people


def score_tables(entry: ExamEntry) -> list[tuple[str, list[Row]]]:
    """Return (caption, rows) of a table for each form, the headline first, and of the baselines."""
    first, *others = forms.list_forms(entry["models"])
    tables = [(describe_exam(entry), model_rows(entry, first, with_perplexity=True))]
    tables += [(describe_form(entry, form), model_rows(entry, form)) for form in others]
    if rows := baseline_rows(entry):
        tables.append((describe_baselines(entry), rows))
    return tables


def change_tables(entry: ExamEntry) -> list[tuple[str, list[Row]]]:
    """Return (caption, rows) of the table of what changed, and of the topics'."""
    name, form = entry["exam"], forms.list_forms(entry["models"])[0]
    tables = [(f"{name}: what changed", comparison_rows(entry))]
    if rows := topic_rows(entry):
        tables.append((f"{name}: right answers by topic, {FORMS[form]}", rows))
    return tables


def describe_exam(entry: ExamEntry) -> str:
    """Return one line that says what was asked, and why the first form is the first."""
    chance = next(iter(entry["models"].values()))["by_chance"]
    chosen = forms.choose_form(entry["models"])
    return (
        f"{entry['exam']}: {entry['items']} items, of which guessing gets {chance:.1%}, "
        f"{_name_form(entry, chosen['form'])}: {chosen['reason']}. {NOTES[chosen['form']]}"
    )


def describe_form(entry: ExamEntry, form: str) -> str:
    """Return one line about a form that is not the headline."""
    return f"{entry['exam']}: the same items {_name_form(entry, form)}. {NOTES[form]}"


def _name_form(entry: ExamEntry, form: str) -> str:
    if form == "letters":
        return FORMS[form]
    result = next(iter(entry["models"].values()))["completion"]
    return f"{FORMS[form]} ({LENGTHS[result['normalised']]})"


def model_rows(entry: ExamEntry, form: str, with_perplexity: bool = False) -> list[Row]:
    """Return a row for each model in one form."""
    to_row = _letter_row if form == "letters" else _completion_row
    rows = []
    for name, result in entry["models"].items():
        row = {"model": name, **to_row(result)}
        if with_perplexity:
            row["perplexity"] = _format_held_out(result["held_out"])
        rows.append(row)
    return rows


def _letter_row(result: ChoiceResult) -> Row:
    as_written, *shuffled = result["orders"]
    accuracies = [order["accuracy"] for order in shuffled]
    letters = [
        f"{letter} {share['chosen']:.0%} ({share['right']:.0%})"
        for letter, share in as_written["letters"].items()
    ]
    return {
        **_share_columns(result),
        "shuffled": f"{sum(accuracies) / len(accuracies):.1%}" if accuracies else "-",
        "on letters": f"{result['letter_mass']:.1%}",
        "chooses (is right)": ", ".join(letters),
    }


def _completion_row(result: ChoiceResult) -> Row:
    row = _share_columns(result["completion"])
    if bits := result.get("bits_per_byte"):
        low, high = bits["interval"]
        row["bits per byte"] = f"{bits['mean']:.3f}"
        row["bits per byte, 95 %"] = f"{low:.3f} to {high:.3f}"
    return row


def _share_columns(share: Share) -> Row:
    return {
        "right": f"{share['right']} of {share['of']}",
        "accuracy": f"{share['accuracy']:.1%}",
        "95 %": _format_range(share["interval"]),
    }


def _format_held_out(held_out: HeldOut | None) -> str:
    if not held_out:
        return "-"
    return f"{held_out['perplexity']:.3f}, {held_out['rows']} {held_out['split']} rows"


def describe_baselines(entry: ExamEntry) -> str:
    """Return one line that says what the baselines are."""
    text = f"{entry['exam']}: what its items give away without a model"
    baselines = entry["baselines"]
    compared, answers = baselines["answers_compared"], baselines["answers"]
    if compared < answers:
        text += f" (nearest of {compared:,} of the {answers:,} training answers)"
    return text


def baseline_rows(entry: ExamEntry) -> list[Row]:
    """Return a row for each baseline, the best first; none if they were not measured."""
    if "baselines" not in entry:
        return []
    recorded = entry["baselines"]
    rules = {name: recorded[key] for key, name in cautions.BASELINES.items()}
    rows = [
        {
            "baseline": name,
            "right": f"{share['right']} of {share['of']}",
            "accuracy": f"{share['accuracy']:.1%}",
            "95 %": _format_range(share["interval"]),
        }
        for name, share in sorted(rules.items(), key=lambda rule: -rule[1]["right"])
    ]
    chance = {"baseline": "guessing", "right": "-", "accuracy": f"{recorded['chance']:.1%}"}
    return [*rows, {**chance, "95 %": "-"}]


def comparison_rows(entry: ExamEntry) -> list[Row]:
    """Return a row for each pair of models and form, the headline first: what changed."""
    asked = forms.list_forms(entry["models"])
    return [
        _comparison_row(comparison, form, is_first=form == asked[0], both=len(asked) > 1)
        for form in asked
        for comparison in entry.get("comparisons", [])
    ]


def _comparison_row(comparison: Comparison, form: str, is_first: bool, both: bool) -> Row:
    change = forms.part_of_form(comparison, form)
    row = {
        "before": comparison["before"],
        "after": comparison["after"],
        **({"form": FORMS[form]} if both else {}),
        "gained": change["gained"],
        "lost": change["lost"],
        "p (McNemar, exact)": f"{change['p']:.2g}",
        "accuracy": f"{change['difference']:+.1%}",
        "95 %": _format_range(change["interval"], "+"),
    }
    if both:
        bits = comparison.get("bits_per_byte") if form == "completion" else None
        row["bits per byte"] = f"{bits['difference']:+.3f}" if bits else "-"
        row["bits per byte, 95 %"] = _format_span(bits["interval"], "+") if bits else "-"
    ratio = comparison.get("perplexity_ratio") if is_first else None
    row["perplexity"] = f"x {ratio:.3f}" if ratio else "-"
    row["perplexity, 95 %"] = _format_span(comparison["perplexity_interval"]) if ratio else "-"
    return row


def topic_rows(entry: ExamEntry, names: Iterable[str] = ("base", "merged")) -> list[Row]:
    """Return a row for each topic of ten items or more, with the named models' right answers.

    They are those of the headline's form. Topics with the most items come first.
    """
    models = entry["models"]
    form = forms.list_forms(entry["models"])[0]
    topics = {}
    for name in names:
        if name in models:
            result: Any = forms.part_of_form(models[name], form)
            topics[name] = result.get("topics", {})
    first: dict[str, Share] = next(iter(topics.values()), {})
    rows = []
    for topic in sorted(first, key=lambda topic: (-first[topic]["of"], topic)):
        if first[topic]["of"] >= TOPIC_ITEMS:
            shares = {name: shares[topic] for name, shares in topics.items()}
            right = {name: f"{share['right']} of {share['of']}" for name, share in shares.items()}
            rows.append({"topic": topic, **right})
    return rows


def _format_range(ends: Iterable[float], sign: str = "") -> str:
    low, high = ends
    return f"{100 * low:{sign}.1f} to {100 * high:{sign}.1f}"


def _format_span(ends: Iterable[float], sign: str = "") -> str:
    low, high = ends
    return f"{low:{sign}.3f} to {high:{sign}.3f}"


# --------------------------------------------------------------------------------------------------
# for results.json


def exam_section(entry: ExamEntry) -> ExamResults:
    """Return base against tuned (the merged folder), and the same for each GGUF under its name.

    The keys at the top are those of the letters; `completion` and `bits_per_byte` stand below.
    """
    models = entry["models"]
    comparisons = entry.get("comparisons", [])
    with_base = {c["after"]: c for c in comparisons if c["before"] == "base"}
    section: ExamResults = {"exam": shared_name(entry["exam"]), "items": entry["items"]}
    if "baselines" in entry:
        section["baselines"] = _baseline_section(entry["baselines"])
    if "merged" not in with_base:  # the exam was stopped before it came to the merged model
        return section
    tuned = with_base["merged"]
    if "completion" in tuned:
        chosen = forms.choose_form(models)
        section |= {"headline": chosen["form"], "headline_reason": chosen["reason"]}
    section.update(_pair_models(models["base"], models["merged"], tuned))
    if "perplexity_ratio" in tuned:
        section |= {
            "base_perplexity": models["base"]["held_out"]["perplexity"],
            "tuned_perplexity": models["merged"]["held_out"]["perplexity"],
            "perplexity_ratio": tuned["perplexity_ratio"],
            "perplexity_ratio_ci95": tuned["perplexity_interval"],
        }
    for name, comparison in with_base.items():
        if name not in ("adapter", "merged"):
            section[name] = _pair_models(models["base"], models[name], comparison)
    return section


def _baseline_section(recorded: dict[str, Any]) -> dict[str, Any]:
    """Return the baselines without the choice in each item."""
    return {
        name: {"correct": value["right"], "items": value["of"], "ci95": value["interval"]}
        if isinstance(value, dict)
        else value
        for name, value in recorded.items()
    }


def _pair_models(base: ChoiceResult, tuned: ChoiceResult, comparison: Comparison) -> ExamPair:
    pair: ExamPair = {**_pair_choices(base, tuned, comparison)}
    if "completion" in comparison:
        chosen = _pair_choices(base["completion"], tuned["completion"], comparison["completion"])
        normalised = tuned["completion"]["normalised"]
        pair["completion"] = {**chosen, "normalised": normalised}
    if "bits_per_byte" in comparison:
        change = comparison["bits_per_byte"]
        pair["bits_per_byte"] = _pair_bits(base["bits_per_byte"], tuned["bits_per_byte"], change)
    return pair


def _pair_choices(base: Share, tuned: Share, change: ChoiceChange | Comparison) -> ChoicePair:
    return {
        "items": tuned["of"],
        "base_correct": base["right"],
        "tuned_correct": tuned["right"],
        "base_ci95": base["interval"],
        "tuned_ci95": tuned["interval"],
        "gained": change["gained"],
        "lost": change["lost"],
        "mcnemar_p": change["p"],
    }


def _pair_bits(base: Mean, tuned: Mean, change: BitsChange) -> BitsPair:
    return {
        "items": tuned["items"],
        "base": base["mean"],
        "tuned": tuned["mean"],
        "base_ci95": base["interval"],
        "tuned_ci95": tuned["interval"],
        "difference": change["difference"],
        "difference_ci95": change["interval"],
        "better": change["better"],
        "worse": change["worse"],
    }
