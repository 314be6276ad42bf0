"""Merge what was trained into its base, and add the tensors that transformers drops.

    merge.merge_run(run, base)

The merge works shard by shard and holds one weight at a time, however large the model is.
"""

import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, safe_open, save_file

from lib.common import files
from lib.common.errors import UserError
from lib.export.merging import base_copy, full_weights
from lib.model import model_folder, start
from lib.model.end_token import end_row
from lib.model.shards import (
    EXTRA_SHARD,
    canonical_name,
    locate_tensors,
    read_entries,
    read_text_config,
)
from lib.record import earlier
from lib.record.run_record import Run, tell_aside

SHARED_KV = ("k_proj", "v_proj", "k_norm")  # the tensors that a KV-shared layer may lack
# PEFT settings with which an adapter is more than W + scale * B @ A
UNMERGEABLE = (
    "use_dora",
    "alpha_pattern",
    "fan_in_fan_out",
    "lora_bias",
    "modules_to_save",
    "use_qalora",
)


class Rows(NamedTuple):
    """The rows of a table that were trained, in place of the base's."""

    ids: list[int]
    numbers: torch.Tensor  # (rows, width)


class Adapter(NamedTuple):
    """A plain LoRA adapter, perhaps with trained rows of tables."""

    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]]  # {module: (A [rank, in], B [out, rank])}
    scale: float  # the factor of B @ A
    rows: dict[str, Rows]  # of the embedding and of an untied output layer, by module


def merge_run(run: Run, base: Path) -> dict[str, Any]:
    """Make merged/ of a run, after what an earlier export made got a name that says so."""
    tell_aside(earlier.set_export_aside(run.folder))
    full = (run.folder / start.FULL).is_dir()
    trained = run.folder / (start.FULL if full else start.ADAPTER)
    merged = make_merged(base, trained, run.folder / "merged")
    earlier.drop_remade(run.folder)  # an old merged/ takes as much space as the base
    return merged


