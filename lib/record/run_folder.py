"""Locate, name and lock a run's folder."""

import contextlib
import pathlib
import re
import socket
import time
from collections.abc import Iterator

from lib import params
from lib.common import files, locations
from lib.common.errors import UserError
from lib.common.locations import runs_folder
from lib.common.machine import is_alive
from lib.common.text import shorten
from lib.params import Params
from lib.record.run_record import read_record

# a kernel checks once a second whether its runner is alive, and ends if not; a long call into C
# delays that
ORPHAN_SECONDS = 10
SHOWN = 10  # runs that a message names


def list_names() -> str:
    """Return the names of the newest runs, for a message, and how many more there are."""
    records = runs_folder().glob("*/run.json")
    newest = sorted(records, key=lambda path: path.stat().st_mtime, reverse=True)
    names = sorted(path.parent.name for path in newest[:SHOWN])
    more = len(newest) - len(names)
    left = f", and {more:,} more (`make runs` lists them)" if more else ""
    return (", ".join(names) or "none") + left


def is_run(folder: pathlib.Path) -> bool:
    return (folder / "run.json").is_file()


def has_checkpoint(folder: pathlib.Path) -> bool:
    """Tell whether a training of this run has saved a step."""
    return any((folder / "checkpoints").glob("step-*"))


def find_run(name: str) -> pathlib.Path | None:
    """Return the folder of the existing run that a name or a path means, if any."""
    if not name.strip():
        return None
    # a name too long for the disk, or with a NUL in it, is no run's
    with contextlib.suppress(OSError, ValueError):
        folders = [runs_folder() / name, locations.local_path(name).resolve()]
        return next((folder for folder in folders if is_run(folder)), None)
    return None


def choose_folder(job: Params, params_file: str, name: str = "") -> pathlib.Path:
    """Return the folder of the run with this name or path, or the one to be made.

    Without a name, it is that of the run whose own params.yaml is given, or
    runs/<stem of the params file>-<fingerprint>. Raise UserError on a bad name.
    """
    if name and (found := find_run(name)):
        return found
    if not name and pathlib.PurePath(params_file).name == "params.yaml":
        own = locations.local_path(params_file).resolve().parent
        if is_run(own):
            return own
    if not name:
        stem = pathlib.PurePath(params_file or "notebook").stem
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "run"
        name = f"{plain}-{params.fingerprint(job)}"
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name):
        raise UserError(
            f"RUN=`{shorten(name)}` cannot name a run; expected at most 100 letters, digits, `.`, "
            f"`_` and `-`, starting with a letter, digit or `_`, and no path. "
            f"The run is then runs/<name>."
        )
    return runs_folder() / name


def lock_run(folder: pathlib.Path) -> int:
    """Lock a run with files.lock_folder; raise UserError with the holder if it is in use.

    The kernel of a killed runner is given time to end.
    """
    deadline = time.monotonic() + ORPHAN_SECONDS
    while (descriptor := files.lock_folder(folder)) is None:
        holder, is_orphan = _describe_holder(folder)
        if not is_orphan or time.monotonic() > deadline:
            raise UserError(
                f"run `{folder.name}` is in use {holder}.\n"
                f"Wait for it, stop it, or choose another name with RUN=."
            )
        time.sleep(0.2)
    return descriptor


def _describe_holder(folder: pathlib.Path) -> tuple[str, bool]:
    """Return who holds a locked run, and whether that is a killed runner's kernel."""
    try:
        stages = read_record(folder / "run.json")["stages"]
        stage, entry = next((s, e) for s, e in stages.items() if e["status"] == "running")
    except (UserError, StopIteration):
        return "by a command that has just begun, or is about to end", False
    last = entry["attempts"][-1]
    holder = f"by process {last['pid']} on {last['host']} ({stage}, since {last['start']})"
    if last["host"] != socket.gethostname() or is_alive(last["pid"]):
        if last["by"] == "notebook":  # which holds the run after an error too
            holder += (
                f", the kernel of an open {stage}.ipynb: run its last cells, or shut that kernel "
                f"down if none is running"
            )
        return holder, False
    kernel = f"process {last['kernel']}" if "kernel" in last else "its kernel"
    return f"{holder}: that process is gone, but {kernel}, which it started, still runs", True


@contextlib.contextmanager
def unlock_on_error(folder: pathlib.Path) -> Iterator[None]:
    """Release the lock if the block raises an error."""
    try:
        yield
    except BaseException:
        files.unlock_folder(folder)
        raise
