"""The data stage: read, clean, deduplicate, split and tokenise rows, and verify each label mask.

    rows = begin(job, run.folder)
    read_and_clean(rows)
    measure(rows, base)
    deduplicate(rows)
    decontaminate(rows)
    results = tokenise(rows, base, run.folder / "data")

Several processes work on chunks of rows, which are kept on disk. About 300 bytes a row stay in
memory.
"""

import hashlib
import os
import pathlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from lib.common import files, locations, workers
from lib.common.progress import progress_bar
from lib.data import chat, chunk_cache, chunks, contamination, duplicates, subjects
from lib.data.cleaning import clean, language
from lib.data.cleaning.turns import MASKED
from lib.data.data_card import describe_data as describe_data
from lib.data.data_card import describe_fields as describe_fields
from lib.data.data_card import describe_inputs as describe_inputs
from lib.data.data_card import list_fields as list_fields
from lib.data.data_card import list_inputs as list_inputs
from lib.data.data_card import summarise
from lib.data.duplicates import SAME_REASONS, Decisions
from lib.data.empty_splits import describe_empty, require_rows, require_splits
from lib.data.reading import exam_items, row_ids, source_rows, sources
from lib.data.reading.row_parts import verdicts
from lib.data.rows import Rows, note_decided, timed
from lib.data.splits import FORGETTING, SIDES, SPLITS, SplitWriter
from lib.params import Params

# in the order in which they are checked
READ_REASONS = ("unreadable", "not_sampled", *verdicts.REASONS, *clean.REASONS)
READ_CHANGES = ("repeated_id", *clean.CHANGES)
CHUNK_ROWS = 2000
CHUNK_CHARACTERS = 2**22
SMALL = 2**20  # bytes of data; below it, starting processes costs more time than they save
FIRST_CHARACTERS = 2000  # of each message in the first row, which the notebook shows as read
# the columns of a cleaned chunk that stay in memory, besides its bands
COLUMNS = ("exact", "question", "subject", "answer", "vital", "answer_length", "given_side")


def begin(job: Params, folder: pathlib.Path) -> Rows:
    """Return the Rows of a job, still empty; `folder` is its run folder.

    Raise UserError for sources, exams or a language that cannot exist.
    """
    sources.check_sources(job)
    language.check_language(job.language)
    scratch = folder / ".prepare.tmp"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    locations.make_cache(chunk_cache.CACHE)
    chunk_cache.prune_cache()
    exam: list[dict[str, Any]] = []
    if job.decontaminate:
        for name in job.exam:
            exam += exam_items.read_items(name)
    pool = workers.start_pool(_is_small(job))
    return Rows(
        job,
        scratch,
        pool,
        dropped_file=open(scratch / "dropped.jsonl", "w", encoding="utf-8"),
        exam=exam,
    )


def _is_small(job: Params) -> bool:
    """Tell whether one process is enough for the rows; a hub set's size is not known."""
    if 0 < job.max_rows <= CHUNK_ROWS:
        return True
    return sources.is_all_local(job) and sources.count_local_bytes(job) < SMALL


# -------------------------------------------------------------------------------------------------
# read and clean


class RawChunk(NamedTuple):
    """Rows as they were read, and the rows that were skipped before and between them."""

    rows: list[dict[str, Any]]
    passed_over: list[tuple[str, str, str]]  # reason, id or place, details


@timed
def read_and_clean(rows: Rows) -> None:
    """Read and clean every row; keep it in a chunk on disk, or drop it with a reason."""
    total = sources.count_local_bytes(rows.job)
    bar = progress_bar("reading, cleaning", total=total or None, unit="B", unit_scale=True)

    def report_bytes(done: int) -> None:
        bar.update(max(0, done - bar.n))

    raw = row_ids.give_own_ids(_read_chunks(rows, report_bytes), rows.note_renamed)
    tasks = ((rows.job, chunk) for chunk in raw)
    columns: list[dict[str, np.ndarray]] = []
    kept = 0
    with (
        open(rows.scratch / "signatures", "wb") as signatures,
        open(rows.scratch / "terms", "wb") as terms,
    ):
        for passed_over, path in workers.map_in_order(rows.pool, _clean_chunk, tasks):
            for reason, where, why in passed_over:
                rows.read += 1
                rows.note_dropped(reason, where, {"text": why})
            # all columns but the texts
            table, facts = chunks.load_chunk(
                path, [*COLUMNS, "later_questions", "terms", "signature", "bands"]
            )
            _note_cleaning(rows, facts)
            if table.num_rows:
                rows.parts.append((path, kept))
                _keep_later_questions(rows, table, kept)
                signatures.write(b"".join(table["signature"].to_pylist()))
                columns.append(_read_columns(table))
                own_terms = table["terms"].to_pylist()
                columns[-1]["terms_end"] = terms.tell() + np.cumsum([len(t) for t in own_terms])
                terms.write(b"".join(own_terms))
                kept += table.num_rows
            bar.set_postfix(rows=f"{rows.read:,}", refresh=False)
    report_bytes(total)
    bar.close()
    if columns:
        rows.columns = {
            name: np.concatenate([part[name] for part in columns]) for name in columns[0]
        }
    rows.decisions = Decisions(kept)
    require_rows(rows, kept)


