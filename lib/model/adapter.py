"""The LoRA adapter: on which modules it sits, what it must count, how its parameters are named on disk."""

import pathlib
import re
import shutil
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lib.common import files
from lib.common.errors import UserError
from lib.model import placement
from lib.params import Params

ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


def targets(job: Params) -> str:
    """PEFT target regex: the chosen projections of the language layers; never the vision or audio tower."""
    names = [f"self_attn\\.{n}" for n in ATTENTION if job.finetune_attention_modules] + [
        f"mlp\\.{n}" for n in MLP if job.finetune_mlp_modules
    ]
    if not names:
        raise UserError(
            "finetune_attention_modules and finetune_mlp_modules are both false: nothing would be trained. Set one to true."
        )
    return rf"(?:.*\.)?(?:language_model|model)\.layers\.\d+\.(?:{'|'.join(names)})"


def add(model: Any, job: Params) -> Any:
    """Wrap with a fresh adapter, seeded, in the model's own precision (the trainer keeps float32 masters)."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(job.seed)
    config = LoraConfig(
        r=job.lora_r,
        lora_alpha=job.lora_alpha,
        lora_dropout=job.lora_dropout,
        bias=job.bias,
        use_rslora=job.use_rslora,
        use_dora=job.use_dora,
        target_modules=targets(job),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(
        model, config, autocast_adapter_dtype=False
    )  # in bfloat16, without casts in every layer


def trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def numbers(p: torch.nn.Parameter) -> int:
    state = getattr(p, "quant_state", None)
    return state.shape.numel() if state is not None else p.numel()


def count(model: Any) -> tuple[int, int]:
    """Trainable and total parameters; a 4-bit tensor counts as the numbers it stands for, an offloaded table as the model's."""
    tables = sum(m.table.numel() for m in model.modules() if isinstance(m, placement.Offloaded))
    return sum(p.numel() for p in trainable(model).values()), sum(
        numbers(p) for p in model.parameters()
    ) + tables


def saved_name(model: Any, name: str) -> str:
    """A parameter's name in the class that the base's folder names: of a multimodal one we hold the language model alone."""
    held = model.get_base_model() if hasattr(model, "get_base_model") else model
    return (
        re.sub(r"^((?:base_model\.model\.)?model\.)", r"\1language_model.", name)
        if getattr(held, "part_of_multimodal", False)
        else name
    )


def check(model: Any, job: Params) -> int:
    """Adapted modules of the model; UserError unless they and their parameters are those that the configuration implies.

    Gemma 3n E4B at r=8: 18,595,840 parameters in 215 modules, since its last 15 layers share keys and values and own no k, v.
    """
    text = model.config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    queries, keys = text.num_attention_heads * head, text.num_key_value_heads * head
    size = {
        "q_proj": (text.hidden_size, queries),
        "k_proj": (text.hidden_size, keys),
        "v_proj": (text.hidden_size, keys),
        "o_proj": (queries, text.hidden_size),
    }
    own = text.num_hidden_layers - (getattr(text, "num_kv_shared_layers", 0) or 0)
    modules = parameters = 0
    for layer in range(text.num_hidden_layers):
        width = (
            text.intermediate_size[layer]
            if isinstance(text.intermediate_size, list | tuple)
            else text.intermediate_size
        )
        size |= {
            "gate_proj": (text.hidden_size, width),
            "up_proj": (text.hidden_size, width),
            "down_proj": (width, text.hidden_size),
        }
        names = [
            n
            for n in ATTENTION
            if job.finetune_attention_modules and (layer < own or n not in ("k_proj", "v_proj"))
        ]
        names += MLP if job.finetune_mlp_modules else ()
        modules += len(names)
        parameters += sum(
            job.lora_r * sum(size[n]) + (size[n][1] if job.use_dora else 0) for n in names
        )
    pattern = re.compile(targets(job))
    found = (
        sum(
            1
            for n in trainable(model)
            if ".lora_A." in n and pattern.fullmatch(n.partition(".lora_A.")[0])
        ),
        count(model)[0],
    )
    if found != (modules, parameters):
        raise UserError(
            f"the adapter has {found[1]:,} trainable parameters in {found[0]} modules; this architecture at r={job.lora_r} has "
            f"{parameters:,} in {modules}. Nothing was trained: these versions of transformers and peft do not fit the pipeline's."
        )
    return modules


def save(model: Any, weights: dict[str, torch.Tensor], folder: pathlib.Path, job: Params) -> None:
    """Write the adapter as a PEFT folder with those float32 weights; the folder appears when it is complete."""
    temporary = folder.with_name(".adapter.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(str(temporary), state_dict={**model.state_dict(), **weights})
    file = temporary / "adapter_model.safetensors"
    save_file(
        {saved_name(model, n): w for n, w in load_file(file).items()},
        file,
        metadata={"format": "pt"},
    )
    config = files.read_json(temporary / "adapter_config.json", "adapter configuration")
    # PEFT writes the local folder the base was loaded from, which means nothing on another machine
    files.write_json(
        temporary / "adapter_config.json",
        {
            **config,
            "base_model_name_or_path": job.base_model,
            "revision": job.base_revision or None,
        },
    )
    (temporary / "README.md").unlink(
        missing_ok=True
    )  # PEFT's empty template of a card says nothing true
    files.replace_folder(temporary, folder)
