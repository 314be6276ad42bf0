"""The safetensors files of a model folder: which tensor lies where, and the folder's configuration."""

import json
import re

from safetensors.torch import safe_open

from lib.common import files
from lib.common.errors import UserError


def canonical(name):
    """A text-model name without its class's prefix: the text class and the multimodal one differ only there."""
    towers = r"(?!audio|vision|embed_audio|embed_vision|multi_modal)"
    return re.sub(r"^(?:model\.)?(?:language_model\.)?(?:model\.)?" + towers, "", name)


def bytes_of(folder):
    """Bytes of a folder's weights; UserError as `shard_of`."""
    return sum(path.stat().st_size for path in set(shard_of(folder).values()))


def shard_of(folder):
    """{tensor name: path of its safetensors file}; UserError when a shard is missing or there is none."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = files.read_json(index, "The index of shards")["weight_map"]
        shards = {name: folder / shard for name, shard in names.items()}
        missing = sorted({path.name for path in shards.values() if not path.is_file()})
    else:
        shards, missing = (
            {},
            [] if list(folder.glob("model*.safetensors")) else ["model.safetensors"],
        )
        for path in sorted(folder.glob("model*.safetensors")):
            with safe_open(path, "pt") as file:
                shards |= dict.fromkeys(file.keys(), path)
    if missing:
        raise UserError(
            f"{files.shown(folder)} has no {', '.join(missing[:3])}. "
            "Expected a complete Hugging Face folder with safetensors: download or build the base again."
        )
    return shards


def read_header(file):
    """(offset of the data, {tensor: dtype, shape, data_offsets}) of an open safetensors file."""
    length = int.from_bytes(file.read(8), "little")
    return 8 + length, json.loads(file.read(length))


def text_config(folder):
    """config.json's language part (dict)."""
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{files.shown(folder)} has no config.json. Expected a Hugging Face model folder."
        )
    config = files.read_json(folder / "config.json", "The model's configuration")
    return config.get("text_config", config)
