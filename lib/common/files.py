"""Atomic writes, folder locks, hashes and free space: no reader ever sees half a file."""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Mapping
from typing import Any, NotRequired, TypedDict

from lib.common.errors import ROOT, UserError

FD_VARIABLE = "MEDRESCUE_RUN_FD"  # how the runner hands its lock to the kernel it starts
# descriptors of the locks that this process holds, by folder: a cell that is run twice must not
# wait for itself
_locks: dict[str, int] = {}


class Artifact(TypedDict):
    """A file that a stage wrote, as run.json records it."""

    path: str  # relative to the run's folder
    bytes: int
    sha256: str
    pruned: NotRequired[str]  # when `make prune` removed it


def format_path(path: pathlib.Path) -> str:
    """Return a path for records and messages, relative to the repository when it lies inside."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.as_posix()


# --------------------------------------------------------------------------------------------------
# reading and writing


def atomic_write(path: pathlib.Path, content: str | bytes) -> None:
    """Write a temporary file and rename it, so that a reader sees the old file or the new one.

    Raise UserError when the disk refuses the write.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    data = content.encode() if isinstance(content, str) else content
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"cannot write `{format_path(path)}`: {error.strerror}. "
            f"What was there before is unchanged."
        ) from None


def write_json(path: pathlib.Path, value: Any, sealed: bool = False) -> None:
    """Write JSON; `sealed` adds a `seal` to an object, which `read_json` checks and removes."""
    if sealed:
        value = {**value, "seal": _hash_values(value)}
    # allow_nan=False: NaN is not JSON, and a NaN in a record is a number nobody measured
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: pathlib.Path, what: str) -> Any:
    """Read a JSON object that this pipeline or transformers wrote.

    Raise UserError when it is torn or no object, or its seal does not fit its values. `what` names
    the file in the message.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{what} `{format_path(path)}` is not readable JSON ({error}).") from None
    if not isinstance(value, dict):
        raise UserError(
            f"{what} `{format_path(path)}` is not what was written there: expected a JSON object, "
            f"found {type(value).__name__}."
        )
    if "seal" in value and value.pop("seal") != _hash_values(value):
        raise UserError(
            f"{what} `{format_path(path)}` does not match its seal: it was damaged, or changed by "
            f"hand, and its numbers cannot be trusted."
        )
    return value


def read_results(folder: pathlib.Path) -> dict[str, Any]:
    """Return a run's results.json, or {} without one; the UserError of a damaged one has a way out.

    Numbers are never made up for it: what is missing afterwards is called not measured.
    """
    path = folder / "results.json"
    if not path.is_file():
        return {}
    try:
        results = read_json(path, "results file")
        wrong = [key for key, section in results.items() if not isinstance(section, dict)]
        if wrong:
            raise UserError(
                f"results file `{format_path(path)}`: `{wrong[0]}` is no object with numbers."
            )
        return results
    except UserError as error:
        name = folder.name
        raise UserError(
            f"{error}\nRestore it from a copy, or move it away: pages then call its numbers not "
            f"measured. `make export FORCE=1 RUN={name}` measures those of the export again; those "
            f"of training are in metrics.jsonl and in the executed notebooks."
        ) from None


def read_or_set_aside(path: pathlib.Path, what: str) -> dict[str, Any]:
    """Return `read_json`, or {} if the file is missing or damaged; rename a damaged one.

    This is for files that can be made again: their damage must not stop a run.
    """
    if not path.exists():
        return {}
    try:
        return read_json(path, what)
    except UserError as error:
        aside = path.with_name(f"{path.stem}.damaged{path.suffix}")
        os.replace(path, aside)
        print(
            f"{error} It is now {aside.name}. Its stages make its contents again; finished stages "
            f"need FORCE=1 for that."
        )
        return {}


def _hash_values(values: Mapping[str, Any]) -> str:
    """Return sha256 over an object's values, which reveals a flipped bit in valid JSON."""
    # through JSON and back, since a reader gets lists for tuples
    unsealed = json.loads(json.dumps({k: v for k, v in values.items() if k != "seal"}))
    return hashlib.sha256(json.dumps(unsealed, sort_keys=True).encode()).hexdigest()


def replace_folder(temporary: pathlib.Path, final: pathlib.Path) -> None:
    """Give a finished folder its final name, and only then remove the older one of that name."""
    for path in [temporary, *temporary.rglob("*")]:
        give_usual_permissions(path)
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.replace(final, old)
    os.replace(temporary, final)
    shutil.rmtree(old, ignore_errors=True)


def give_usual_permissions(path: pathlib.Path) -> None:
    """Give a file or folder the permissions of any new one of this process (its umask).

    safetensors writes files that only their owner can read, so a colleague or a server under
    another account could not load a model.
    """
    umask = os.umask(0o077)  # it can only be read by setting it
    os.umask(umask)
    if not path.is_symlink():
        # a disk without permissions, such as a mounted FAT or Drive, refuses
        with contextlib.suppress(OSError):
            path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


