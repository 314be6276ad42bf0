"""List what a reviewer must know before believing a run's numbers; it comes first on its page.

The warnings are derived from the run's records only.
"""

import math
from typing import Any

from lib.exam import cautions as exam_cautions
from lib.export.few_bits import share
from lib.export.servers import shared_name
from lib.medical import advice, safety
from lib.medical.texts import bundled
from lib.pages import safety_figures
from lib.params import Params
from lib.record import ledger
from lib.record.run_record import STAGES, describe_start
from lib.record.schema import RunRecord

VOCABULARY = 262_144  # of Gemma 3 and 3n, for ledgers that do not record it
GUESSING = 0.97  # a base with more than this share of a uniform guess's loss has learnt nothing
OVERFIT = 1.25  # a higher ratio of held-out to training loss means rows learnt by heart


def list_warnings(
    run: RunRecord,
    results: dict[str, Any],
    base_model: str,
    job: Params | None = None,
    entries: list[dict[str, Any]] | None = None,
    exams: dict[str, Any] | None = None,
) -> list[str]:
    """List warnings about a run; its `job`, ledger `entries` and `exams` allow further checks."""
    train = results.get("train", {})
    entries = entries or []
    return [
        *_warn_of_stages(run),
        *_warn_of_sources(run),
        *_warn_of_start(run),
        *_warn_of_answers(exams or {}),
        *_warn_of_base(base_model, train, entries),
        *_warn_of_overfitting(train, entries),
        *_warn_of_sessions(train),
        *_warn_of_length(train),
        *_warn_of_warm_up(train, job),
        *_warn_of_data(results.get("prepare", {})),
        *_warn_of_review(results.get("prepare", {})),
        *_warn_of_parameters(job),
        *_warn_of_files(results.get("export", {}), _reason_of(run, "export")),
    ]


def _warn_of_stages(run: RunRecord) -> list[str]:
    warnings = []
    for stage in STAGES:
        entry = run["stages"][stage]
        attempts = entry["attempts"]
        if entry["status"] != "finished":
            reason = attempts[-1].get("exit") if attempts else None
            warnings.append(f"{stage} is {entry['status']}" + (f": {reason}" if reason else ""))
        elif len(attempts) > 1:
            warnings.append(f"{stage} took {len(attempts)} attempts")
    for stage in STAGES:
        attempts = run["stages"][stage]["attempts"]
        if attempts and attempts[-1].get("dirty"):
            warnings.append(f"{stage} ran from a checkout with uncommitted changes")
    return warnings


def _warn_of_sources(run: RunRecord) -> list[str]:
    if not (changed := run.get("sources_changed")):
        return []
    return [
        f"since the rows were prepared, {changed}: the run went on with the prepared rows, which "
        f"were not compared with anything newer"
    ]


def _warn_of_start(run: RunRecord) -> list[str]:
    begun = run.get("start")
    if begun is None:
        return []
    text = (
        f"training began from {describe_start(begun)}, so the loss before training is that of "
        f"these weights, not the base's"
    )
    if begun["data"] is None or begun["data"] != run["fingerprints"].get("data"):
        text += (
            ". What that was trained on was not searched for this run's held-out rows: held-out "
            "numbers may look too good"
        )
    if begun["base_by"] == "name":
        text += ". Its base is known only by name"
    return [text]


def _warn_of_answers(exams: dict[str, Any]) -> list[str]:
    warnings = []
    for name, entry in exams.items():
        shared = shared_name(name)  # of a local file without its folders, since cards are shared
        if name == safety.NAME:
            warnings += safety_figures.warn_of_safety(entry)
        else:
            warnings += [f"{shared}: {text}" for text in exam_cautions.list_cautions(entry)]
        for pair in entry.get("comparisons", []):
            if pair["before"] == "base" and pair["lost"] > pair["gained"] and pair["p"] < 0.05:
                warnings.append(
                    f"{pair['after']} does worse than the base on {shared}: {pair['lost']} items "
                    f"lost, {pair['gained']} gained, p = {pair['p']:.2g}"
                )
    return warnings


