"""The cache of the prepare stage: Arrow files in .cache/prepare/, each with its own checksum.

A file's name is a hash of the rows and of what was done to them, so a file never changes.
"""

import contextlib
import hashlib
import os
import pathlib
import time
from typing import Any

import pyarrow as pa

from lib.common import files, locations
from lib.common.errors import UserError

CACHE = locations.cache_folder() / "prepare"
CACHE_LIMIT = 2**33  # bytes; over this limit, files that were not used for a day are removed
CHECKSUM = 32  # bytes at the end of a cache file: the sha256 of the bytes before them


class DamagedCache(UserError):
    """A cache file that was damaged or removed."""


def prune_cache() -> None:
    """Remove the least recently used cache files over the limit, but none used in the last day."""
    used_files = []
    for path in CACHE.iterdir():
        # another run may just have renamed or removed it
        with contextlib.suppress(FileNotFoundError):
            used_files.append((path.stat().st_mtime, path.stat().st_size, path))
    excess = sum(size for _, size, _ in used_files) - CACHE_LIMIT
    for used, size, path in sorted(used_files):
        if excess <= 0 or used > time.time() - 86400:
            break
        path.unlink(missing_ok=True)
        excess -= size


def read_table(path: pathlib.Path, fields: list[int] | None = None) -> Any:
    """Return a cache file's table (all columns or some); raise DamagedCache unless it is whole."""
    # not a memory map: its pages would count as this process's memory while they stay mapped
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data[:-CHECKSUM]).digest() != data[-CHECKSUM:]:
        raise DamagedCache(
            f"`{files.format_path(path)}` was removed or damaged while prepare ran. Run prepare "
            f"again: it makes the missing files."
        )
    options = pa.ipc.IpcReadOptions(included_fields=fields)
    return pa.ipc.open_file(pa.py_buffer(data)[:-CHECKSUM], options=options).read_all()


def find_cached(path: pathlib.Path) -> Any:
    """Return the table of a cache file, or None when it has to be made."""
    try:
        table = read_table(path)
        os.utime(path)
        return table
    except DamagedCache:
        return None


def write_table(path: pathlib.Path, table: Any) -> None:
    """Write a table as a cache file."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    data = sink.getvalue().to_pybytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    files.atomic_write(path, data + hashlib.sha256(data).digest())
