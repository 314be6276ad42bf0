"""Files that are whole or absent: atomic writes, folder locks, hashes, free space."""

import fcntl
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

from lib.common.errors import ROOT, UserError

FD_VARIABLE = "MEDRESCUE_RUN_FD"  # how the runner hands its lock to the kernel it starts
_locks: dict[
    str, int
] = {}  # locks this process holds: a cell that is run twice must not wait for itself


def atomic_write(path: pathlib.Path, content: str | bytes) -> None:
    """Write beside and rename, so that a reader sees the old file or the new one; UserError when the disk refuses."""
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
            f"cannot write `{shown(path)}`: {error.strerror}. What was there before is unchanged."
        ) from None


def write_json(path: pathlib.Path, value: Any, sealed: bool = False) -> None:
    """Write JSON; `sealed` adds a `seal` over the other values of an object, which `read_json` checks and takes off."""
    if sealed:
        value = {**value, "seal": _seal(value)}
    # allow_nan=False: NaN is not JSON, and a NaN in a record is a number nobody measured
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: pathlib.Path, what: str) -> Any:
    """Parse a JSON file of ours; UserError when it is torn, or its seal says that a value is not as it was written."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{what} `{shown(path)}` is not readable JSON ({error}).") from None
    if isinstance(value, dict) and "seal" in value and value.pop("seal") != _seal(value):
        raise UserError(
            f"{what} `{shown(path)}` does not match its seal: it was damaged, or changed by hand, and its numbers cannot be trusted."
        )
    return value


def read_or_set_aside(path: pathlib.Path, what: str) -> dict[str, Any]:
    """`read_json`; {} where there is no file, or a damaged one, which gets another name: what can be made again must not stop a run."""
    if not path.exists():
        return {}
    try:
        return read_json(path, what)
    except UserError as error:
        aside = path.with_name(f"{path.stem}.damaged{path.suffix}")
        os.replace(path, aside)
        print(
            f"{error} It is now {aside.name}; what it held is made again by its stages, with FORCE=1 where they are finished."
        )
        return {}


def _seal(values: dict[str, Any]) -> str:
    """sha256 over an object's values, by which a flipped bit is seen that leaves it JSON."""
    rest = json.loads(json.dumps({k: v for k, v in values.items() if k != "seal"}))
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def replace_folder(temporary: pathlib.Path, final: pathlib.Path) -> None:
    """Give a finished folder its final name; an older one of that name goes only when the new one is complete."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.replace(final, old)
    os.replace(temporary, final)
    shutil.rmtree(old, ignore_errors=True)


def lock(folder: pathlib.Path) -> int | None:
    """Lock a folder itself; returns the descriptor that holds the lock, None while other processes hold it.

    flock belongs to the open file: it lasts until every process that has the descriptor (runner and kernel) has closed
    it or is gone, and leaves no file behind. UserError on a disk without locks.
    """
    if (key := str(folder)) in _locks:
        return _locks[key]
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        if (handed := os.environ.get(FD_VARIABLE)) and os.path.sameopenfile(int(handed), fd):
            os.close(fd)
            fd = int(handed)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError as error:
        raise UserError(
            f"cannot lock `{shown(folder)}`: {error.strerror}. Expected a folder on a disk with file locks (some network "
            f"disks have none).\nMove what is there away, or set MEDRESCUE_RUNS to a folder on a local disk."
        ) from None
    _locks[key] = fd
    return fd


def unlock(folder: pathlib.Path) -> None:
    if (fd := _locks.pop(str(folder), None)) is not None:
        os.close(fd)


def sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code_hash(*folders: str) -> str:
    """One sha256 over the modules and rules (JSON) of folders of lib/: part of the key under which a result of theirs is kept.

    Whole folders: with a list of files, a new one would serve results that it no longer gives.
    """
    names = sorted(
        path
        for folder in folders
        for suffix in ("py", "json")
        for path in (ROOT / "lib" / folder).glob(f"*.{suffix}")
    )
    return hashlib.sha256(
        " ".join(f"{path.relative_to(ROOT)} {sha256(path)}" for path in names).encode()
    ).hexdigest()


def describe(folder: pathlib.Path, names: list[str]) -> list[dict[str, Any]]:
    """path (relative to `folder`), bytes and sha256 of every file at or under the given names, sorted."""
    found: list[pathlib.Path] = []
    for name in names:
        top = folder / name
        found += [top] if top.is_file() else [p for p in top.rglob("*") if p.is_file()]
    return [
        {"path": p.relative_to(folder).as_posix(), "bytes": p.stat().st_size, "sha256": sha256(p)}
        for p in sorted(set(found))
    ]


def damaged(folder: pathlib.Path, artifacts: list[dict[str, Any]]) -> str:
    """The first recorded artefact that is missing or differs, with how; empty when all are as recorded, or were freed by `make prune`."""
    for item in [a for a in artifacts if not a.get("pruned")]:
        path = folder / item["path"]
        if not path.is_file():
            return f"{item['path']} is missing"
        if path.stat().st_size != item["bytes"]:
            return f"{item['path']} has {path.stat().st_size:,} bytes, recorded {item['bytes']:,}"
        if sha256(path) != item["sha256"]:
            return f"{item['path']} does not match its recorded sha256"
    return ""


def size_of(path: pathlib.Path) -> int:
    return (
        sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
        if path.is_dir()
        else path.stat().st_size
    )


def require_disk(folder: pathlib.Path, needed: int, what: str) -> None:
    """UserError unless the disk under `folder` has `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"Not enough disk for {what}: it needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free at "
            f"`{shown(folder)}`.\nFree some space, or set MEDRESCUE_RUNS to a folder on a larger disk."
        )


def shown(path: pathlib.Path) -> str:
    """A path as records and messages name it: relative to the repository when it lies inside."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.as_posix()
