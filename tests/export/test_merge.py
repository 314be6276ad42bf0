"""The adapter merged into its base, on a tiny Gemma 3n with the true architecture.

python -m pytest tests/export/test_merge.py
"""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from helpers import adapters, export_runs, tiny_gemma3
from lib.common.errors import UserError
from lib.export import merge


def test_tiny_model_is_lively_and_its_cache_agrees(tiny_gemma3n):
    model = AutoModelForCausalLM.from_pretrained(tiny_gemma3n, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(tiny_gemma3n)(
        export_runs.TEXT, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        first = model(ids[:, :8], use_cache=True)
        parts = [first.logits] + [
            model(ids[:, i : i + 1], past_key_values=first.past_key_values, use_cache=True).logits
            for i in range(8, ids.shape[1])
        ]
    assert torch.isfinite(whole).all()
    assert whole.std() > 0.5
    assert whole.argmax(-1).unique().numel() > 5
    assert torch.allclose(
        whole, torch.cat(parts, 1), atol=1e-3
    )  # K/V sharing, as transformers < 5.6 had it wrong


def test_a_few_lora_steps_reduce_the_loss(trained):
    assert trained[1][-1] < 0.8 * trained[1][0]


@pytest.mark.parametrize("rslora", [False, True])
def test_merge_is_what_peft_merges(tiny_gemma3n, tmp_path, rslora):
    adapter = adapters.save_random(tiny_gemma3n, tmp_path / "adapter", use_rslora=rslora)
    result = merge.merge_adapter(tiny_gemma3n, adapter, tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tiny_gemma3n, dtype=torch.bfloat16)
    theirs = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    ours, base = adapters.read_weights(tmp_path / "merged"), adapters.read_weights(tiny_gemma3n)
    assert ours.keys() == base.keys()
    assert result["merged"] == 165
    changed = {name for name in ours if not torch.equal(ours[name], base[name])}
    assert len(changed) == 165
    for name, tensor in ours.items():  # bf16 patterns of one sign count up: neighbours differ by 1
        apart = (tensor.view(torch.int16).int() - theirs[name].view(torch.int16).int()).abs()
        assert apart.max() <= 1, name
        assert (apart > 0).float().mean() < 0.001, name


def test_merge_keeps_the_whole_folder(tiny_gemma3n, exported):
    merged = exported[0] / "merged"
    for name in (
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ):
        assert (merged / name).read_bytes() == (tiny_gemma3n / name).read_bytes()
    assert exported[1]["merge"]["merged"] == 165
    assert exported[1]["merge"]["largest_change"] > 0
    assert not [path for path in exported[0].rglob("*") if path.name.endswith((".tmp", ".old"))]
    loaded, notes = AutoModelForCausalLM.from_pretrained(merged, output_loading_info=True)
    assert not notes["missing_keys"]
    assert loaded.num_parameters() > 34e6
    before = AutoTokenizer.from_pretrained(tiny_gemma3n)
    assert (
        AutoTokenizer.from_pretrained(merged)(export_runs.TEXT).input_ids
        == before(export_runs.TEXT).input_ids
    )


def test_sharded_base_with_its_own_shared_kv_and_multimodal_names(
    tiny_gemma3n, trained, exported, tmp_path
):
    """The published checkpoint's shape: several shards, an index, language_model in the names, K/V in all layers."""
    base, full = tmp_path / "base", tmp_path / "full"
    shutil.copytree(tiny_gemma3n, full)
    assert merge.add_missing_shared_kv(full) == {"from_base": 0, "placeholder": 15}
    shutil.copytree(full, base, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.manual_seed(2)
    extra = load_file(full / "model-shared-kv.safetensors")
    own = {name: torch.randn(tensor.shape).bfloat16() for name, tensor in extra.items()}
    tensors = {
        adapters.multimodal_name(name): tensor
        for name, tensor in (adapters.read_weights(full) | own).items()
    }
    adapters.write_shards(tensors, base)

    assert merge.merge_adapter(base, trained[0], tmp_path / "merged")["merged"] == 165
    merged, simple = (
        adapters.read_weights(tmp_path / "merged"),
        load_file(exported[0] / "merged" / "model.safetensors"),
    )
    assert merged.keys() == tensors.keys()
    assert all(torch.equal(merged[adapters.multimodal_name(name)], simple[name]) for name in simple)
    assert all(torch.equal(merged[adapters.multimodal_name(name)], own[name]) for name in own)
    assert merge.add_missing_shared_kv(tmp_path / "merged") == {"from_base": 0, "placeholder": 0}

    # as save_pretrained leaves it: the base gives what is missing, and the index names it
    shutil.copytree(tiny_gemma3n, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    adapters.write_shards(adapters.read_weights(tiny_gemma3n), tmp_path / "bare")
    assert merge.add_missing_shared_kv(tmp_path / "bare", base) == {
        "from_base": 15,
        "placeholder": 0,
    }
    filled = adapters.read_weights(tmp_path / "bare")
    assert all(torch.equal(filled[name], own[name]) for name in own)
    assert (
        json.loads((tmp_path / "bare" / adapters.INDEX).read_text())["weight_map"].keys()
        == filled.keys()
    )

    (base / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00003"):
        merge.merge_adapter(base, trained[0], tmp_path / "merged")
    assert adapters.read_weights(tmp_path / "merged").keys() == tensors.keys(), (
        "a failed merge must leave the earlier one alone"
    )


def test_adapters_that_do_not_fit_are_refused(tiny_gemma3n, trained, tmp_path):
    good, tensors, up = (
        trained[0],
        (lambda t: t),
        "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight",
    )
    other = adapters.edit(
        good,
        tmp_path / "other",
        lambda t: {name.replace("layers.3.", "layers.93."): v for name, v in t.items()},
    )
    wide = adapters.edit(good, tmp_path / "wide", lambda t: t | {up: torch.cat([t[up], t[up]], 1)})
    dora = adapters.edit(good, tmp_path / "dora", tensors, use_dora=True)
    rank = adapters.edit(good, tmp_path / "rank", tensors, r=16)
    more = adapters.edit(
        good, tmp_path / "more", lambda t: t | {"base_model.model.lm_head.weight": torch.ones(2, 2)}
    )
    nan = adapters.edit(
        good, tmp_path / "nan", lambda t: {n: v * float("nan") for n, v in t.items()}
    )
    cases = (
        (other, r"does not belong .*layers\.93"),
        (wide, r"up_proj.* shape \[512, 256\]"),
        (dora, "use_dora"),
        (rank, "r=16"),
        (more, "lm_head"),
        (nan, "not finite"),
        (tmp_path / "none", "No adapter"),
    )
    for folder, said in cases:
        with pytest.raises(UserError, match=said):
            merge.merge_adapter(tiny_gemma3n, folder, tmp_path / "merged")
        assert not (tmp_path / "merged").exists()

    quantised = tmp_path / "quantised"
    shutil.copytree(tiny_gemma3n, quantised)
    packed = {
        n: v.to(torch.uint8) if n.endswith("q_proj.weight") else v
        for n, v in adapters.read_weights(tiny_gemma3n).items()
    }
    save_file(packed, quantised / "model.safetensors")
    with pytest.raises(UserError, match="stored as U8: the base is quantised"):
        merge.merge_adapter(quantised, good, tmp_path / "merged")


@pytest.mark.parametrize(
    ("generation", "ends"),
    [
        (None, [1, 6]),  # transformers would stop at config.json's <eos> alone
        ({"eos_token_id": 1, "top_k": 64}, [1, 6]),  # as of a pretrained base
        ({"eos_token_id": [6, 1]}, [6, 1]),
        ({"bos_token_id": 2}, [1, 6]),
    ],
)
def test_the_merged_model_stops_at_the_end_of_a_turn(tmp_path, generation, ends):
    base = tiny_gemma3.build(tmp_path / "base")
    path = base / "generation_config.json"
    path.unlink() if generation is None else path.write_text(json.dumps(generation))
    adapters.save_random(base, tmp_path / "adapter")
    merge.make_merged(base, tmp_path / "adapter", tmp_path / "merged")
    config = GenerationConfig.from_pretrained(tmp_path / "merged")
    assert config.eos_token_id == ends
    assert config.top_k == (generation or {}).get("top_k", GenerationConfig().top_k)
    if generation is None:
        assert (config.bos_token_id, config.pad_token_id) == (2, 0)


def test_an_adapter_that_rounding_loses_is_refused(tiny_gemma3n, tmp_path):
    """A very small learning rate leaves numbers that are not zero and change no 16-bit weight."""
    base = shutil.copytree(tiny_gemma3n, tmp_path / "base")
    weights = adapters.read_weights(base)
    # a drawn weight may be 0, where even the smallest change is not rounded away
    weights = {name: tensor.where(tensor != 0, 1e-3) for name, tensor in weights.items()}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    adapter = adapters.save_random(base, tmp_path / "adapter")
    small = adapters.edit(
        adapter,
        tmp_path / "small",
        lambda tensors: {n: t * 1e-12 if "lora_B" in n else t for n, t in tensors.items()},
    )
    with pytest.raises(UserError, match="exactly the base's"):
        merge.merge_adapter(base, small, tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir() if "merged" in path.name] == []


# --------------------------------------------------------------------------------------------------
# a trained row

ROW = 106  # of both tiny vocabularies


def save_with_row(base, folder, tied=True):
    """Save a random adapter with a trained row of the embedding, and of an untied output layer."""
    rows = [ROW] if tied else {"embed_tokens": [ROW], "lm_head": [ROW]}
    adapters.save_random(base, folder / "plain", trainable_token_indices=rows)
    generator = torch.Generator().manual_seed(3)

    def shake(tensors):
        return {
            name: torch.randn(t.shape, generator=generator) if "token_adapter" in name else t
            for name, t in tensors.items()
        }

    return adapters.edit(folder / "plain", folder / "adapter", shake)


@pytest.mark.parametrize(
    "kind",
    [pytest.param("Gemma 3n", marks=pytest.mark.slow), "Gemma 3", "Gemma 3, untied"],
)
def test_a_merged_row_gives_the_adapters_logits_and_is_all_that_changes_in_the_tables(
    kind, tiny_gemma3n, tmp_path
):
    tied = "untied" not in kind
    base = tiny_gemma3n if "3n" in kind else tiny_gemma3.build(tmp_path / "base", tied=tied)
    adapter = save_with_row(base, tmp_path, tied)
    report = merge.make_merged(base, adapter, tmp_path / "merged")
    assert report["trained_rows"] == (1 if tied else 2)
    ours, before = adapters.read_weights(tmp_path / "merged"), adapters.read_weights(base)
    tables = [name for name in before if name.endswith(("embed_tokens.weight", "lm_head.weight"))]
    assert len(tables) == (1 if tied else 2)
    for name in tables:
        rows = (ours[name] != before[name]).any(1).nonzero()[:, 0]
        assert rows.tolist() == [ROW]
    ids = torch.tensor([[2, 50, ROW, 60, ROW, 70]])
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(theirs, adapter)
    with torch.no_grad():
        wanted, found = theirs(ids).logits, merged(ids).logits
    for ours, true in ((found, wanted), (found[..., ROW], wanted[..., ROW])):
        assert (ours - true).norm() < 0.03 * true.norm()  # the weights' rounding to 16 bits


@pytest.fixture
def with_row(tmp_path):
    """Return a tied Gemma 3 and an adapter with a trained row."""
    base = tiny_gemma3.build(tmp_path / "base")
    return base, save_with_row(base, tmp_path)


def test_a_row_that_is_lost_in_the_merge_stops_the_export(with_row, tmp_path, monkeypatch):
    base, adapter = with_row
    monkeypatch.setattr(merge, "_put_rows", lambda weight, piece, trained: weight)
    with pytest.raises(UserError, match="lacks the trained row of token 106"):
        merge.make_merged(base, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_row_without_its_tensor_or_setting_is_refused(with_row, tmp_path):
    base, adapter = with_row
    for number, (change, config, told) in enumerate(
        (
            (
                lambda t: {n: w for n, w in t.items() if "token_adapter" not in n},
                {},
                "no tensor for",
            ),
            (lambda t: t, {"trainable_token_indices": None}, "tensor base_model.model"),
        )
    ):
        wrong = adapters.edit(adapter, tmp_path / f"wrong{number}", change, **config)
        with pytest.raises(UserError, match=told):
            merge.merge_adapter(base, wrong, tmp_path / "merged")
