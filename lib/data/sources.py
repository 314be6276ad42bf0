"""Where rows come from: bundled, local file or folder, hub, or several of these, read as a stream.

A row is {"id": str, "topic": str, "messages": [{"role": "user"|"assistant"|"system", "content": str}, ...]}.
"""

import contextlib
import hashlib
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from lib.common import files
from lib.common.errors import ROOT, UserError
from lib.data import formats, shapes
from lib.data.shapes import BadRow
from lib.medical import safety
from lib.params import Params, Source

BUNDLED = {
    name: ROOT / "lib" / "medical" / file
    for name, file in (("bundled:first-aid", "first_aid.jsonl"), ("bundled:exam", "exam.jsonl"))
}


def parts(job: Params) -> list[Source]:
    """`dataset` as a list of sources; a single one takes dataset_revision and columns from the job."""
    if isinstance(job.dataset, str):
        return [Source(dataset=job.dataset, revision=job.dataset_revision, columns=job.columns)]
    listed = [Source(dataset=s) if isinstance(s, str) else s for s in job.dataset]
    return [s if s.columns else s.model_copy(update={"columns": job.columns}) for s in listed]


def name(job: Params) -> str:
    """The data set in words, for records and messages."""
    return ", ".join(part.dataset for part in parts(job))


def local_files(dataset: str, what: str = "dataset") -> list[pathlib.Path]:
    """The files behind a bundled or local source, of the split for `what`, dataset or exam; empty when it is a hub id."""
    bundled = (
        ", ".join(BUNDLED)
        if what == "dataset"
        else f"bundled:exam, and for `make exam` {safety.NAME}"
    )
    if dataset.startswith("bundled:"):
        if dataset not in BUNDLED:
            raise UserError(f"{what} `{dataset}` is not bundled; there is {bundled}.")
        return [BUNDLED[dataset]]
    path = ROOT / dataset
    if path.is_dir():
        if (
            path / "dataset_dict.json"
        ).is_file():  # what `datasets` saves with its splits: the others are not for training
            path = path / ("train" if what == "dataset" else "test")
        found = sorted(
            p for p in path.rglob("*") if p.is_file() and formats.suffix_of(p) in formats.SUFFIXES
        )
        # beside the Arrow files of `datasets`
        found = [
            p
            for p in found
            if not p.name.startswith((".", "cache-"))
            and p.name not in ("state.json", "dataset_info.json")
        ]
        if not found:
            raise UserError(
                f"{what} folder `{files.shown(path)}` has no {', '.join(formats.SUFFIXES)} file (also .gz)."
            )
        return found
    if path.is_file():
        if formats.suffix_of(path) not in formats.SUFFIXES:
            raise UserError(
                f"{what} file `{dataset}` ends in `{path.suffix}`; expected {', '.join(formats.SUFFIXES)}, each also with .gz."
            )
        return [path]
    if (
        dataset.count("/") != 1
        or dataset.startswith((".", "/", "~"))
        or formats.suffix_of(path) in formats.SUFFIXES
    ):
        raise UserError(
            f"{what} `{dataset}` does not exist (looked in {ROOT}); expected a file or folder there, a hub id `owner/name`, "
            f"or {bundled}."
        )
    return []


def check(job: Params) -> None:
    """UserError for sources or columns that cannot exist, before anything is read or made."""
    if job.dataset_revision and not isinstance(job.dataset, str):
        raise UserError(
            "dataset_revision is for a single dataset; in a list each entry has its own: - {dataset: owner/name, revision: v1}."
        )
    for part in parts(job):
        if local_files(part.dataset) and part.revision:
            raise UserError(
                f"dataset `{part.dataset}` is local, and has no revision `{part.revision}`: a revision is of a hub id."
            )
        shapes.check_columns(part.columns)
    for exam in job.exam:
        local_files(exam, "exam")


