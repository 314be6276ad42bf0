"""Where rows come from: bundled, local file or folder, hub; every known shape becomes chat messages.

A row is {"id": str, "topic": str, "messages": [{"role": "user"|"assistant"|"system", "content": str}, ...]}.
"""

import csv
import gzip
import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from lib import files
from lib.params import ROOT, Params, UserError

ASSETS = pathlib.Path(__file__).parent / "assets"
BUNDLED = {"bundled:first-aid": ASSETS / "first_aid.jsonl"}
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
PAIRS = (("question", "answer"), ("prompt", "completion"), ("instruction", "output"), ("input", "output"))
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant", "system": "system"}
SHAPES = ("messages (role/content), conversations (from/value), question/answer, prompt/completion, "
          "instruction/(input)/output, input/output(/context)")


def local_files(job: Params) -> list[pathlib.Path]:
    """The files behind a bundled or local `dataset`; empty when it is a hub id."""
    if job.dataset.startswith("bundled:"):
        if job.dataset not in BUNDLED:
            raise UserError(f"dataset `{job.dataset}` is not bundled; there is {', '.join(BUNDLED)}.")
        return [BUNDLED[job.dataset]]
    path = ROOT / job.dataset
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if _suffix(p) in SUFFIXES)
        if not found:
            raise UserError(f"dataset folder `{job.dataset}` has no {', '.join(SUFFIXES)} file (also .gz).")
        return found
    if path.is_file():
        if _suffix(path) not in SUFFIXES:
            raise UserError(f"dataset file `{job.dataset}` ends in `{path.suffix}`; expected {', '.join(SUFFIXES)}, each also with .gz.")
        return [path]
    if job.dataset.count("/") != 1 or job.dataset.startswith((".", "/", "~")) or _suffix(path) in SUFFIXES:
        raise UserError(f"dataset `{job.dataset}` does not exist (looked in {ROOT}); expected a file or folder there, a hub id `owner/name`, "
                        f"or {', '.join(BUNDLED)}.")
    return []


def fingerprint(job: Params) -> str:
    """sha256 over the source: the local files' bytes, or the hub id and revision (whose content a revision fixes)."""
    digest = hashlib.sha256()
    for path in local_files(job):
        digest.update(files.sha256(path).encode())
    if not local_files(job):
        digest.update(f"{job.dataset}@{job.dataset_revision}".encode())
    return digest.hexdigest()


def read(job: Params) -> list[dict[str, Any]]:
    """All rows of the source as messages, in file order; UserError names file and line of what cannot be read."""
    paths = local_files(job)
    raw = _hub_rows(job) if not paths else (item for path in paths for item in _file_rows(path))
    rows = []
    for where, values in raw:
        rows.append(_to_row(values, where, len(rows)))
        if job.max_rows and len(rows) >= job.max_rows:
            break
    if not rows:
        raise UserError(f"dataset `{job.dataset}` has no rows.")
    return rows


def _suffix(path: pathlib.Path) -> str:
    return pathlib.Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _file_rows(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    name, suffix = files.shown(path), _suffix(path)
    if suffix == ".parquet":
        import pyarrow.parquet

        try:
            table = pyarrow.parquet.read_table(path).to_pylist()
        except pyarrow.ArrowInvalid as error:
            raise UserError(f"{name}: not a parquet file: {error}") from None
        yield from ((f"{name}, row {n}", values) for n, values in enumerate(table, 1))
        return
    opener = gzip.open if path.suffix == ".gz" else open
    line = 0
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            if suffix == ".json":
                values = json.load(file)
                if not isinstance(values, list):
                    raise UserError(f"{name}: expected a JSON list of rows, found {type(values).__name__}. One object a line is .jsonl.")
                yield from ((f"{name}, row {n}", row) for n, row in enumerate(values, 1))
            elif suffix == ".jsonl":
                for line, text in enumerate(file, 1):
                    if text.strip():
                        yield f"{name}, line {line}", json.loads(text)
            else:
                reader = csv.DictReader(file, delimiter="\t" if suffix == ".tsv" else ",", strict=True)
                for row in reader:
                    line = reader.line_num
                    yield f"{name}, line {line}", row
    except json.JSONDecodeError as error:
        at = line or error.lineno
        raise UserError(f"{name}, line {at}: not JSON: {error.msg}. Expected one JSON object a line (.jsonl) or one list (.json).") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{name}, after line {line}: not UTF-8 ({error.reason}). Convert the file to UTF-8.") from None
    except (EOFError, gzip.BadGzipFile, OSError) as error:
        raise UserError(f"{name}, after line {line}: cannot be read: {error}") from None
    except csv.Error as error:
        raise UserError(f"{name}, after line {line}: {error}") from None


def _hub_rows(job: Params) -> Iterator[tuple[str, Any]]:
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    try:
        data = datasets.load_dataset(job.dataset, revision=job.dataset_revision or None, split="train")
    except (HfHubHTTPError, datasets.exceptions.DatasetNotFoundError, ConnectionError, OSError, ValueError) as error:
        raise UserError(f"hub dataset `{job.dataset}` could not be loaded: {str(error).splitlines()[0]}\n"
                        f"Check the id and the network; a private one needs HF_TOKEN in the environment. A local file works without network: "
                        f'SET="dataset=path/to/file.jsonl", or dataset=bundled:first-aid.') from None
    yield from ((f"{job.dataset}, row {n}", values) for n, values in enumerate(data, 1))


def _to_row(values: Any, where: str, number: int) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected an object with named fields, found {type(values).__name__}.")
    messages = _messages(values, where)
    return {"id": str(values.get("id") or f"row-{number:07d}"), "topic": str(values.get("topic") or ""), "messages": messages}


def _messages(values: dict[str, Any], where: str) -> list[dict[str, str]]:
    for key, role_key, text_key in (("messages", "role", "content"), ("conversations", "from", "value")):
        if isinstance(values.get(key), list):
            return [_message(turn, role_key, text_key, where) for turn in values[key]]
    for ask, reply in PAIRS:
        if ask in values and reply in values:
            extra = values.get("input") if ask == "instruction" else values.get("context") if ask == "input" else None
            question = "\n\n".join(str(part).strip() for part in (values[ask], extra) if part not in (None, ""))
            return [{"role": "user", "content": question}, {"role": "assistant", "content": "" if values[reply] is None else str(values[reply])}]
    raise UserError(f"{where}: no known shape; its fields are {', '.join(map(str, values)) or '(none)'}.\nKnown shapes: {SHAPES}.")


def _message(turn: Any, role_key: str, text_key: str, where: str) -> dict[str, str]:
    role = ROLES.get(turn.get(role_key)) if isinstance(turn, dict) else None
    if role is None or text_key not in turn:
        found = json.dumps(turn, ensure_ascii=False, default=str)[:120]
        raise UserError(f"{where}: a turn is {found}; expected {role_key} (one of {', '.join(ROLES)}) and {text_key}.")
    return {"role": role, "content": "" if turn[text_key] is None else str(turn[text_key])}
