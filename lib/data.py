"""The data stage: a stream of rows -> clean -> duplicates -> split -> contamination -> tokens and a proven mask, on disk.

Rows are worked on in chunks, by several processes, and kept on disk: what stays in memory is about 300 bytes a row.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from lib import chat, chunks, clean, contamination, duplicates, exam_items, files, safety, sources, workers
from lib.chunks import EXAMPLES, short, texts_of
from lib.duplicates import REASONS, SAME_REASONS, Decisions
from lib.params import Params, UserError
from lib.prepared import SPLITS, Split

# in the order in which they are looked for
READ_REASONS = ("unreadable", "not_sampled", *clean.REASONS)
STEPS = ("read_and_clean", "measure", "deduplicate", "decontaminate", "tokenise")
CHUNK_ROWS, CHUNK_CHARACTERS = 2000, 2**22
SMALL = 2**20  # bytes of data under which starting processes costs more than they save
COLUMNS = ("exact", "question", "answer", "vital", "answer_length")


@dataclasses.dataclass
class Rows:
    """The rows of a job on their way: cleaned chunks on disk, what is known of each row, what became of those dropped."""

    job: Params
    scratch: pathlib.Path  # the stage's own files, removed at its end
    pool: Any
    log: Any  # dropped.jsonl, open
    read: int = 0
    parts: list[tuple[pathlib.Path, int]] = dataclasses.field(default_factory=list)  # file and number of its first row
    columns: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    made: Decisions = dataclasses.field(default_factory=lambda: Decisions(0))
    later: dict[int, list[int]] = dataclasses.field(default_factory=dict)  # questions after the first, of the rows that have some
    exam: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    sample: list[tuple[list[dict[str, str]], list[int]]] = dataclasses.field(default_factory=list)  # first proven rows and their stored ids
    commits: dict[str, str | None] = dataclasses.field(default_factory=dict)
    dropped: Counter = dataclasses.field(default_factory=Counter)
    changed: Counter = dataclasses.field(default_factory=Counter)
    examples: dict[str, list[dict[str, str]]] = dataclasses.field(default_factory=dict)
    first: dict[str, Any] = dataclasses.field(default_factory=dict)
    started: float = dataclasses.field(default_factory=time.monotonic)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    facts: dict[str, int] = dataclasses.field(default_factory=dict)

    def note(self, reason: str, row_id: str, example: dict[str, str] | None = None, by: str = "") -> None:
        """Count a dropped row, list it in dropped.jsonl, and keep the first examples of its reason."""
        self.dropped[reason] += 1
        self.log.write(json.dumps({"id": row_id, "reason": reason, **({"by": by} if by else {})}, ensure_ascii=False) + "\n")
        self.keep(reason, {"id": row_id, **(example or {})})

    def keep(self, name: str, example: dict[str, str]) -> None:
        kept = self.examples.setdefault(name, [])
        if len(kept) < EXAMPLES:
            kept.append(example)


def timed(step: Any) -> Any:
    """A step of the stage: in its turn, its time kept in rows.seconds; on an error the processes end, as the stage does."""
    @functools.wraps(step)
    def wrapper(rows: Rows, *args: Any) -> Any:
        if tuple(rows.seconds) != (needed := STEPS[:STEPS.index(step.__name__)]):
            raise UserError(f"{step.__name__} comes after {', '.join(('begin', *needed))}; done so far: {', '.join(('begin', *rows.seconds))}.\n"
                            f"Run the cells again from the one with data.begin.")
        begun = time.monotonic()
        try:
            result = step(rows, *args)
        except BaseException as error:
            workers.stop(rows.pool)
            if isinstance(error, OSError):
                raise UserError(f"{step.__name__}: {error.strerror or error}{f': {error.filename}' if error.filename else ''}.") from None
            raise
        rows.seconds[step.__name__] = round(time.monotonic() - begun, 1)
        return result
    return wrapper


def progress(what: str, **more: Any) -> Any:
    return tqdm(desc=what, mininterval=2, ncols=100, file=sys.stdout, **more)


# ---------------------------------------------------------------------------------------------------------------------
# read and clean


def begin(job: Params, folder: pathlib.Path) -> Rows:
    """Empty Rows of a job whose run folder is `folder`."""
    sources.check(job)
    clean.check_language(job.language)
    scratch = folder / ".prepare.tmp"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    chunks.CACHE.mkdir(parents=True, exist_ok=True)
    chunks.prune()
    hub = any(not sources.local_files(part.dataset) for part in sources.parts(job))
    exam = [item for name in job.exam for item in exam_items.read(name)] if job.decontaminate else []
    pool = workers.start(small=not hub and sources.size(job) < SMALL or 0 < job.max_rows <= CHUNK_ROWS)
    return Rows(job, scratch, pool, open(scratch / "dropped.jsonl", "w", encoding="utf-8"), exam=exam)


@timed
def read_and_clean(rows: Rows) -> None:
    """Read every row, clean it by the rules, keep it in a chunk on disk or drop it with its reason."""
    job, held = rows.job, []
    bar = progress("reading, cleaning", total=sources.size(job) or None, unit="B", unit_scale=True)

    def tick(done: int) -> None:
        bar.update(max(0, done - bar.n))

    unread: list[tuple[str, str, str]] = []
    unread_before: collections.deque[list[tuple[str, str, str]]] = collections.deque()  # of each chunk on its way, to be noted in its turn

    def chunked() -> Iterator[tuple[Any, ...]]:
        chunk, size = [], 0
        for row in sources.read(job, lambda *what: unread.append(what), tick, rows.commits):
            rows.read += 1
            rows.first = rows.first or {**row, "messages": [{**m, "content": m["content"][:2000]} for m in row["messages"]]}
            chunk.append(row)
            size += sum(len(m["content"]) for m in row["messages"])
            if len(chunk) == CHUNK_ROWS or size > CHUNK_CHARACTERS:
                yield hand_over(chunk)
                chunk, size = [], 0
        if chunk or unread:
            yield hand_over(chunk)

    def hand_over(chunk: list[dict[str, Any]]) -> tuple[Any, ...]:
        unread_before.append(unread.copy())
        unread.clear()
        return job, chunk

    start = 0
    with open(rows.scratch / "signatures", "wb") as signed:
        for path in workers.ordered(rows.pool, chunks.clean_chunk, chunked()):
            table, facts = chunks.load(path, [*COLUMNS, "later_questions", "signature", "bands"])  # not the texts
            for reason, where, why in unread_before.popleft():
                rows.read += 1
                rows.note(reason, where, {"text": why})
            for reason, row_id, example in facts["dropped"]:
                rows.note(reason, row_id, example)
            rows.changed.update(facts["changed"])
            for rule, example in facts["examples"]:
                rows.keep(rule, example)
            if table.num_rows:
                rows.parts.append((path, start))
                rows.later |= {start + n: later for n, later in enumerate(table["later_questions"].to_pylist()) if later}
                start += table.num_rows
                signed.write(b"".join(table["signature"].to_pylist()))
                bands = np.frombuffer(b"".join(table["bands"].to_pylist()), np.uint64).reshape(-1, duplicates.BANDS)
                held.append({**{name: table[name].to_numpy() for name in COLUMNS}, "bands": bands})
            bar.set_postfix(rows=f"{rows.read:,}", refresh=False)
    tick(bar.total or 0)
    bar.close()
    rows.columns = {name: np.concatenate([part[name] for part in held]) for name in (*COLUMNS, "bands")} if held else {}
    rows.made = Decisions(start)
    require_rows(rows, start)


def require_rows(rows: Rows, count: int) -> None:
    """UserError with the drop table when nothing is left."""
    if not count:
        table = "\n".join(f"  {reason:24} {n:>9,}" for reason, n in rows.dropped.most_common())
        raise UserError(f"no row is left of the {rows.read:,} read from {sources.name(rows.job)}; dropped because:\n{table}\n"
                        f"Each reason is a rule of the README's parameters; `skip_rules` and the policies switch them off.")


# ---------------------------------------------------------------------------------------------------------------------
# duplicates, sides, contamination


@timed
def measure(rows: Rows, base: pathlib.Path) -> None:
    """Count every row's tokens, before any row is dropped in favour of one that is too long itself; `base` has tokenizer and template."""
    which, lengths = chat.identity(base), []
    bar = progress("tokenising", total=len(rows.made.side), unit="row")
    for (_, start), (own, too_long) in zip(rows.parts, workers.ordered(rows.pool, chunks.measure_chunk, (
            (rows.job, path, base, which) for path, _ in rows.parts)), strict=True):
        lengths += own
        for n, row_id, text in too_long:
            rows.made.drop(start + n, "too_long")
            rows.note("too_long", row_id, {"text": text})
        bar.update(len(own))
    bar.close()
    rows.columns["length"] = np.array(lengths, np.int32)
    require_rows(rows, len(rows.made.kept()))


