"""merged/ after full fine-tuning: the trained weights rounded once, all else the base's, damage refused.

python -m pytest tests/export/merging
"""

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import adapters, tiny_gemma3
from helpers.tiny_models import make_multimodal, write_shards
from lib.common.errors import UserError
from lib.export import merge
from lib.export.merging import base_copy, full_weights
from lib.model.shards import canonical_name, is_language


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory):
    return tiny_gemma3.build(tmp_path_factory.mktemp("gemma3") / "base")


def train(base, folder, seed=3):
    """Write weights/ as training does: every weight of the base, moved by less than a percent."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        canonical_name(name): t.float() * (1 + 0.01 * torch.randn(t.shape, generator=generator))
        for name, t in adapters.read_weights(base).items()
        if is_language(name) and not is_shared_kv(name)
    }
    (folder / "weights").mkdir(parents=True)
    save_file(tensors, folder / "weights" / "model.safetensors")
    return folder / "weights"


def is_shared_kv(name):
    layer = name.split("layers.")[-1].split(".")[0]
    parts = ("k_proj.weight", "v_proj.weight", "k_norm.weight")
    return layer.isdigit() and int(layer) >= 20 and name.endswith(parts)


def same(ours, theirs):
    return torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_weight_is_the_trained_one_rounded_once(tmp_path, dtype):
    base = tiny_gemma3.build(tmp_path / "base", dtype)
    weights = train(base, tmp_path)
    result = merge.make_merged(base, weights, tmp_path / "merged")
    trained = load_file(weights / "model.safetensors")
    merged = adapters.read_weights(tmp_path / "merged")
    assert merged.keys() == adapters.read_weights(base).keys()
    for name, weight in merged.items():
        assert same(weight, trained[canonical_name(name)].to(getattr(torch, dtype))), name
    assert result["merged"] == result["as trained"] == len(merged)
    assert result["largest_change"] > 0


def test_towers_and_unread_keys_of_a_multimodal_base_stay(tiny_gemma3n, tmp_path):
    base = make_multimodal(tiny_gemma3n, tmp_path / "base", shards=2)
    weights = train(base, tmp_path)
    result = merge.make_merged(base, weights, tmp_path / "merged")
    before, after = adapters.read_weights(base), adapters.read_weights(tmp_path / "merged")
    assert before.keys() == after.keys()
    kept = {name for name in before if same(before[name], after[name])}
    assert kept == {name for name in before if not is_language(name) or is_shared_kv(name)}
    assert result["as in the base"] == len(kept) == 6 + 15
    assert (tmp_path / "merged" / "model.safetensors.index.json").is_file()


def test_a_table_that_the_files_have_twice_is_trained_in_both_places(gemma3, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    for path in gemma3.iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    write_shards(base, tensors)
    weights = train(gemma3, tmp_path)
    merge.make_merged(base, weights, tmp_path / "merged")
    merged = adapters.read_weights(tmp_path / "merged")
    assert same(merged["lm_head.weight"], merged["model.embed_tokens.weight"])
    assert not same(merged["lm_head.weight"], tensors["lm_head.weight"])


def test_an_output_layer_of_its_own_keeps_its_own_numbers(tmp_path):
    base = tiny_gemma3.build(tmp_path / "base", tied=False)
    weights = train(base, tmp_path)
    merge.make_merged(base, weights, tmp_path / "merged")
    trained = load_file(weights / "model.safetensors")
    merged = adapters.read_weights(tmp_path / "merged")
    assert same(merged["lm_head.weight"], trained["lm_head.weight"].bfloat16())


def test_pieces_of_a_large_table_come_together(gemma3, tmp_path, monkeypatch):
    monkeypatch.setattr(base_copy, "PIECE", 1000)  # a few rows at a time, the last piece shorter
    monkeypatch.setattr(full_weights, "READ_AT_ONCE", 4096)
    weights = train(gemma3, tmp_path)
    merge.make_merged(gemma3, weights, tmp_path / "merged")
    trained = load_file(weights / "model.safetensors")
    for name, weight in adapters.read_weights(tmp_path / "merged").items():
        assert same(weight, trained[canonical_name(name)].bfloat16()), name


@pytest.fixture(scope="module")
def done(gemma3, tmp_path_factory):
    folder = tmp_path_factory.mktemp("done")
    weights = train(gemma3, folder)
    merge.make_merged(gemma3, weights, folder / "merged")
    return weights, folder / "merged" / "model.safetensors"


def flip(name, tensors):
    flat = tensors[name].view(torch.uint8).flatten()
    flat[len(flat) // 2] ^= 1  # the last bit of one number


def base_value(name, tensors):
    tensors[name][-1] += 0.25


def drop(name, tensors):
    del tensors[name]


@pytest.mark.parametrize("damage", [flip, base_value, drop])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.embed_tokens.weight"])
def test_planted_damage_is_found(gemma3, done, tmp_path, damage, name):
    weights, merged = done
    full_weights.verify(weights, gemma3, merged.parent)
    for path in merged.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(merged)
    damage(name, tensors)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"is not what was trained: 1 of \d+ tensors .* {name}"):
        full_weights.verify(weights, gemma3, tmp_path)


def test_damage_while_it_is_written_leaves_no_merged_folder(gemma3, tmp_path, monkeypatch):
    change = base_copy.change_weights

    def careless(path, wanted, replace):
        return change(path, wanted, lambda n, rows, w: replace(n, rows, w).to(torch.float8_e4m3fn))

    monkeypatch.setattr(base_copy, "change_weights", careless)
    weights = train(gemma3, tmp_path)
    with pytest.raises(UserError, match="is not what was trained"):
        merge.make_merged(gemma3, weights, tmp_path / "merged")
    assert not [path.name for path in tmp_path.iterdir() if "merged" in path.name]


def test_weights_that_changed_nothing_or_are_anothers_are_refused(gemma3, tiny_gemma3n, tmp_path):
    tensors = {canonical_name(n): t.float() for n, t in adapters.read_weights(gemma3).items()}
    (tmp_path / "same").mkdir()
    (tmp_path / "same" / "weights").mkdir()
    save_file(tensors, tmp_path / "same" / "weights" / "model.safetensors")
    with pytest.raises(UserError, match="exactly the base's once they are rounded"):
        merge.make_merged(gemma3, tmp_path / "same" / "weights", tmp_path / "same" / "merged")
    tensors["layers.0.self_attn.q_proj.weight"] = torch.ones(4, 4)
    (tmp_path / "other" / "weights").mkdir(parents=True)
    save_file(tensors, tmp_path / "other" / "weights" / "model.safetensors")
    with pytest.raises(UserError, match=r"\[4, 4\] was trained. Set base_model"):
        merge.make_merged(gemma3, tmp_path / "other" / "weights", tmp_path / "other" / "merged")
    with pytest.raises(UserError, match="do not belong to the base .* which lacks"):
        merge.make_merged(gemma3, train(tiny_gemma3n, tmp_path), tmp_path / "merged")
