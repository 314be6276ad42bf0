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

from lib import chat, chunks, clean, duplicates, files, sources, workers
from lib.chunks import EXAMPLES, short, texts_of
from lib.duplicates import REASONS, Decisions
from lib.params import Params, UserError
from lib.prepared import SPLITS, Split

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
    _note_decided(rows, ("exact_duplicate", "same_question", "answer_repeated", "near_duplicate"))


@timed
def split(rows: Rows) -> None:
    """Give each row its side, and drop training rows that overlap with held-out rows or with the exam."""
    duplicates.split(rows.pairs, rows.columns, rows.job, rows.made)
    items = sources.exam_items(rows.job) if rows.job.exam else []
    rows.facts["exam_items"] = len(items)
    owners: list[str] = []
    if rows.job.decontaminate:
        owners = _decontaminate(rows, items)
    _note_decided(rows, ("ties_both_sides", "contaminated"), owners)


def _decontaminate(rows: Rows, items: list[dict[str, Any]]) -> list[str]:
    """Drop contaminated training rows; the ids of the held-out rows and exam items, which Decisions.by then counts in."""
    size, owners, hashes, numbers = rows.job.decontaminate, [], [], {}
    for item in items:
        text = [clean.words(item["question"]), clean.words(item["question"] + " " + item["options"][item["answer_letter"]])]
        hashes += [(duplicates.grams(t, size, numbers), len(owners)) for t in text]
        owners.append(f"exam {item['id']}")
    held_chunks = [(path, start, np.flatnonzero(sides > 0)) for path, start, sides in _sides(rows)]
    for ids, found in workers.ordered(rows.pool, chunks.held_out_grams, ((path, at, size) for path, _, at in held_chunks if len(at))):
        hashes += [(h, len(owners) + n) for n, h in enumerate(found)]
        owners += ids
    held = duplicates.HeldOut(np.concatenate([np.empty(0, np.uint64), *(h for h, _ in hashes)]),
                              np.concatenate([np.empty(0, np.int64), *(np.full(len(h), o) for h, o in hashes)]))
    held.save(rows.scratch / "held_out.npy")
    files.write_json(rows.scratch / "exam.json", [[item["question"], item["options"][item["answer_letter"]]] for item in items])
    train = [(path, start, np.flatnonzero(sides == 0)) for path, start, sides in _sides(rows)]
    overlaps, close = [], {}
    bar = progress("overlap with held-out rows and exam", total=len(train), unit="chunk")
    for (_, start, at), (found, exam) in zip(train, workers.ordered(
            rows.pool, chunks.overlaps, ((path, at, size, rows.scratch, rows.job.near_duplicate_threshold) for path, _, at in train)), strict=True):
        overlaps += [(int(start + at[n]), places) for n, places in found]
        close |= {int(start + at[n]): item for n, item in exam}
        bar.update()
    bar.close()
    bad, rows.facts["common_phrases"] = duplicates.contaminated(iter(overlaps), held)
    rows.facts |= {"held_out_and_exam_runs": len(held.hashes), "near_exam_items": len(close)}
    for row, owner in {**close, **bad}.items():
        rows.made.drop(row, "contaminated", owner)
    return owners


def _sides(rows: Rows) -> Iterator[tuple[pathlib.Path, int, np.ndarray]]:
    ends = [start for _, start in rows.parts[1:]] + [len(rows.made.side)]
    for (path, start), end in zip(rows.parts, ends, strict=True):
        yield path, start, rows.made.side[start:end]


def _note_decided(rows: Rows, reasons: tuple[str, ...], owners: list[str] | None = None) -> None:
    """Count and list what the decisions dropped for these reasons, with the row that decided it."""
    made = rows.made
    codes = [REASONS.index(r) for r in reasons]
    gone = np.flatnonzero(np.isin(made.reason, codes))
    partners = made.by[gone[made.reason[gone] != REASONS.index("contaminated")]]
    wanted = np.unique(np.concatenate([gone, partners[partners >= 0]]))
    shown: Counter = Counter()
    close = {}
    for n in gone.tolist():
        shown[made.reason[n]] += 1
        if shown[made.reason[n]] <= EXAMPLES:
            close |= {n: None, **({int(made.by[n]): None} if made.reason[n] != REASONS.index("contaminated") and made.by[n] >= 0 else {})}
    names: dict[int, str] = {}
    for path, start, sides in _sides(rows):
        here = wanted[np.searchsorted(wanted, start):np.searchsorted(wanted, start + len(sides))] - start
        if len(here):
            table, _ = chunks.load(path, ["id"])
            names |= dict(zip((here + start).tolist(), table["id"].take(here).to_pylist(), strict=True))
            if examples := [n for n in close if start <= n < start + len(sides)]:
                for n, messages in zip(examples, texts_of(path, np.array(examples) - start)[1], strict=True):
                    close[n] = short(messages)
    for n in gone.tolist():
        reason, by = REASONS[made.reason[n]], int(made.by[n])
        partner = (owners[by] if reason == "contaminated" else names.get(by, "")) if by >= 0 else ""
        example = {"text": close[n] or "", "by": partner, **({"by_text": close.get(by) or ""} if close.get(by) else {})} if n in close else None
        rows.note(reason, names[n], example, partner)


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
        raise UserError(f"no training row is left: {counts['validation']} validation and {counts['test']} test rows; lower validation_size and test_size.")
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
    kept = sum(counts[side] for side in SPLITS)
    assert rows.read - sum(rows.dropped.values()) == kept == len(rows.made.kept()), (rows.read, rows.dropped, counts)
    return {"rows_read": rows.read, "rows_kept": kept, "dropped": dict(rows.dropped.most_common()), **{side: counts[side] for side in SPLITS},
            "changed": dict(rows.changed.most_common()), "tokens_total": counts["tokens_total"], "tokens_trained": counts["tokens_trained"],
            "truncated": counts["truncated"], "seconds": round(time.monotonic() - rows.started, 1)}


def card(rows: Rows, results: dict[str, Any], source_hash: str) -> dict[str, Any]:
    """data_card.json: where the rows came from, what was dropped or changed, with examples, and the counts."""
    job = rows.job
    where = [{"dataset": part.dataset, "revision": part.revision or None, "commit": rows.commits.get(part.dataset), "weight": part.weight,
              "max_rows": part.max_rows or None} for part in sources.parts(job)]
    return {"sources": where, "source_sha256": source_hash, "seed": job.seed, "exam": job.exam, **{k: v for k, v in rows.facts.items() if k != "fingerprint"},
            "counts": {k: v for k, v in results.items() if k not in ("dropped", "changed", "seconds")},
            "dropped": {reason: {"rows": count, "examples": rows.examples.get(reason, [])} for reason, count in rows.dropped.most_common()},
            "changed": {rule: {"rows": count, "examples": rows.examples.get(rule, [])} for rule, count in rows.changed.most_common()},
            "checked_on_every_row": ["one <bos>, first", "at least one trained token", "each answer's <end_of_turn> trained", "no token of a user trained",
                                     "each answer whole, right after the model's turn begins"]}
