"""Read a model folder: which safetensors file ("shard") has which tensor, and config.json."""

import json
import math
import pathlib
import re
from typing import Any, BinaryIO

from lib.common import files
from lib.common.errors import UserError

# names that begin with one of these are not of the language model, and keep their prefix
OTHER_PARTS = "audio|vision|embed_audio|embed_vision|multi_modal"
# the file of tensors that merge.add_missing_shared_kv adds; the converter reads every
# model*.safetensors, transformers only model.safetensors or what the index names
EXTRA_SHARD = "model-shared-kv.safetensors"
CLASS_PREFIX = re.compile(rf"^(?:model\.)?(?:language_model\.)?(?:model\.)?(?!{OTHER_PARTS})")


def canonical_name(name: str) -> str:
    """Return a language-model tensor's name without its class's prefix.

    The names in a model's text class and multimodal class differ only in that prefix.
    """
    return CLASS_PREFIX.sub("", name)


def is_language(name: str) -> bool:
    """Tell whether a tensor is the language model's, not a tower's or its embedder's."""
    return not re.match(rf"(?:model\.)?(?:{OTHER_PARTS})", name)


def weight_bytes(folder: pathlib.Path) -> int:
    """Return the bytes of a folder's weight files; raise UserError as `locate_tensors` does."""
    return sum(path.stat().st_size for path in set(locate_tensors(folder).values()))


def locate_tensors(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Return {tensor name: its safetensors file}; raise UserError when a shard is missing."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shard_names = files.read_json(index, "The index of shards")["weight_map"]
        shards = {name: folder / shard for name, shard in shard_names.items()}
        missing = sorted({path.name for path in shards.values() if not path.is_file()})
    else:
        shards = _list_tensors(sorted(folder.glob("model*.safetensors")))
        missing = [] if list(folder.glob("model*.safetensors")) else ["model.safetensors"]
    if missing:
        raise UserError(
            f"{files.format_path(folder)} has no {', '.join(missing[:3])}. Expected a complete "
            "Hugging Face folder with safetensors: download or build the base again."
        )
    return shards


def _list_tensors(paths: list[pathlib.Path]) -> dict[str, pathlib.Path]:
    shards: dict[str, pathlib.Path] = {}
    for path in paths:
        with open(path, "rb") as file:
            _, header = read_header(file)
        shards |= dict.fromkeys(header, path)
    return shards


def read_entries(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Return {tensor name: `dtype` and `shape`}, from the headers of a folder's weight files."""
    located = locate_tensors(folder)
    entries: dict[str, dict[str, Any]] = {}
    for path in sorted(set(located.values())):
        with open(path, "rb") as file:
            _, header = read_header(file)
        entries |= {name: entry for name, entry in header.items() if located.get(name) == path}
    return entries


def count_numbers(folder: pathlib.Path) -> int:
    """Return how many numbers the tensors of a folder hold, whatever their types."""
    return sum(math.prod(entry["shape"]) for entry in read_entries(folder).values())


def count_language(folder: pathlib.Path) -> int:
    """Return how many numbers the language model's tensors have in a folder, without towers."""
    entries = read_entries(folder)
    return sum(math.prod(entry["shape"]) for name, entry in entries.items() if is_language(name))


def read_header(file: BinaryIO) -> tuple[int, dict[str, Any]]:
    """Read the header of an open safetensors file.

    Return the offset at which the tensors' bytes begin, and a dict of `dtype`, `shape` and
    `data_offsets` for each tensor. Raise ValueError for another kind of file.
    """
    length = int.from_bytes(file.read(8), "little")
    try:
        header = json.loads(file.read(length))
    except (ValueError, OverflowError, MemoryError):
        header = None
    if not isinstance(header, dict):
        raise ValueError(f"{pathlib.Path(file.name).name} has no header of safetensors")
    header.pop("__metadata__", None)
    return 8 + length, header


def read_text_config(folder: pathlib.Path) -> dict[str, Any]:
    """Return the language model's part of config.json; UserError without that file."""
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{files.format_path(folder)} has no config.json. Expected a Hugging Face model folder."
        )
    config = files.read_json(folder / "config.json", "The model's configuration")
    return config.get("text_config", config)
