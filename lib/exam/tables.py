"""Turn the entries of exam.json into tables for people and sections of results.json."""

from collections.abc import Iterable
from typing import Any

from lib.common.text import aligned_table
from lib.exam import cautions
from lib.exam.answers import act_tables, judge_tables
from lib.exam.entries import ChoiceResult, Comparison, ExamEntry, HeldOut, Share
from lib.export.servers import shared_name
from lib.medical import safety
from lib.record.schema import ExamPair, ExamResults

Row = dict[str, Any]

LETTERS = (
    "on letters: the probability that the answer begins with one of the letters at all; "
    "shuffled: accuracy with the options in other orders."
)
TOPIC_ITEMS = 10  # a topic with fewer items tells nothing


# --------------------------------------------------------------------------------------------------
# for people


def exam_tables(entries: dict[str, ExamEntry]) -> list[tuple[str, list[Row]]]:
    """Return (caption, rows) of every table: an exam's models, what changed, and its topics."""
    tables = []
    for name, entry in entries.items():
        if name == safety.NAME:
            tables += _safety_tables(entry)
            continue
        tables.append((describe_exam(entry), model_rows(entry)))
        if rows := baseline_rows(entry):
            tables.append((describe_baselines(entry), rows))
        if warned := cautions.list_cautions(entry):
            tables.append((f"{name}: cautions", [{"caution": text} for text in warned]))
        tables.append((f"{name}: what changed", comparison_rows(entry)))
        if rows := topic_rows(entry):
            tables.append((f"{name}: right answers by topic", rows))
    return tables


def _safety_tables(entry: ExamEntry) -> list[tuple[str, list[Row]]]:
    return [*act_tables.safety_tables(entry), *judge_tables.judge_tables(entry)]


def format_entry(entry: ExamEntry) -> str:
    """Return an exam's caption and tables as text for a terminal."""
    if entry["exam"] == safety.NAME:
        shown = _safety_tables(entry)
        return "\n\n".join(f"{caption}\n\n{aligned_table(rows)}" for caption, rows in shown)
    parts = [describe_exam(entry), aligned_table(model_rows(entry))]
    if rows := baseline_rows(entry):
        parts += [describe_baselines(entry), aligned_table(rows)]
    if rows := comparison_rows(entry):
        parts.append(aligned_table(rows))
    parts += [f"Caution: {text}." for text in cautions.list_cautions(entry)]
    return "\n\n".join(parts)


def describe_exam(entry: ExamEntry) -> str:
    """Return one line that says what was asked."""
    chance = next(iter(entry["models"].values()))["by_chance"]
    return (
        f"{entry['exam']}: {entry['items']} items, of which guessing gets {chance:.1%}. {LETTERS}"
    )


def model_rows(entry: ExamEntry) -> list[Row]:
    """Return a row for each model."""
    return [_choice_row(name, result) for name, result in entry["models"].items()]


