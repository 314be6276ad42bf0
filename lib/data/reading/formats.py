"""Stream rows from JSON, CSV, parquet, Arrow and Excel files, also packed or in a zip archive.

for where, values in read_file(path, columns): ...

`values` is a row's fields by name, or a BadRow if only this row is unreadable.
"""

import bz2
import contextlib
import gzip
import io
import lzma
import pathlib
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from lib.common import files
from lib.common.errors import UserError
from lib.data.reading import columnar, csv_rows, json_rows, sheets
from lib.data.reading.row_parts.fields import BadRow

NumberedRows = Iterator[tuple[int, Any]]
PACKINGS = (".gz", ".zst", ".xz", ".bz2")
BY_LINE = (".jsonl", ".ndjson", ".csv", ".tsv")
BY_PLACE = (".parquet", ".arrow", ".xlsx")  # their readers jump to and fro in the file
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".xlsx", ".zip")
ENDINGS = f"{', '.join(SUFFIXES)} (all but .xlsx and .zip also with {', '.join(PACKINGS)})"
BATCH = 1000  # rows from one report of the bytes read to the next


def suffix_of(path: pathlib.PurePath) -> str:
    """Return a file's suffix, without that of a packing such as .gz."""
    is_packed = path.suffix.lower() in PACKINGS
    return (pathlib.PurePath(path.stem).suffix if is_packed else path.suffix).lower()


def is_known(path: pathlib.PurePath) -> bool:
    """Tell whether a file of this name can be read."""
    whole_only = suffix_of(path) in (".xlsx", ".zip") and path.suffix.lower() in PACKINGS
    return suffix_of(path) in SUFFIXES and not whole_only


def read_file(
    path: pathlib.Path,
    columns: dict[str, str],
    report_bytes: Callable[[int], None] = lambda done: None,
    inside: str = "",
) -> Iterator[tuple[str, Any]]:
    """Yield (where, values) of the rows of a file.

    `inside` is the member of a zip archive, or the sheet of an Excel workbook. Raise UserError when
    the rest of it cannot be read; it names the last line that was read. `report_bytes` is called
    every BATCH rows with the bytes read so far.
    """
    name = name_part(path, inside)
    in_archive = suffix_of(path) == ".zip"
    kind = pathlib.PurePath(inside) if in_archive else path
    unit = "line" if suffix_of(kind) in BY_LINE else "row"
    last = 0
    try:
        with open(path, "rb") as raw, contextlib.ExitStack() as opened:
            file: Any = raw
            if in_archive:
                file = opened.enter_context(open_member(raw, inside))
            file = _unpack(file, kind.suffix.lower())
            if file is not raw and suffix_of(kind) in BY_PLACE:
                file = opened.enter_context(_copy_to_disk(file))
            rows = _read_rows(file, suffix_of(kind), columns, inside)
            for n, (last, values) in enumerate(rows):
                if n % BATCH == 0:
                    report_bytes(raw.tell())
                yield f"{name}, {unit} {last}", values
    except BadRow as error:
        raise UserError(f"{name}: {error}") from None
    except (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{name}, after {unit} {last}: {_explain_damage(error)}") from None


def name_part(path: pathlib.Path, inside: str) -> str:
    """Return the name of a file, or of a part of it, for messages."""
    name = files.format_path(path)
    if not inside:
        return name
    return f"{name}/{inside}" if suffix_of(path) == ".zip" else f"{name}, sheet {inside}"


def list_members(path: pathlib.Path) -> list[str]:
    """Return the names of the files in a zip archive; raise UserError if it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [entry.filename for entry in archive.infolist() if not entry.is_dir()]
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{files.format_path(path)}: {_explain_damage(error)}") from None


def require_openable(path: pathlib.Path) -> None:
    """Raise UserError for a packed file of which not even the first byte can be unpacked."""
    if path.suffix.lower() not in PACKINGS or not path.stat().st_size:
        return
    try:
        with open(path, "rb") as raw:
            _unpack(raw, path.suffix.lower()).read(1)
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise UserError(
            f"{files.format_path(path)}, after line 0: {_explain_damage(error)}"
        ) from None


def _explain_damage(error: Exception) -> str:
    return f"cannot be read: {error}. If the file is cut off or damaged, write or fetch it again."


@contextlib.contextmanager
def open_member(raw: Any, inside: str) -> Iterator[Any]:
    """Open a file in a zip archive; raise BadRow for one that needs a password."""
    with zipfile.ZipFile(raw) as archive:
        try:
            member = archive.open(inside)
        except (RuntimeError, NotImplementedError) as error:
            raise BadRow(f"{error}. Unpack the archive, and name the folder.") from None
        with member:
            yield member


def _unpack(file: Any, suffix: str) -> Any:
    """Return a stream of the bytes in a packed file, or the file as it is."""
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=file)
    if suffix == ".xz":
        return lzma.LZMAFile(file)
    if suffix == ".bz2":
        return bz2.BZ2File(file)
    if suffix == ".zst":
        import pyarrow  # only such a file needs it

        return io.BufferedReader(pyarrow.CompressedInputStream(file, "zstd"))
    return file


@contextlib.contextmanager
def _copy_to_disk(file: Any) -> Iterator[Any]:
    """Open a temporary file with the bytes of a stream, in which readers can jump."""
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(file, copy)
        copy.seek(0)
        yield copy


def _read_rows(file: Any, suffix: str, columns: dict[str, str], inside: str) -> NumberedRows:
    """Yield (number, values); raise BadRow when nothing after a row can be read."""
    if suffix in (".jsonl", ".ndjson"):
        return json_rows.read_jsonl(file)
    if suffix == ".json":
        return json_rows.read_json(file)
    if suffix == ".parquet":
        return columnar.read_parquet(file)
    if suffix == ".arrow":
        return columnar.read_arrow(file)
    if suffix == ".xlsx":
        return sheets.read_sheet(file, inside)
    return csv_rows.read_csv(file, columns, "\t" if suffix == ".tsv" else "")
