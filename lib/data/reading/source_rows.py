"""Stream rows from bundled sets, local files or folders, the hub, or several of these.

for row in read_rows(job, note_dropped): ...

A row is {"id": str, "topic": str, "messages": [{"role": "user", "content": str}, ...]}; the roles
are user, assistant and system. A row of a held-out file also has its "split".
"""

import dataclasses
import functools
import hashlib
import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from lib.common.errors import UserError
from lib.data.reading import formats, hub_rows, sources
from lib.data.reading.local_files import Part
from lib.data.reading.row import FieldCounts, RowReader
from lib.data.reading.row_parts import verdicts
from lib.data.reading.row_parts.fields import BadRow, DroppedRow
from lib.data.splits import FORGETTING
from lib.params import Params, Source


@dataclasses.dataclass
class _Reading:
    """What reading keeps from one row to the next."""

    job: Params
    note_dropped: Callable[[str, str, str], None]
    report_bytes: Callable[[int], None]
    commits: dict[str, str | None] | None
    inputs: list[dict[str, Any]]
    unreadable: int = 0
    bytes_before: dict[pathlib.Path, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class _Input:
    """A source with its parts, none for a hub id, and the entry of each part in `inputs`."""

    number: int
    source: Source
    parts: list[tuple[Part | None, dict[str, Any]]]
    reader: RowReader


def read_rows(
    job: Params,
    note_dropped: Callable[[str, str, str], None],
    report_bytes: Callable[[int], None] = lambda done: None,
    commits: dict[str, str | None] | None = None,
    inputs: list[dict[str, Any]] | None = None,
    fields: list[FieldCounts] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield all rows of the sources as messages, in order; first those that are not trained on.

    Of two rows that are the same the later is dropped, which must be the one that is trained on.

    A UserError names file and line of what cannot be read. `note_dropped` gets (reason, id or
    place, details) of a skipped row: `unreadable` within skip_bad_lines, `not_sampled` by a
    source's weight, or one of verdicts.REASONS. `report_bytes` gets the bytes of local files read
    so far, `commits` the commit of each hub source, `inputs` {"name", "split", "rows", "unread"} of
    each file or hub split; `unread` says why it is not read, or is "". `fields` gets the fields of
    each source.
    """
    inputs = [] if inputs is None else inputs
    reading = _Reading(job, note_dropped, report_bytes, commits, inputs)
    listed = [
        _list_input(number, source, RowReader(source, prefix, job.answer_numbers), inputs)
        for number, (source, prefix) in enumerate(
            zip(sources.list_sources(job), _id_prefixes(job.dataset), strict=True)
        )
    ]
    if fields is not None:
        fields += [own.reader.fields for own in listed]
    for split in ("test", "validation"):
        yield from _read_split(listed, split, reading)
    for source in sources.list_forgetting(job):
        yield from _read_forgetting(source, reading)
    yield from _read_split(listed, "train", reading)
    for own in listed:
        _require_decided(own)


def _list_input(
    number: int,
    source: Source,
    reader: RowReader,
    inputs: list[dict[str, Any]],
    what: str = "dataset",
) -> _Input:
    """Return a source with its parts, and list these, and what is not read, in `inputs`."""
    found = sources.find_local(source, what)
    parts: list[tuple[Part | None, dict[str, Any]]] = []
    for part in found.parts if found else [None]:
        name = part.name if part else source.dataset
        split = part.split if part else source.split or "train"
        why = "max_rows was reached before it"
        parts.append((part, {"name": name, "split": split, "rows": 0, "unread": why}))
    inputs += [entry for _, entry in parts]
    _list_unread(found.unread if found else [], inputs)
    reader.read_again = functools.partial(_read_again, source, [part for part, _ in parts])
    return _Input(number, source, parts, reader)


def _require_decided(own: _Input) -> None:
    try:
        verdicts.require_decided(own.reader.verdicts)
    except BadRow as error:
        raise UserError(f"dataset `{own.source.dataset}`: {error}.") from None


def _list_unread(unread: list[tuple[str, str]], inputs: list[dict[str, Any]]) -> None:
    inputs += [{"name": name, "split": "", "rows": 0, "unread": why} for name, why in unread]


def _read_split(listed: list[_Input], split: str, reading: _Reading) -> Iterator[dict[str, Any]]:
    """Yield the rows of a split of all sources; max_rows is the most for each split."""
    total = 0
    for own in listed:
        source = own.source
        count = 0
        for where, values in _read_parts(own, split, reading):
            row = _to_row_or_note(where, values, own, count, split, reading)
            # a hash of its place decides on a row, so that appended rows change nothing for it
            chosen = f"{reading.job.seed}\n{own.number}\n{count}"
            if row and split == "train" and source.weight < 1 and _share(chosen) >= source.weight:
                reading.note_dropped("not_sampled", row["id"], f"weight {source.weight:g}")
            elif row:
                yield row
            count += 1
            total += 1
            if reading.job.max_rows and total >= reading.job.max_rows:
                return
            if source.max_rows and count >= source.max_rows:
                break
        if not count and split == "train":
            raise UserError(f"dataset `{source.dataset}` has no rows. {_explain_no_rows(own)}")


def _explain_no_rows(own: _Input) -> str:
    paths = dict.fromkeys(part.path for part, _ in own.parts if part and part.split == "train")
    sizes = ", ".join(f"{path.name} ({path.stat().st_size:,} bytes)" for path in [*paths][:5])
    if not paths:
        return "Name another split, configuration or set."
    return (
        f"Read: {sizes}. Each row is a line with a question and an answer: in .jsonl "
        f'{{"question": "...", "answer": "..."}}, in .csv below a first line with the columns\' '
        f"names. Is this the file you mean, and was it written to its end?"
    )


def _read_forgetting(source: Source, reading: _Reading) -> Iterator[dict[str, Any]]:
    """Yield the rows that are only measured, for what is forgotten."""
    reader = RowReader(source, "", reading.job.answer_numbers)
    own = _list_input(-1, source, reader, reading.inputs, FORGETTING)
    for _, entry in own.parts:
        entry["split"] = FORGETTING
    read = itertools.chain.from_iterable(_read_part(*part, own, reading) for part in own.parts)
    most = source.max_rows or reading.job.max_rows or None
    for number, (where, values) in enumerate(itertools.islice(read, most)):
        if row := _to_row_or_note(where, values, own, number, FORGETTING, reading):
            yield row


def _read_parts(own: _Input, split: str, reading: _Reading) -> Iterator[tuple[str, Any]]:
    """Yield (where, values) of the rows of a source that belong to a split."""
    for part, entry in own.parts:
        if (part.split if part else "train") == split:
            yield from _read_part(part, entry, own, reading)


def _read_part(
    part: Part | None, entry: dict[str, Any], own: _Input, reading: _Reading
) -> Iterator[tuple[str, Any]]:
    """Yield (where, values) of the rows of a file, or of a hub source."""
    entry["unread"] = ""
    if part:
        rows = _read_file(part, own.source, reading)
    else:
        unread: list[tuple[str, str]] = []
        rows = hub_rows.read_hub_rows(own.source, reading.commits, unread)
    for number, row in enumerate(rows):
        if not part and not number:
            _list_unread(unread, reading.inputs)
        entry["rows"] += 1
        yield row


def _read_file(part: Part, source: Source, reading: _Reading) -> Iterator[tuple[str, Any]]:
    # the splits of an archive are read one after the other, so its bytes count once
    so_far = sum(path.stat().st_size for path in reading.bytes_before)
    before = reading.bytes_before.setdefault(part.path, so_far)

    def report(done: int) -> None:
        reading.report_bytes(before + done)

    yield from formats.read_file(part.path, source.columns, report, part.inside)


def _read_again(source: Source, parts: list[Part | None]) -> Iterator[tuple[str, Any]]:
    """Yield (where, values) of all rows of a source that are read, of every split."""
    for part in parts:
        if part:
            yield from formats.read_file(part.path, source.columns, inside=part.inside)
        else:
            yield from hub_rows.read_hub_rows(source)


def _id_prefixes(dataset: sources.Dataset) -> list[str]:
    """Return a prefix for the row ids of each source, since sources of a list may share ids."""
    if isinstance(dataset, str | Source):
        return [""]
    names = [pathlib.PurePath(name).name for name in sources.list_names(dataset)]
    return [
        f"{name}-" if names.count(name) == 1 else f"{name}-{number}-"
        for number, name in enumerate(names, 1)
    ]


def _share(text: str) -> float:
    """Return a number from 0 up to 1 that depends only on the text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def _to_row_or_note(
    where: str, values: Any, own: _Input, number: int, split: str, reading: _Reading
) -> dict[str, Any] | None:
    """Return a row as messages; None if it is dropped, or unreadable as skip_bad_lines allows."""
    try:
        return own.reader.read(values, number, split)
    except DroppedRow as dropped:
        reading.note_dropped(dropped.reason, dropped.row_id, f"{where}: {dropped}")
        return None
    except verdicts.MixedVerdicts as error:  # earlier rows were kept: skipping this one is no help
        raise UserError(f"{where}: {error}.") from None
    except BadRow as error:
        reading.unreadable += 1
        if reading.unreadable > reading.job.skip_bad_lines:
            more = (
                f"\n{reading.unreadable:,} rows could not be read; skip_bad_lines allows "
                f"{reading.job.skip_bad_lines:,}."
                if reading.unreadable > 1
                else "\nWith skip_bad_lines: 1, one such row is left out, named and counted."
            )
            raise UserError(f"{where}: {error}{more}") from None
        reading.note_dropped("unreadable", where, str(error).splitlines()[0])
        return None
