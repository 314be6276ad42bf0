"""Where rows come from: bundled, local file or folder, hub, or several of these, read as a stream.

A row is {"id": str, "topic": str, "messages": [{"role": "user"|"assistant"|"system", "content": str}, ...]}.
"""

import contextlib
import csv
import gzip
import hashlib
import io
import itertools
import json
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from lib import files, shapes
from lib.params import ROOT, Params, Source, UserError
from lib.shapes import BadRow

ASSETS = pathlib.Path(__file__).parent / "assets"
BUNDLED = {"bundled:first-aid": ASSETS / "first_aid.jsonl", "bundled:exam": ASSETS / "exam.jsonl"}
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
BATCH = 1000  # rows of a parquet or Arrow file held at a time
SAMPLE = 2**18  # characters of a csv file its dialect is told by
csv.field_size_limit(2**28)  # characters a field; its own limit of 131,072 is for hand-made tables, none lets an open quote fill the memory


def parts(job: Params) -> list[Source]:
    """`dataset` as a list of sources; a single one takes dataset_revision and columns from the job."""
    if isinstance(job.dataset, str):
        return [Source(dataset=job.dataset, revision=job.dataset_revision, columns=job.columns)]
    return [s if s.columns else s.model_copy(update={"columns": job.columns}) for s in job.dataset]


def name(job: Params) -> str:
    """The data set in words, for records and messages."""
    return ", ".join(part.dataset for part in parts(job))


def local_files(dataset: str) -> list[pathlib.Path]:
    """The files behind a bundled or local source; empty when it is a hub id."""
    if dataset.startswith("bundled:"):
        if dataset not in BUNDLED:
            raise UserError(f"dataset `{dataset}` is not bundled; there is {', '.join(BUNDLED)}.")
        return [BUNDLED[dataset]]
    path = ROOT / dataset
    if path.is_dir():
        if (path / "dataset_dict.json").is_file():  # what `datasets` saves with its splits: the others are not for training
            path = path / "train"
        found = sorted(p for p in path.rglob("*") if p.is_file() and _suffix(p) in SUFFIXES and not p.name.startswith((".", "cache-")))
        found = [p for p in found if p.name not in ("state.json", "dataset_info.json")]  # beside the Arrow files of `datasets`
        if not found:
            raise UserError(f"dataset folder `{files.shown(path)}` has no {', '.join(SUFFIXES)} file (also .gz).")
        return found
    if path.is_file():
        if _suffix(path) not in SUFFIXES:
            raise UserError(f"dataset file `{dataset}` ends in `{path.suffix}`; expected {', '.join(SUFFIXES)}, each also with .gz.")
        return [path]
    if dataset.count("/") != 1 or dataset.startswith((".", "/", "~")) or _suffix(path) in SUFFIXES:
        raise UserError(f"dataset `{dataset}` does not exist (looked in {ROOT}); expected a file or folder there, a hub id `owner/name`, "
                        f"or {', '.join(BUNDLED)}.")
    return []


def check(job: Params) -> None:
    """UserError for sources or columns that cannot exist, before anything is read or made."""
    if job.dataset_revision and not isinstance(job.dataset, str):
        raise UserError("dataset_revision is for a single dataset; in a list each entry has its own: - {dataset: owner/name, revision: v1}.")
    for part in parts(job):
        local_files(part.dataset)
        shapes.check_columns(part.columns)
    for exam in job.exam:
        local_files(exam)


def size(job: Params) -> int:
    """Bytes of the local files behind the sources."""
    return sum(path.stat().st_size for part in parts(job) for path in local_files(part.dataset))


def text_size(job: Params) -> int:
    """Bytes of text behind the sources, about: compressed files hold four times their size, a hub source counts 512 MiB."""
    sizes = [[path.stat().st_size * (4 if path.suffix in (".gz", ".parquet") else 1) for path in local_files(part.dataset)] for part in parts(job)]
    return sum(sum(own) if own else 2**29 for own in sizes)


def fingerprint(job: Params) -> str:
    """sha256 over the sources: the local files' bytes, or the hub id and revision (whose content a revision fixes)."""
    digest = hashlib.sha256()
    for part in parts(job):
        paths = local_files(part.dataset)
        for path in paths:
            digest.update(files.sha256(path).encode())
        if not paths:
            digest.update(f"{part.dataset}@{part.revision}".encode())
    return digest.hexdigest()


