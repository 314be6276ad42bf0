"""Copy a base, and change weights inside the copied shards, one at a time.

temporary = base_copy.begin(base, out)
changes += base_copy.change_weights(temporary / shard.name, wanted, change)
"""

import math
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from lib.common import files
from lib.common.chat_template import TURN_END
from lib.common.errors import UserError
from lib.model.shards import read_header

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
# files of the base that are copied into the merged folder
CARRIED = re.compile(
    r"(?:(?:generation_|preprocessor_|processor_)?config\.json|tokenizer|special_tokens|"
    r"added_tokens|chat_template|model\.safetensors\.index\.json|"
    r"(?:LICENSE|NOTICE|USE_POLICY|GEMMA_TERMS))"
)
PIECE = 1 << 26  # numbers changed at a time: 256 MiB as float32
# takes a weight's name, a range of its rows and their numbers in float32; returns the new numbers
Change = Callable[[str, slice, torch.Tensor], torch.Tensor]
Shape = tuple[int, ...]


def begin(base: Path, out: Path, what: str) -> Path:
    """Return a new folder beside `out` with the base's small files, once the disk has room."""
    out.parent.mkdir(parents=True, exist_ok=True)
    size = files.size_of(base)
    files.require_disk(out.parent, size, "the merged model")
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    print(f"{what} {size / 2**30:.1f} GiB", flush=True)
    for path in base.iterdir():
        if CARRIED.match(path.name):
            shutil.copyfile(path, temporary / path.name)
    _name_ends(temporary)
    return temporary


def _name_ends(folder: Path) -> None:
    """Let transformers' generation stop at the end of a turn, which training taught to write.

    A base without generation_config.json, or a pretrained one, names only the end of a text.
    """
    path = folder / "generation_config.json"
    config = files.read_json(folder / "config.json", "The model's configuration")
    if path.is_file():
        generation = files.read_json(path, "generation_config.json")
    else:
        config = {**config.get("text_config", {}), **config}
        keys = ("bos_token_id", "eos_token_id", "pad_token_id")
        generation = {key: config[key] for key in keys if config.get(key) is not None}
    tokenizer = files.read_json(folder / "tokenizer.json", "The tokenizer")
    turn_ends = [t["id"] for t in tokenizer["added_tokens"] if t["content"] == TURN_END]
    ends = generation.get("eos_token_id", config.get("eos_token_id"))
    ends = ends if isinstance(ends, list) else [ends] if ends is not None else []
    if not path.is_file() or not set(turn_ends) <= set(ends):
        files.write_json(path, {**generation, "eos_token_id": sorted({*ends, *turn_ends})})


def change_weights(path: Path, wanted: Mapping[str, Shape], change: Change) -> list[float]:
    """Change weights inside a shard's file; return the largest change of each.

    `wanted` are their names with the shapes that the training had.
    """
    changes = []
    with open(path, "r+b") as file:
        start, header = read_header(file)
        for name in sorted(wanted.keys() & header.keys()):
            entry = header[name]
            _require_plain(name, entry, wanted[name])
            file.seek(start + entry["data_offsets"][0])
            changes.append(_change_weight(file, name, entry, change))
    return changes


def _require_plain(name: str, entry: dict[str, Any], shape: Shape) -> None:
    """Raise UserError unless a weight of the base is unpacked and has the shape in training."""
    if entry["dtype"] not in DTYPES:
        raise UserError(
            f"{name} of the base is stored as {entry['dtype']}: the base is quantised. Expected "
            "16-bit weights: set base_model to the 16-bit repository it was made from."
        )
    if entry["shape"] != list(shape):
        raise UserError(
            f"{name} has shape {entry['shape']} in the base, but {list(shape)} was trained. Set "
            f"base_model to the one that was trained."
        )


def _change_weight(file: BinaryIO, name: str, entry: dict[str, Any], change: Change) -> float:
    """Change the weight that begins at the file's position, rounded once, piece by piece.

    Return the largest change.
    """
    dtype, (rows, *rest) = DTYPES[entry["dtype"]], entry["shape"]
    row = math.prod(rest)
    largest = 0.0
    for first in range(0, rows, step := max(1, PIECE // row)):
        piece = slice(first, min(first + step, rows))
        place, count = file.tell(), (piece.stop - first) * row
        data = bytearray(file.read(count * dtype.itemsize))
        weight = torch.frombuffer(data, dtype=dtype).view(-1, *rest)
        merged = change(name, piece, weight.float()).to(dtype)
        if not torch.isfinite(merged).all():
            raise UserError(
                f"{name} is not finite after the merge. "
                "Expected finite numbers: look at the training's loss."
            )
        file.seek(place)
        file.write(merged.contiguous().view(torch.uint8).numpy().tobytes())
        largest = max(largest, (merged.float() - weight.float()).abs().max().item())
    return largest
