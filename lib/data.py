"""The data stage: a stream of rows -> clean -> duplicates -> split -> contamination -> tokens and a proven mask, on disk.

Rows are worked on in chunks, by several processes, and kept on disk: what stays in memory is about 200 bytes a row.
"""

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

from lib import chat, chunks, clean, contamination, duplicates, files, sources, workers
from lib.chunks import EXAMPLES, short, texts_of
from lib.duplicates import REASONS, Decisions
from lib.params import Params, UserError
from lib.prepared import SPLITS, Split

# in the order in which they are looked for
READ_REASONS = ("unreadable", "not_sampled", *clean.REASONS)
SAME_REASONS, SPLIT_REASONS = REASONS[1:5], REASONS[5:7]
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
    pairs: np.ndarray = dataclasses.field(default_factory=lambda: np.empty((0, 2), np.int64))
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
    """Keep how long a step took in rows.seconds, under its name."""
    @functools.wraps(step)
    def wrapper(rows: Rows, *args: Any) -> Any:
        begun = time.monotonic()
        try:
            return step(rows, *args)
        except BaseException:
            workers.stop(rows.pool)
            raise
        finally:
            rows.seconds[step.__name__] = round(time.monotonic() - begun, 1)
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
    pool = workers.start(small=not hub and sources.size(job) < SMALL or 0 < job.max_rows <= CHUNK_ROWS)
    return Rows(job, scratch, pool, open(scratch / "dropped.jsonl", "w", encoding="utf-8"))


@timed
def read_and_clean(rows: Rows) -> None:
    """Read every row, clean it by the rules, keep it in a chunk on disk or drop it with its reason."""
    job, held = rows.job, []
    bar = progress("reading, cleaning", total=sources.size(job) or None, unit="B", unit_scale=True)

    def tick(done: int) -> None:
        bar.update(max(0, done - bar.n))

    def unread(reason: str, where: str, why: str) -> None:
        rows.read += 1
        rows.note(reason, where, {"text": why})

    def chunked() -> Iterator[tuple[Any, ...]]:
        chunk, size = [], 0
        for row in sources.read(job, unread, tick, rows.commits):
            rows.read += 1
            rows.first = rows.first or row
            chunk.append(row)
            size += sum(len(m["content"]) for m in row["messages"])
            if len(chunk) == CHUNK_ROWS or size > CHUNK_CHARACTERS:
                yield job, chunk
                chunk, size = [], 0
        if chunk:
            yield job, chunk

    start = 0
    with open(rows.scratch / "signatures", "wb") as signed:
        for path in workers.ordered(rows.pool, chunks.clean_chunk, chunked()):
            table, facts = chunks.load(path)
            for reason, row_id, example in facts["dropped"]:
                rows.note(reason, row_id, example)
            rows.changed.update(facts["changed"])
            for rule, example in facts["examples"]:
                rows.keep(rule, example)
            if table.num_rows:
                rows.parts.append((path, start))
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
def deduplicate(rows: Rows) -> None:
    """Drop exact duplicates, surplus answers and near duplicates; the later row of two goes."""
    duplicates.same(rows.columns, rows.job, rows.made)
    signature = np.memmap(rows.scratch / "signatures", np.uint16, "r").reshape(-1, duplicates.HASHES)
    rows.pairs = duplicates.near(rows.columns.pop("bands"), signature, rows.columns, rows.job, rows.made,
                                 lambda meeting: progress("near duplicates", iterable=meeting, unit="row"))
    _note_decided(rows, SAME_REASONS)


@timed
def split(rows: Rows) -> None:
    """Give each row its side, and drop training rows that overlap with held-out rows or with the exam."""
    duplicates.split(rows.pairs, rows.columns, rows.job, rows.made)
    because = _decontaminate(rows) if rows.job.decontaminate else {}
    _note_decided(rows, SPLIT_REASONS, because)