def read(job: Params, dropped: Callable[[str, str, str], None], tick: Callable[[int], None] = lambda done: None,
         commits: dict[str, str | None] | None = None) -> Iterator[dict[str, Any]]:
    """All rows of the sources as messages, in order; UserError names file and line of what cannot be read.

    A row passed over is told to `dropped` (reason, id or place, why): `unreadable`, within skip_bad_lines, and `not_sampled`, by a
    source's weight. `tick` is told the bytes of local files read so far. `commits` takes the resolved commit of a hub source.
    """
    bad, base, total = 0, 0, 0
    for number, (part, stem) in enumerate(zip(parts(job), _stems(job), strict=True)):
        paths, count = local_files(part.dataset), 0
        for path in paths or [None]:
            raw = _file_rows(path, part.columns, lambda done, base=base: tick(base + done)) if path else _hub_rows(part, commits)
            for where, values in raw:
                try:
                    row = _to_row(values, part, f"{stem}{count:07d}")
                except BadRow as error:
                    bad += 1
                    if bad > job.skip_bad_lines:
                        raise UserError(f"{where}: {error}" + (f"\n{bad} rows could not be read; skip_bad_lines allows {job.skip_bad_lines}."
                                                               if job.skip_bad_lines else "")) from None
                    dropped("unreadable", where, str(error).splitlines()[0])
                    row = None
                if row and part.weight < 1 and _share(f"{job.seed}\n{number}\n{count}") >= part.weight:
                    dropped("not_sampled", row["id"], f"weight {part.weight:g}")
                    row = None
                count, total = count + 1, total + 1
                if row:
                    yield row
                if (part.max_rows and count >= part.max_rows) or (job.max_rows and total >= job.max_rows):
                    break
            base += path.stat().st_size if path else 0
            if part.max_rows and count >= part.max_rows:
                break
            if job.max_rows and total >= job.max_rows:
                return
        if not count:
            raise UserError(f"dataset `{part.dataset}` has no rows.")


def exam_items(job: Params) -> list[dict[str, Any]]:
    """The multiple-choice items of `exam`: {"id", "question", "options", "answer_letter", "topic"}."""
    items = []
    for dataset in job.exam:
        part, paths, before = Source(dataset=dataset), local_files(dataset), len(items)
        for where, values in itertools.chain(*(_file_rows(path, {}) for path in paths), [] if paths else _hub_rows(part, None, "test")):
            try:
                item = {"id": str(_named(values).get("id") or where), "topic": str(values.get("topic") or ""), **shapes.choice(values)}
                _encodable(item["id"], item["topic"], item["question"], *item["options"], *item["options"].values())
            except BadRow as error:
                raise UserError(f"exam: {where}: {error}\nExpected rows of question, options and answer_letter.") from None
            items.append(item)
        if len(items) == before:
            raise UserError(f"exam `{dataset}` has no rows.")
    return items


def _stems(job: Params) -> list[str]:
    """What the ids of rows without one begin with, by source."""
    if isinstance(job.dataset, str):
        return ["row-"]
    names = [pathlib.PurePath(part.dataset).name for part in job.dataset]
    return [f"{own}-" if names.count(own) == 1 else f"{own}-{number}-" for number, own in enumerate(names, 1)]


def _share(text: str) -> float:
    """A number from 0 up to 1 that depends on the text alone."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def _suffix(path: pathlib.Path) -> str:
    return (pathlib.Path(path.stem).suffix if path.suffix.lower() == ".gz" else path.suffix).lower()


def _named(values: Any) -> dict[str, Any]:
    if isinstance(values, BadRow):
        raise values
    if not isinstance(values, dict):
        raise BadRow(f"expected an object with named fields, found {type(values).__name__}.")
    return values


def _encodable(*texts: str) -> None:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise BadRow("its text has half of a character pair (a lone surrogate), which is not Unicode text. Write the character whole.") from None


def _to_row(values: Any, part: Source, default_id: str) -> dict[str, Any]:
    values = _named(values)
    turns = shapes.messages(shapes.renamed(values, part.columns) if part.columns else values)
    row_id = values.get(part.columns.get("id", "id"))
    topic = values.get(part.columns.get("topic", "topic"))
    row = {"id": default_id if row_id in (None, "") else str(row_id), "topic": str(topic or ""), "messages": turns}
    _encodable(row["id"], row["topic"], *(turn["content"] for turn in turns))
    return row


# ---------------------------------------------------------------------------------------------------------------------
# files: each yields (where, values); values is a BadRow where one row alone is unreadable


def _file_rows(path: pathlib.Path, columns: dict[str, str], tick: Callable[[int], None] = lambda done: None) -> Iterator[tuple[str, Any]]:
    shown, suffix, last = files.shown(path), _suffix(path), 0
    unit = "line" if suffix in (".jsonl", ".csv", ".tsv") else "row"
    try:
        with open(path, "rb") as raw:
            file = gzip.GzipFile(fileobj=raw) if path.suffix.lower() == ".gz" else raw
            reader = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet, ".arrow": _arrow}.get(suffix)
            rows = reader(file) if reader else _csv(file, columns, "\t" if suffix == ".tsv" else "")
            for n, (last, values) in enumerate(rows):
                if n % BATCH == 0:
                    tick(raw.tell())
                yield f"{shown}, {unit} {last}", values
    except BadRow as error:
        raise UserError(f"{shown}: {error}") from None
    except (EOFError, zlib.error, OSError) as error:
        raise UserError(f"{shown}, after {unit} {last}: cannot be read: {error}. If it is cut off or damaged, write or fetch it again.") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any] | BadRow:
    """An object's fields; in the place of one with a field named twice, of which json keeps the last in silence, the BadRow."""
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    names = [name for name, _ in pairs]
    return BadRow(f"the field `{next(n for n in names if names.count(n) > 1)}` is named twice; rename or remove one.")