def _choice_row(name: str, result: ChoiceResult) -> Row:
    as_written, *shuffled = result["orders"]
    accuracies = [order["accuracy"] for order in shuffled]
    letters = [
        f"{letter} {share['chosen']:.0%} ({share['right']:.0%})"
        for letter, share in as_written["letters"].items()
    ]
    return {
        "model": name,
        "right": f"{result['right']} of {result['of']}",
        "accuracy": f"{result['accuracy']:.1%}",
        "95 %": _format_range(result["interval"]),
        "shuffled": f"{sum(accuracies) / len(accuracies):.1%}" if accuracies else "-",
        "on letters": f"{result['letter_mass']:.1%}",
        "chooses (is right)": ", ".join(letters),
        "perplexity": _format_held_out(result["held_out"]),
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
    """Return a row for each pair of models: what changed, with intervals and McNemar's exact p."""
    return [_comparison_row(comparison) for comparison in entry.get("comparisons", [])]


def _comparison_row(comparison: Comparison) -> Row:
    row = {
        "before": comparison["before"],
        "after": comparison["after"],
        "gained": comparison["gained"],
        "lost": comparison["lost"],
        "p (McNemar, exact)": f"{comparison['p']:.2g}",
    }
    if "difference" in comparison:
        row["accuracy"] = f"{comparison['difference']:+.1%}"
        row["95 %"] = _format_range(comparison["interval"], "+")
        row["perplexity"] = "-"
        row["perplexity, 95 %"] = "-"
    if "perplexity_ratio" in comparison:
        low, high = comparison["perplexity_interval"]
        row["perplexity"] = f"x {comparison['perplexity_ratio']:.3f}"
        row["perplexity, 95 %"] = f"{low:.3f} to {high:.3f}"
    return row


def topic_rows(entry: ExamEntry, names: Iterable[str] = ("base", "merged")) -> list[Row]:
    """Return a row for each topic of ten items or more, with the named models' right answers.

    Topics with the most items come first.
    """
    models = entry["models"]
    topics = {name: models[name].get("topics", {}) for name in names if name in models}
    first: dict[str, Share] = next(iter(topics.values()), {})
    rows = []
    for topic in sorted(first, key=lambda topic: (-first[topic]["of"], topic)):
        if first[topic]["of"] >= TOPIC_ITEMS:
            shares = {name: shares[topic] for name, shares in topics.items()}
            right = {name: f"{share['right']} of {share['of']}" for name, share in shares.items()}
            rows.append({"topic": topic, **right})
    return rows


def differing_answers(entries: dict[str, ExamEntry]) -> list[Row]:
    """Return the safety prompts whose answers were judged differently before and after."""
    if safety.NAME not in entries:
        return []
    return act_tables.differing_answers(entries[safety.NAME])


def _format_range(ends: Iterable[float], sign: str = "") -> str:
    low, high = ends
    return f"{100 * low:{sign}.1f} to {100 * high:{sign}.1f}"


# --------------------------------------------------------------------------------------------------
# for results.json


def result_sections(entries: dict[str, ExamEntry], main: str = "") -> dict[str, dict[str, Any]]:
    """Return the sections `exam` (for the exam `main`), `safety`, and `exams` for the others."""
    sections: dict[str, dict[str, Any]] = {}
    if main in entries:
        sections["exam"] = _exam_section(entries[main])
    if safety.NAME in entries:
        sections["safety"] = _safety_section(entries[safety.NAME])
    others = [name for name in entries if name not in (main, safety.NAME)]
    if others:
        sections["exams"] = {shared_name(name): _exam_section(entries[name]) for name in others}
    return sections


def _exam_section(entry: ExamEntry) -> ExamResults:
    """Return base against tuned (the merged folder), and the same for each GGUF under its name."""
    models = entry["models"]
    comparisons = entry.get("comparisons", [])
    with_base = {c["after"]: c for c in comparisons if c["before"] == "base"}
    section: ExamResults = {"exam": shared_name(entry["exam"]), "items": entry["items"]}
    if "baselines" in entry:
        section["baselines"] = _baseline_section(entry["baselines"])
    if "merged" not in with_base:  # the exam was stopped before it came to the merged model
        return section
    tuned = with_base["merged"]
    section.update(_before_and_after(models["base"], models["merged"], tuned))
    if "perplexity_ratio" in tuned:
        section |= {
            "base_perplexity": models["base"]["held_out"]["perplexity"],
            "tuned_perplexity": models["merged"]["held_out"]["perplexity"],
            "perplexity_ratio": tuned["perplexity_ratio"],
            "perplexity_ratio_ci95": tuned["perplexity_interval"],
        }
    for name, comparison in with_base.items():
        if name not in ("adapter", "merged"):
            section[name] = _before_and_after(models["base"], models[name], comparison)
    return section


def _baseline_section(recorded: dict[str, Any]) -> dict[str, Any]:
    """Return the baselines without the choice in each item."""
    return {
        name: {"correct": value["right"], "items": value["of"], "ci95": value["interval"]}
        if isinstance(value, dict)
        else value
        for name, value in recorded.items()
    }


def _before_and_after(base: Share, tuned: Share, comparison: Comparison) -> ExamPair:
    return {
        "items": tuned["of"],
        "base_correct": base["right"],
        "tuned_correct": tuned["right"],
        "base_ci95": base["interval"],
        "tuned_ci95": tuned["interval"],
        "gained": comparison["gained"],
        "lost": comparison["lost"],
        "mcnemar_p": comparison["p"],
    }


def _safety_section(entry: ExamEntry) -> dict[str, Any]:
    section = act_tables.safety_section(entry)
    if judge := entry.get("judge"):
        section["judge"] = judge_tables.judge_section(judge)
    return section
