"""The rows of a prepare job on their way through its steps.

This module keeps where rows are on disk, what is known about each, and why rows were dropped.
"""

import dataclasses
import functools
import json
import pathlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Concatenate, ParamSpec, TextIO, TypeVar

import numpy as np

from lib.common import workers
from lib.common.errors import UserError
from lib.data import chunks
from lib.data.chunks import EXAMPLES, load_messages, shorten
from lib.data.duplicates import REASONS, Decisions
from lib.data.reading.row import FieldCounts
from lib.params import RULES, Params

STEPS = ("read_and_clean", "measure", "deduplicate", "decontaminate", "tokenise")
# the parameter that decides on a reason to drop rows, where it is not skip_rules
SWITCHES = {
    "unreadable": "skip_bad_lines",
    "not_sampled": "weight of the source",
    "marked_wrong": "(a field of the row says so)",
    "options_repeated": "(two options of the row are the same)",
    "image_not_read": "columns: {question: ..., answer: ...} takes the texts alone",
    "reasoning_without_end": "reasoning",
    "personal_data": "personal_data",
    "other_language": "language",
    "dangerous_advice": "dangerous_advice",
    "too_long": "max_seq_length, overlong",
    "same_question": "same_question",
    "answer_repeated": "answer_cap",
    "near_duplicate": "near_duplicates, near_duplicate_threshold",
    "contaminated": "decontaminate, exam",
}
P = ParamSpec("P")
Result = TypeVar("Result")


@dataclasses.dataclass
class Rows:
    """The rows of a job: cleaned chunks on disk, facts about each row, and what was dropped."""

    job: Params
    scratch: pathlib.Path  # the stage's own files, removed at its end
    pool: Any  # of lib/common/workers; None does all the work in this process
    dropped_file: TextIO  # dropped.jsonl, open
    exam: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # its items
    started: float = dataclasses.field(default_factory=time.monotonic)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)  # of each finished step
    step_began: float = 0.0  # of the step that runs now

    # what was read
    read: int = 0
    first: dict[str, Any] = dataclasses.field(default_factory=dict)  # the first row, as read
    commits: dict[str, str | None] = dataclasses.field(default_factory=dict)  # of the hub sources
    # each file and hub split, as source_rows.read_rows lists them
    inputs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    fields: list[FieldCounts] = dataclasses.field(default_factory=list)  # of each source

    # what is left: files of cleaned chunks, each with the number of its first row
    parts: list[tuple[pathlib.Path, int]] = dataclasses.field(default_factory=list)
    columns: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # one value per row
    # the questions after the first, for rows with several
    later_questions: dict[int, list[int]] = dataclasses.field(default_factory=dict)
    decisions: Decisions = dataclasses.field(default_factory=lambda: Decisions(0))
    # the first verified rows and their stored ids
    sample: list[tuple[list[dict[str, str]], list[int]]] = dataclasses.field(default_factory=list)

    # what is reported
    dropped: Counter[str] = dataclasses.field(default_factory=Counter)
    changed: Counter[str] = dataclasses.field(default_factory=Counter)
    examples: dict[str, list[dict[str, str]]] = dataclasses.field(default_factory=dict)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    def note_dropped(
        self, reason: str, row_id: str, example: dict[str, str] | None = None, by: str = ""
    ) -> None:
        """Count a dropped row, list it in dropped.jsonl, and keep the reason's first examples."""
        self.dropped[reason] += 1
        entry = {"id": row_id, "reason": reason}
        if by:
            entry["by"] = by
        self.dropped_file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self.keep_example(reason, {"id": row_id, **(example or {})})

    def note_renamed(self, before: str, after: str) -> None:
        """Count and show a row whose id an earlier row has."""
        self.changed["repeated_id"] += 1
        self.keep_example("repeated_id", {"id": after, "before": before, "after": after})

    def keep_example(self, name: str, example: dict[str, str]) -> None:
        """Keep an example of a reason or rule, unless there are EXAMPLES already."""
        kept = self.examples.setdefault(name, [])
        if len(kept) < EXAMPLES:
            kept.append(example)

    def iterate_chunks(self) -> Iterator[tuple[pathlib.Path, int, np.ndarray]]:
        """Yield (file, number of its first row, sides of its rows) of each chunk.

        A side indexes splits.SIDES; it is -1 for a dropped row, and before sides are assigned.
        """
        ends = [start for _, start in self.parts[1:]] + [len(self.decisions.side)]
        for (path, start), end in zip(self.parts, ends, strict=True):
            yield path, start, self.decisions.side[start:end]


