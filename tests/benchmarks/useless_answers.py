"""Measure what answers to the safety set reach that need no model.

    python -m tests.benchmarks.useless_answers

The training rows are the bundled ones, all of them; a run compares with those it trained on. Then
each right answer of the set is put to all prompts of other topics, which takes half a minute.
"""

import json
from typing import Any

from lib.common.text import aligned_table
from lib.exam.answers import act_tables, fixed_answers
from lib.medical import safety


class Bundled:
    """The bundled rows with the two methods of a data set that are needed."""

    def __init__(self) -> None:
        lines = safety.ROWS_FILE.with_name("first_aid.jsonl").read_text("utf-8").splitlines()
        self.rows = [json.loads(line) for line in lines]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, numbers: list[int]) -> dict[str, list[str]]:
        return {key: [self.rows[n][key] for n in numbers] for key in ("question", "answer")}


def count_exchanged(rows: list[dict[str, Any]]) -> tuple[int, int]:
    """Return how many right answers pass at a prompt of another topic, and how many were put."""
    verdicts = [
        safety.judge_answer(row, other["good"], True)["passed"]
        for row in rows
        for other in rows
        if other["topic"] != row["topic"]
    ]
    return sum(verdicts), len(verdicts)


def main() -> None:
    rows = safety.load_rows()
    reached = fixed_answers.judge_fixed(rows, Bundled())
    print(aligned_table(act_tables.criteria_rows(reached, "answer")))
    passed, put = count_exchanged(rows)
    print(f"right answers to a prompt of another topic: {passed} of {put:,} pass")


if __name__ == "__main__":
    main()