def _decontaminate(rows: Rows) -> dict[int, dict[str, str]]:
    """Drop contaminated training rows; for each, whose words it repeats, and for the first ones which."""
    size, runs, owners = rows.job.decontaminate, [], []
    items = sources.exam_items(rows.job)
    for item in items:
        question, answer = item["question"], item["options"][item["answer_letter"]]
        runs += [(contamination.grams(clean.words(text), size, {}), len(owners)) for text in (question, f"{question} {answer}")]
        owners.append(f"exam {item['id']}")
    parts = [(path, start, np.flatnonzero(sides > 0), np.flatnonzero(sides == 0)) for path, start, sides in _sides(rows)]
    for ids, found in workers.ordered(rows.pool, contamination.chunk_runs, ((path, at, size) for path, _, at, _ in parts if len(at))):
        runs += [(hashes, len(owners) + n) for n, hashes in enumerate(found)]
        owners += ids
    held = contamination.held_out(runs)
    np.save(rows.scratch / "held_out.npy", held.hashes)
    files.write_json(rows.scratch / "exam.json", [[item["question"], item["options"][item["answer_letter"]]] for item in items])
    overlaps, close, bar = [], {}, progress("overlap with held-out rows and exam", total=len(parts), unit="chunk")
    for (_, start, _, at), (found, exam) in zip(parts, workers.ordered(rows.pool, contamination.chunk_overlaps, (
            (path, at, size, rows.scratch, rows.job.near_duplicate_threshold) for path, _, _, at in parts)), strict=True):
        overlaps += [(int(start + at[n]), places) for n, places in found]
        close |= {int(start + at[n]): item for n, item in exam}
        bar.update()
    bar.close()
    leaks, common = contamination.contaminated(overlaps, held)
    rows.facts |= {"exam_items": len(items), "held_out_and_exam_runs": len(held.hashes), "runs_that_are_common_phrases": common,
                   "rows_near_exam_items": len(close)}
    because = {row: {"by": owners[item], "shared": "nearly the whole item"} for row, item in close.items()}
    because |= {row: {"by": owners[held.owners[place]]} for row, place in leaks.items()}
    for row in sorted(leaks)[:EXAMPLES]:
        path, start = next((p, s) for p, s in reversed(rows.parts) if s <= row)
        because[row]["shared"] = contamination.shared(texts_of(path, np.array([row - start]))[1][0], size, held.hashes[leaks[row]])
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
    """Render, tokenise and prove every row that is left, and write the splits as Arrow under `final`; the counts of the stage.

    `base` is the folder with tokenizer and chat template. `final` appears when it is complete.
    """
    temporary = final.with_name(".data.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    out = {side: Split(temporary / side) for side in SPLITS}
    which, counts, digest = chat.identity(base), Counter(), hashlib.sha256()
    todo = [(path, start, np.flatnonzero(sides >= 0), sides[sides >= 0]) for path, start, sides in _sides(rows)]
    bar = progress("tokenising", total=sum(len(at) for _, _, at, _ in todo), unit="row")
    for (_, start, at, sides), (table, too_long, facts) in zip(todo, workers.ordered(rows.pool, chunks.tokenise_chunk, (
            (rows.job, path, at, base, which) for path, _, at, _ in todo)), strict=True):
        gone = np.array([n for n, _, _ in too_long], np.int64)
        for n, row_id, text in too_long:
            rows.made.drop(start + at[n], "too_long")
            rows.note("too_long", row_id, {"text": text})
        counts.update(facts["counts"])
        rows.changed.update({"answer_cut": facts["counts"]["truncated"]} if facts["counts"].get("truncated") else {})
        for example in facts["cut"]:
            rows.keep("answer_cut", example)
        sides = np.delete(sides, gone)
        for number, side in enumerate(SPLITS):
            part = table.filter(sides == number)
            out[side].write(part)
            counts[side] += part.num_rows
        digest.update(sides.tobytes() + facts["digest"])
        bar.update(len(at))
    bar.close()
    workers.stop(rows.pool)
    require_rows(rows, sum(counts[side] for side in SPLITS))
    if not counts["train"]:
        raise UserError(f"no training row is left: {counts['validation']} validation and {counts['test']} test rows; lower validation_size "
                        f"and test_size.")
    for side in SPLITS:
        out[side].close()
    rows.log.close()
    os.replace(rows.scratch / "dropped.jsonl", temporary / "dropped.jsonl")
    rows.facts["fingerprint"] = digest.hexdigest()
    files.replace_folder(temporary, final)
    shutil.rmtree(rows.scratch, ignore_errors=True)
    return summary(rows, counts)


def compare_tokenizers(rows: Rows, base: pathlib.Path, count: int = 200) -> int:
    """How many rows were rendered and tokenised by transformers' own tokenizer too, with the same result; UserError at a difference."""
    path, start = rows.parts[0]
    side = rows.made.side[start:rows.parts[1][1] if len(rows.parts) > 1 else None]
    return chat.same_as_transformers(chat.load(base), base, texts_of(path, np.flatnonzero(side >= 0)[:count])[1])


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
