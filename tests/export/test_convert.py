"""The converter, and the embeddings that bypass it.

python -m pytest tests/export/test_convert.py
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib.export import (
    convert,
    gguf_file,
    gguf_plan,
    gguf_weights,
    quantise,
)


@pytest.mark.slow
def test_embeddings_that_go_past_the_converter_are_the_folders(base, whole, tmp_path, monkeypatch):
    """This is how Gemma 3n E4B is converted. As there, the word table is longer than the per-layer one, which is padded."""
    monkeypatch.setattr(convert, "LARGE", 1 << 18)
    monkeypatch.setattr(convert, "PIECE", 1 << 20)
    folder = shutil.copytree(base, tmp_path / "longer")
    tensors, config = (
        load_file(folder / "model.safetensors"),
        json.loads((folder / "config.json").read_text()),
    )
    word = next(name for name in tensors if name.endswith("embed_tokens.weight"))
    save_file(
        tensors | {word: torch.cat([tensors[word], tensors[word][:8]])},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    (folder / "config.json").write_text(
        json.dumps(config | {"vocab_size": config["vocab_size"] + 8})
    )
    fields = convert.convert_unpacked(folder, tmp_path / "whole.gguf")
    last = sorted(
        gguf_file.read_header(tmp_path / "whole.gguf").tensors, key=lambda tensor: tensor.offset
    )[-2:]
    assert {(tensor.name, tensor.rows) for tensor in last} == {
        (name, 2056) for name in gguf_plan.EMBEDDINGS
    }
    quantise.quantise(tmp_path / "whole.gguf", tmp_path / "bf16.gguf", "bf16", fields)
    assert gguf_weights.compare_weights(tmp_path / "bf16.gguf", "bf16", folder)["worst"] == {
        "BF16": 0,
        "F32": 0,
    }
    ours, usual = (gguf_file.read_header(path) for path in (tmp_path / "bf16.gguf", whole))
    assert [t.name for t in ours.tensors] == [t.name for t in usual.tensors]
    assert (
        ours.metadata["general.size_label"] == usual.metadata["general.size_label"]
    )  # the converter's own
    assert {path.name for path in tmp_path.iterdir()} == {"longer", "whole.gguf", "bf16.gguf"}
