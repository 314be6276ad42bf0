"""A LoRA adapter into its 16-bit base, shard by shard in bounded memory, and the tensors that transformers drops."""

import math
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file, safe_open, save_file

from lib.common import files
from lib.common.errors import UserError
from lib.model.shards import canonical_name, locate_tensors, read_header, read_text_config

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
SHARED = {
    "k_proj": 2,
    "v_proj": 2,
    "k_norm": 1,
}  # tensors a KV-shared layer may lack: number of dimensions
UNMERGEABLE = (
    "use_dora",
    "alpha_pattern",
    "fan_in_fan_out",
    "lora_bias",
    "modules_to_save",
    "use_qalora",
)
CARRIED = re.compile(
    r"(?:(?:generation_|preprocessor_|processor_)?config\.json|tokenizer|special_tokens|added_tokens|"
    r"chat_template|model\.safetensors\.index\.json|(?:LICENSE|NOTICE|USE_POLICY|GEMMA_TERMS))"
)
# The converter reads every model*.safetensors; transformers only model.safetensors or what the index names.
EXTRA_SHARD = "model-shared-kv.safetensors"


def merge_adapter(base_dir, adapter_dir, out_dir):
    """Add a PEFT LoRA adapter to the 16-bit base: W + scale * B @ A in float32, rounded once; whole folder or none.

    Shards are copied and only the adapted tensors overwritten in place, so memory stays at one weight and every other
    tensor of the base (also K/V that transformers drops) is kept bit for bit. Returns counts, bytes, largest change.
    """
    base, adapter, out = Path(base_dir), Path(adapter_dir), Path(out_dir)
    pairs, scale = read_adapter(adapter)
    shards = locate_tensors(base)
    by_layer = {canonical_name(name): name for name in shards}
    wanted = {by_layer.get(canonical_name(name) + ".weight"): pair for name, pair in pairs.items()}
    strangers = [name for name in pairs if canonical_name(name) + ".weight" not in by_layer]
    if strangers:
        raise UserError(
            f"The adapter {files.shown(adapter)} does not belong to the base {files.shown(base)}: "
            f"{len(strangers)} of its {len(pairs)} modules are not there, for example "
            f"{', '.join(sorted(strangers)[:3])}. Set base_model to the one it was trained on."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    files.require_disk(out.parent, files.size_of(base), "the merged model")
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    print(f"merging {len(pairs)} weights into {files.size_of(base) / 2**30:.1f} GiB", flush=True)
    for path in base.iterdir():
        if CARRIED.match(path.name):
            shutil.copyfile(path, temporary / path.name)
    changes = []
    for shard in sorted(set(shards.values())):
        copy = temporary / shard.name
        shutil.copyfile(shard, copy)
        with open(copy, "r+b") as file:
            start, header = read_header(file)
            for name in sorted(wanted.keys() & header.keys()):
                changes.append(add_pair(file, start, header[name], name, *wanted[name], scale))
    files.replace_folder(temporary, out)
    return {
        "merged": len(changes),
        "tensors": len(shards),
        "scale": scale,
        "largest_change": max(changes),
        "bytes": files.size_of(out),
    }


def read_adapter(folder):
    """({module: (A [r, in], B [out, r])}, scale) of a plain LoRA adapter; UserError for any other kind."""
    path = folder / "adapter_model.safetensors"
    if not path.is_file() or not (folder / "adapter_config.json").is_file():
        raise UserError(
            f"No adapter in {files.shown(folder)}. Expected adapter_config.json and "
            "adapter_model.safetensors: run the training stage first."
        )
    config = files.read_json(folder / "adapter_config.json", "The adapter's configuration")
    odd = [f"peft_type={config.get('peft_type')}"] if config.get("peft_type") != "LORA" else []
    odd += [f"{key}={config[key]}" for key in UNMERGEABLE if config.get(key)]
    halves = {}
    for name, tensor in load_file(path).items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.(?:default\.)?weight", name)
        if match:
            halves.setdefault(match[1], {})[match[2]] = tensor
        else:
            odd.append(f"tensor {name}")
    odd += [f"only one half of {name}" for name, half in halves.items() if len(half) < 2]
    if odd or not halves:
        raise UserError(
            f"The adapter {files.shown(folder)} cannot be merged: "
            f"{', '.join(odd[:3]) or 'it has no tensors'}. "
            "Expected plain LoRA (no DoRA, no trained biases or embeddings)."
        )
    scale = config["lora_alpha"] / (
        math.sqrt(config["r"]) if config.get("use_rslora") else config["r"]
    )
    ranks = {half["A"].shape[0] for half in halves.values()}
    if ranks != {config["r"]}:
        raise UserError(
            f"The adapter {files.shown(folder)} has ranks {sorted(ranks)}, its configuration says "
            f"r={config['r']}. Expected one rank: the two files belong to different trainings."
        )
    return {name: (half["A"], half["B"]) for name, half in halves.items()}, scale


def add_pair(file, start, entry, name, a, b, scale):
    """Overwrite one weight in an open shard by W + scale * B @ A; returns the largest change."""
    if entry["dtype"] not in DTYPES:
        raise UserError(
            f"{name} of the base is stored as {entry['dtype']}: the base is quantised. "
            "Expected 16-bit weights: name the 16-bit repository the quantised one was made from."
        )
    if entry["shape"] != [b.shape[0], a.shape[1]]:
        raise UserError(
            f"{name} has shape {entry['shape']} in the base, the adapter was trained on "
            f"{[b.shape[0], a.shape[1]]}. Set base_model to the one it was trained on."
        )
    begin, end = entry["data_offsets"]
    file.seek(start + begin)
    weight = torch.frombuffer(bytearray(file.read(end - begin)), dtype=DTYPES[entry["dtype"]]).view(
        entry["shape"]
    )
    merged = (weight.float() + (b.float() @ a.float()) * scale).to(weight.dtype)
    if not torch.isfinite(merged).all():
        raise UserError(
            f"{name} is not finite after the merge. Expected finite numbers: look at the training's loss."
        )
    file.seek(start + begin)
    file.write(merged.view(torch.uint8).numpy().tobytes())
    return (merged.float() - weight.float()).abs().max().item()


def missing_shared_kv(model_dir, base_dir=None):
    """Add k_proj, v_proj, k_norm that Gemma 3n's KV-shared layers lack; {"from_base": n, "placeholder": n} tensors.

    transformers >= 5.6 neither loads nor saves them, the converter says nothing, and llama.cpp, which does not use
    them, refuses the file. Placeholders are zeros (norms: ones).
    """
    folder = Path(model_dir)
    config = read_text_config(folder)
    shards = locate_tensors(folder)
    base = (
        {
            canonical_name(name): (path, name)
            for name, path in locate_tensors(Path(base_dir)).items()
        }
        if base_dir
        else {}
    )
    added, count = {}, Counter(from_base=0, placeholder=0)
    total = config["num_hidden_layers"]
    for layer in range(total - config.get("num_kv_shared_layers", 0), total):
        query = next(
            name
            for name in shards
            if canonical_name(name) == f"layers.{layer}.self_attn.q_proj.weight"
        )
        for part in SHARED:
            name = query.replace("q_proj", part)
            if name in shards:
                continue
            source = base.get(canonical_name(name))
            count["from_base" if source else "placeholder"] += 1
            if source:
                with safe_open(source[0], "pt") as file:
                    added[name] = file.get_tensor(source[1])
            elif SHARED[part] == 1:
                added[name] = torch.ones(config["head_dim"], dtype=torch.bfloat16)
            else:
                rows = config["num_key_value_heads"] * config["head_dim"]
                added[name] = torch.zeros(rows, config["hidden_size"], dtype=torch.bfloat16)
    if added:
        save_file(added, folder / f".{EXTRA_SHARD}.tmp", metadata={"format": "pt"})
        os.replace(folder / f".{EXTRA_SHARD}.tmp", folder / EXTRA_SHARD)
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            content = files.read_json(index, "The index of shards")
            content["weight_map"] |= dict.fromkeys(added, EXTRA_SHARD)
            files.write_json(index, content)
    return dict(count)
