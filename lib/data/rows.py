"""The rows of a prepare job on their way through its steps: where they are on disk, what is known of each, what became of those dropped."""

import dataclasses
import functools
import json
import pathlib
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from lib.common import workers
from lib.common.errors import UserError
from lib.data import chunks, sources
from lib.data.chunks import EXAMPLES, short, texts_of
from lib.data.duplicates import REASONS, Decisions
from lib.params import Params

STEPS = ("read_and_clean", "measure", "deduplicate", "decontaminate", "tokenise")


@dataclasses.dataclass
class Rows:
    """The rows of a job on their way: cleaned chunks on disk, what is known of each row, what became of those dropped."""

    job: Params
    scratch: pathlib.Path  # the stage's own files, removed at its end
    pool: Any
    log: Any  # dropped.jsonl, open
    read: int = 0
    parts: list[tuple[pathlib.Path, int]] = dataclasses.field(
        default_factory=list
    )  # file and number of its first row
    columns: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    made: Decisions = dataclasses.field(default_factory=lambda: Decisions(0))
    later: dict[int, list[int]] = dataclasses.field(
        default_factory=dict
    )  # questions after the first, of the rows that have some
    exam: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    sample: list[tuple[list[dict[str, str]], list[int]]] = dataclasses.field(
        default_factory=list
    )  # first proven rows and their stored ids
    commits: dict[str, str | None] = dataclasses.field(default_factory=dict)
    dropped: Counter = dataclasses.field(default_factory=Counter)
    changed: Counter = dataclasses.field(default_factory=Counter)
    examples: dict[str, list[dict[str, str]]] = dataclasses.field(default_factory=dict)
    first: dict[str, Any] = dataclasses.field(default_factory=dict)
    started: float = dataclasses.field(default_factory=time.monotonic)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    facts: dict[str, int] = dataclasses.field(default_factory=dict)

    def note(
        self, reason: str, row_id: str, example: dict[str, str] | None = None, by: str = ""
    ) -> None:
        """Count a dropped row, list it in dropped.jsonl, and keep the first examples of its reason."""
        self.dropped[reason] += 1
        self.log.write(
            json.dumps(
                {"id": row_id, "reason": reason, **({"by": by} if by else {})}, ensure_ascii=False
            )
            + "\n"
        )
        self.keep(reason, {"id": row_id, **(example or {})})

    def keep(self, name: str, example: dict[str, str]) -> None:
        kept = self.examples.setdefault(name, [])
        if len(kept) < EXAMPLES:
            kept.append(example)


def timed(step: Any) -> Any:
    """A step of the stage: in its turn, its time kept in rows.seconds; on an error the processes end, as the stage does."""

    @functools.wraps(step)
    def wrapper(rows: Rows, *args: Any) -> Any:
        if tuple(rows.seconds) != (needed := STEPS[: STEPS.index(step.__name__)]):
            raise UserError(
                f"{step.__name__} comes after {', '.join(('begin', *needed))}; done so far: {', '.join(('begin', *rows.seconds))}.\n"
                f"Run the cells again from the one with data.begin."
            )
        begun = time.monotonic()
        try:
            result = step(rows, *args)
        except BaseException as error:
            workers.stop_pool(rows.pool)
            if isinstance(error, OSError):
                raise UserError(
                    f"{step.__name__}: {error.strerror or error}{f': {error.filename}' if error.filename else ''}."
                ) from None
            raise
        rows.seconds[step.__name__] = round(time.monotonic() - begun, 1)
        return result

    return wrapper


def require_rows(rows: Rows, count: int) -> None:
    """UserError with the drop table when nothing is left."""
    if not count:
        table = "\n".join(f"  {reason:24} {n:>9,}" for reason, n in rows.dropped.most_common())
        raise UserError(
            f"no row is left of the {rows.read:,} read from {sources.name(rows.job)}; dropped because:\n{table}\n"
            f"Each reason is a rule of the README's parameters; `skip_rules` and the policies switch them off."
        )


def with_sides(rows: Rows) -> Iterator[tuple[pathlib.Path, int, np.ndarray]]:
    """Each chunk: its file, the number of its first row, and its rows' sides as indices into prepared.SPLITS, -1 for a dropped one."""
    ends = [start for _, start in rows.parts[1:]] + [len(rows.made.side)]
    for (path, start), end in zip(rows.parts, ends, strict=True):
        yield path, start, rows.made.side[start:end]


def note_decided(
    rows: Rows, reasons: tuple[str, ...], because: dict[int, dict[str, str]] | None = None
) -> None:
    """Count and list what was dropped for these reasons, each with the row that decided it, or with what `because` says."""
    made, because, shown = rows.made, because or {}, {}
    gone = np.flatnonzero(np.isin(made.reason, [REASONS.index(r) for r in reasons]))
    for reason in reasons:
        for n in gone[made.reason[gone] == REASONS.index(reason)][:EXAMPLES].tolist():
            shown |= {n: "", **({int(made.by[n]): ""} if made.by[n] >= 0 else {})}
    wanted = np.unique(np.concatenate([gone, made.by[gone][made.by[gone] >= 0]]))
    names: dict[int, str] = {}
    for path, start, sides in with_sides(rows):
        here = (
            wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, start + len(sides))]
            - start
        )
        if len(here):
            table, _ = chunks.load(path, ["id"])
            names |= dict(
                zip((here + start).tolist(), table["id"].take(here).to_pylist(), strict=True)
            )
            if examples := [n for n in shown if start <= n < start + len(sides)]:
                shown |= dict(
                    zip(
                        examples,
                        map(short, texts_of(path, np.array(examples) - start)[1]),
                        strict=True,
                    )
                )
    for n in gone.tolist():
        by = int(made.by[n])
        why = because.get(n) or ({"by": names[by]} if by >= 0 else {})
        example = (
            {"text": shown[n], **why, **({"by_text": shown[by]} if by in shown else {})}
            if n in shown
            else None
        )
        rows.note(REASONS[made.reason[n]], names[n], example, why.get("by", ""))