@timed
def deduplicate(rows: Rows) -> None:
    """Drop exact duplicates, surplus answers and near duplicates, the later row of two; and give each row that is left its side."""
    duplicates.same(rows.columns, rows.job, rows.made)
    signature = np.memmap(rows.scratch / "signatures", np.uint16, "r").reshape(-1, duplicates.HASHES)
    duplicates.place(rows.columns["bands"], signature, rows.columns, rows.later, rows.job, rows.made,
                     lambda meeting: progress("near duplicates, sides", iterable=meeting, unit="row"))
    del rows.columns["bands"]
    _note_decided(rows, SAME_REASONS)


@timed
def decontaminate(rows: Rows) -> None:
    """Drop training rows that overlap with held-out rows, the exam or the safety set."""
    _note_decided(rows, ("contaminated",), _leaks(rows) if rows.job.decontaminate else {})


def _leaks(rows: Rows) -> dict[int, dict[str, str]]:
    """Drop contaminated training rows; for each, whose words it repeats, and for the first ones which."""
    size, asked = rows.job.decontaminate, safety.load()
    measured = [(f"exam {item['id']}", contamination.exam_texts(item)) for item in rows.exam]
    measured += [(f"safety set {row['id']}", [row["prompt"]]) for row in asked]
    names, texts = [name for name, _ in measured], [own for _, own in measured]
    own_runs = [np.unique(np.concatenate([contamination.grams(clean.words(text), size, {}) for text in own])) for own in texts]
    always = np.unique(np.concatenate([np.empty(0, np.uint64), *own_runs]))
    parts = [(path, start, np.flatnonzero(sides > 0), np.flatnonzero(sides == 0)) for path, start, sides in _sides(rows)]
    held = [(path, at, size) for path, _, at, _ in parts if len(at)]
    hashes = np.unique(np.concatenate([always, *workers.ordered(rows.pool, contamination.chunk_runs, held)]))
    np.save(rows.scratch / "held_out.npy", hashes)
    files.write_json(rows.scratch / "measured.json", texts)
    overlaps, close, bar = [], {}, progress("overlap with what it is measured on", total=len(parts), unit="chunk")
    for (_, start, _, at), (found, near) in zip(parts, workers.ordered(rows.pool, contamination.chunk_overlaps, (
            (path, at, size, rows.scratch, rows.job.near_duplicate_threshold) for path, _, _, at in parts)), strict=True):
        overlaps += [(int(start + at[n]), places) for n, places in found]
        close |= {int(start + at[n]): item for n, item in near}
        bar.update()
    bar.close()
    leaks, common = contamination.contaminated(overlaps, hashes, always)
    rows.facts |= {"exam_items": len(rows.exam), "safety_prompts": len(asked), "held_out_exam_and_safety_runs": len(hashes),
                   "runs_that_are_common_phrases": common, "rows_near_exam_items_or_safety_prompts": len(close)}
    wanted = hashes[np.unique(np.array(list(leaks.values()), np.int64))]
    owners: dict[int, str] = {}
    for name, runs in zip(names, own_runs, strict=True):
        owners = dict.fromkeys(contamination.find(wanted, runs).tolist(), name) | owners
    for found in workers.ordered(rows.pool, contamination.chunk_owners, ((*part, wanted) for part in held)) if len(wanted) else []:
        owners = found | owners
    because = {row: {"by": names[item], "shared": "nearly the whole item"} for row, item in close.items()}
    because |= {row: {"by": owners[int(np.searchsorted(wanted, hashes[place]))]} for row, place in leaks.items()}
    for row in sorted(leaks)[:EXAMPLES]:
        path, start = next((p, s) for p, s in reversed(rows.parts) if s <= row)
        because[row]["shared"] = contamination.shared(texts_of(path, np.array([row - start]))[1][0], size, hashes[leaks[row]])
    rows.made.drop(np.array(sorted(because), np.int64), "contaminated")
    return because


