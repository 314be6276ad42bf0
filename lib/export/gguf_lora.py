"""A PEFT LoRA adapter as a GGUF for llama.cpp's `--lora`: the base stays one file, and adapters of some MB go beside it.

verified("base", "runs/mine", {"q8_0": "runs/mine/gguf/mine-q8_0.gguf"}, prompts)     # the two below, in one
adapter_to_gguf("base", "adapter", "adapter-lora.gguf")
compare("base-q8_0.gguf", "adapter-lora.gguf", "merged-q8_0.gguf", prompts)
# llama-cli -m base-q8_0.gguf --lora adapter-lora.gguf
"""

import os
import tempfile
import time
from pathlib import Path

from lib.common import files
from lib.common.errors import UserError
from lib.export import gguf, gguf_file, gguf_names, merge
from lib.export.gguf_file import Tensor
from lib.model import llama
from lib.model.shards import canonical_name, locate_tensors, read_text_config


def adapter_to_gguf(base_dir, adapter_dir, out_file, metadata=None):
    """Write a plain LoRA adapter of the base folder as float32 pairs `<tensor>.lora_a` [rank, in], `.lora_b` [out, rank].

    llama.cpp scales B @ A by alpha / rank, so alpha carries rsLoRA's scale too. metadata: {general.* key: str or int}.
    Returns {"pairs", "alpha", "rank", "bytes", "sha256", "seconds"}; UserError for an adapter of another base or kind.
    """
    base, adapter, out, begin = Path(base_dir), Path(adapter_dir), Path(out_file), time.monotonic()
    pairs, scale = merge.read_adapter(adapter)
    config = read_text_config(base)
    architecture = config["model_type"].removesuffix("_text")
    shards = {canonical_name(name): name for name in locate_tensors(base)}
    names = gguf_names.gguf_names(shards.values(), config["num_hidden_layers"], architecture)
    strangers = sorted(
        name for name in pairs if shards.get(canonical_name(name) + ".weight") not in names
    )
    if strangers:
        raise UserError(
            f"The adapter {files.shown(adapter)} does not belong to the base {files.shown(base)}: "
            f"{len(strangers)} of its {len(pairs)} modules are not there, for example "
            f"{', '.join(strangers[:3])}. Set base_model to the one it was trained on."
        )
    rank = next(iter(pairs.values()))[0].shape[0]
    facts = {
        "general.architecture": architecture,
        "general.type": "adapter",
        "general.name": out.stem,
        "adapter.type": "lora",
        "adapter.lora.alpha": float(scale * rank),
        **(metadata or {}),
    }
    halves = {
        f"{names[shards[canonical_name(name) + '.weight']]}.lora_{half}": tensor.float().contiguous()
        for name, pair in sorted(pairs.items())
        for half, tensor in zip("ab", pair, strict=True)
    }
    tensors = [Tensor(name, tuple(tensor.shape[::-1]), "F32") for name, tensor in halves.items()]
    data, placed = gguf_file.head(
        {key: gguf_file.pair(key, value) for key, value in facts.items()}, tensors
    )
    content = bytearray(data)
    for place, tensor in zip(placed, halves.values(), strict=True):
        content += bytes(place.offset - len(content)) + tensor.numpy().tobytes()
    out.parent.mkdir(parents=True, exist_ok=True)
    files.require_disk(out.parent, len(content), "the GGUF adapter")
    files.atomic_write(out, bytes(content.ljust(gguf_file.padded(len(content)), b"\0")))
    return {
        "pairs": len(pairs),
        "alpha": facts["adapter.lora.alpha"],
        "rank": rank,
        "bytes": out.stat().st_size,
        "sha256": files.sha256(out),
        "seconds": round(time.monotonic() - begin, 1),
    }


def verified(base_dir, run_folder, merged_ggufs, prompts, metadata=None):
    """`adapter_to_gguf` of a run into gguf/<run>-lora.gguf, named only after `compare`, on a GGUF of the base that is made for this alone.

    merged_ggufs: {type: path}; where none of them is of 8 bits or more, a Q8_0 is made of the merged folder too, since what four bits
    lose hides an adapter. metadata as `export.to_ggufs` takes it. Returns both results.
    """
    run, kind = (
        Path(run_folder),
        next((kind for kind in ("f16", "bf16", "q8_0") if kind in merged_ggufs), ""),
    )
    out = run / "gguf" / f"{run.name}-lora.gguf"
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".lora-", suffix=".tmp", dir=out.parent) as scratch:
        draft, base, merged = (
            Path(scratch) / name for name in (out.name, "base.gguf", "merged.gguf")
        )
        fields = {
            f"general.{key}": value for key, value in {**(metadata or {}), "name": out.stem}.items()
        }
        written = adapter_to_gguf(base_dir, run / "adapter", draft, fields)
        gguf.to_gguf(_whole(base_dir, Path(scratch) / "base"), base, kind or "q8_0")
        if not kind:
            gguf.to_gguf(run / "merged", merged, "q8_0")
        found = compare(base, draft, merged_ggufs[kind] if kind else merged, prompts)
        os.replace(draft, out)
    return {**written, **found, "compared_in": kind or "q8_0"}


def _whole(base_dir, folder):
    """A folder of links to a base's files, with what llama.cpp asks of a Gemma 3n and a base saved by transformers lacks."""
    folder.mkdir()
    for path in Path(base_dir).iterdir():
        (folder / path.name).symlink_to(path.resolve())
    merge.missing_shared_kv(folder)
    return folder


def compare(base_gguf, lora_gguf, merged_gguf, prompts):
    """Hold base + adapter in llama.cpp against the merged GGUF: log-probabilities of the ten likeliest next tokens.

    Returns {"prompts", "same_first", "apart", "apart_without"}, the last two mean differences in nats with the adapter
    and without it; UserError when the adapter does not bring the base most of the way to the merged model.
    """
    merged, without, adapted = (
        _next(path, prompts, lora)
        for path, lora in ((merged_gguf, None), (base_gguf, None), (base_gguf, lora_gguf))
    )

    def apart(found):
        gaps = [
            abs(value - ours.get(token, min(ours.values())))
            for ours, theirs in zip(found, merged, strict=True)
            for token, value in sorted(theirs.items(), key=lambda item: -item[1])[:10]
        ]
        return sum(gaps) / len(gaps)

    result = {
        "prompts": len(prompts),
        "apart": apart(adapted),
        "apart_without": apart(without),
        "same_first": sum(
            max(a, key=a.get) == max(b, key=b.get) for a, b in zip(adapted, merged, strict=True)
        ),
    }
    if (
        result["apart"] > result["apart_without"] / 4 + 0.05
    ):  # rounding of the merged weights: 0.01 to 0.05 nats
        raise UserError(
            f"{files.shown(Path(lora_gguf))} on {files.shown(Path(base_gguf))} is {result['apart']:.3f} nats from "
            f"{files.shown(Path(merged_gguf))} ({result['apart_without']:.3f} without it). Expected a quarter of that "
            "or less: use the base it was trained on, and files of one export."
        )
    return result


def _next(path, prompts, lora):
    """[{token id: log-probability}] of the 1,000 likeliest tokens after each prompt."""
    with llama.load_gguf(path, lora=lora) as engine:
        return [engine.next_token_logprobs(prompt) for prompt in prompts]
