"""Write a PEFT LoRA adapter as a small GGUF for llama.cpp's `--lora`, to use with one of the base.

written = gguf_lora.export_adapter(base, run.folder, {"q8_0": run.folder /
"gguf/mine-q8_0.gguf"}, prompts) # llama-cli -m base-q8_0.gguf --lora mine-lora.gguf
"""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from lib.common import files
from lib.common.errors import UserError
from lib.common.gguf_types import FILE_TYPES
from lib.common.redact import redacted
from lib.export import convert, gguf_export, gguf_file, gguf_plan, merge
from lib.export.gguf_file import Tensor
from lib.model import llama
from lib.model.shards import canonical_name, locate_tensors, read_text_config
from lib.record.run_record import Run

LIKELIEST = 10  # tokens compared after each prompt
# nats that rounding of the merged weights may cause; 0.01 to 0.05 were measured
ROUNDING = 0.05


def export_checked(
    run: Run,
    base: Path,
    merged_ggufs: dict[str, Path],
    prompts: list[list[int]],
    metadata: dict[str, Any],
) -> dict[str, Any]:
    """Call `export_adapter` for a run; if that fails, results.json says so."""
    try:
        return export_adapter(base, run.folder, merged_ggufs, prompts, metadata)
    except UserError as error:
        run.add_results("export", {"lora": {"failed": redacted(str(error))}})
        raise


