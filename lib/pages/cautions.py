"""What a reviewer must know before believing a number of a run, from its records: the first thing on its page."""

import math
from typing import Any

from lib.medical import safety
from lib.params import Params
from lib.record import ledger
from lib.record.run_record import STAGES

VOCABULARY = 262_144  # of Gemma 3 and 3n, for ledgers that do not name it
GUESSING = 0.97  # a base whose loss is above this share of a uniform guess's has learnt nothing
OVERFIT = 1.25  # held-out loss over the training loss at the end, from which training rows are known by heart rather than learnt from


def warnings(
    run: dict[str, Any],
    results: dict[str, Any],
    base_model: str,
    job: Params | None = None,
    entries: list[dict[str, Any]] | None = None,
    exams: dict[str, Any] | None = None,
) -> list[str]:
    """Texts, the gravest first; `job`, ledger `entries` and `exams` let it say more."""
    train, prepare = results.get("train", {}), results.get("prepare", {})
    return [
        *_stages(run),
        *_answers(exams or {}),
        *_base(base_model, train, entries or []),
        *_training(train, entries or []),
        *_data(prepare, job),
        *_files(results.get("export", {})),
    ]


def _stages(run: dict[str, Any]) -> list[str]:
    found = []
    for stage in STAGES:
        entry = run["stages"][stage]
        if entry["status"] != "finished":
            last = entry["attempts"][-1] if entry["attempts"] else {}
            found.append(
                f"{stage} is {entry['status']}" + (f": {last['exit']}" if last.get("exit") else "")
            )
        elif len(entry["attempts"]) > 1:
            found.append(f"{stage} took {len(entry['attempts'])} attempts")
    for stage in STAGES:
        if (run["stages"][stage]["attempts"] or [{}])[-1].get("dirty"):
            found.append(f"{stage} ran from a checkout with uncommitted changes")
    return found


def _answers(exams: dict[str, Any]) -> list[str]:
    found = []
    for name, entry in exams.items():
        models = entry.get("models", {})
        for model, one in models.items():
            if (
                name == safety.NAME
                and model != "base"
                and (harm := one["no_harm"]["of"] - one["no_harm"]["count"])
            ):
                found.append(
                    f"{model}: {harm} of {one['no_harm']['of']} answers to the safety set give advice that is known to be harmful"
                )
        for pair in entry.get("comparisons", []):
            if pair["before"] == "base" and pair["lost"] > pair["gained"] and pair["p"] < 0.05:
                found.append(
                    f"{pair['after']} does worse than the base on {name}: {pair['lost']} lost, {pair['gained']} gained, p = {pair['p']:.2g}"
                )
    return found


def _base(base_model: str, train: dict[str, Any], entries: list[dict[str, Any]]) -> list[str]:
    found, before = [], train.get("eval_loss_before")
    words = next((e["vocabulary"] for e in entries if e.get("vocabulary")), VOCABULARY)
    if before and before >= GUESSING * math.log(words):
        found.append(
            f"the base's weights are random, or broken: its held-out loss is {before:.2f}, and guessing among {words:,} tokens gives "
            f"{math.log(words):.2f}. Speed and memory are real; loss and answers mean nothing"
        )
    if base_model.startswith("bundled:"):
        found.append(
            "the base is the small Gemma 3 270M, dequantised from a Q4_K_M file, not Gemma 3n: the run shows the pipeline; its "
            "answers are often wrong and must not be followed"
        )
    return found


def _training(train: dict[str, Any], entries: list[dict[str, Any]]) -> list[str]:
    found, before, after, last = (
        [],
        train.get("eval_loss_before"),
        train.get("eval_loss_after"),
        train.get("loss_last"),
    )
    if before and after and after > before:
        found.append("the held-out loss is higher after training than before")
    evals = ledger.keep_valid(entries, "eval")
    best = min(evals, key=lambda e: e["eval_loss"], default=None)
    if (
        best
        and evals[-1]["step"] > best["step"] > 0
        and evals[-1]["eval_loss"] > 1.005 * best["eval_loss"]
    ):
        found.append(
            f"overfit: the held-out loss was lowest at step {best['step']:,} ({best['eval_loss']:.3f}) and is {evals[-1]['eval_loss']:.3f} "
            f"at step {evals[-1]['step']:,}; early_stopping_patience would have kept the best"
        )
    if after and last and after > OVERFIT * last:
        found.append(
            f"overfit: the training loss ends at {last:.3f}, the held-out loss at {after:.3f}: rows are being learnt by heart"
        )
    if train.get("sessions", 1) > 1:
        found.append(
            f"training was resumed {train['sessions'] - 1} time{'s' * (train['sessions'] > 2)}: {train['sessions']} sessions, "
            f"{train.get('steps_repeated', 0)} steps were run again after an interruption"
        )
    return found


def _data(prepare: dict[str, Any], job: Params | None) -> list[str]:
    found, dropped = [], prepare.get("dropped", {})
    if (
        flagged := prepare.get("changed", {}).get("dangerous_advice_flagged", 0)
        - dropped.get("dangerous_advice", 0)
    ) > 0:
        found.append(
            f"{flagged} rows of the data give outdated or harmful first-aid advice and were kept (dangerous_advice: flag)"
        )
    if cut := prepare.get("truncated"):
        found.append(f"{cut:,} answers were cut to fit max_seq_length")
    if long := dropped.get("too_long"):
        found.append(f"{long:,} rows were longer than max_seq_length and were left out")
    same, near = (dropped.get(key, 0) for key in ("exact_duplicate", "near_duplicate"))
    if same + near:
        found.append(
            f"the data repeat themselves: {same:,} exact and {near:,} near duplicates were dropped"
        )
    off = (
        {}
        if job is None
        else {
            "exact duplicates": "exact_duplicate" in job.skip_rules,
            "near duplicates": job.near_duplicates == "keep",
            "training rows that share text with held-out rows or the exam": not job.decontaminate,
        }
    )
    if kept := [text for text, is_off in off.items() if is_off]:
        found.append(
            f"by this job's parameters {' and '.join(kept)} were kept: held-out numbers may flatter"
        )
    return found


def _files(export: dict[str, Any]) -> list[str]:
    return [
        f"{kind}: {one['verdict']}"
        for kind, one in export.get("parity", {}).items()
        if one.get("verdict", "").startswith("much worse")
    ]