# --------------------------------------------------------------------------------------------------
# locks


def lock_folder(folder: pathlib.Path) -> int | None:
    """Lock a folder; return the descriptor that holds the lock, or None while others hold it.

    flock belongs to the open file: it lasts until every process that has the descriptor (runner and
    kernel) has closed it or is gone, and leaves no file behind. Raise UserError on a disk without
    locks.
    """
    key = str(folder)
    if key in _locks:
        return _locks[key]
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        handed = os.environ.get(FD_VARIABLE)
        if handed and os.path.sameopenfile(int(handed), descriptor):
            os.close(descriptor)
            descriptor = int(handed)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        raise UserError(
            f"cannot lock `{format_path(folder)}`: {error.strerror}. Expected a folder on a disk "
            f"with file locks (some network disks have none).\n"
            f"Move the folder's files away, or set MEDRESCUE_RUNS to a folder on a local disk."
        ) from None
    _locks[key] = descriptor
    return descriptor


def unlock_folder(folder: pathlib.Path) -> None:
    """Release this process's lock on a folder, if it has one."""
    descriptor = _locks.pop(str(folder), None)
    if descriptor is not None:
        os.close(descriptor)


# --------------------------------------------------------------------------------------------------
# hashes


def sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint_weights(folder: pathlib.Path) -> str:
    """Return 16 hex digits that change when a model folder does.

    They cover config.json, and the size, first and last MiB of each weight file: reading all of
    16 GB would take a minute.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with open(path, "rb") as file:
            digest.update(file.read(2**20))
            file.seek(max(0, size - 2**20))
            digest.update(file.read())
    return digest.hexdigest()[:16]


def is_recorded_model(folder: pathlib.Path, fingerprint: str, hashes: Mapping[str, str]) -> bool:
    """Tell whether a model folder has this fingerprint, and every file of {name: sha256}.

    The hashes count too, because another fine-tune of one base may have the same ends, which the
    fingerprint is made of.
    """
    return fingerprint_weights(folder) == fingerprint and all(
        (folder / name).is_file() and sha256(folder / name) == digest
        for name, digest in hashes.items()
    )


def code_hash(*folders: str) -> str:
    """Return one sha256 over the modules and rules (JSON) of folders of lib/.

    It is part of the cache key of results that this code computes. It covers whole folders: with a
    list of files, a new file would leave stale results in use.
    """
    paths = sorted(
        path
        for folder in folders
        for suffix in ("py", "json")
        for path in (ROOT / "lib" / folder).rglob(f"*.{suffix}")
    )
    text = " ".join(f"{path.relative_to(ROOT)} {sha256(path)}" for path in paths)
    return hashlib.sha256(text.encode()).hexdigest()


def describe_files(folder: pathlib.Path, names: Iterable[str]) -> list[Artifact]:
    """Return path, bytes and sha256 of every file at or under `names` in `folder`, by path."""
    paths: set[pathlib.Path] = set()
    for name in names:
        top = folder / name
        paths.update([top] if top.is_file() else (p for p in top.rglob("*") if p.is_file()))
    return [
        {
            "path": path.relative_to(folder).as_posix(),
            "bytes": path.stat().st_size,
            "sha256": sha256(path),
        }
        for path in sorted(paths)
    ]


def find_damage(folder: pathlib.Path, artifacts: Iterable[Artifact]) -> str:
    """Say how the first missing or changed file differs from its record; "" if all match.

    Files that `make prune` removed are skipped.
    """
    for artifact in artifacts:
        if artifact.get("pruned"):
            continue
        name = artifact["path"]
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        size = path.stat().st_size
        if size != artifact["bytes"]:
            return f"{name} has {size:,} bytes, recorded {artifact['bytes']:,}"
        if sha256(path) != artifact["sha256"]:
            return f"{name} does not match its recorded sha256"
    return ""


# --------------------------------------------------------------------------------------------------
# space


def size_of(path: pathlib.Path) -> int:
    """Return the bytes of a file, or of all files under a folder."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


# what a stage writes at least: its executed notebook, tokens, and the adapter and optimizer state
# of a few million numbers
STAGE_BYTES = 256 * 2**20


def free_disk(folder: pathlib.Path) -> int:
    """Return the free bytes of the disk under an existing folder."""
    return shutil.disk_usage(folder).free


def require_disk(folder: pathlib.Path, needed: int, what: str) -> None:
    """Raise UserError unless the disk under `folder` has `needed` bytes free."""
    free = free_disk(folder)
    if free < needed:
        raise UserError(
            f"Not enough disk for {what}: it needs about {needed / 2**30:.1f} GiB, but "
            f"{free / 2**30:.1f} GiB are free at `{format_path(folder)}`.\n"
            f"Free some space, or set MEDRESCUE_RUNS to a folder on a larger disk."
        )
