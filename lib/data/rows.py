"""The rows of a prepare job on their way through its steps.

Where they are on disk, what is known of each, and what became of those that were dropped.
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
from lib.data import chunks, sources
from lib.data.chunks import EXAMPLES, load_messages, shorten
from lib.data.duplicates import REASONS, Decisions
from lib.params import Params

STEPS = ("read_and_clean", "measure", "deduplicate", "decontaminate", "tokenise")
P = ParamSpec("P")
Result = TypeVar("Result")


@dataclasses.dataclass
class Rows:
    """The rows of a job: cleaned chunks on disk, what is known of each row, what was dropped."""

    job: Params
    scratch: pathlib.Path  # the stage's own files, removed at its end
    pool: Any  # of lib/common/workers; None does all the work in this process
    dropped_file: TextIO  # dropped.jsonl, open
    exam: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # its items
    started: float = dataclasses.field(default_factory=time.monotonic)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)  # of each step that is done

    # what was read
    read: int = 0
    first: dict[str, Any] = dataclasses.field(default_factory=dict)  # the first row, as read
    commits: dict[str, str | None] = dataclasses.field(default_factory=dict)  # of hub sources

    # what is left: files of cleaned chunks, each with the number of its first row
    parts: list[tuple[pathlib.Path, int]] = dataclasses.field(default_factory=list)
    columns: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # a value a row
    # questions after the first, of the rows that have some
    later_questions: dict[int, list[int]] = dataclasses.field(default_factory=dict)
    decisions: Decisions = dataclasses.field(default_factory=lambda: Decisions(0))
    # first proven rows and their stored ids
    sample: list[tuple[list[dict[str, str]], list[int]]] = dataclasses.field(default_factory=list)

    # what is reported
    dropped: Counter[str] = dataclasses.field(default_factory=Counter)
    changed: Counter[str] = dataclasses.field(default_factory=Counter)
    examples: dict[str, list[dict[str, str]]] = dataclasses.field(default_factory=dict)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    def note_dropped(
        self, reason: str, row_id: str, example: dict[str, str] | None = None, by: str = ""
    ) -> None:
        """Count a dropped row, list it in dropped.jsonl, keep the first examples of its reason."""
        self.dropped[reason] += 1
        entry = {"id": row_id, "reason": reason}
        if by:
            entry["by"] = by
        self.dropped_file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self.keep_example(reason, {"id": row_id, **(example or {})})

    def keep_example(self, name: str, example: dict[str, str]) -> None:
        """Keep an example of a reason or rule, unless there are enough."""
        kept = self.examples.setdefault(name, [])
        if len(kept) < EXAMPLES:
            kept.append(example)

    def iterate_chunks(self) -> Iterator[tuple[pathlib.Path, int, np.ndarray]]:
        """Yield (file, number of its first row, sides of its rows) of each chunk.

        A side indexes splits.SPLITS; it is -1 for a dropped row, and before sides are given.
        """
        ends = [start for _, start in self.parts[1:]] + [len(self.decisions.side)]
        for (path, start), end in zip(self.parts, ends, strict=True):
            yield path, start, self.decisions.side[start:end]


def timed(
    step: Callable[Concatenate[Rows, P], Result],
) -> Callable[Concatenate[Rows, P], Result]:
    """Make a function a step of the stage: it runs in its turn, and its time is kept.

    UserError for a step out of turn. On an error the worker processes end.
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
        begun = time.monotonic()
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


def require_rows(rows: Rows, count: int) -> None:
    """UserError with a table of what was dropped when no row is left."""
    if count:
        return
    table = "\n".join(f"  {reason:24} {n:>9,}" for reason, n in rows.dropped.most_common())
    raise UserError(
        f"no row is left of the {rows.read:,} read from {sources.describe(rows.job.dataset)}; "
        f"dropped because:\n{table}\n"
        f"params/README.md names the parameter behind each reason: `language`, `max_seq_length`, "
        f"`decontaminate` and others change it, `skip_rules` switches cleaning rules off."
    )


# -------------------------------------------------------------------------------------------------
# rows dropped by a decision


def note_decided(
    rows: Rows, reasons: tuple[str, ...], because: dict[int, dict[str, str]] | None = None
) -> None:
    """Count and list the rows that were dropped for these reasons.

    Each is listed with the row that decided it, or with what `because` has for it.
    """
    because = because or {}
    decisions = rows.decisions
    numbers = [REASONS.index(reason) for reason in reasons]
    gone = np.flatnonzero(np.isin(decisions.reason, numbers))
    deciders = decisions.by[gone]
    wanted = np.unique(np.concatenate([gone, deciders[deciders >= 0]]))
    shown = _choose_examples(decisions, gone, numbers)
    names, texts = _load_names_and_texts(rows, wanted, shown)
    for row in gone.tolist():
        by = int(decisions.by[row])
        why = because.get(row)
        if not why:
            why = {"by": names[by]} if by >= 0 else {}
        example = None
        if row in texts:
            example = {"text": texts[row], **why}
            if by in texts:
                example["by_text"] = texts[by]
        rows.note_dropped(REASONS[decisions.reason[row]], names[row], example, why.get("by", ""))


def _choose_examples(decisions: Decisions, gone: np.ndarray, numbers: list[int]) -> list[int]:
    """Return the first dropped rows of each reason, with the rows that decided them."""
    shown = []
    for number in numbers:
        of_reason = gone[decisions.reason[gone] == number]
        for row in of_reason[:EXAMPLES].tolist():
            shown.append(row)
            if decisions.by[row] >= 0:
                shown.append(int(decisions.by[row]))
    return list(dict.fromkeys(shown))


def _load_names_and_texts(
    rows: Rows, wanted: np.ndarray, shown: list[int]
) -> tuple[dict[int, str], dict[int, str]]:
    """Return the ids of the `wanted` rows, which are sorted, and short texts of the `shown`."""
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
        examples = [row for row in shown if start <= row < end]
        if examples:
            _, messages = load_messages(path, np.array(examples) - start)
            texts |= dict(zip(examples, map(shorten, messages), strict=True))
    return names, texts