def make_merged(base: Path, trained: Path, out: Path) -> dict[str, Any]:
    """Merge an adapter, or full weights; add what transformers drops; then name the folder.

    Full weights are read back and compared first. An earlier folder of that name stays until then.
    Return the results of all steps.
    """
    draft = out.with_name(f".{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        if trained.name == start.FULL:
            merged = full_weights.write(base, trained, draft)
            merged |= full_weights.verify(trained, base, draft)
        else:
            merged = merge_adapter(base, trained, draft)
            require_rows(draft, trained)
        added = add_missing_shared_kv(draft, base)
        model_folder.check_folder(draft)
        files.replace_folder(draft, out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return {**merged, **added}


def merge_adapter(base: Path, adapter: Path, out: Path) -> dict[str, Any]:
    """Add a PEFT LoRA adapter to the unpacked base: W + scale * B @ A in float32, rounded once.

    A trained row replaces the base's; in a tied base it is the output layer's too. Shards are
    copied and only the changed tensors overwritten, so every other tensor of the base (also K/V
    that transformers drops) is kept bit for bit. `out` gets its name once it is complete. Return
    counts, bytes and the largest change of a weight.
    """
    pairs, scale, tables = read_adapter(adapter)
    shards = locate_tensors(base)
    weights = {canonical_name(name): name for name in shards}
    require_own_base(adapter, base, [*pairs, *tables], weights)
    adapted = {weights[weight_of(module)]: pair for module, pair in pairs.items()}
    trained = {weights[weight_of(module)]: rows for module, rows in tables.items()}
    if trained and "lm_head" not in tables and "lm_head.weight" in weights:
        # a tied base whose file has the table twice
        trained[weights["lm_head.weight"]] = next(iter(tables.values()))
    temporary = base_copy.begin(base, out, f"merging {len(pairs)} weights into")

    def add(name: str, piece: slice, weight: torch.Tensor) -> torch.Tensor:
        if name in trained:
            return _put_rows(weight, piece, trained[name])
        a, b = adapted[name]
        return weight + (b[piece].float() @ a.float()) * scale

    shapes = {name: (len(b), a.shape[1]) for name, (a, b) in adapted.items()}
    heights = {name: entry["shape"][0] for name, entry in read_entries(base).items()}
    shapes |= {name: (heights[name], rows.numbers.shape[1]) for name, rows in trained.items()}
    changes = []
    for shard in sorted(set(shards.values())):
        copy = temporary / shard.name
        shutil.copyfile(shard, copy)
        changes += base_copy.change_weights(copy, shapes, add)
    _require_change(changes, temporary)
    files.replace_folder(temporary, out)
    return {
        "merged": len(pairs),
        **({"trained_rows": sum(len(rows.ids) for rows in tables.values())} if tables else {}),
        "tensors": len(shards),
        "scale": scale,
        "largest_change": max(changes),
        "bytes": files.size_of(out),
    }


def _put_rows(weight: torch.Tensor, piece: slice, trained: Rows) -> torch.Tensor:
    """Return a table's piece with the trained rows that are in it."""
    inside = [n for n, token in enumerate(trained.ids) if piece.start <= token < piece.stop]
    if not inside:
        return weight
    places = torch.tensor([trained.ids[n] - piece.start for n in inside])
    return weight.index_copy(0, places, trained.numbers[inside].float())


def require_rows(merged: Path, adapter: Path) -> None:
    """Raise UserError unless a merged folder has the adapter's trained rows, each rounded once."""
    shards = locate_tensors(merged)
    weights = {canonical_name(name): name for name in shards}
    for module, trained in read_adapter(adapter).rows.items():
        name = weights[weight_of(module)]
        with safe_open(shards[name], "pt") as file:
            table = file.get_slice(name)
            for token, row in zip(trained.ids, trained.numbers, strict=True):
                found = table[token : token + 1][0]
                if not torch.equal(found, row.to(found.dtype)):
                    raise UserError(
                        f"The merged model lacks the trained row of token {token} in {name}: its "
                        f"answers would not end as the adapter's do. Export again; if it happens "
                        f"again, report this."
                    )


def _require_change(changes: list[float], merged: Path) -> None:
    """Raise UserError, without the folder, where rounding lost all that the adapter adds."""
    if not any(changes):
        shutil.rmtree(merged)
        raise UserError(
            "The merged weights are exactly the base's: all that the adapter adds to them is less "
            "than half a step of their 16 bits. Train for more steps, or with a higher "
            "learning_rate."
        )


def weight_of(module: str) -> str:
    """Return the weight that an adapter's module changes, without the model class's prefix."""
    return canonical_name(module) + ".weight"


def require_own_base(
    adapter: Path, base: Path, modules: Collection[str], weights: Collection[str]
) -> None:
    """Raise UserError unless the base has a weight, by canonical name, for each adapter module."""
    strangers = sorted(module for module in modules if weight_of(module) not in weights)
    if strangers:
        raise UserError(
            f"The adapter {files.format_path(adapter)} does not belong to the base "
            f"{files.format_path(base)}, which lacks {len(strangers)} of its {len(modules)} "
            f"modules, for example {', '.join(strangers[:3])}. Set base_model to the one it was "
            f"trained on."
        )


def read_adapter(folder: Path) -> Adapter:
    """Read a plain LoRA adapter as PEFT saves it; raise UserError for any other kind."""
    path = folder / "adapter_model.safetensors"
    if not path.is_file() or not (folder / "adapter_config.json").is_file():
        raise UserError(
            f"No adapter in {files.format_path(folder)}. Expected adapter_config.json and "
            "adapter_model.safetensors: run the training stage first."
        )
    config = files.read_json(folder / "adapter_config.json", "The adapter's configuration")
    halves, rows, odd_tensors = _read_tensors(path, config.get(start.ROWS))
    odd = _odd_settings(config) + odd_tensors
    if odd or not halves:
        raise UserError(
            f"The adapter {files.format_path(folder)} cannot be merged: "
            f"{', '.join(odd[:3]) or 'it has no tensors'}. "
            "Expected plain LoRA (no DoRA, no trained biases or whole embeddings)."
        )
    ranks = {half["A"].shape[0] for half in halves.values()}
    if ranks != {config["r"]}:
        raise UserError(
            f"The adapter {files.format_path(folder)} has ranks {sorted(ranks)}, but its "
            f"configuration says r={config['r']}. Expected one rank: the two files belong to "
            f"different trainings."
        )
    divisor = math.sqrt(config["r"]) if config.get("use_rslora") else config["r"]
    pairs = {module: (half["A"], half["B"]) for module, half in halves.items()}
    return Adapter(pairs, config["lora_alpha"] / divisor, rows)


def _odd_settings(config: dict[str, Any]) -> list[str]:
    odd = []
    if config.get("peft_type") != "LORA":
        odd.append(f"peft_type={config.get('peft_type')}")
    return odd + [f"{key}={config[key]}" for key in UNMERGEABLE if config.get(key)]


def _read_tensors(
    path: Path, indices: list[int] | dict[str, list[int]] | None
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Rows], list[str]]:
    """Return {module: {"A": tensor, "B": tensor}}, trained rows, and what a plain adapter lacks.

    `indices` are the rows' tokens: of all tables, or by the last part of the table's name.
    """
    halves: dict[str, dict[str, torch.Tensor]] = {}
    rows: dict[str, Rows] = {}
    odd = []
    for name, tensor in load_file(path).items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.(?:default\.)?weight", name)
        table = re.fullmatch(rf"base_model\.model\.(.+)\.{re.escape(end_row.STORED)}", name)
        if match:
            halves.setdefault(match[1], {})[match[2]] = tensor
        elif table and indices:
            own = indices[table[1].split(".")[-1]] if isinstance(indices, dict) else indices
            rows[table[1]] = Rows(own, tensor)
        else:
            odd.append(f"tensor {name}")
    odd += [f"only one half of {module}" for module, half in halves.items() if len(half) < 2]
    if indices and not rows:
        odd.append(f"no tensor for {start.ROWS}={indices}")
    return halves, rows, odd


def add_missing_shared_kv(folder: Path, base: Path | None = None) -> dict[str, int]:
    """Add k_proj, v_proj and k_norm that Gemma 3n's KV-shared layers lack, as an extra shard.

    transformers >= 5.6 neither loads nor saves them, and the converter does not complain, but
    llama.cpp refuses a file without them, although it does not use them. They come from the base if
    it has them; otherwise they are zeros (norms: ones). Return the counts {"from_base": n,
    "placeholder": n}.
    """
    config = read_text_config(folder)
    in_base = {}
    if base:
        in_base = {
            canonical_name(name): (path, name) for name, path in locate_tensors(base).items()
        }
    added = {}
    count = Counter(from_base=0, placeholder=0)
    for name in _missing_kv_names(config, locate_tensors(folder)):
        source = in_base.get(canonical_name(name))
        if source:
            path, name_in_base = source
            with safe_open(path, "pt") as file:
                added[name] = file.get_tensor(name_in_base)
            count["from_base"] += 1
        else:
            added[name] = _kv_placeholder(name, config)
            count["placeholder"] += 1
    if added:
        _save_extra_shard(folder, added)
    return dict(count)


def _missing_kv_names(config: dict[str, Any], names: Collection[str]) -> list[str]:
    layers = config["num_hidden_layers"]
    queries = {canonical_name(name): name for name in names if name.endswith("q_proj.weight")}
    missing = []
    for layer in range(layers - config.get("num_kv_shared_layers", 0), layers):
        query = queries[f"layers.{layer}.self_attn.q_proj.weight"]
        wanted = [query.replace("q_proj", part) for part in SHARED_KV]
        missing += [name for name in wanted if name not in names]
    return missing


def _kv_placeholder(name: str, config: dict[str, Any]) -> torch.Tensor:
    if name.endswith("k_norm.weight"):
        return torch.ones(config["head_dim"], dtype=torch.bfloat16)
    rows = config["num_key_value_heads"] * config["head_dim"]
    return torch.zeros(rows, config["hidden_size"], dtype=torch.bfloat16)


def _save_extra_shard(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    temporary = folder / f".{EXTRA_SHARD}.tmp"
    save_file(tensors, temporary, metadata={"format": "pt"})
    files.give_usual_permissions(temporary)
    os.replace(temporary, folder / EXTRA_SHARD)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        content = files.read_json(index, "The index of shards")
        content["weight_map"] |= dict.fromkeys(tensors, EXTRA_SHARD)
        files.write_json(index, content)
