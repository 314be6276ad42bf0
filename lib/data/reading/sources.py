"""Stream rows from bundled sets, local files or folders, the hub, or several of these.

for row in read_rows(job, note_dropped): ...

A row is {"id": str, "topic": str, "messages": [{"role": "user", "content": str}, ...]}; the roles
are user, assistant and system.
"""

import hashlib
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lib.common import files, locations
from lib.common.errors import ROOT, UserError
from lib.data.reading import formats, hub_rows, shapes
from lib.data.reading.shapes import BadRow
from lib.medical import safety
from lib.params import Params, Source

BUNDLED = {
    "bundled:first-aid": ROOT / "lib" / "medical" / "first_aid.jsonl",
    "bundled:exam": ROOT / "lib" / "medical" / "exam.jsonl",
}
PACKED = 4  # roughly the bytes of text per byte of a compressed file
HUB_BYTES = 2**29  # assumed text of a hub source, whose size is unknown before it is loaded
NOT_DATA = ("state.json", "dataset_info.json")  # `datasets` writes them beside its Arrow files
Dataset = str | Sequence[str | Source]  # the parameter of that name


def list_sources(job: Params) -> list[Source]:
    """Return `dataset` as a list; a single source gets the job's dataset_revision and columns."""
    if isinstance(job.dataset, str):
        return [Source(dataset=job.dataset, revision=job.dataset_revision, columns=job.columns)]
    listed = [Source(dataset=s) if isinstance(s, str) else s for s in job.dataset]
    return [s if s.columns else s.model_copy(update={"columns": job.columns}) for s in listed]


def list_names(dataset: Dataset) -> list[str]:
    """Return the ids or paths of the sources."""
    listed = [dataset] if isinstance(dataset, str) else dataset
    return [source if isinstance(source, str) else source.dataset for source in listed]


def describe(dataset: Dataset) -> str:
    """Return the names of the sources in one line, for records and messages."""
    return ", ".join(list_names(dataset))


# -------------------------------------------------------------------------------------------------
# local files


def local_files(dataset: str, what: str = "dataset") -> list[pathlib.Path]:
    """Return the files behind a bundled or local source, or no files for a hub id.

    `what`, dataset or exam, decides which split of a folder is meant. Raise UserError for a source
    that cannot exist.
    """
    bundled = ", ".join(BUNDLED)
    if what == "exam":
        bundled = f"bundled:exam, and for `make exam` {safety.NAME}"
    if dataset.startswith("bundled:"):
        if dataset not in BUNDLED:
            raise UserError(f"{what} `{dataset}` is not bundled; expected {bundled}.")
        return [BUNDLED[dataset]]
    path = locations.local_path(dataset)
    if path.is_dir():
        return _list_folder(path, what)
    has_known_suffix = formats.suffix_of(path) in formats.SUFFIXES
    if path.is_file():
        if not has_known_suffix:
            raise UserError(
                f"{what} file `{dataset}` ends in `{path.suffix}`; expected "
                f"{', '.join(formats.SUFFIXES)}, each also with .gz."
            )
        return [path]
    is_hub_id = dataset.count("/") == 1 and not dataset.startswith((".", "/", "~"))
    if not is_hub_id or has_known_suffix:
        raise UserError(
            f"{what} `{dataset}` does not exist (looked in {ROOT}); expected a file or folder "
            f"there, a hub id `owner/name`, or {bundled}."
        )
    return []


def _list_folder(path: pathlib.Path, what: str) -> list[pathlib.Path]:
    if (path / "dataset_dict.json").is_file():
        # a folder that `datasets` saved with its splits: only one of them is for training
        path = path / ("train" if what == "dataset" else "test")
    paths = [
        p
        for p in path.rglob("*")
        if p.is_file()
        and formats.suffix_of(p) in formats.SUFFIXES
        and not p.name.startswith((".", "cache-"))
        and p.name not in NOT_DATA
    ]
    if not paths:
        raise UserError(
            f"{what} folder `{files.format_path(path)}` has no {', '.join(formats.SUFFIXES)} file "
            f"(also .gz)."
        )
    return sorted(paths)


def check_sources(job: Params) -> None:
    """Raise UserError for sources or columns that cannot exist, before anything is read or made."""
    if job.dataset_revision and not isinstance(job.dataset, str):
        raise UserError(
            "dataset_revision is for a single dataset; in a list, give each entry its own: "
            "- {dataset: owner/name, revision: v1}."
        )
    for source in list_sources(job):
        if local_files(source.dataset) and source.revision:
            raise UserError(
                f"dataset `{source.dataset}` is local, so it has no revision `{source.revision}`: "
                f"only a hub id has revisions."
            )
        shapes.check_columns(source.columns)
    for exam in job.exam:
        local_files(exam, "exam")


def count_local_bytes(dataset: Dataset) -> int:
    """Return the bytes of the local files behind the sources."""
    return sum(p.stat().st_size for name in list_names(dataset) for p in local_files(name))