def _jsonl(file: BinaryIO) -> Iterator[tuple[int, Any]]:
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    for number, line in enumerate(file, 1):
        try:
            if text := line.decode("utf-8-sig" if number == 1 else "utf-8").strip():
                yield number, decoder.decode(text)
        except (ValueError, RecursionError) as error:
            yield number, BadRow(_not_json(error, "Expected one JSON object a line."))


def _json(file: BinaryIO) -> Iterator[tuple[int, Any]]:
    """A list of rows; read whole, as JSON has no other way: large sets belong into .jsonl."""
    try:
        text = file.read().decode("utf-8-sig")
        values = json.loads(text, object_pairs_hook=_unique) if text.strip() else []
    except (ValueError, RecursionError) as error:
        line = f"line {error.lineno}: " if isinstance(error, json.JSONDecodeError) else ""
        raise BadRow(f"{line}{_not_json(error, 'Expected one list of rows; one object a line is .jsonl.')}") from None
    if not isinstance(values, list):
        raise BadRow("expected a JSON list of rows: [{...}, {...}]. One object a line is .jsonl.")
    yield from enumerate(values, 1)


def _not_json(error: ValueError | RecursionError, expected: str) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 ({error.reason}, byte {error.start + 1} of it). Convert the file to UTF-8."
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} (column {error.colno}). {expected}"
    return "JSON that cannot be read: it is nested too deeply, or a number in it has thousands of digits."


def _csv(file: BinaryIO, columns: dict[str, str], delimiter: str) -> Iterator[tuple[int, Any]]:
    # surrogateescape: a byte that is not UTF-8 is found in its row, so that the row can be named
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    header: list[str] = []
    for line, values in _records(csv.reader(text, strict=True, **_dialect(text, columns, delimiter))):
        if isinstance(values, BadRow):
            if not header:
                raise BadRow(f"line {line}: {values}")
            yield line, values
        elif not header:
            header = [name.strip() for name in values]
            if twice := next((name for name in header if header.count(name) > 1), None):
                raise BadRow(f"line {line}: the column `{twice}` is named twice; rename one.")
        elif len(values) != len(header):
            yield line, BadRow(f"{len(values)} fields, the header has {len(header)}: {', '.join(header)}. "
                               f"A field with the delimiter or a line end in it must be quoted.")
        else:
            yield line, dict(zip(header, values, strict=True))


def _records(reader: Any) -> Iterator[tuple[int, list[str] | BadRow]]:
    """Every record of a csv reader that is not blank, with the line it begins on."""
    while True:
        line = reader.line_num + 1
        try:
            if values := next(reader):
                "".join(values).encode()
                yield line, values
        except StopIteration:
            return
        except UnicodeEncodeError:
            yield line, BadRow("not UTF-8. Convert the file to UTF-8.")
        except csv.Error as error:
            if reader.line_num > line or str(error).startswith(("unexpected end", "field larger")):
                # what an open quote took in are other rows: not one bad row to pass over
                raise BadRow(f"line {line}: a quote opens in this row that is not closed where its field ends (line {reader.line_num}: {error}). "
                             f"Close it, or double the quotes inside a field.") from None
            yield line, BadRow(f"{error}. Double the quotes inside a quoted field.")


def _dialect(text: io.TextIOWrapper, columns: dict[str, str], delimiter: str) -> dict[str, str]:
    """The delimiter and quote under which the header holds a shape, most of the first rows fit it and most fields are quoted.

    Where the header holds none, those under which it has the most columns.
    """
    sample = text.read(SAMPLE)
    text.seek(0)
    best, found = (False, 0.0, -1), {}
    for quote, mark in itertools.product("\"'", delimiter or ",;\t|"):
        rows = [row for row in csv.reader(io.StringIO(sample, newline=""), delimiter=mark, quotechar=quote) if row]
        if len(sample) == SAMPLE and len(rows) > 1:
            rows.pop()  # cut off
        header = [name.strip() for name in rows[0]] if rows else []
        wanted = set(columns.values()) <= set(header) if columns else shapes.known(header)
        fit = sum(len(row) == len(header) for row in rows) / max(1, len(rows))
        at = re.escape(mark)
        quoted = len(re.findall(f"(?:^|{at}){quote}(?:[^{quote}]|{quote}{quote})*{quote}(?={at}|\r?$)", sample, re.MULTILINE))
        if (score := (wanted, fit if wanted else len(header), quoted)) > best:
            best, found = score, {"delimiter": mark, "quotechar": quote}
    return found


