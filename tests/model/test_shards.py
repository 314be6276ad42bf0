"""Which tensor is in which file of a model folder, and its configuration.

python -m pytest tests/model/test_shards.py
"""

import json

import pytest
import torch
from safetensors.torch import load_file

from helpers.tiny_models import write_shards
from lib.common.errors import UserError
from lib.model import shards


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("model.layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight"),
        ("model.language_model.layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight"),
        ("language_model.model.layers.0.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("model.vision_tower.conv.weight", "model.vision_tower.conv.weight"),
        ("audio_tower.conv.weight", "audio_tower.conv.weight"),
        ("model.embed_audio.embedding.weight", "model.embed_audio.embedding.weight"),
    ],
)
def test_only_the_language_models_names_lose_their_prefix(name, canonical):
    assert shards.canonical_name(name) == canonical


@pytest.mark.parametrize("count", [1, 3])
def test_every_tensor_is_located_in_one_file_or_in_several(tmp_path, count):
    tensors = {f"model.layers.{n}.weight": torch.full((n + 1, 2), float(n)) for n in range(5)}
    write_shards(tmp_path, tensors, count)
    located = shards.locate_tensors(tmp_path)
    assert located.keys() == tensors.keys()
    assert len(set(located.values())) == count
    assert all(torch.equal(load_file(path)[name], tensors[name]) for name, path in located.items())
    assert shards.weight_bytes(tmp_path) == sum(p.stat().st_size for p in set(located.values()))


def test_a_missing_shard_is_named(tmp_path):
    with pytest.raises(UserError, match=r"has no model\.safetensors\. Expected a complete"):
        shards.locate_tensors(tmp_path)
    write_shards(tmp_path, {f"t{n}": torch.ones(1) for n in range(4)}, 2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model-00002-of-00002\.safetensors\. Expected"):
        shards.locate_tensors(tmp_path)


def test_a_header_says_where_each_tensors_bytes_lie(tmp_path):
    write_shards(tmp_path, {"t": torch.tensor([1.0, 2.0])})
    with open(tmp_path / "model.safetensors", "rb") as file:
        start, header = shards.read_header(file)
        begin, end = header["t"]["data_offsets"]
        file.seek(start + begin)
        data = file.read(end - begin)
    assert (header["t"]["dtype"], header["t"]["shape"]) == ("F32", [2])
    assert torch.frombuffer(bytearray(data), dtype=torch.float32).tolist() == [1.0, 2.0]


def test_the_text_configuration_is_the_language_models_part(tmp_path):
    with pytest.raises(UserError, match=r"has no config\.json"):
        shards.read_text_config(tmp_path)
    for config in ({"hidden_size": 8}, {"text_config": {"hidden_size": 8}, "vision_config": {}}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert shards.read_text_config(tmp_path) == {"hidden_size": 8}
