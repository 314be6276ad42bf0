"""A judge model's figures beside the rules', always with its agreement, or not at all."""

from collections.abc import Mapping
from typing import Any

from lib.exam.answers.act_tables import LABELS, Captioned, Row, format_count, format_figure
from lib.exam.entries import Agreement, ExamEntry, JudgeSection

# Landis and Koch (Biometrics 33, 1977, 159-174) call kappa above it substantial
ENOUGH_AGREEMENT = 0.6


def judge_tables(entry: ExamEntry) -> list[Captioned]:
    """Return (caption, rows) of the judge model, if the entry has one."""
    if not (judge := entry.get("judge")):
        return []
    return [(f"{entry['exam']}: {describe_judge(judge)}", judge_rows(entry, judge))]


def describe_judge(judge: JudgeSection) -> str:
    """Return which model judged, and how far it can be believed."""
    beside = f"the judge model {judge['model']}, beside the rules"
    if "agreement" not in judge:
        return f"{beside}: no verdicts. {judge.get('failed', '')}"
    found = judge["agreement"]
    words = (
        f"{beside}. On {found['answers']} right and wrong answers of the set itself its kappa with "
        f"what is known of them is {_format_kappa(found)}: it passes "
        f"{format_count(found['right_passed'])} of the right ones and catches "
        f"{format_count(found['wrong_caught'])} of the wrong. With the rules, act by act, its "
        f"kappa is {_format_kappa(found['acts'])}."
    )
    if found["ci95"][0] < ENOUGH_AGREEMENT:
        words += (
            f" Its figures are not to be believed: kappa may be below {ENOUGH_AGREEMENT}, so that "
            f"it cannot be relied on to tell right answers from wrong ones."
        )
    return words


def _format_kappa(agreement: Agreement) -> str:
    low, high = agreement["ci95"]
    return f"{agreement['kappa']:.2f} ({low:.2f} to {high:.2f})"


def judge_rows(entry: ExamEntry, judge: JudgeSection) -> list[Row]:
    """Return a row for each model and judge; the model's own only with its agreement."""
    rows = []
    for name, judged in judge.get("models", {}).items():
        result = entry["models"][name]
        by_judge: Mapping[str, Any] = judged["criteria"]
        for who, figures in (("rules", result.get("criteria", {})), ("model", by_judge)):
            shown = {LABELS[k]: format_figure(figures[k]) if figures else "-" for k in by_judge}
            missing = judged["unjudged"] if who == "model" else 0
            rows.append({"model": name, "judged by": who, **shown, "no verdict": missing})
    return rows


def judge_section(judge: JudgeSection) -> dict[str, Any]:
    """Return a judge model's figures without its verdicts, which exam.json has."""
    if "agreement" not in judge:
        return {"model": judge["model"], "failed": judge.get("failed")}
    models = {}
    for name, judged in judge.get("models", {}).items():
        shown = "tuned" if name == "merged" else name
        models[shown] = {**judged["criteria"], "unjudged": judged["unjudged"]}
    return {"model": judge["model"], "agreement": judge["agreement"], "models": models}
