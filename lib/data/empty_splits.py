"""When no row is left, or none for a split: the error or caution, and what was dropped."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from lib.common.errors import UserError
from lib.data.reading import sources
from lib.data.rows import Rows, name_switch
from lib.data.splits import FORGETTING, SIDES
from lib.params import Params

SHOWN = 3  # reasons that are explained, the largest first
NEXT_STEPS = {
    "unreadable": "`columns` maps other column names; README.md has every shape of a row",
    "marked_wrong": "a field of each says that it is wrong; to leave out that field, name those "
    "that are read, as in `columns: {question: ask, answer: reply}`",
    "empty": "these have no text in the question or the answer: is `columns` right?",
    "turns_out_of_order": "questions and answers must alternate, the answer last",
    "personal_data": "`personal_data: mask` keeps these rows",
    "other_language": "`language` names the one that is kept; empty takes any",
    "dangerous_advice": "`dangerous_advice: flag` keeps and counts them; read them first",
    "too_long": "raise `max_seq_length`, or set `overlong: cut`",
    "same_question": "`same_question: all` keeps every answer to a question",
    "answer_repeated": "`answer_cap` is how many rows may share one answer; 0 is no limit",
    "near_duplicate": "`near_duplicates: keep`, or a higher `near_duplicate_threshold`",
    "ties_both_sides": "they belong to a training and a held-out row; `validation_size` and "
    "`test_size` 0 hold nothing out",
    "contaminated": "they repeat a held-out row, the exam or the safety set; `exam: []` compares "
    "with no exam, a larger `decontaminate` asks for longer runs of words, 0 compares nothing",
}


def require_rows(rows: Rows, count: int) -> None:
    """Raise UserError, with a table of the reasons for drops, when no row is left."""
    if not count:
        source = sources.describe(rows.job.dataset)
        raise UserError(f"no row is left of the {rows.read:,} read from {source}. {explain(rows)}")


def require_splits(rows: Rows, counts: Counter[str]) -> None:
    """Raise UserError, with the same table, when a split that the job needs is empty."""
    require_rows(rows, sum(counts[split] for split in SIDES))
    held_out = f"{counts['validation']} validation and {counts['test']} test rows"
    if not counts["train"]:
        raise UserError(
            f"no training row is left: {held_out} of the {rows.read:,} rows read. {explain(rows)}\n"
            f"  {_describe_shares(rows)}: lower them."
        )
    if rows.job.forgetting and not counts[FORGETTING]:
        raise UserError(
            f"no row of `forgetting` ({sources.describe(rows.job.forgetting)}) is left, so there "
            f"is nothing to measure what is forgotten on. {explain(rows)}"
        )
    if rows.job.early_stopping_patience and not counts["validation"]:
        raise UserError(
            f"no validation row is left, and early_stopping_patience needs some: "
            f"{counts['train']} training rows of the {rows.read:,} rows read. {explain(rows)}\n"
            f"  {_describe_shares(rows)}: raise validation_size, or set early_stopping_patience: 0."
        )


def describe_empty(job: Params, counts: Mapping[str, Any]) -> list[str]:
    """Return a caution for each held-out split that a job asks for, and that has no row."""
    asked = {"validation": job.validation_size, "test": job.test_size}
    lost = {
        "validation": "so no held-out loss is measured, and overfitting is not seen",
        "test": "so no rows are kept apart from training for a last measurement",
    }
    return [
        f"caution: {split}_size is {share:g}, but no {split} row is left of {counts['train']:,} "
        f"rows, {lost[split]}. Rows that are much alike stay on one side; a larger share, or "
        f"more rows that differ, gives some."
        for split, share in asked.items()
        if share and counts.get(split) == 0
    ]


def _describe_shares(rows: Rows) -> str:
    job = rows.job
    return f"validation_size is {job.validation_size:g} and test_size {job.test_size:g}"


def explain(rows: Rows) -> str:
    """Return the table of drops, and what to look at for the largest."""
    reasons = rows.dropped.most_common()
    if not reasons:
        return "Nothing was dropped."
    table = "\n".join(f"  {reason:24} {n:>9,}   {name_switch(reason)}" for reason, n in reasons)
    largest = [reason for reason, _ in reasons[:SHOWN]]
    steps = "\n".join(f"  {reason}: {_describe_step(rows, reason)}" for reason in largest)
    return (
        f"Reasons, and the parameter that decides on each (see params/README.md):\n{table}\n"
        f"Look at:\n{steps}"
    )


def _describe_step(rows: Rows, reason: str) -> str:
    """Return what to look at when a reason dropped too many rows, with the first such row."""
    step = NEXT_STEPS.get(reason, "")
    return "; ".join(part for part in (step, _name_example(rows, reason)) if part)


def _name_example(rows: Rows, reason: str) -> str:
    """Return the first dropped row of a reason, and what it repeats."""
    example = next(iter(rows.examples.get(reason, [])), {})
    if not example:
        return ""
    by = f" because of `{example['by']}`" if "by" in example else ""
    shared = f' ("{example["shared"]}")' if example.get("shared") else ""
    return f"the first is `{example['id']}`{by}{shared}"
