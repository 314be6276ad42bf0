"""The data stage: a stream of rows -> clean -> duplicates -> split -> contamination -> tokens and a proven mask, on disk.

Rows are worked on in chunks, by several processes, and kept on disk: what stays in memory is about 300 bytes a row.
"""

import collections
import hashlib
import os
import pathlib
import shutil
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from lib.common import files, workers
from lib.common.errors import UserError
from lib.common.progress import progress_bar
from lib.data import chat, chunks, clean, contamination, duplicates, exam_items, sources
from lib.data.data_card import card as card
from lib.data.data_card import summary
from lib.data.duplicates import SAME_REASONS, Decisions
from lib.data.rows import Rows, note_decided, require_rows, timed, with_sides
from lib.data.splits import SPLITS, SplitWriter
from lib.params import Params

# in the order in which they are looked for
READ_REASONS = ("unreadable", "not_sampled", *clean.REASONS)
CHUNK_ROWS, CHUNK_CHARACTERS = 2000, 2**22
SMALL = 2**20  # bytes of data under which starting processes costs more than they save
COLUMNS = ("exact", "question", "answer", "vital", "answer_length")


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
    exam = (
        [item for name in job.exam for item in exam_items.read(name)] if job.decontaminate else []
    )
    pool = workers.start_pool(
        small=not hub and sources.size(job) < SMALL or 0 < job.max_rows <= CHUNK_ROWS
    )
    return Rows(
        job, scratch, pool, open(scratch / "dropped.jsonl", "w", encoding="utf-8"), exam=exam
    )


@timed
def read_and_clean(rows: Rows) -> None:
    """Read every row, clean it by the rules, keep it in a chunk on disk or drop it with its reason."""
    job, held = rows.job, []
    bar = progress_bar(
        "reading, cleaning", total=sources.size(job) or None, unit="B", unit_scale=True
    )

    def tick(done: int) -> None:
        bar.update(max(0, done - bar.n))

    unread: list[tuple[str, str, str]] = []
    unread_before: collections.deque[list[tuple[str, str, str]]] = (
        collections.deque()
    )  # of each chunk on its way, to be noted in its turn

    def chunked() -> Iterator[tuple[Any, ...]]:
        chunk, size = [], 0
        for row in sources.read(job, lambda *what: unread.append(what), tick, rows.commits):
            rows.read += 1
            rows.first = rows.first or {
                **row,
                "messages": [{**m, "content": m["content"][:2000]} for m in row["messages"]],
            }
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
        for path in workers.map_in_order(rows.pool, chunks.clean_chunk, chunked()):
            table, facts = chunks.load(
                path, [*COLUMNS, "later_questions", "signature", "bands"]
            )  # not the texts
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
                rows.later |= {
                    start + n: later
                    for n, later in enumerate(table["later_questions"].to_pylist())
                    if later
                }
                start += table.num_rows
                signed.write(b"".join(table["signature"].to_pylist()))
                bands = np.frombuffer(b"".join(table["bands"].to_pylist()), np.uint64).reshape(
                    -1, duplicates.BANDS
                )
                held.append({**{name: table[name].to_numpy() for name in COLUMNS}, "bands": bands})
            bar.set_postfix(rows=f"{rows.read:,}", refresh=False)
    tick(bar.total or 0)
    bar.close()
    rows.columns = (
        {name: np.concatenate([part[name] for part in held]) for name in (*COLUMNS, "bands")}
        if held
        else {}
    )
    rows.made = Decisions(start)
    require_rows(rows, start)


@timed
def measure(rows: Rows, base: pathlib.Path) -> None:
    """Count every row's tokens, before any row is dropped in favour of one that is too long itself; `base` has tokenizer and template."""
    which, lengths = chat.tokenizer_identity(base), []
    bar = progress_bar("tokenising", total=len(rows.made.side), unit="row")
    for (_, start), (own, too_long) in zip(
        rows.parts,
        workers.map_in_order(
            rows.pool,
            chunks.measure_chunk,
            ((rows.job, path, base, which) for path, _ in rows.parts),
        ),
        strict=True,
    ):
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
    signature = np.memmap(rows.scratch / "signatures", np.uint16, "r").reshape(
        -1, duplicates.HASHES
    )
    duplicates.place(
        rows.columns["bands"],
        signature,
        rows.columns,
        rows.later,
        rows.job,
        rows.made,
        lambda meeting: progress_bar("near duplicates, sides", iterable=meeting, unit="row"),
    )
    del rows.columns["bands"]
    note_decided(rows, SAME_REASONS)


@timed
def decontaminate(rows: Rows) -> None:
    """Drop training rows that overlap with held-out rows, the exam or the safety set."""
    note_decided(
        rows, ("contaminated",), contamination.drop_leaks(rows) if rows.job.decontaminate else {}
    )


@timed
def tokenise(rows: Rows, base: pathlib.Path, final: pathlib.Path) -> dict[str, Any]:
    """Prove the tokens and mask of every row that is left, and write the splits as Arrow under `final`; the counts of the stage.

    `final` appears when it is complete.
    """
    temporary = final.with_name(".data.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    out = {side: SplitWriter(temporary / side) for side in SPLITS}
    which, counts, digest = chat.tokenizer_identity(base), Counter(), hashlib.sha256()
    todo = [
        (path, np.flatnonzero(sides >= 0), sides[sides >= 0]) for path, _, sides in with_sides(rows)
    ]
    bar = progress_bar("proving and writing", total=sum(len(at) for _, at, _ in todo), unit="row")
    for (_, at, sides), (table, facts) in zip(
        todo,
        workers.map_in_order(
            rows.pool,
            chunks.tokenise_chunk,
            ((rows.job, path, at, base, which) for path, at, _ in todo),
        ),
        strict=True,
    ):
        counts.update(facts["counts"])
        for example in facts["cut"]:
            rows.keep("answer_cut", example)
        rows.sample += facts["sample"][: chunks.SAMPLE - len(rows.sample)]
        for number, side in enumerate(SPLITS):
            part = table.filter(sides == number)
            out[side].write(part)
            counts[side] += part.num_rows
        digest.update(sides.tobytes() + facts["digest"])
        bar.update(len(at))
    bar.close()
    workers.stop_pool(rows.pool)
    rows.changed.update({"answer_cut": counts["truncated"]} if counts["truncated"] else {})
    require_rows(rows, sum(counts[side] for side in SPLITS))
    if not counts["train"]:
        raise UserError(
            f"no training row is left: {counts['validation']} validation and {counts['test']} test rows; lower validation_size "
            f"and test_size."
        )
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
    return chat.compare_with_transformers(chat.load_chat(base), base, rows.sample)