def _sides(rows: Rows) -> Iterator[tuple[pathlib.Path, int, np.ndarray]]:
    ends = [start for _, start in rows.parts[1:]] + [len(rows.made.side)]
    for (path, start), end in zip(rows.parts, ends, strict=True):
        yield path, start, rows.made.side[start:end]


def _note_decided(rows: Rows, reasons: tuple[str, ...], because: dict[int, dict[str, str]] | None = None) -> None:
    """Count and list what was dropped for these reasons, each with the row that decided it, or with what `because` says."""
    made, because, shown = rows.made, because or {}, {}
    gone = np.flatnonzero(np.isin(made.reason, [REASONS.index(r) for r in reasons]))
    for reason in reasons:
        for n in gone[made.reason[gone] == REASONS.index(reason)][:EXAMPLES].tolist():
            shown |= {n: "", **({int(made.by[n]): ""} if made.by[n] >= 0 else {})}
    wanted = np.unique(np.concatenate([gone, made.by[gone][made.by[gone] >= 0]]))
    names: dict[int, str] = {}
    for path, start, sides in _sides(rows):
        here = wanted[np.searchsorted(wanted, start):np.searchsorted(wanted, start + len(sides))] - start
        if len(here):
            table, _ = chunks.load(path, ["id"])
            names |= dict(zip((here + start).tolist(), table["id"].take(here).to_pylist(), strict=True))
            if examples := [n for n in shown if start <= n < start + len(sides)]:
                shown |= dict(zip(examples, map(short, texts_of(path, np.array(examples) - start)[1]), strict=True))
    for n in gone.tolist():
        by = int(made.by[n])
        why = because.get(n) or ({"by": names[by]} if by >= 0 else {})
        example = {"text": shown[n], **why, **({"by_text": shown[by]} if by in shown else {})} if n in shown else None
        rows.note(REASONS[made.reason[n]], names[n], example, why.get("by", ""))