def size(job: Params) -> int:
    """Bytes of the local files behind the sources."""
    return sum(path.stat().st_size for part in parts(job) for path in local_files(part.dataset))


def text_size(job: Params) -> int:
    """Bytes of text behind the sources, about: compressed files hold four times their size, a hub source counts 512 MiB."""
    sizes = [
        [
            path.stat().st_size * (4 if path.suffix in (".gz", ".parquet") else 1)
            for path in local_files(part.dataset)
        ]
        for part in parts(job)
    ]
    return sum(sum(own) if own else 2**29 for own in sizes)


def fingerprint(job: Params) -> str:
    """sha256 over the sources, and the exam and safety set they are held against: local files' bytes, or hub id and revision (which fixes it)."""
    digest = hashlib.sha256()
    for part in parts(job):
        paths = local_files(part.dataset)
        for path in paths:
            digest.update(files.sha256(path).encode())
        if not paths:
            digest.update(f"{part.dataset}@{part.revision}".encode())
    for exam in job.exam if job.decontaminate else []:
        digest.update(
            " ".join([files.sha256(path) for path in local_files(exam, "exam")] or [exam]).encode()
        )
    if job.decontaminate:
        digest.update(files.sha256(safety.ROWS_FILE).encode())
    return digest.hexdigest()


def read(
    job: Params,
    dropped: Callable[[str, str, str], None],
    tick: Callable[[int], None] = lambda done: None,
    commits: dict[str, str | None] | None = None,
) -> Iterator[dict[str, Any]]:
    """All rows of the sources as messages, in order; UserError names file and line of what cannot be read.

    A row passed over is told to `dropped` (reason, id or place, why): `unreadable`, within skip_bad_lines, and `not_sampled`, by a
    source's weight. `tick` is told the bytes of local files read so far. `commits` takes the resolved commit of a hub source.
    """
    bad, base, total = 0, 0, 0
    for number, (part, stem) in enumerate(zip(parts(job), _stems(job), strict=True)):
        paths, count = local_files(part.dataset), 0
        for path in paths or [None]:
            raw = (
                formats.rows(path, part.columns, lambda done, base=base: tick(base + done))
                if path
                else hub_rows(part, commits)
            )
            for where, values in raw:
                try:
                    row = _to_row(values, part, stem, count)
                except BadRow as error:
                    bad += 1
                    if bad > job.skip_bad_lines:
                        raise UserError(
                            f"{where}: {error}"
                            + (
                                f"\n{bad} rows could not be read; skip_bad_lines allows {job.skip_bad_lines}."
                                if job.skip_bad_lines
                                else ""
                            )
                        ) from None
                    dropped("unreadable", where, str(error).splitlines()[0])
                    row = None
                if (
                    row
                    and part.weight < 1
                    and _share(f"{job.seed}\n{number}\n{count}") >= part.weight
                ):
                    dropped("not_sampled", row["id"], f"weight {part.weight:g}")
                    row = None
                count, total = count + 1, total + 1
                if row:
                    yield row
                if (part.max_rows and count >= part.max_rows) or (
                    job.max_rows and total >= job.max_rows
                ):
                    break
            base += path.stat().st_size if path else 0
            if job.max_rows and total >= job.max_rows:
                return
            if part.max_rows and count >= part.max_rows:
                break
        if not count:
            raise UserError(f"dataset `{part.dataset}` has no rows.")


def _stems(job: Params) -> list[str]:
    """What the ids of rows begin with, by source: all of them in a list, whose sources may use the same ones."""
    if isinstance(job.dataset, str):
        return [""]
    names = [pathlib.PurePath(part.dataset).name for part in parts(job)]
    return [
        f"{own}-" if names.count(own) == 1 else f"{own}-{number}-"
        for number, own in enumerate(names, 1)
    ]