def _read_chunks(rows: Rows, report_bytes: Callable[[int], None]) -> Iterator[RawChunk]:
    """Yield the rows of the sources in chunks, on demand.

    Reading runs ahead of the results. So skipped rows travel with their chunk through the workers,
    to be recorded in order.
    """
    chunk = RawChunk([], [])
    characters = 0

    def note_passed_over(reason: str, where: str, why: str) -> None:
        chunk.passed_over.append((reason, where, why))

    job = rows.job
    for row in source_rows.read_rows(
        job, note_passed_over, report_bytes, rows.commits, rows.inputs, rows.fields
    ):
        rows.read += 1
        if not rows.first:
            rows.first = _shorten_messages(row)
        chunk.rows.append(row)
        characters += sum(len(m["content"]) for m in row["messages"])
        if len(chunk.rows) == CHUNK_ROWS or characters > CHUNK_CHARACTERS:
            yield chunk
            chunk = RawChunk([], [])
            characters = 0
    if chunk.rows or chunk.passed_over:
        yield chunk


def _shorten_messages(row: dict[str, Any]) -> dict[str, Any]:
    messages = [{**m, "content": m["content"][:FIRST_CHARACTERS]} for m in row["messages"]]
    if any(MASKED in m for m in messages):  # a table needs the same columns in every row
        messages = [{**m, MASKED: m.get(MASKED, "no")} for m in messages]
    return {**row, "messages": messages}


def _clean_chunk(job: Params, chunk: RawChunk) -> tuple[list[tuple[str, str, str]], pathlib.Path]:
    """Return the skipped rows and the file of the cleaned chunk; this runs in a worker."""
    return chunk.passed_over, chunks.clean_chunk(job, chunk.rows)


def _note_cleaning(rows: Rows, facts: dict[str, Any]) -> None:
    """Count and list the rows that cleaning dropped or changed in a chunk."""
    for reason, row_id, example in facts["dropped"]:
        rows.note_dropped(reason, row_id, example)
    rows.changed.update(facts["changed"])
    for rule, example in facts["examples"]:
        rows.keep_example(rule, example)


def _keep_later_questions(rows: Rows, table: Any, start: int) -> None:
    for n, questions in enumerate(table["later_questions"].to_pylist()):
        if questions:
            rows.later_questions[start + n] = questions


def _read_columns(table: Any) -> dict[str, np.ndarray]:
    """Return the comparison keys of rows: one value per row, and BANDS values in `bands`."""
    columns = {name: table[name].to_numpy() for name in COLUMNS}
    bands = np.frombuffer(b"".join(table["bands"].to_pylist()), np.uint64)
    columns["bands"] = bands.reshape(-1, duplicates.BANDS)
    return columns


# -------------------------------------------------------------------------------------------------
# measure, deduplicate, decontaminate


@timed
def measure(rows: Rows, base: pathlib.Path) -> None:
    """Count every row's tokens, and drop the rows that are too long.

    This comes before deduplication, which could otherwise drop a row in favour of one that is too
    long. `base` is a folder with tokenizer and chat template.
    """
    job = rows.job
    identity = chat.tokenizer_identity(base)
    tasks = ((path, base, identity, job) for path, _ in rows.parts)
    results = workers.map_in_order(rows.pool, chunks.measure_chunk, tasks)
    bar = progress_bar("tokenising", total=len(rows.decisions.side), unit="row")
    lengths: list[int] = []
    for (_, start), (own, too_long) in zip(rows.parts, results, strict=True):
        lengths += own
        for n, row_id, text in too_long:
            rows.decisions.drop(start + n, "too_long")
            rows.note_dropped("too_long", row_id, {"text": text})
        bar.update(len(own))
    bar.close()
    rows.columns["length"] = np.array(lengths, np.int32)
    require_rows(rows, len(rows.decisions.kept()))