def _warn_of_base(
    base_model: str, train: dict[str, Any], entries: list[dict[str, Any]]
) -> list[str]:
    warnings = []
    loss = train.get("eval_loss_before")
    vocabulary = next((e["vocabulary"] for e in entries if e.get("vocabulary")), VOCABULARY)
    guessing = math.log(vocabulary)  # the loss of a uniform guess, in nats
    if loss and loss >= GUESSING * guessing:
        warnings.append(
            f"the base's weights are random or damaged: its held-out loss is {loss:.2f}, while "
            f"guessing among {vocabulary:,} tokens gives {guessing:.2f}. Speed and memory are "
            f"valid, but loss and answers mean nothing"
        )
    if base_model.startswith("bundled:"):
        warnings.append(
            "the base is not Gemma 3n but the small Gemma 3 270M, dequantised from a Q4_K_M file: "
            "the run shows the pipeline; its answers are often wrong and must not be followed"
        )
    return warnings


def _warn_of_overfitting(train: dict[str, Any], entries: list[dict[str, Any]]) -> list[str]:
    warnings = []
    before, after = train.get("eval_loss_before"), train.get("eval_loss_after")
    if before and after and after > before:
        warnings.append("the held-out loss is higher after training than before")
    evals = ledger.keep_valid(entries, "eval")
    if evals:
        best = min(evals, key=lambda e: e["eval_loss"])
        last = evals[-1]
        worse = last["eval_loss"] > 1.005 * best["eval_loss"]
        if last["step"] > best["step"] > 0 and worse:
            warnings.append(
                f"overfit: the held-out loss was lowest at step {best['step']:,} "
                f"({best['eval_loss']:.3f}) and is {last['eval_loss']:.3f} at step "
                f"{last['step']:,}; early_stopping_patience would have kept the best"
            )
    training = train.get("loss_last")
    if after and training and after > OVERFIT * training:
        warnings.append(
            f"overfit: the training loss ends at {training:.3f}, but the held-out loss at "
            f"{after:.3f}: rows are being learnt by heart"
        )
    return warnings


def _warn_of_sessions(train: dict[str, Any]) -> list[str]:
    sessions = train.get("sessions", 1)
    if sessions <= 1:
        return []
    times = "1 time" if sessions == 2 else f"{sessions - 1} times"
    return [
        f"training was resumed {times}: {sessions} sessions, "
        f"with {train.get('steps_repeated', 0)} steps run again after an interruption"
    ]


def _warn_of_length(train: dict[str, Any]) -> list[str]:
    return [f"training was made longer: {text}" for text in describe_lengthenings(train)]


def describe_lengthenings(train: dict[str, Any]) -> list[str]:
    """Say where a training went on to more steps than planned, and what the rate did there."""
    return [
        f"planned for {bend['planned']:,} steps, it went on after step {bend['after_step']:,} to "
        f"{bend['then_planned']:,}; there the learning rate went from {bend['rate_before']:.3g} to "
        f"{bend['rate_after']:.3g}"
        for bend in train.get("lengthened", [])
    ]


def _warn_of_warm_up(train: dict[str, Any], job: Params | None) -> list[str]:
    """Warn of weights that were kept before the learning rate had reached its peak."""
    kept = train.get("best_step") or train.get("steps") or 0
    if job is None or not 0 < kept <= job.warmup_steps:
        return []
    if kept == 1:
        return [
            "the weights equal their start: the only step of these weights had a learning rate of "
            "0, as the first of a warm-up has"
        ]
    share = (kept - 1) / job.warmup_steps
    which = f"the weights kept are of step {kept:,}" if "best_step" in train else f"{kept:,} steps"
    return [
        f"the learning rate never reached its peak of {job.learning_rate:g}: {which}, in a warm-up "
        f"of {job.warmup_steps:,}. The highest rate was {share * job.learning_rate:.3g} "
        f"({share:.0%} of the peak)"
    ]


