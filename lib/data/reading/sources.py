"""Which data a job names: bundled sets, local files or folders, sets on the hub.

Nothing is read here; `source_rows.py` does that.
"""

import functools
import hashlib
import pathlib
import re
from collections.abc import Sequence

from lib.common import files, locations
from lib.common.errors import ROOT, UserError
from lib.data.reading import formats, hub_rows, local_files
from lib.data.reading.local_files import Found
from lib.data.reading.row_parts.fields import check_columns
from lib.medical import safety
from lib.medical.texts import bundled
from lib.params import Params, Source

BUNDLED = {
    "bundled:first-aid": bundled.FOLDER / "first_aid.jsonl",
    "bundled:first-aid-es": bundled.FOLDER / "first_aid_es.jsonl",
    "bundled:first-aid-fr": bundled.FOLDER / "first_aid_fr.jsonl",
    "bundled:exam": bundled.FOLDER / "exam.jsonl",
    "bundled:exam-es": bundled.FOLDER / "exam_es.jsonl",
    "bundled:exam-fr": bundled.FOLDER / "exam_fr.jsonl",
}
PACKED = 4  # roughly the bytes of text per byte of a compressed file
HUB_BYTES = 2**29  # assumed text of a hub source, whose size is unknown before it is loaded
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
Dataset = str | Source | Sequence[str | Source]  # the parameter of that name


def list_sources(job: Params) -> list[Source]:
    """Return `dataset` as a list.

    A single one gets the job's dataset_revision, dataset_config, dataset_split and columns, an
    entry of a list the job's columns.
    """
    if isinstance(job.dataset, list):
        listed = [Source(dataset=s) if isinstance(s, str) else s for s in job.dataset]
        return [s if s.columns else s.model_copy(update={"columns": job.columns}) for s in listed]
    alone = Source(dataset=job.dataset) if isinstance(job.dataset, str) else job.dataset
    more = {
        "revision": alone.revision or job.dataset_revision,
        "config": alone.config or job.dataset_config,
        "split": alone.split or job.dataset_split,
        "columns": alone.columns or job.columns,
    }
    return [alone.model_copy(update=more)]


def list_forgetting(job: Params) -> list[Source]:
    """Return the source of the rows for what is forgotten in a list, which is empty without one."""
    if not job.forgetting:
        return []
    source = job.forgetting
    return [Source(dataset=source) if isinstance(source, str) else source]


def list_read(job: Params) -> list[tuple[Source, str]]:
    """Return every source whose rows are read, each with the parameter that names it."""
    return [
        *((source, "dataset") for source in list_sources(job)),
        *((source, "forgetting") for source in list_forgetting(job)),
    ]


def exam_source(exam: str | Source) -> Source:
    """Return an entry of `exam` as a source."""
    return Source(dataset=exam) if isinstance(exam, str) else exam


def name_exam(exam: str | Source) -> str:
    """Return the name of an exam in records: its data set, and which part of it is asked."""
    source = exam_source(exam)
    first = f"first {source.max_rows}" if source.max_rows else ""
    part = ", ".join(filter(None, [source.config, source.split, source.revision, first]))
    return f"{source.dataset} ({part})" if part else source.dataset


def list_names(dataset: Dataset) -> list[str]:
    """Return the ids or paths of the sources."""
    listed = [dataset] if isinstance(dataset, str | Source) else dataset
    return [source if isinstance(source, str) else source.dataset for source in listed]


def describe(dataset: Dataset) -> str:
    """Return the names of the sources in one line, for records and messages."""
    return ", ".join(list_names(dataset))


# -------------------------------------------------------------------------------------------------
# what there is


def find_local(source: Source, what: str = "dataset") -> Found | None:
    """Return what is read of a bundled or local source, or None for a hub id.

    `what`, dataset, exam or forgetting, decides which split of a folder is meant. Raise
    UserError for a source that cannot exist.
    """
    path = _find_path(source.dataset, what)
    if path is None:
        return None
    return local_files.find_parts(path, source.columns, source.split, what)