@timed
def deduplicate(rows: Rows) -> None:
    """Drop exact duplicates, surplus answers and near duplicates, and give each row its side.

    The later of two rows is dropped.
    """
    job = rows.job
    duplicates.drop_same(
        rows.columns, rows.decisions, job.skip_rules, job.same_question, job.answer_cap
    )
    signatures = np.memmap(rows.scratch / "signatures", np.uint16, "r")
    terms = subjects.TermsFile(rows.scratch / "terms", rows.columns["terms_end"])
    other_facts = duplicates.assign_sides(
        rows.columns,
        duplicates.RowFiles(signatures.reshape(-1, duplicates.HASHES), terms),
        rows.later_questions,
        job,
        rows.decisions,
        lambda meeting: progress_bar("near duplicates, sides", iterable=meeting, unit="row"),
    )
    terms.close()
    del rows.columns["bands"]
    rows.facts["alike_rows_kept_as_other_facts"] = other_facts
    note_decided(rows, SAME_REASONS)


@timed
def decontaminate(rows: Rows) -> None:
    """Drop training rows that overlap with held-out rows, the exam or the safety set."""
    because = contamination.drop_leaks(rows) if rows.job.decontaminate else {}
    note_decided(rows, ("contaminated",), because)


# -------------------------------------------------------------------------------------------------
# tokenise


@timed
def tokenise(rows: Rows, base: pathlib.Path, final: pathlib.Path) -> dict[str, Any]:
    """Verify tokens and mask of every remaining row, and write the splits as Arrow.

    They are written to `final`, which appears when it is complete. Return the counts of the stage
    for results.json; raise UserError when a row fails its checks, or none is left to train on.
    """
    temporary = final.with_name(".data.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    named = (*SPLITS, FORGETTING) if rows.job.forgetting else SPLITS
    writers = {split: SplitWriter(temporary / split) for split in named}
    counts, rows.facts["fingerprint"] = _write_splits(rows, base, writers)
    workers.stop_pool(rows.pool)
    if counts["truncated"]:
        rows.changed["answer_cut"] = counts["truncated"]
    require_splits(rows, counts)
    for writer in writers.values():
        writer.close()
    rows.dropped_file.close()
    os.replace(rows.scratch / "dropped.jsonl", temporary / "dropped.jsonl")
    results = summarise(rows, counts)
    for caution in describe_empty(rows.job, results):
        print(caution)
    files.replace_folder(temporary, final)
    shutil.rmtree(rows.scratch, ignore_errors=True)
    return results


def _write_splits(
    rows: Rows, base: pathlib.Path, writers: dict[str, SplitWriter]
) -> tuple[Counter[str], str]:
    """Write the proven rows of every chunk; return the counts and the fingerprint of the data."""
    job = rows.job
    identity = chat.tokenizer_identity(base)
    parts = [(path, np.flatnonzero(sides >= 0), sides) for path, _, sides in rows.iterate_chunks()]
    tasks = ((path, places, base, identity, job) for path, places, _ in parts)
    results = workers.map_in_order(rows.pool, chunks.tokenise_chunk, tasks)
    total = sum(len(places) for _, places, _ in parts)
    bar = progress_bar("proving and writing", total=total, unit="row")
    counts: Counter[str] = Counter()
    digest = hashlib.sha256()
    for (_, places, sides), (table, facts) in zip(parts, results, strict=True):
        counts.update(facts["counts"])
        for example in facts["cut"]:
            rows.keep_example("answer_cut", example)
        rows.sample += facts["sample"][: chunks.SAMPLE - len(rows.sample)]
        own_sides = sides[places]
        for split, writer in writers.items():
            part = table.filter(own_sides == SIDES.index(split))
            writer.write(part)
            counts[split] += part.num_rows
        digest.update(own_sides.tobytes() + facts["digest"])
        bar.update(len(places))
    bar.close()
    return counts, digest.hexdigest()


def compare_tokenizers(rows: Rows, base: pathlib.Path) -> int:
    """Compare text and stored ids of the first rows with those of transformers' own tokenizer.

    Return the number of rows compared; raise UserError at a difference.
    """
    return chat.compare_with_transformers(chat.load_chat(base), base, rows.sample)
