"""The LoRA adapter: choose its modules, check its size, save it, read another's weights."""

import pathlib
import re
import shutil
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lib.common import files
from lib.common.errors import UserError
from lib.model import placement, start
from lib.model.start import ATTENTION, MLP
from lib.params import Params
from lib.params.conflicts import NOTHING_TRAINED


def target_pattern(finetune_attention_modules: bool, finetune_mlp_modules: bool) -> str:
    """Return PEFT's regex for the modules to adapt; raise UserError when both choices are off.

    It matches projections of the language layers, and none of a vision or audio tower.
    """
    names = []
    if finetune_attention_modules:
        names += [rf"self_attn\.{projection}" for projection in ATTENTION]
    if finetune_mlp_modules:
        names += [rf"mlp\.{projection}" for projection in MLP]
    if not names:
        raise UserError(NOTHING_TRAINED)
    return rf"(?:.*\.)?(?:language_model|model)\.layers\.\d+\.(?:{'|'.join(names)})"


def add(model: Any, job: Params) -> Any:
    """Wrap the model with a new adapter, drawn from `seed`, in the model's own precision."""
    from peft import LoraConfig, get_peft_model  # takes seconds; reading names does not need it

    torch.manual_seed(job.seed)
    config = LoraConfig(
        r=job.lora_r,
        lora_alpha=job.lora_alpha,
        lora_dropout=job.lora_dropout,
        bias=job.bias,
        use_rslora=job.use_rslora,
        use_dora=job.use_dora,
        target_modules=target_pattern(job.finetune_attention_modules, job.finetune_mlp_modules),
        task_type="CAUSAL_LM",
    )
    # the trainer keeps float32 masters, so a bfloat16 adapter saves a cast in every layer
    return get_peft_model(model, config, autocast_adapter_dtype=False)


def trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that are trained, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def count_numbers(parameter: torch.nn.Parameter) -> int:
    """Return how many numbers a tensor holds; a 4-bit one packs two into each byte."""
    quant_state = getattr(parameter, "quant_state", None)
    return parameter.numel() if quant_state is None else quant_state.shape.numel()


def count_parameters(model: Any) -> tuple[int, int]:
    """Return the numbers of trainable and of all parameters, including an offloaded table."""
    tables = [m.table for m in model.modules() if isinstance(m, placement.Offloaded)]
    total = sum(count_numbers(p) for p in model.parameters()) + sum(t.numel() for t in tables)
    return sum(p.numel() for p in trainable(model).values()), total