def timed(
    step: Callable[Concatenate[Rows, P], Result],
) -> Callable[Concatenate[Rows, P], Result]:
    """Make a function a step of the stage, which keeps its time and may only run in its turn.

    Raise UserError for a step out of turn. On any error, stop the worker processes.
    """
    name = step.__name__
    needed = STEPS[: STEPS.index(name)]

    @functools.wraps(step)
    def run_step(rows: Rows, *args: P.args, **options: P.kwargs) -> Result:
        if tuple(rows.seconds) != needed:
            raise UserError(
                f"{name} comes after {', '.join(('begin', *needed))}; done so far: "
                f"{', '.join(('begin', *rows.seconds))}.\n"
                f"Run the cells again from the one with prepare.begin."
            )
        begun = rows.step_began = time.monotonic()
        try:
            result = step(rows, *args, **options)
        except OSError as error:
            workers.stop_pool(rows.pool)
            file = f": {error.filename}" if error.filename else ""
            raise UserError(f"{name}: {error.strerror or error}{file}.") from None
        except BaseException:
            workers.stop_pool(rows.pool)
            raise
        rows.seconds[name] = round(time.monotonic() - begun, 1)
        return result

    return run_step


def name_switch(reason: str) -> str:
    """Return the parameter that decides on a reason to drop rows, or that none does."""
    if reason in RULES:
        return f"skip_rules: [{reason}]"
    return SWITCHES.get(reason, "(no parameter)")


# -------------------------------------------------------------------------------------------------
# rows dropped by a decision


def note_decided(
    rows: Rows, reasons: tuple[str, ...], because: dict[int, dict[str, str]] | None = None
) -> None:
    """Count and list the rows that were dropped for these reasons.

    Each is listed with the row that caused the decision, or with its entry in `because`.
    """
    because = because or {}
    decisions = rows.decisions
    numbers = [REASONS.index(reason) for reason in reasons]
    dropped = np.flatnonzero(np.isin(decisions.reason, numbers))
    deciders = decisions.by[dropped]
    wanted = np.unique(np.concatenate([dropped, deciders[deciders >= 0]]))
    examples = _choose_examples(decisions, dropped, numbers)
    names, texts = _load_names_and_texts(rows, wanted, examples)
    for row in dropped.tolist():
        by = int(decisions.by[row])
        why = ({"by": names[by]} if by >= 0 else {}) | because.get(row, {})
        example = None
        if row in texts:
            example = {"text": texts[row], **why}
            if by in texts:
                example["by_text"] = texts[by]
        rows.note_dropped(REASONS[decisions.reason[row]], names[row], example, why.get("by", ""))


def _choose_examples(decisions: Decisions, dropped: np.ndarray, numbers: list[int]) -> list[int]:
    """Return the first dropped rows of each reason, with the rows that caused the decisions."""
    examples = []
    for number in numbers:
        of_reason = dropped[decisions.reason[dropped] == number]
        for row in of_reason[:EXAMPLES].tolist():
            examples.append(row)
            if decisions.by[row] >= 0:
                examples.append(int(decisions.by[row]))
    return list(dict.fromkeys(examples))


def _load_names_and_texts(
    rows: Rows, wanted: np.ndarray, examples: list[int]
) -> tuple[dict[int, str], dict[int, str]]:
    """Return the ids of the `wanted` rows, which are sorted, and short texts of the `examples`."""
    names: dict[int, str] = {}
    texts: dict[int, str] = {}
    for path, start, sides in rows.iterate_chunks():
        end = start + len(sides)
        first, last = np.searchsorted(wanted, [start, end])
        places = wanted[first:last] - start
        if not len(places):
            continue
        table, _ = chunks.load_chunk(path, ["id"])
        ids = table["id"].take(places).to_pylist()
        names |= dict(zip(wanted[first:last].tolist(), ids, strict=True))
        own_examples = [row for row in examples if start <= row < end]
        if own_examples:
            _, messages = load_messages(path, np.array(own_examples) - start)
            texts |= dict(zip(own_examples, map(shorten, messages), strict=True))
    return names, texts
