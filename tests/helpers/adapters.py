"""Make LoRA adapters for the tiny Gemma 3n and folders of its weights, sound and altered."""

import json
import shutil

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

TARGETS = r".*layers\.\d+\.(?:self_attn\.(?:q|k|v|o)_proj|mlp\.(?:gate|up|down)_proj)"


INDEX = "model.safetensors.index.json"


def lora_config(**more):
    return LoraConfig(
        **({"r": 8, "lora_alpha": 16, "target_modules": TARGETS, "task_type": "CAUSAL_LM"} | more)
    )


def save_random(base, folder, **more):
    """Save an adapter whose B is not zero, in PEFT's layout."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    get_peft_model(model, lora_config(init_lora_weights=False, **more)).save_pretrained(folder)
    return folder


def edit(adapter, folder, change, **config):
    """Copy an adapter, pass its tensors through `change`, and replace configuration keys."""
    shutil.copytree(adapter, folder)
    save_file(
        change(load_file(adapter / "adapter_model.safetensors")),
        folder / "adapter_model.safetensors",
    )
    settings = json.loads((adapter / "adapter_config.json").read_text()) | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def read_weights(folder):
    """Return every tensor of a folder's shards."""
    return {
        name: tensor
        for path in folder.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


def multimodal_name(name):
    return name.replace("model.", "model.language_model.", 1)


def write_shards(tensors, folder):
    """Write three shards and their index, as large models are published."""
    index = {
        name: f"model-0000{i % 3 + 1}-of-00003.safetensors"
        for i, name in enumerate(sorted(tensors))
    }
    for shard in set(index.values()):
        save_file({name: tensors[name] for name in index if index[name] == shard}, folder / shard)
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))