def saved_name(model: Any, name: str) -> str:
    """Return a parameter's name in the class that the base folder's config.json names.

    Only the language model of a multimodal base is loaded, and its names are shorter.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if getattr(base, "part_of_multimodal", False):
        return re.sub(r"^((?:base_model\.model\.)?model\.)", r"\1language_model.", name)
    return name


def check_size(model: Any, job: Params) -> int:
    """Return the number of adapted modules.

    Raise UserError unless modules and parameters are complete. Both numbers follow from the
    configuration alone. Gemma 3n E4B at r=8 has 18,595,840 parameters in 215 modules: its last 15
    layers share keys and values, so they own no k_proj and v_proj.
    """
    modules, parameters = _expected_size(model.config.get_text_config(), job)
    pattern = target_pattern(job.finetune_attention_modules, job.finetune_mlp_modules)
    adapted = [n.partition(".lora_A.")[0] for n in trainable(model) if ".lora_A." in n]
    actual_modules = sum(1 for name in adapted if re.fullmatch(pattern, name))
    actual_parameters = count_parameters(model)[0]
    if (actual_modules, actual_parameters) != (modules, parameters):
        raise UserError(
            f"the adapter has {actual_parameters:,} trainable parameters in {actual_modules} "
            f"modules, but this architecture at r={job.lora_r} has {parameters:,} in {modules}. "
            "Nothing was trained: the installed versions of transformers and peft do not suit the "
            "pipeline. Run `make setup`."
        )
    return modules


def _expected_size(text_config: Any, job: Params) -> tuple[int, int]:
    """Return how many modules and parameters an adapter on this architecture must have."""
    layers = text_config.num_hidden_layers
    first_sharing = layers - (getattr(text_config, "num_kv_shared_layers", 0) or 0)
    modules = parameters = 0
    for layer in range(layers):
        names: list[str] = []
        if job.finetune_attention_modules:
            owns_keys = layer < first_sharing
            names += [n for n in ATTENTION if owns_keys or n not in ("k_proj", "v_proj")]
        if job.finetune_mlp_modules:
            names += MLP
        sizes = _projection_sizes(text_config, layer)
        modules += len(names)
        for name in names:
            inputs, outputs = sizes[name]
            parameters += job.lora_r * (inputs + outputs)
            if job.use_dora:  # DoRA adds a magnitude for each output
                parameters += outputs
    if job.train_end_token is True:  # a row of each table
        parameters += text_config.hidden_size * (1 if text_config.tie_word_embeddings else 2)
    return modules, parameters


def _projection_sizes(text_config: Any, layer: int) -> dict[str, tuple[int, int]]:
    """Return (inputs, outputs) of each projection of a layer."""
    hidden, heads = text_config.hidden_size, text_config.num_attention_heads
    head = getattr(text_config, "head_dim", None) or hidden // heads
    queries, keys = heads * head, text_config.num_key_value_heads * head
    width = text_config.intermediate_size  # Gemma 3n has a list: one width for each layer
    if isinstance(width, list | tuple):
        width = width[layer]
    return {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, width),
        "up_proj": (hidden, width),
        "down_proj": (width, hidden),
    }


def save(
    model: Any,
    weights: dict[str, torch.Tensor],
    folder: pathlib.Path,
    base_model: str,
    base_revision: str,
) -> None:
    """Write the adapter as a PEFT folder with these float32 weights.

    The folder appears once it is complete.
    """
    partial = folder.with_name(".adapter.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(str(partial), state_dict={**model.state_dict(), **weights})

    weight_file = partial / "adapter_model.safetensors"
    renamed = {saved_name(model, name): w for name, w in load_file(weight_file).items()}
    save_file(renamed, weight_file, metadata={"format": "pt"})

    # PEFT writes the local folder of the base, which means nothing on another machine
    origin = {"base_model_name_or_path": base_model, "revision": base_revision or None}
    config = files.read_json(partial / "adapter_config.json", "adapter configuration")
    files.write_json(partial / "adapter_config.json", {**config, **origin})
    # PEFT's README.md is the empty template of a model card
    (partial / "README.md").unlink(missing_ok=True)
    files.replace_folder(partial, folder)


# --------------------------------------------------------------------------------------------------
# the weights of another adapter


def read_weights(model: Any, start_from: str) -> dict[str, torch.Tensor]:
    """Return the float32 weights to begin with, by the names of the model's trained parameters.

    Raise UserError unless names and shapes are exactly those of the model's adapter.
    """
    folder = start.find_adapter(start_from)
    path = folder / start.WEIGHTS
    trained = files.read_json(folder / start.CONFIG, "adapter configuration").get(start.ROWS)
    ours = getattr(model.peft_config["default"], start.ROWS)
    if (trained or None) != ours:
        raise UserError(
            f"start_from=`{start_from}` has trained rows {trained}, but here they are {ours}. Set "
            f"train_end_token: auto, or begin from an adapter with this base's end token's row."
        )
    stored = {start.plain_name(name): weight for name, weight in load_file(path).items()}
    live = trainable(model)
    wanted = {start.plain_name(_saved(name)): name for name in live}
    apart = sorted(stored.keys() ^ wanted.keys())
    apart += sorted(
        name
        for name in stored.keys() & wanted.keys()
        if stored[name].shape != live[wanted[name]].shape
    )
    if apart:
        raise UserError(
            f"start_from=`{start_from}` does not fit this base: {len(apart)} of its or our tensors "
            f"have no counterpart of the same shape, for example {', '.join(apart[:3])}."
        )
    return {wanted[name]: weight.float() for name, weight in stored.items()}


def _saved(name: str) -> str:
    """Return a live parameter's name as PEFT saves it, without the adapter's own name."""
    if "lora_magnitude_vector" in name:
        return name.replace(".default.weight", "")
    return name.replace(".default.", ".").removesuffix(".default")
