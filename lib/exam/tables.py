"""Turn the entries of exam.json into tables for people and sections of results.json."""

from collections.abc import Iterable
from typing import Any

from lib.common import stats
from lib.common.text import aligned_table
from lib.exam.entries import (
    ChoiceResult,
    Comparison,
    ExamEntry,
    HeldOut,
    JudgedAnswer,
    SafetyResult,
    Share,
)
from lib.export.servers import shared_name
from lib.medical import safety
from lib.medical.safety import Count, Judgement
from lib.record.schema import ExamPair, ExamResults, SafetyResults

Row = dict[str, Any]

RULES = (
    "The rules see what is named, not whether the steps are right: "
    "a fluent answer beside the point may pass. Read the answers."
)
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
        tables.append((describe_exam(entry), model_rows(entry)))
        tables.append((f"{name}: what changed", comparison_rows(entry)))
        if rows := topic_rows(entry):
            tables.append((f"{name}: right answers by topic", rows))
    return tables


def format_entry(entry: ExamEntry) -> str:
    """Return an exam's caption and tables as text for a terminal."""
    tables = [model_rows(entry), comparison_rows(entry)]
    return "\n\n".join([describe_exam(entry), *(aligned_table(rows) for rows in tables if rows)])


def describe_exam(entry: ExamEntry) -> str:
    """Return one line that says what was asked."""
    if entry["exam"] == safety.NAME:
        return (
            f"{entry['exam']}: {entry['items']} prompts, greedy answers of up to "
            f"{entry['tokens']} tokens, judged by rules. {RULES}"
        )
    chance = next(iter(entry["models"].values()))["by_chance"]
    return (
        f"{entry['exam']}: {entry['items']} items, of which guessing gets {chance:.1%}. {LETTERS}"
    )


def model_rows(entry: ExamEntry) -> list[Row]:
    """Return a row for each model."""
    to_row = _safety_row if entry["exam"] == safety.NAME else _choice_row
    return [to_row(name, result) for name, result in entry["models"].items()]


def _safety_row(name: str, result: SafetyResult) -> Row:
    counts = {key.replace("_", " "): _format_count(result[key]) for key in safety.COUNTS}
    return {"model": name, **counts, "95 %": _format_range(_passed_interval(result))}


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
    """Return the safety prompts whose answer passed only before or only after the training.

    A row has both answers, and what the rules found in each.
    """
    if safety.NAME not in entries:
        return []
    models = entries[safety.NAME].get("models", {})
    if "base" not in models or "merged" not in models:
        return []
    pairs = zip(models["base"]["answers"], models["merged"]["answers"], strict=True)
    return [
        _answers_row(before, after)
        for before, after in pairs
        if before["passed"] != after["passed"]
    ]


def _answers_row(before: JudgedAnswer, after: JudgedAnswer) -> Row:
    return {
        "prompt": before["prompt"],
        "base": before["answer"],
        "found": _name_faults(before),
        "tuned": after["answer"],
        "found there": _name_faults(after),
    }


def _name_faults(judgement: Judgement) -> str:
    """Return `passed`, or the answer's faults."""
    if judgement["passed"]:
        return "passed"
    faults = []
    if judgement["emergency"] == "must" and not judgement["names_call"]:
        faults.append("no emergency call")
    if judgement["harmful"]:
        faults.append(f"advises {', '.join(judgement['harmful'])}")
    if judgement["refused"]:
        faults.append("refuses")
    if not judgement["ended"]:
        faults.append("does not end")
    return ", ".join(faults)


def _format_count(count: Count) -> str:
    return f"{count['count']} of {count['of']} ({count['count'] / count['of']:.0%})"


def _format_range(ends: Iterable[float], sign: str = "") -> str:
    low, high = ends
    return f"{100 * low:{sign}.1f} to {100 * high:{sign}.1f}"


def _passed_interval(result: SafetyResult) -> tuple[float, float]:
    return stats.wilson(result["passed"]["count"], result["passed"]["of"])


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


def _safety_section(entry: ExamEntry) -> dict[str, SafetyResults]:
    """Return the counts for base, tuned and each GGUF, and what changed from the base."""
    changes = {comparison["after"]: comparison for comparison in entry.get("comparisons", [])}
    section: dict[str, SafetyResults] = {}
    for name, result in entry["models"].items():
        counts: SafetyResults = {
            "names_call": result["names_call"],
            "no_harm": result["no_harm"],
            "no_refusal": result["no_refusal"],
            "ended": result["ended"],
            "passed": result["passed"],
            "passed_ci95": list(_passed_interval(result)),
        }
        if name in changes:
            counts["gained"] = changes[name]["gained"]
            counts["lost"] = changes[name]["lost"]
            counts["mcnemar_p"] = changes[name]["p"]
        section["tuned" if name == "merged" else name] = counts
    return section
