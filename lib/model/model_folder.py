"""Check that a model folder has every weight, uncut and in the right shape, before it is loaded.

Only headers are read. Unsloth would replace a missing weight by random numbers, and so would
transformers, with a warning.
"""

import pathlib
from collections.abc import Iterable
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from lib.common import files
from lib.common.errors import UserError
from lib.model import shards


def check_folder(folder: pathlib.Path) -> tuple[Any, Any]:
    """Return the folder's configuration and its language model's (one object if text only).

    Raise UserError unless every weight of the language model is in the shards, uncut and in the
    shape that the configuration implies.
    """
    folder_config, text_config, expected = _read_config(folder)
    actual = _read_shapes(folder)
    if _is_quantised(folder_config) or _is_quantised(text_config):
        raise UserError(
            f"the model folder `{files.format_path(folder)}` is quantised already, and an adapter "
            "is merged into 16-bit weights. Set base_model to the 16-bit repository it was made "
            "from; load_in_4bit: true quantises that while loading."
        )
    refuse_missing(
        folder,
        [n for n, shape in expected.items() if actual.get(shards.canonical_name(n)) != shape],
    )
    return folder_config, text_config


def _read_config(folder: pathlib.Path) -> tuple[Any, Any, dict[str, tuple[int, ...]]]:
    """Return `check_folder`'s two configurations, and the shape that each weight must have."""
    try:
        folder_config = AutoConfig.from_pretrained(folder)
        text_config = folder_config.get_text_config()
        with torch.device("meta"):
            net = AutoModelForCausalLM.from_config(text_config)
    except Exception as error:  # an unknown config.json can raise anything
        raise unreadable_folder(folder, error, "config.json") from None
    return folder_config, text_config, {n: tuple(p.shape) for n, p in net.named_parameters()}


def _read_shapes(folder: pathlib.Path) -> dict[str, tuple[int, ...]]:
    """Return {canonical name: shape} of all tensors, from the headers of the weight files."""
    shapes: dict[str, tuple[int, ...]] = {}
    file_name = "model.safetensors"
    try:
        for shard in sorted(set(shards.locate_tensors(folder).values())):
            file_name = shard.name
            with safe_open(shard, "pt") as file:
                for name in file.keys():  # noqa: SIM118 - the file itself is not iterable
                    shape = tuple(file.get_slice(name).get_shape())
                    shapes[shards.canonical_name(name)] = shape
    except UserError:
        raise
    except Exception as error:  # an unknown file can raise anything
        raise unreadable_folder(folder, error, file_name) from None
    return shapes


def _is_quantised(config: Any) -> bool:
    return bool(getattr(config, "quantization_config", None))


def refuse_missing(folder: pathlib.Path, missing: Iterable[str]) -> None:
    names = sorted(missing)
    if names:
        more = " ..." if len(names) > 3 else ""
        raise UserError(
            f"the model folder `{files.format_path(folder)}` lacks {len(names)} weights, or has "
            f"them in another shape than its config.json says: {', '.join(names[:3])}{more}. They "
            "would be replaced by random numbers.\n"
            "Expected a complete Hugging Face folder: fetch or build it again."
        )


def unreadable_folder(folder: pathlib.Path, error: Exception, file_name: str = "") -> UserError:
    cause = " ".join(str(error).split())[:300] or type(error).__name__
    where = f" ({file_name})" if file_name else ""
    return UserError(
        f"the model folder `{files.format_path(folder)}` cannot be read{where}: {cause}\n"
        "Expected a complete Hugging Face folder with safetensors: fetch or build it again."
    )