def _find_path(dataset: str, what: str) -> pathlib.Path | None:
    bundled = ", ".join(BUNDLED)
    if what == "exam":
        bundled = f"bundled:exam, and for `make exam` {safety.NAME}"
    if dataset.startswith("bundled:"):
        if dataset not in BUNDLED:
            raise UserError(f"{what} `{dataset}` is not bundled; expected {bundled}.")
        return BUNDLED[dataset]
    path = locations.local_path(dataset)
    if path.is_dir():
        return path
    if path.is_file():
        if not formats.is_known(path):
            raise UserError(
                f"{what} file `{dataset}` ends in `{path.suffix}`; expected {formats.ENDINGS}."
            )
        return path
    if not HUB_ID.fullmatch(dataset) or formats.suffix_of(path) in formats.SUFFIXES:
        raise UserError(
            f"{what} `{dataset}` does not exist (looked in {ROOT}); expected a file or folder "
            f"there, a hub id `owner/name`, or {bundled}.{_guess_meaning(dataset)}"
        )
    return None


def _guess_meaning(dataset: str) -> str:
    """Return what was probably meant by a name that is no file, folder or hub id, or ""."""
    page = re.match(r"(?:https?://huggingface\.co/|hf://)datasets/([\w.-]+/[\w.-]+)", dataset)
    configured = re.fullmatch(r"(\w[\w.-]*/[\w.-]+):([\w.-]+)", dataset)
    if page:
        return f" For this set of the hub, write `{page[1]}`."
    if "://" in dataset:
        return " Download the file first, and name it."
    if configured:
        return f" For a configuration: {{dataset: {configured[1]}, config: {configured[2]}}}."
    if "$" in dataset:
        return " Variables of the shell are not replaced here: write the path itself."
    if "," in dataset:
        return " Several are a list: [one.jsonl, two.jsonl]."
    if re.search(r"[*?\[]", dataset):
        return " Name the folder: all its files are read."
    return " Write paths with /." if "\\" in dataset else ""


def check_sources(job: Params) -> None:
    """Raise UserError for sources or columns that cannot exist, before anything is read or made."""
    of_one = {
        "revision": job.dataset_revision,
        "config": job.dataset_config,
        "split": job.dataset_split,
    }
    for key, value in of_one.items():
        if value and isinstance(job.dataset, list):
            raise UserError(
                f"dataset_{key} is for a single dataset; in a list, give each entry its own: "
                f"- {{dataset: owner/name, {key}: {value}}}."
            )
        own = getattr(job.dataset, key) if isinstance(job.dataset, Source) else ""
        if value and own and own != value:
            raise UserError(
                f"dataset_{key} is {value}, but `dataset` has {key}: {own}; keep one of them."
            )
    for source, what in list_read(job):
        refuse_rejected(source.dataset)
        if find_local(source, what) is None:
            _require_no_folder(source, what)
        else:
            _check_local(source, what)
        check_columns(source.columns)
    for source in list_forgetting(job):
        _require_no_weight(source, "forgetting")
    for exam in job.exam:
        check_exam(exam)
    if job.safety_tokens:
        refuse_rejected(safety.NAME)


def refuse_rejected(dataset: str) -> None:
    """Raise UserError if a bundled set has a text that a reviewer found wrong, or is not valid."""
    path = safety.ROWS_FILE if dataset == safety.NAME else BUNDLED.get(dataset)
    if path is None:
        return
    name = path.name
    try:
        rejected = _list_rejected(name, (bundled.FOLDER / name).stat().st_mtime_ns)
    except ValueError as error:
        raise UserError(f"{dataset}: {error}") from None
    if rejected:
        raise UserError(
            f"{dataset} has {len(rejected)} texts that a reviewer rejected, for example "
            f"{rejected[0]}. Mend or remove them in lib/medical/{name} first."
        )


@functools.lru_cache(maxsize=8)
def _list_rejected(name: str, changed: int) -> list[str]:
    """Return `bundled.list_rejected` of a file last changed then; a sweep asks 1,000 times."""
    return bundled.list_rejected(bundled.read_texts(name))


def check_exam(exam: str | Source) -> None:
    """Raise UserError for an exam that cannot exist."""
    source = exam_source(exam)
    refuse_rejected(source.dataset)
    if find_local(source, "exam") is None:
        _require_no_folder(source, "exam")
    else:
        _check_local(source, "exam")
    _require_no_weight(source, "exam")
    check_columns(source.columns)


