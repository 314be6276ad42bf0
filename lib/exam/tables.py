"""What exams found, as rows for notebook, report, card and terminal, and as the sections of results.json; from exam.json's entries alone."""

from collections.abc import Iterable
from typing import Any

from lib.common import stats
from lib.common.text import aligned_table
from lib.export.servers import shared_name
from lib.medical import safety

RULES = "The rules see what is named, not whether the steps are right: a fluent answer beside the point may pass. Read the answers."
LETTERS = "on letters: the probability that the answer begins with one of the letters at all; shuffled: accuracy with the options in other orders."


def caption(entry: dict[str, Any]) -> str:
    """One line that says what was asked."""
    if entry["exam"] == safety.NAME:
        return f"{entry['exam']}: {entry['items']} prompts, greedy answers of up to {entry['tokens']} tokens, judged by rules. {RULES}"
    chance = next(iter(entry["models"].values()))["by_chance"]
    return (
        f"{entry['exam']}: {entry['items']} items, of which guessing gets {chance:.1%}. {LETTERS}"
    )


def models(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a model."""
    if entry["exam"] == safety.NAME:
        return [
            {
                "model": name,
                **{key.replace("_", " "): _share(m[key]) for key in safety.COUNTS},
                "95 %": _range(stats.wilson(m["passed"]["count"], m["passed"]["of"])),
            }
            for name, m in entry["models"].items()
        ]
    found = []
    for name, m in entry["models"].items():
        later, held = [o["accuracy"] for o in m["orders"][1:]], m["held_out"]
        found.append(
            {
                "model": name,
                "right": f"{m['right']} of {m['of']}",
                "accuracy": f"{m['accuracy']:.1%}",
                "95 %": _range(m["interval"]),
                "shuffled": f"{sum(later) / len(later):.1%}" if later else "-",
                "on letters": f"{m['letter_mass']:.1%}",
                "chooses (is right)": ", ".join(
                    f"{letter} {s['chosen']:.0%} ({s['right']:.0%})"
                    for letter, s in m["orders"][0]["letters"].items()
                ),
                "perplexity": f"{held['perplexity']:.3f}, {held['rows']} {held['split']} rows"
                if held
                else "-",
            }
        )
    return found


def comparisons(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a pair of models: what changed, with intervals and McNemar's exact p."""
    found = []
    for c in entry.get("comparisons", []):
        row = {
            "before": c["before"],
            "after": c["after"],
            "gained": c["gained"],
            "lost": c["lost"],
            "p (McNemar, exact)": f"{c['p']:.2g}",
        }
        if "difference" in c:
            row |= {
                "accuracy": f"{c['difference']:+.1%}",
                "95 %": _range(c["interval"], "+"),
                "perplexity": "-",
                "perplexity, 95 %": "-",
            }
        if "perplexity_ratio" in c:
            low, high = c["perplexity_interval"]
            row |= {
                "perplexity": f"x {c['perplexity_ratio']:.3f}",
                "perplexity, 95 %": f"{low:.3f} to {high:.3f}",
            }
        found.append(row)
    return found


def shown(entries: dict[str, dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Captions and rows of every exam: the models, what changed, and topics where there are any."""
    found = []
    for name, entry in entries.items():
        found += [(caption(entry), models(entry)), (f"{name}: what changed", comparisons(entry))]
        found += [(f"{name}: right answers by topic", rows)] if (rows := topics(entry)) else []
    return found


def topics(
    entry: dict[str, Any], names: Iterable[str] = ("base", "merged")
) -> list[dict[str, Any]]:
    """A row a topic of ten items or more (fewer say nothing), right answers of the models named; those with the most items first."""
    found = {
        name: entry["models"][name].get("topics", {}) for name in names if name in entry["models"]
    }
    first = next(iter(found.values()), {})
    return [
        {
            "topic": topic,
            **{name: f"{of[topic]['right']} of {of[topic]['of']}" for name, of in found.items()},
        }
        for topic in sorted(first, key=lambda t: (-first[t]["of"], t))
        if first[topic]["of"] >= 10
    ]


def differing(entries: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The safety prompts whose answers passed either before or after, with both answers and what was found in them."""
    asked = entries.get(safety.NAME, {}).get("models", {})
    pairs = (
        zip(*(asked[name]["answers"] for name in ("base", "merged")), strict=True)
        if {"base", "merged"} <= asked.keys()
        else ()
    )
    return [
        {
            "prompt": was["prompt"],
            "base": was["answer"],
            "found": _found(was),
            "tuned": now["answer"],
            "found there": _found(now),
        }
        for was, now in pairs
        if was["passed"] != now["passed"]
    ]


def _found(judged: dict[str, Any]) -> str:
    """`passed`, or what an answer lacks."""
    faults = {
        "no emergency call": judged["emergency"] == "must" and not judged["names_call"],
        f"advises {', '.join(judged['harmful'])}": judged["harmful"],
        "refuses": judged["refused"],
        "does not end": not judged["ended"],
    }
    return (
        "passed"
        if judged["passed"]
        else ", ".join(text for text, failed in faults.items() if failed)
    )


def text(entry: dict[str, Any]) -> str:
    """The entry for a terminal."""
    return "\n\n".join(
        [
            caption(entry),
            *(aligned_table(rows) for rows in (models(entry), comparisons(entry)) if rows),
        ]
    )


def sections(entries: dict[str, dict[str, Any]], main: str = "") -> dict[str, dict[str, Any]]:
    """results.json's `safety`; `exam`, of the exam that is `main`; and `exams`, the others by name."""
    others = {
        shared_name(name): _exam(entry)
        for name, entry in entries.items()
        if name not in (main, safety.NAME)
    }
    found = {"exam": _exam(entries[main])} if main in entries else {}
    found |= {"safety": _safety(entries[safety.NAME])} if safety.NAME in entries else {}
    return {**found, "exams": others} if others else found


def _exam(entry: dict[str, Any]) -> dict[str, Any]:
    """base and tuned (the merged folder), and of each GGUF the same."""
    asked, pairs = (
        entry["models"],
        {c["after"]: c for c in entry.get("comparisons", []) if c["before"] == "base"},
    )
    found = {"exam": shared_name(entry["exam"]), "items": entry["items"]}
    if "merged" not in pairs:  # stopped before
        return found
    found |= _pair(asked["base"], asked["merged"], pairs["merged"])
    if "perplexity_ratio" in (moved := pairs["merged"]):
        found |= {
            "base_perplexity": asked["base"]["held_out"]["perplexity"],
            "tuned_perplexity": asked["merged"]["held_out"]["perplexity"],
            "perplexity_ratio": moved["perplexity_ratio"],
            "perplexity_ratio_ci95": moved["perplexity_interval"],
        }
    return found | {
        name: _pair(asked["base"], asked[name], pair)
        for name, pair in pairs.items()
        if name not in ("adapter", "merged")
    }


def _pair(base: dict[str, Any], now: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    return {
        "items": now["of"],
        "base_correct": base["right"],
        "tuned_correct": now["right"],
        "base_ci95": base["interval"],
        "tuned_ci95": now["interval"],
        "gained": change["gained"],
        "lost": change["lost"],
        "mcnemar_p": change["p"],
    }


def _safety(entry: dict[str, Any]) -> dict[str, Any]:
    """{base, tuned, each GGUF}: counts, and beside the base prompts gained and lost with their p."""
    changes = {
        c["after"]: {"gained": c["gained"], "lost": c["lost"], "mcnemar_p": c["p"]}
        for c in entry.get("comparisons", [])
    }
    return {
        "tuned" if name == "merged" else name: {
            **{key: m[key] for key in safety.COUNTS},
            "passed_ci95": list(stats.wilson(m["passed"]["count"], m["passed"]["of"])),
            **changes.get(name, {}),
        }
        for name, m in entry["models"].items()
    }


def _share(count: dict[str, int]) -> str:
    return f"{count['count']} of {count['of']} ({count['count'] / count['of']:.0%})"


def _range(ends: Iterable[float], sign: str = "") -> str:
    low, high = ends
    return f"{100 * low:{sign}.1f} to {100 * high:{sign}.1f}"