def _share(text: str) -> float:
    """A number from 0 up to 1 that depends on the text alone."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def _to_row(values: Any, part: Source, stem: str, number: int) -> dict[str, Any]:
    values = shapes.named(values)
    turns = shapes.messages(shapes.renamed(values, part.columns) if part.columns else values)
    row_id = values.get(part.columns.get("id", "id"))
    topic = values.get(part.columns.get("topic", "topic"))
    own = f"{'' if stem else 'row-'}{number:07d}" if row_id in (None, "") else row_id
    row = {"id": f"{stem}{own}", "topic": str(topic or ""), "messages": turns}
    shapes.encodable(row["id"], row["topic"], *(turn["content"] for turn in turns))
    return row


# ---------------------------------------------------------------------------------------------------------------------
# hub


def hub_rows(
    part: Source,
    commits: dict[str, str | None] | None,
    split: str = "train",
    configuration: str | None = None,
) -> Iterator[tuple[str, Any]]:
    """(where, values) of the rows of a hub set; UserError when it cannot be had. `commits` takes the commit that its revision is."""
    import datasets
    import huggingface_hub

    try:
        with contextlib.suppress(huggingface_hub.errors.OfflineModeIsEnabled):
            # asked first: a hub that does not answer or has it not is known at once; `datasets` tries for half a minute, then reads what it has
            huggingface_hub.HfApi().dataset_info(
                part.dataset, revision=part.revision or None, timeout=10
            )
        builder = datasets.load_dataset_builder(
            part.dataset, configuration, revision=part.revision or None
        )
        if builder.__module__.endswith(".cache") and (
            commit := _cached_commit(part)
        ):  # without network it takes the commit loaded last
            builder = type(builder)(
                dataset_name=builder.dataset_name,
                config_name=builder.config.name,
                version=str(builder.config.version),
                hash=commit,
                repo_id=part.dataset,
            )
        builder.download_and_prepare()
        data = builder.as_dataset()
        if split not in data:
            raise ValueError(f"it has no split `{split}`, only {', '.join(data)}")
    except (
        Exception
    ) as error:  # behind it lie a network, a server and libraries with errors of their own
        which = "".join(
            [
                f", configuration {configuration}" if configuration else "",
                f" at {part.revision}" if part.revision else "",
            ]
        )
        raise UserError(
            f"hub dataset `{part.dataset}`{which} could not be loaded: {_plain(error)}\n"
            f"Check the id, the revision and the network; a private one needs HF_TOKEN in the environment. What was loaded before is "
            f'read without network under HF_HUB_OFFLINE=1, and a local file always: SET="dataset=path/to/file.jsonl", or '
            f"dataset=bundled:first-aid."
        ) from None
    if commits is not None:
        commits[f"{part.dataset}@{part.revision}"] = (
            builder.hash if re.fullmatch("[0-9a-f]{40}", builder.hash or "") else None
        )
    yield from ((f"{part.dataset}, row {n}", values) for n, values in enumerate(data[split], 1))


def _cached_commit(part: Source) -> str:
    """The commit that the revision was when it was last loaded; empty when none is asked for or known."""
    from huggingface_hub import constants

    ref = (
        pathlib.Path(constants.HF_HUB_CACHE)
        / f"datasets--{part.dataset.replace('/', '--')}"
        / "refs"
        / (part.revision or "main")
    )
    return ref.read_text().strip() if ref.is_file() else part.revision


def _plain(error: Exception) -> str:
    """An error of the hub's libraries in one line, without the token."""
    from huggingface_hub import errors, get_token

    for kind, words in (
        (errors.GatedRepoError, "it is gated; accept its terms on its page"),
        (errors.RepositoryNotFoundError, "the hub has none of this id, or it is private"),
        (errors.RevisionNotFoundError, "it has no such revision"),
    ):
        if isinstance(error, kind):
            return words
    said = dict.fromkeys(str(e) for e in (error, error.__cause__) if e)
    text = " ".join(" ".join(said).split()) or type(error).__name__
    return text.replace(get_token() or "\0", "(HF_TOKEN)")[:400]