def _require_no_weight(source: Source, what: str) -> None:
    if source.weight < 1:
        raise UserError(
            f"{what} `{source.dataset}` has weight: {source.weight:g}, but its rows are measured, "
            f"and none is drawn. max_rows takes the first ones alone."
        )


def _check_local(source: Source, what: str) -> None:
    for key in ("revision", "config"):
        value = getattr(source, key)
        if value:
            raise UserError(
                f"{what} `{source.dataset}` is local, so it has no {key} `{value}`: only a hub id "
                f"has one. To read a part of a folder, name that folder or file, or a split."
            )


def _require_no_folder(source: Source, what: str) -> None:
    """Raise UserError for a missing file that has the form of a hub id, in a folder that exists."""
    folder = ROOT / source.dataset.split("/")[0]
    if folder.is_dir() and not (source.revision or source.config):
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "(nothing)"
        step = f"say so: {{dataset: {source.dataset}, revision: main}}"
        if what == "exam":
            step = f"rename the folder `{folder.name}` here"
        raise UserError(
            f"{what} `{source.dataset}` does not exist; folder `{folder.name}` has {there}. If a "
            f"set on the hub is meant, {step}."
        )


def require_hub_sets(job: Params) -> None:
    """Raise UserError if the hub says that a data set or exam is not there.

    This takes a request each, so it is asked before a new run and not before each command.
    """
    exams = [(exam_source(exam), "exam") for exam in job.exam]
    for source, what in [*list_read(job), *exams]:
        if _find_path(source.dataset, what) is None:
            hub_rows.require_hub_set(source)


def list_paths(source: Source, what: str = "dataset") -> list[pathlib.Path]:
    """Return the files that are read of a local source, in order; none for a hub id."""
    found = find_local(source, what)
    return sorted({part.path for part in found.parts}) if found else []


def is_all_local(job: Params) -> bool:
    """Tell whether no source is on the hub."""
    return all(find_local(source, what) is not None for source, what in list_read(job))


def count_local_bytes(job: Params) -> int:
    """Return the bytes of the local files behind the sources."""
    read = [path for source, what in list_read(job) for path in list_paths(source, what)]
    return sum(path.stat().st_size for path in read)


def estimate_text_bytes(job: Params) -> int:
    """Return roughly the bytes of text behind the sources."""
    total = 0
    for source, what in list_read(job):
        paths = list_paths(source, what)
        total += HUB_BYTES if not paths else 0
        for path in paths:
            is_packed = path.suffix.lower() in (*formats.PACKINGS, ".parquet", ".zip", ".xlsx")
            total += path.stat().st_size * (PACKED if is_packed else 1)
    return total


def hash_sources(job: Params) -> str:
    """Return sha256 over the sources, and the exam and safety set they are compared with.

    Local sources are hashed by their files' bytes, and by the splits of these if they are held out;
    hub sources by their id, revision, configuration and split.
    """
    digest = hashlib.sha256()
    for source, what in list_read(job):
        if what == "forgetting":
            digest.update(b"forgetting")
        found = find_local(source, what)
        if found is None:
            digest.update(f"{source.dataset}@{source.revision}".encode())
            if source.config or source.split:
                digest.update(f"{source.config}/{source.split}".encode())
            continue
        for path in sorted({part.path for part in found.parts}):
            digest.update(files.sha256(path).encode())
        for part in found.parts:
            if part.split != "train":
                digest.update(f"{part.split}: {part.path.name} {part.inside}".encode())
    if job.decontaminate:
        digest.update(identify_exams(job.exam).encode())
        digest.update(files.sha256(safety.ROWS_FILE).encode())
    return digest.hexdigest()


def identify_exams(exams: Sequence[str | Source]) -> str:
    """Return a text that changes with the exams: the hashes of local files, the ids of others."""
    texts = []
    for exam in exams:
        source = exam_source(exam)
        hashes = [files.sha256(path) for path in list_paths(source, "exam")]
        # an entry that is only a name keeps the hash that earlier versions gave it
        own = [] if source == Source(dataset=source.dataset) else [source.model_dump_json()]
        texts.append(" ".join([*(hashes or [source.dataset]), *own]))
    return "".join(texts)