def _warn_of_data(prepare: dict[str, Any]) -> list[str]:
    warnings = []
    dropped = prepare.get("dropped", {})
    changed = prepare.get("changed", {})
    flagged = changed.get("dangerous_advice_flagged", 0)
    kept = flagged - dropped.get("dangerous_advice", 0)
    if kept > 0:
        warnings.append(
            f"{kept} rows of the data give outdated or harmful first-aid advice and were kept "
            f"(dangerous_advice: flag)"
        )
    damaged = changed.get("lost_characters_flagged", 0) + changed.get("cut_off_flagged", 0)
    if damaged:
        warnings.append(
            f"{damaged:,} texts of the data lost characters or stop in the middle, and were kept "
            f"(damaged_text: flag)"
        )
    if cut := prepare.get("truncated"):
        warnings.append(f"{cut:,} answers were cut to fit max_seq_length")
    if too_long := dropped.get("too_long"):
        warnings.append(f"{too_long:,} rows were longer than max_seq_length and were dropped")
    exact = dropped.get("exact_duplicate", 0)
    near = dropped.get("near_duplicate", 0)
    if exact + near:
        warnings.append(
            f"the data repeat themselves: {exact:,} exact and {near:,} near duplicates were dropped"
        )
    return warnings


def _warn_of_review(prepare: dict[str, Any]) -> list[str]:
    return [
        f"{name}: {bundled.describe_states(counts)}"
        for name, counts in prepare.get("review", {}).items()
        if counts["clinician"] < sum(counts.values())
    ]


def _warn_of_parameters(job: Params | None) -> list[str]:
    if job is None:
        return []
    kept = []
    if "exact_duplicate" in job.skip_rules:
        kept.append("exact duplicates")
    if job.near_duplicates == "keep":
        kept.append("near duplicates")
    if not job.decontaminate:
        kept.append("training rows that share text with held-out rows or the exam")
    warnings = []
    if kept:
        warnings.append(
            f"this job's parameters kept {' and '.join(kept)}: held-out numbers may look too good"
        )
    if job.language not in ("", *advice.LANGUAGES):
        warnings.append(
            f"the rules on harmful advice read English only: rows in {job.language} were not "
            f"searched, and the safety set was not asked"
        )
    if not job.language:
        warnings.append(
            "language is empty: the rules on harmful advice read English only, and find little in "
            "rows of other languages"
        )
    return warnings


def _reason_of(run: RunRecord, stage: str) -> str:
    """Return why a stage is not finished, which its own warning says; empty if it is."""
    entry = run["stages"][stage]
    if entry["status"] == "finished" or not entry["attempts"]:
        return ""
    return entry["attempts"][-1].get("exit") or ""


def _warn_of_files(export: dict[str, Any], told: str) -> list[str]:
    """Warn of files that failed a check, unless `told`, the end of the export, says the same."""
    warnings = []
    for kind, check in export.get("parity", {}).items():
        if "failed" in check and not _is_told(check["failed"], told):
            warnings.append(f"{kind} failed its comparison and is refused: {check['failed']}")
        elif check.get("verdict", "").startswith("much worse"):
            warnings.append(f"{kind}: {check['verdict']}")
        if kept := share.caution(check):
            warnings.append(f"{kind}: {kept}")
        if beyond := check.get("beyond_bounds"):
            warnings.append(
                f"{kind} is sound, but loses more by rounding than on the trained models that its "
                f"bounds were measured on: {'; '.join(beyond)}"
            )
    lora = export.get("lora", {})
    if (failed := lora.get("failed")) and not _is_told(failed, told):
        warnings.append(f"the adapter's own GGUF failed its comparison and is refused: {failed}")
    if lora.get("telling") is False or lora.get("without_end_token"):
        warnings.append(f"the adapter's own GGUF: {lora['verdict']}")
    return warnings


def _is_told(failed: str, told: str) -> bool:
    return failed.split("\n")[0].strip() in told
