"""The record of a prepare job: counts for results.json, and data_card.json with their details."""

import time
from collections import Counter
from typing import Any

from lib.data.cleaning import language
from lib.data.reading import shapes, sources
from lib.data.reading.row import FieldCounts
from lib.data.reading.row_parts import marks
from lib.data.reading.row_parts.fields import fold_name
from lib.data.rows import Rows
from lib.data.splits import FORGETTING, SIDES, SPLITS
from lib.medical import safety
from lib.medical.texts import bundled
from lib.params import Params

MOST_INPUTS = 200  # entries shown for each split, and of those that are not read


def list_inputs(inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries of `source_rows.read_rows`; many of a kind are cut, and the rest counted.

    A file that is not read is named with the reason in `unread`, and has no rows.
    """
    kinds: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for entry in inputs:
        kinds.setdefault((entry["split"], bool(entry["unread"])), []).append(entry)
    listed = []
    for (split, is_unread), entries in kinds.items():
        listed += entries[:MOST_INPUTS]
        rest = entries[MOST_INPUTS:]
        if rest:
            rows = sum(entry["rows"] for entry in rest)
            why = "for reasons as above" if is_unread else ""
            listed.append(
                {"name": f"and {len(rest):,} more", "split": split, "rows": rows, "unread": why}
            )
    return listed


def describe_inputs(inputs: list[dict[str, Any]]) -> str:
    """Return what became of the files in a few lines, for notebook and terminal."""
    held_out = {
        split: [entry for entry in inputs if entry["split"] == split and not entry["unread"]]
        for split in SPLITS[1:]
    }
    lines = []
    for split, entries in held_out.items():
        if entries:
            names = ", ".join(entry["name"] for entry in entries[:5])
            rows = sum(entry["rows"] for entry in entries)
            lines.append(
                f"{split}: {rows:,} rows, all of them from held-out files ({names}). None is "
                f"trained on, and no other row is put there; `split: all` would mix them."
            )
    for entry in inputs:
        if entry["split"] == FORGETTING and not entry["unread"]:
            lines.append(
                f"forgetting: {entry['rows']:,} rows of {entry['name']} are measured before and "
                f"after the training, and never trained on"
            )
    unread = [entry for entry in inputs if entry["unread"]]
    lines += [f"not read: {entry['name']} ({entry['unread']})" for entry in unread[:10]]
    if len(unread) > 10:
        lines.append(f"not read: {len(unread) - 10:,} more, see the table")
    return "\n".join(lines) or "every file was read"


def summarise(rows: Rows, counts: Counter[str]) -> dict[str, Any]:
    """Return the `prepare` section of results.json.

    Raise AssertionError when rows do not add up.
    """
    kept = sum(counts.get(split, 0) for split in SIDES)
    left = rows.read - sum(rows.dropped.values())
    assert left == kept == len(rows.decisions.kept()), (rows.read, rows.dropped, counts)
    seconds = time.monotonic() - rows.started
    # not what is left of the whole: making or downloading the base lies between two steps
    last_step = time.monotonic() - rows.step_began
    between = seconds - last_step - sum(rows.seconds.values())
    return {
        "rows_read": rows.read,
        "rows_kept": kept,
        "dropped": dict(rows.dropped),
        **{split: counts[split] for split in SPLITS},
        **({FORGETTING: counts[FORGETTING]} if rows.job.forgetting else {}),
        "changed": dict(rows.changed.most_common()),
        "review": count_reviews(rows.job),
        "tokens_total": counts["tokens_total"],
        "tokens_trained": counts["tokens_trained"],
        "truncated": counts["truncated"],
        "seconds": round(seconds, 1),
        "step_seconds": {**rows.seconds, "tokenise": round(last_step, 1)},
        "seconds_between_steps": round(max(0.0, between), 1),
    }


def count_reviews(job: Params) -> dict[str, dict[str, int]]:
    """Return {bundled set: {state of review: texts}} of what a job trains on and is examined by."""
    names = [source.dataset for source in sources.list_sources(job)]
    names += [sources.exam_source(exam).dataset for exam in job.exam]
    names += [safety.NAME] if job.safety_tokens else []
    files_of = {name: path.name for name, path in sources.BUNDLED.items()}
    files_of[safety.NAME] = safety.ROWS_FILE.name
    return {
        name: bundled.count_states(bundled.read_texts(files_of[name]))
        for name in dict.fromkeys(names)
        if name in files_of
    }


def _count_by_field(counts: FieldCounts) -> dict[str, dict[str, int]]:
    """Return {field: {"read": rows, "unread": rows}} of the rows with a value in each field."""
    by_field: dict[str, dict[str, int]] = {}
    for (read, unread), rows in counts.items():
        for state, names in (("read", read), ("unread", unread)):
            for name in names:
                by_field.setdefault(name, {"read": 0, "unread": 0})[state] += rows
    return by_field


def list_fields(rows: Rows) -> list[dict[str, Any]]:
    """Return a table of the sources' fields: in how many rows each was read, and was not."""
    return [
        {"source": source.dataset, "field": name, "read in rows": n["read"], "unread": n["unread"]}
        for source, counts in zip(sources.list_sources(rows.job), rows.fields, strict=False)
        for name, n in sorted(_count_by_field(counts).items(), key=lambda item: -item[1]["unread"])
    ]


def _describe_forgetting(rows: Rows) -> dict[str, Any]:
    """Return the source of the rows that are only measured, for what is forgotten."""
    (source,) = sources.list_forgetting(rows.job)
    return {
        "dataset": source.dataset,
        "local": sources.find_local(source, FORGETTING) is not None,
        "revision": source.revision or None,
        "config": source.config or None,
        "split": source.split or None,
        "commit": rows.commits.get(f"{source.dataset}@{source.revision}"),
    }


def describe_fields(rows: Rows) -> str:
    """Return what became of the fields that decide which answers are trained, for the terminal.

    These are marks that dropped rows, fields that are named like one and were not read, and further
    questions and answers in rows of which others were read.
    """
    lines = []
    marked = rows.dropped["marked_wrong"]
    if marked:
        example = rows.examples["marked_wrong"][0]
        lines.append(f"dropped: {marked:,} rows, marked as wrong; the first: {example['text']}")
    for source, counts in zip(sources.list_sources(rows.job), rows.fields, strict=False):
        if source.dataset in sources.BUNDLED:
            continue  # their `review` is read before the rows: see sources.refuse_rejected
        unread = {name: n["unread"] for name, n in _count_by_field(counts).items() if n["unread"]}
        for name, count in unread.items():
            what = _explain_unread(name, source.columns)
            if what:
                lines.append(f"not read: `{name}` in {count:,} rows of {source.dataset}, {what}")
    return "\n".join(lines)


def _explain_unread(name: str, columns: dict[str, str]) -> str:
    """Return why an unread field may matter; "" for one that does not seem to."""
    ours = fold_name(name.rpartition(".")[2])
    if ours == marks.REJECTED:
        return ""
    if marks.find_kind(ours):
        if "[]." in name:
            return (
                "which is named as if it judged the answer. It is in the turns, where no such "
                "field is read: move it to the row."
            )
        named = ", ".join(f"{key}: {value}" for key, value in columns.items())
        named = f"{named}, is_correct: {name}" if named else f"is_correct: {name}"
        return (
            "which is named as if it judged the answer. If it marks wrong answers, have it read: "
            f"columns: {{{named}}}"
        )
    if ours in shapes.REPLIES:
        return (
            "which may be the answer too; another field was read as the answer. If this one "
            "counts, name it: columns: {question: ..., answer: " + name + "}"
        )
    if ours in shapes.ASKING:
        return (
            "which may belong to the question; another field was read as the question. If this "
            "one counts, name it: columns: {question: " + name + ", answer: ...}"
        )
    return ""


def describe_data(rows: Rows, results: dict[str, Any], source_hash: str) -> dict[str, Any]:
    """Return data_card.json: sources, counts, and dropped or changed rows with examples."""
    job = rows.job
    elsewhere = ("dropped", "changed", "seconds", "step_seconds")
    return {
        "sources": [
            {
                "dataset": source.dataset,
                "local": sources.find_local(source) is not None,
                "revision": source.revision or None,
                "config": source.config or None,
                "split": source.split or None,
                "commit": rows.commits.get(f"{source.dataset}@{source.revision}"),
                "weight": source.weight,
                "max_rows": source.max_rows or None,
                "fields": _count_by_field(rows.fields[number]) if number < len(rows.fields) else {},
            }
            for number, source in enumerate(sources.list_sources(job))
        ],
        **({FORGETTING: _describe_forgetting(rows)} if job.forgetting else {}),
        "files": list_inputs(rows.inputs),
        "held_out_by_files": sorted({entry["split"] for entry in rows.inputs} & {*SPLITS[1:]}),
        "source_sha256": source_hash,
        "seed": job.seed,
        "exam": [sources.name_exam(exam) for exam in job.exam],
        **{name: value for name, value in rows.facts.items() if name != "fingerprint"},
        "skip_rules": job.skip_rules,
        "language_rule": language.measure_rule(job.language),
        "counts": {name: value for name, value in results.items() if name not in elsewhere},
        "dropped": {
            reason: {"rows": count, "examples": rows.examples.get(reason, [])}
            for reason, count in rows.dropped.items()
        },
        "changed": {
            rule: {"rows": count, "examples": rows.examples.get(rule, [])}
            for rule, count in rows.changed.most_common()
        },
        "checked_on_every_row": [
            "one <bos>, first",
            "at least one trained token",
            "each answer's <end_of_turn> trained",
            "no token of a user trained",
            "each answer whole, right after the model's turn begins",
        ],
    }