def export_adapter(
    base: Path,
    run_folder: Path,
    merged_ggufs: dict[str, Path],
    prompts: list[list[int]],
    metadata: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a run's adapter to gguf/<run>-lora.gguf after proving it with a GGUF of the base.

    That GGUF is made only for `compare_with_merged`. merged_ggufs: {type: path}; if none of them is
    precise enough to show an adapter's effect, a Q8_0 of the merged folder is made too. metadata is
    as for `write_ggufs`. Return the results of both steps.
    """
    out = gguf_export.name_lora(run_folder)
    given = {**(metadata or {}), "name": out.stem}
    fields = {f"general.{key}": value for key, value in given.items()}
    precise = [kind for kind in FILE_TYPES if kind in merged_ggufs and FILE_TYPES[kind].precise]
    file_type = precise[0] if precise else "q8_0"
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".lora-", suffix=".tmp", dir=out.parent) as scratch:
        draft = Path(scratch) / out.name
        written = write_adapter(base, run_folder / "adapter", draft, fields)
        # a base saved by transformers lacks tensors that llama.cpp requires of a Gemma 3n
        completed = Path(scratch) / "base"
        convert.link_folder(base, completed)
        merge.add_missing_shared_kv(completed)
        base_gguf = Path(scratch) / "base.gguf"
        gguf_export.write_gguf(completed, base_gguf, file_type)
        if precise:
            merged_gguf = merged_ggufs[file_type]
        else:
            merged_gguf = Path(scratch) / "merged.gguf"
            gguf_export.write_gguf(run_folder / "merged", merged_gguf, file_type)
        compared = compare_with_merged(base_gguf, draft, merged_gguf, prompts)
        os.replace(draft, out)
    return {**written, **compared, "compared_in": file_type}


def write_adapter(
    base: Path, adapter: Path, out: Path, metadata: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Write a plain LoRA adapter on a base folder as pairs of float32 tensors.

    Their names are `<tensor>.lora_a` [rank, in] and `<tensor>.lora_b` [out, rank].
    llama.cpp scales B @ A by alpha / rank, so alpha includes rsLoRA's scale. metadata:
    {general.* key: str or int}. Returns {"pairs", "alpha", "rank", "bytes", "sha256", "seconds"};
    Raise UserError for an adapter of another base or kind.
    """
    begin = time.monotonic()
    pairs, scale = merge.read_adapter(adapter)
    architecture = gguf_plan.architecture_of(read_text_config(base)["model_type"])
    halves = _name_halves(base, adapter, pairs)
    rank = next(iter(pairs.values()))[0].shape[0]
    alpha = float(scale * rank)
    fields = {
        "general.architecture": architecture,
        "general.type": "adapter",
        "general.name": out.stem,
        "adapter.type": "lora",
        "adapter.lora.alpha": alpha,
        **(metadata or {}),
    }
    content = _encode_file(fields, halves)
    out.parent.mkdir(parents=True, exist_ok=True)
    files.require_disk(out.parent, len(content), "the GGUF adapter")
    files.atomic_write(out, content)
    return {
        "pairs": len(pairs),
        "alpha": alpha,
        "rank": rank,
        "bytes": out.stat().st_size,
        "sha256": files.sha256(out),
        "seconds": round(time.monotonic() - begin, 1),
    }


def _name_halves(
    base: Path, adapter: Path, pairs: dict[str, tuple[torch.Tensor, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """Name the adapter's tensors as llama.cpp does.

    Raise UserError when the base has no such weights.
    """
    config = read_text_config(base)
    architecture = gguf_plan.architecture_of(config["model_type"])
    mapped = gguf_plan.map_names(locate_tensors(base), config["num_hidden_layers"], architecture)
    names = {canonical_name(name): new for name, new in mapped.items()}
    merge.require_own_base(adapter, base, pairs, names)
    halves = {}
    for module in sorted(pairs):
        a, b = pairs[module]
        name = names[merge.weight_of(module)]
        halves[f"{name}.lora_a"] = a.float().contiguous()
        halves[f"{name}.lora_b"] = b.float().contiguous()
    return halves


def _encode_file(metadata: dict[str, Any], tensors: dict[str, torch.Tensor]) -> bytes:
    """Return the bytes of a GGUF of float32 tensors."""
    pairs = {key: gguf_file.encode_pair(key, value) for key, value in metadata.items()}
    entries = [Tensor(name, tuple(t.shape[::-1]), "F32") for name, t in tensors.items()]
    head, placed = gguf_file.build_header(pairs, entries)
    content = bytearray(head)
    for entry, tensor in zip(placed, tensors.values(), strict=True):
        content += bytes(entry.offset - len(content))
        content += tensor.numpy().tobytes()
    return bytes(content.ljust(gguf_file.pad(len(content)), b"\0"))


def compare_with_merged(
    base_gguf: Path, lora_gguf: Path, merged_gguf: Path, prompts: list[list[int]]
) -> dict[str, Any]:
    """Compare base and adapter in llama.cpp with the merged GGUF after each prompt.

    The log-probabilities of the ten likeliest next tokens are compared. Return {"prompts",
    "same_first", "apart", "apart_without"}; the last two are mean differences in nats with the
    adapter and without it. Raise UserError when the adapter does not bring the base most of the way
    to the merged model.
    """
    merged = _predict_next(merged_gguf, prompts)
    without = _predict_next(base_gguf, prompts)
    adapted = _predict_next(base_gguf, prompts, lora_gguf)
    result = {
        "prompts": len(prompts),
        "apart": _mean_gap(adapted, merged),
        "apart_without": _mean_gap(without, merged),
        "same_first": sum(
            max(ours, key=ours.__getitem__) == max(theirs, key=theirs.__getitem__)
            for ours, theirs in zip(adapted, merged, strict=True)
        ),
    }
    if result["apart"] > result["apart_without"] / 4 + ROUNDING:
        raise UserError(
            f"{files.format_path(lora_gguf)} on {files.format_path(base_gguf)} is "
            f"{result['apart']:.3f} nats from {files.format_path(merged_gguf)} "
            f"({result['apart_without']:.3f} without it). Expected a quarter of that or less: use "
            "the base it was trained on, and files of one export."
        )
    return result


def _mean_gap(ours: list[dict[int, float]], theirs: list[dict[int, float]]) -> float:
    """Return the mean difference in nats at their likeliest tokens.

    A token that ours do not include counts as the least likely of ours.
    """
    gaps = []
    for our_tokens, their_tokens in zip(ours, theirs, strict=True):
        last = min(our_tokens.values())
        likeliest = sorted(their_tokens.items(), key=lambda item: -item[1])[:LIKELIEST]
        gaps += [abs(value - our_tokens.get(token, last)) for token, value in likeliest]
    return sum(gaps) / len(gaps)


def _predict_next(
    gguf: Path, prompts: list[list[int]], lora: Path | None = None
) -> list[dict[int, float]]:
    """Return {token id: log-probability} of the 1,000 likeliest tokens after each prompt."""
    with llama.load_gguf(gguf, lora=lora) as engine:
        return [engine.next_token_logprobs(prompt) for prompt in prompts]