def _parquet(file: BinaryIO) -> Iterator[tuple[int, Any]]:
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        yield from _batches(table.schema_arrow, table.iter_batches(BATCH))
    except pyarrow.ArrowException as error:
        raise BadRow(f"not a parquet file: {error}") from None


def _arrow(file: BinaryIO) -> Iterator[tuple[int, Any]]:
    import pyarrow.ipc

    try:
        head = file.read(6)
        file.seek(0)
        if head == b"ARROW1":
            table = pyarrow.ipc.open_file(file)
            batches = (table.get_batch(n) for n in range(table.num_record_batches))
        else:
            batches = table = pyarrow.ipc.open_stream(file)
        yield from _batches(table.schema, batches)
    except pyarrow.ArrowException as error:
        raise BadRow(f"not an Arrow file: {error}") from None


def _batches(schema: Any, batches: Any) -> Iterator[tuple[int, Any]]:
    if twice := next((n for n in schema.names if schema.names.count(n) > 1), None):
        raise BadRow(f"the column `{twice}` is named twice; rename one.")
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH):
            for values in _values(batch.slice(start, BATCH)):
                number += 1
                yield number, values


def _values(rows: Any) -> list[Any]:
    """The rows of a batch; for one with text that is not UTF-8, or a date that Python has not, its BadRow."""
    try:
        return rows.to_pylist()
    except (ValueError, OverflowError) as error:
        if rows.num_rows == 1:
            return [BadRow(f"a value cannot be read: {error}")]
        return [value for n in range(rows.num_rows) for value in _values(rows.slice(n, 1))]


# ---------------------------------------------------------------------------------------------------------------------
# hub


def _hub_rows(part: Source, commits: dict[str, str | None] | None, split: str = "train") -> Iterator[tuple[str, Any]]:
    import datasets
    import huggingface_hub

    try:
        with contextlib.suppress(huggingface_hub.errors.OfflineModeIsEnabled):
            # asked first: a hub that does not answer or has it not is known at once; `datasets` tries for half a minute, then reads what it has
            huggingface_hub.HfApi().dataset_info(part.dataset, revision=part.revision or None, timeout=10)
        builder = datasets.load_dataset_builder(part.dataset, revision=part.revision or None)
        if builder.__module__.endswith(".cache") and (commit := _cached_commit(part)):  # without network it takes the commit loaded last
            builder = type(builder)(dataset_name=builder.dataset_name, config_name=builder.config.name, version=str(builder.config.version),
                                    hash=commit, repo_id=part.dataset)
        builder.download_and_prepare()
        data = builder.as_dataset()
        if split not in data:
            raise ValueError(f"it has no split `{split}`, only {', '.join(data)}")
    except Exception as error:  # behind it lie a network, a server and libraries with errors of their own
        raise UserError(f"hub dataset `{part.dataset}`{f' at {part.revision}' if part.revision else ''} could not be loaded: {_plain(error)}\n"
                        f"Check the id, the revision and the network; a private one needs HF_TOKEN in the environment. What was loaded before is "
                        f'read without network under HF_HUB_OFFLINE=1, and a local file always: SET="dataset=path/to/file.jsonl", or '
                        f"dataset=bundled:first-aid.") from None
    if commits is not None:
        commits[part.dataset] = builder.hash if re.fullmatch("[0-9a-f]{40}", builder.hash or "") else None
    yield from ((f"{part.dataset}, row {n}", values) for n, values in enumerate(data[split], 1))


def _cached_commit(part: Source) -> str:
    """The commit that the revision was when it was last loaded; empty when none is asked for or known."""
    from huggingface_hub import constants

    ref = pathlib.Path(constants.HF_HUB_CACHE) / f"datasets--{part.dataset.replace('/', '--')}" / "refs" / (part.revision or "main")
    return ref.read_text().strip() if ref.is_file() else part.revision


def _plain(error: Exception) -> str:
    """An error of the hub's libraries in one line, without the token."""
    from huggingface_hub import errors, get_token

    for kind, words in ((errors.GatedRepoError, "it is gated; accept its terms on its page"),
                        (errors.RepositoryNotFoundError, "the hub has none of this id, or it is private"),
                        (errors.RevisionNotFoundError, "it has no such revision")):
        if isinstance(error, kind):
            return words
    said = dict.fromkeys(str(e) for e in (error, error.__cause__) if e)
    text = " ".join(" ".join(said).split()) or type(error).__name__
    return text.replace(get_token() or "\0", "(HF_TOKEN)")[:400]