def estimate_text_bytes(dataset: Dataset) -> int:
    """Return roughly the bytes of text behind the sources."""
    total = 0
    for name in list_names(dataset):
        paths = local_files(name)
        total += HUB_BYTES if not paths else 0
        for path in paths:
            is_packed = path.suffix in (".gz", ".parquet")
            total += path.stat().st_size * (PACKED if is_packed else 1)
    return total


def hash_sources(job: Params) -> str:
    """Return sha256 over the sources, and the exam and safety set they are compared with.

    Local sources are hashed by their files' bytes, hub sources by their id and revision.
    """
    digest = hashlib.sha256()
    for source in list_sources(job):
        paths = local_files(source.dataset)
        for path in paths:
            digest.update(files.sha256(path).encode())
        if not paths:
            digest.update(f"{source.dataset}@{source.revision}".encode())
    if job.decontaminate:
        for exam in job.exam:
            hashes = [files.sha256(path) for path in local_files(exam, "exam")]
            digest.update(" ".join(hashes or [exam]).encode())
        digest.update(files.sha256(safety.ROWS_FILE).encode())
    return digest.hexdigest()


# -------------------------------------------------------------------------------------------------
# rows


def read_rows(
    job: Params,
    note_dropped: Callable[[str, str, str], None],
    report_bytes: Callable[[int], None] = lambda done: None,
    commits: dict[str, str | None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield all rows of the sources as messages, in order.

    A UserError names file and line of what cannot be read. `note_dropped` gets (reason, id or
    place, details) of a skipped row: `unreadable` within skip_bad_lines, `not_sampled` by a
    source's weight. `report_bytes` gets the bytes of local files read so far, `commits` the commit
    of each hub source.
    """
    unreadable = 0
    total = 0
    bytes_before = 0
    for number, (source, prefix) in enumerate(
        zip(list_sources(job), _id_prefixes(job.dataset), strict=True)
    ):
        count = 0
        for where, values in _read_source(source, bytes_before, report_bytes, commits):
            try:
                row = _to_row(values, source, prefix, count)
            except BadRow as error:
                unreadable += 1
                if unreadable > job.skip_bad_lines:
                    allowed = f"skip_bad_lines allows {job.skip_bad_lines}."
                    more = f"\n{unreadable} rows could not be read; {allowed}"
                    raise UserError(f"{where}: {error}{more if unreadable > 1 else ''}") from None
                note_dropped("unreadable", where, str(error).splitlines()[0])
            else:
                # a hash of its place decides on a row, so that appended rows change nothing for it
                if source.weight == 1 or _share(f"{job.seed}\n{number}\n{count}") < source.weight:
                    yield row
                else:
                    note_dropped("not_sampled", row["id"], f"weight {source.weight:g}")
            count += 1
            total += 1
            if job.max_rows and total >= job.max_rows:
                return
            if source.max_rows and count >= source.max_rows:
                break
        if not count:
            raise UserError(f"dataset `{source.dataset}` has no rows.")
        bytes_before += count_local_bytes(source.dataset)


def _read_source(
    source: Source,
    bytes_before: int,
    report_bytes: Callable[[int], None],
    commits: dict[str, str | None] | None,
) -> Iterator[tuple[str, Any]]:
    """Yield (where, values) of a source's rows; earlier sources had `bytes_before` bytes."""
    paths = local_files(source.dataset)
    if not paths:
        yield from hub_rows.read_hub_rows(source, commits)
    for path in paths:

        def report(done: int, before: int = bytes_before) -> None:
            report_bytes(before + done)

        yield from formats.read_file(path, source.columns, report)
        bytes_before += path.stat().st_size


def _id_prefixes(dataset: Dataset) -> list[str]:
    """Return a prefix for the row ids of each source, since sources of a list may share ids."""
    if isinstance(dataset, str):
        return [""]
    names = [pathlib.PurePath(name).name for name in list_names(dataset)]
    return [
        f"{name}-" if names.count(name) == 1 else f"{name}-{number}-"
        for number, name in enumerate(names, 1)
    ]


def _share(text: str) -> float:
    """Return a number from 0 up to 1 that depends only on the text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def _to_row(values: Any, source: Source, prefix: str, number: int) -> dict[str, Any]:
    """Return a row of a source as messages; raise BadRow when it cannot be read."""
    values = shapes.require_fields(values)
    columns = source.columns
    messages = shapes.to_messages(shapes.rename_columns(values, columns) if columns else values)
    row_id = values.get(columns.get("id", "id"))
    if row_id in (None, ""):
        row_id = f"{number:07d}" if prefix else f"row-{number:07d}"
    topic = values.get(columns.get("topic", "topic"))
    row_id, topic = f"{prefix}{row_id}", str(topic or "")
    shapes.require_unicode(row_id, topic, *(turn["content"] for turn in messages))
    return {"id": row_id, "topic": topic, "messages": messages}
