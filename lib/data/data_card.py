"""The record of a prepare job: the counts for results.json, and data_card.json with what they mean."""

import time
from collections import Counter
from typing import Any

from lib.data import sources
from lib.data.rows import Rows
from lib.data.splits import SPLITS


def summary(rows: Rows, counts: Counter) -> dict[str, Any]:
    """The `prepare` section of results.json; raises when the rows do not add up."""
    kept, seconds = sum(counts[side] for side in SPLITS), time.monotonic() - rows.started
    assert rows.read - sum(rows.dropped.values()) == kept == len(rows.made.kept()), (
        rows.read,
        rows.dropped,
        counts,
    )
    return {
        "rows_read": rows.read,
        "rows_kept": kept,
        "dropped": dict(rows.dropped),
        **{side: counts[side] for side in SPLITS},
        "changed": dict(rows.changed.most_common()),
        "tokens_total": counts["tokens_total"],
        "tokens_trained": counts["tokens_trained"],
        "truncated": counts["truncated"],
        "seconds": round(seconds, 1),
        "step_seconds": {
            **rows.seconds,
            "tokenise": round(seconds - sum(rows.seconds.values()), 1),
        },
    }


def card(rows: Rows, results: dict[str, Any], source_hash: str) -> dict[str, Any]:
    """data_card.json: where the rows came from, what was dropped or changed, with examples, and the counts."""
    job = rows.job
    where = [
        {
            "dataset": part.dataset,
            "revision": part.revision or None,
            "commit": rows.commits.get(f"{part.dataset}@{part.revision}"),
            "weight": part.weight,
            "max_rows": part.max_rows or None,
        }
        for part in sources.parts(job)
    ]
    facts = {k: v for k, v in rows.facts.items() if k != "fingerprint"}
    return {
        "sources": where,
        "source_sha256": source_hash,
        "seed": job.seed,
        "exam": job.exam,
        **facts,
        "skip_rules": job.skip_rules,
        "counts": {
            k: v
            for k, v in results.items()
            if k not in ("dropped", "changed", "seconds", "step_seconds")
        },
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
