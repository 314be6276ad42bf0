"""The record of a prepare job: counts for results.json, and data_card.json with their details."""

import time
from collections import Counter
from typing import Any

from lib.data.reading import sources
from lib.data.rows import Rows
from lib.data.splits import SPLITS


def summarise(rows: Rows, counts: Counter[str]) -> dict[str, Any]:
    """Return the `prepare` section of results.json.

    Raise AssertionError when rows do not add up.
    """
    kept = sum(counts[split] for split in SPLITS)
    left = rows.read - sum(rows.dropped.values())
    assert left == kept == len(rows.decisions.kept()), (rows.read, rows.dropped, counts)
    seconds = time.monotonic() - rows.started
    before_last_step = sum(rows.seconds.values())
    return {
        "rows_read": rows.read,
        "rows_kept": kept,
        "dropped": dict(rows.dropped),
        **{split: counts[split] for split in SPLITS},
        "changed": dict(rows.changed.most_common()),
        "tokens_total": counts["tokens_total"],
        "tokens_trained": counts["tokens_trained"],
        "truncated": counts["truncated"],
        "seconds": round(seconds, 1),
        "step_seconds": {**rows.seconds, "tokenise": round(seconds - before_last_step, 1)},
    }


def describe_data(rows: Rows, results: dict[str, Any], source_hash: str) -> dict[str, Any]:
    """Return data_card.json: sources, counts, and dropped or changed rows with examples."""
    job = rows.job
    elsewhere = ("dropped", "changed", "seconds", "step_seconds")
    return {
        "sources": [
            {
                "dataset": source.dataset,
                "local": bool(sources.local_files(source.dataset)),
                "revision": source.revision or None,
                "commit": rows.commits.get(f"{source.dataset}@{source.revision}"),
                "weight": source.weight,
                "max_rows": source.max_rows or None,
            }
            for source in sources.list_sources(job)
        ],
        "source_sha256": source_hash,
        "seed": job.seed,
        "exam": job.exam,
        **{name: value for name, value in rows.facts.items() if name != "fingerprint"},
        "skip_rules": job.skip_rules,
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
