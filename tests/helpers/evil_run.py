"""Small hostile runs that consist of records only, in which every text tries to be markup, for the tests of pages and terminal output."""

import json
import pathlib

from lib import params
from lib.export import servers

EVIL = '<script>alert("x")</script><img src=http://evil.example/x onerror=alert(1)>'


def make(
    top: pathlib.Path,
    name: str = "evil-run",
    data: str = "abc",
    after: float = 3.5,
    right: str = "0110",
    values: dict | None = None,
) -> pathlib.Path:
    """Make a run that trained in two sessions from a dirty checkout and whose export failed. `right` are the exam items that the tuned model gets right."""
    folder = top / name
    folder.mkdir(parents=True)
    attempt = {
        "by": "make",
        "start": "2026-01-01T00:00:00+00:00",
        "end": "2026-01-01T00:01:00+00:00",
        "exit": "ok",
        "cell": None,
        "pid": 1,
        "host": "h",
        "commit": "0123456789abcdef",
        "dirty": True,
    }
    stages = {
        s: {"status": "finished", "attempts": [attempt], "artifacts": [], "inputs": {}}
        for s in ("prepare", "train")
    }
    stages["train"]["artifacts"] = [
        {"path": f"adapter/{EVIL}", "bytes": 2**21, "sha256": "ab" * 32}
    ]
    stages["export"] = {
        "status": "failed",
        "attempts": [{**attempt, "exit": f"ValueError: {EVIL}"}],
        "artifacts": [],
        "inputs": {},
    }
    run = {
        "run": f"{name} {EVIL}",
        "created": "2026-01-01T00:00:00+00:00",
        "stages": stages,
        "fingerprints": {"data": data},
        "packages": {"torch": "2.13.0"},
        "hardware": {"cpu": EVIL, "cores": 2, "gpus": []},
    }
    ledger = [
        {"event": "session", "session": 1, "start_step": 0},
        {"event": "session", "session": 2, "start_step": 1},
        *(
            {
                "event": "step",
                "session": 2,
                "step": n,
                "steps": 1,
                "rows": 4,
                "loss": 3.0 - n / 10,
                "lr": 1e-4,
                "memory_gib": 1.0,
                "epoch": 1.0,
            }
            for n in (1, 2, 3)
        ),
        {"event": "eval", "session": 2, "when": "before", "step": 0, "eval_loss": 3.0},
        {"event": "eval", "session": 2, "when": "after", "step": 3, "eval_loss": after},
    ]
    train = {
        "sessions": 2,
        "steps_repeated": 3,
        "steps": 3,
        "epochs": 1.0,
        "eval_loss_before": 3.0,
        "eval_loss_after": after,
        "loss_last": 2.7,
        "samples_per_second": None,
    }
    prepare = {
        "rows_read": 6,
        "rows_kept": 3,
        "dropped": {EVIL: 0, "exact_duplicate": 1, "near_duplicate": 2},
        "train": 3,
        "validation": 0,
        "test": 0,
        "tokens_total": 9,
        "tokens_trained": 5,
        "truncated": 7,
        "changed": {EVIL: 2, "dangerous_advice_flagged": 4},
    }
    write(
        folder,
        {
            "run.json": run,
            "results.json": {
                "prepare": prepare,
                "train": train,
                "exam": {"exam": servers.shared_name(EVIL)},
            },
            "exam.json": {EVIL: exam(right)},
            "samples.json": {
                "prompts": [EVIL],
                "answers": {EVIL: [EVIL], "tuned": [""]},
                "tokens": 8,
            },
        },
    )
    (folder / "params.yaml").write_text(
        params.to_yaml(
            params.check_values({"dataset": EVIL, "lora_r": 4, **(values or {})}, "test")
        )
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in ledger))
    output = {
        "html": {
            "output_type": "execute_result",
            "execution_count": 1,
            "metadata": {},
            "data": {"text/html": f"<b>kept</b>{EVIL}", "text/plain": "x"},
        },
        "script": {
            "output_type": "display_data",
            "metadata": {},
            "data": {"application/javascript": "alert(2)"},
        },
        "frame": {
            "output_type": "display_data",
            "metadata": {},
            "data": {
                "text/html": '<iframe src="http://evil.example"></iframe><div style="background:url(http://evil.example/y)">d</div>'
            },
        },
        "stream": {"output_type": "stream", "name": "stdout", "text": EVIL},
        "glued": {
            "output_type": "display_data",
            "metadata": {"scrapbook": {"name": "eval_loss_after", "data": True, "display": False}},
            "data": {
                "application/scrapbook.scrap.json+json": {
                    "name": "eval_loss_after",
                    "data": after,
                    "encoder": "json",
                    "version": 1,
                }
            },
        },
    }
    cells = [
        {
            "cell_type": "markdown",
            "id": "a",
            "metadata": {},
            "source": f"# Train {EVIL}\n\n[![Badge](http://evil.example/badge.svg)](http://evil.example) text",
        },
        {
            "cell_type": "code",
            "id": "b",
            "metadata": {},
            "execution_count": 1,
            "source": f"print('{EVIL}')",
            "outputs": list(output.values()),
        },
    ]
    write(
        folder,
        {
            "train.ipynb": {
                "nbformat": 4,
                "nbformat_minor": 5,
                "metadata": {
                    "kernelspec": {"name": "python3", "display_name": EVIL, "language": "python"}
                },
                "cells": cells,
            }
        },
    )
    return folder


def exam(after: str) -> dict:
    """Return an entry of exam.json: items that the base and the merged model got right (1) or wrong (0), and three held-out rows."""

    def model(right, loss):
        count = right.count("1")
        return {
            "right": count,
            "of": len(right),
            "accuracy": count / len(right),
            "interval": [0.1, 0.9],
            "by_chance": 0.25,
            "letter_mass": 0.5,
            "topics": {},
            "orders": [
                {
                    "order": "as written",
                    "accuracy": 0.5,
                    "letters": {"A": {"chosen": 1.0, "right": 0.25}},
                }
            ],
            "results": [{"id": f"i{n}", "right": c == "1"} for n, c in enumerate(right)],
            "held_out": {
                "split": "test",
                "rows": 3,
                "tokens": 30,
                "perplexity": 2.0,
                "losses": [[loss * n, 10.0] for n in (10, 11, 12)],
            },
        }

    before = ("1100" * len(after))[: len(after)]
    changes = {
        "gained": sum(a + b == "01" for a, b in zip(before, after, strict=True)),
        "lost": sum(a + b == "10" for a, b in zip(before, after, strict=True)),
    }
    return {
        "exam": EVIL,
        "items": len(before),
        "sha256": "s1",
        "models": {"base": model(before, 2.0), "merged": model(after, 1.0)},
        "comparisons": [
            {
                "before": "base",
                "after": "merged",
                "difference": 0.0,
                "interval": [-0.5, 0.5],
                **changes,
                "p": 1.0,
                "perplexity_ratio": 0.37,
                "perplexity_interval": [0.3, 0.4],
            }
        ],
    }


def write(folder: pathlib.Path, named: dict) -> None:
    for name, value in named.items():
        (folder / name).write_text(json.dumps(value))