# ---------------------------------------------------------------------------------------------------------------------
# tokens


@timed
def tokenise(rows: Rows, base: pathlib.Path, final: pathlib.Path) -> dict[str, Any]:
    """Prove the tokens and mask of every row that is left, and write the splits as Arrow under `final`; the counts of the stage.

    `final` appears when it is complete.
    """
    temporary = final.with_name(".data.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    out = {side: Split(temporary / side) for side in SPLITS}
    which, counts, digest = chat.identity(base), Counter(), hashlib.sha256()
    todo = [(path, np.flatnonzero(sides >= 0), sides[sides >= 0]) for path, _, sides in _sides(rows)]
    bar = progress("proving and writing", total=sum(len(at) for _, at, _ in todo), unit="row")
    for (_, at, sides), (table, facts) in zip(todo, workers.ordered(rows.pool, chunks.tokenise_chunk, (
            (rows.job, path, at, base, which) for path, at, _ in todo)), strict=True):
        counts.update(facts["counts"])
        for example in facts["cut"]:
            rows.keep("answer_cut", example)
        rows.sample += facts["sample"][:chunks.SAMPLE - len(rows.sample)]
        for number, side in enumerate(SPLITS):
            part = table.filter(sides == number)
            out[side].write(part)
            counts[side] += part.num_rows
        digest.update(sides.tobytes() + facts["digest"])
        bar.update(len(at))
    bar.close()
    workers.stop(rows.pool)
    rows.changed.update({"answer_cut": counts["truncated"]} if counts["truncated"] else {})
    require_rows(rows, sum(counts[side] for side in SPLITS))
    if not counts["train"]:
        raise UserError(f"no training row is left: {counts['validation']} validation and {counts['test']} test rows; lower validation_size "
                        f"and test_size.")
    for side in SPLITS:
        out[side].close()
    rows.log.close()
    os.replace(rows.scratch / "dropped.jsonl", temporary / "dropped.jsonl")
    rows.facts["fingerprint"] = digest.hexdigest()
    results = summary(rows, counts)
    files.replace_folder(temporary, final)
    shutil.rmtree(rows.scratch, ignore_errors=True)
    return results


def compare_tokenizers(rows: Rows, base: pathlib.Path) -> int:
    """How many rows' text and stored ids transformers' own tokenizer gives too; UserError at a difference."""
    return chat.same_as_transformers(chat.load(base), base, rows.sample)


# ---------------------------------------------------------------------------------------------------------------------
# the record


def summary(rows: Rows, counts: Counter) -> dict[str, Any]:
    """The `prepare` section of results.json; raises when the rows do not add up."""
    kept, seconds = sum(counts[side] for side in SPLITS), time.monotonic() - rows.started
    assert rows.read - sum(rows.dropped.values()) == kept == len(rows.made.kept()), (rows.read, rows.dropped, counts)
    return {"rows_read": rows.read, "rows_kept": kept, "dropped": dict(rows.dropped), **{side: counts[side] for side in SPLITS},
            "changed": dict(rows.changed.most_common()), "tokens_total": counts["tokens_total"], "tokens_trained": counts["tokens_trained"],
            "truncated": counts["truncated"], "seconds": round(seconds, 1),
            "step_seconds": {**rows.seconds, "tokenise": round(seconds - sum(rows.seconds.values()), 1)}}


def card(rows: Rows, results: dict[str, Any], source_hash: str) -> dict[str, Any]:
    """data_card.json: where the rows came from, what was dropped or changed, with examples, and the counts."""
    job = rows.job
    where = [{"dataset": part.dataset, "revision": part.revision or None, "commit": rows.commits.get(f"{part.dataset}@{part.revision}"),
              "weight": part.weight, "max_rows": part.max_rows or None} for part in sources.parts(job)]
    facts = {k: v for k, v in rows.facts.items() if k != "fingerprint"}
    return {"sources": where, "source_sha256": source_hash, "seed": job.seed, "exam": job.exam, **facts, "skip_rules": job.skip_rules,
            "counts": {k: v for k, v in results.items() if k not in ("dropped", "changed", "seconds", "step_seconds")},
            "dropped": {reason: {"rows": count, "examples": rows.examples.get(reason, [])} for reason, count in rows.dropped.items()},
            "changed": {rule: {"rows": count, "examples": rows.examples.get(rule, [])} for rule, count in rows.changed.most_common()},
            "checked_on_every_row": ["one <bos>, first", "at least one trained token", "each answer's <end_of_turn> trained",
                                     "no token of a user trained", "each answer whole, right after the model's turn begins"]}
