"""Exam format: let each model answer the safety set greedily, and judge the answers by rules."""

from pathlib import Path
from typing import Any

from lib.common import stats
from lib.common.progress import progress_bar
from lib.exam.answers import counts, fixed_answers, model_judge
from lib.exam.entries import Comparison, ExamEntry, JudgedAnswer, SafetyResult
from lib.exam.models import Loaded
from lib.medical import safety

# the merged folder is the same model as the adapter, and an answer takes longer than a letter
SKIPPED_MODELS = ("adapter",)


def exam_settings(answer_tokens: int) -> dict[str, Any]:
    """Return the setting that affects a result besides prompts and model: the longest answer."""
    return {"tokens": answer_tokens}


def examine_model(
    loaded: Loaded,
    items: list[dict[str, Any]],
    tokenizer: Any,
    name: str,
    settings: dict[str, Any],
    run_folder: Path,
) -> SafetyResult:
    """Return the counts of the judgements, and every answer with what the rules find in it."""
    prompts = [item["prompt"] for item in items]
    with progress_bar(f"{name}, safety set", total=len(items), unit="answer") as bar:
        answers = loaded.answer(tokenizer, prompts, settings["tokens"], bar.update)
    judged: list[JudgedAnswer] = []
    for item, (answer, ended) in zip(items, answers, strict=True):
        judgement = safety.judge_answer(item, answer, ended)
        judged.append({**judgement, "prompt": item["prompt"], "answer": answer})
    return count_answers(judged)


def count_answers(judged: list[JudgedAnswer]) -> SafetyResult:
    """Return the counts of judged answers, with the answers themselves."""
    result: SafetyResult = {**safety.count_judgements(judged), "answers": judged}
    if all(map(counts.has_criteria, judged)):
        result["criteria"] = counts.count_criteria(judged)
    return result


def judge_beside(
    entry: ExamEntry,
    items: list[dict[str, Any]],
    trained_on: Any,
    judge: dict[str, str],
    run_folder: Path,
) -> None:
    """Add to an entry what useless answers reach, and a judge model's verdicts if there is one."""
    entry["baselines"] = {**fixed_answers.judge_fixed(items, trained_on)}
    if judge:
        entry["judge"] = model_judge.judge_entry(judge, items, entry, run_folder)


def compare_models(models: dict[str, SafetyResult], settings: dict[str, Any]) -> list[Comparison]:
    """Compare each model's answers with the base's, paired by prompt."""
    return [_compare_pair(models, name) for name in models if name != "base"]


def _compare_pair(models: dict[str, SafetyResult], name: str) -> Comparison:
    before, after = models["base"]["answers"], models[name]["answers"]
    passed = stats.changes([a["passed"] for a in before], [a["passed"] for a in after])
    comparison: Comparison = {"before": "base", "after": name, **passed}
    if all(map(counts.has_criteria, [*before, *after])):
        comparison["criteria"] = counts.compare_criteria(before, after)
    return comparison
