"""Merge, complete, convert, check and verify, on a tiny Gemma 3n with the true architecture.

python -m pytest tests/test_export.py
"""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lib.common.errors import UserError
from lib.export import gguf_export, merge
from lib.params import Params

TARGETS = r".*layers\.\d+\.(?:self_attn\.(?:q|k|v|o)_proj|mlp\.(?:gate|up|down)_proj)"
INDEX = "model.safetensors.index.json"
TEXT = "Press firmly on the wound with a clean cloth and call an ambulance now."


def lora(**more):
    return LoraConfig(
        **({"r": 8, "lora_alpha": 16, "target_modules": TARGETS, "task_type": "CAUSAL_LM"} | more)
    )


def random_adapter(base, folder, **more):
    """An adapter whose B is not zero, saved as PEFT saves it."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    get_peft_model(model, lora(init_lora_weights=False, **more)).save_pretrained(folder)
    return folder


def edit_adapter(adapter, folder, change, **config):
    """A copy of an adapter with its tensors passed through `change` and configuration keys replaced."""
    shutil.copytree(adapter, folder)
    save_file(
        change(load_file(adapter / "adapter_model.safetensors")),
        folder / "adapter_model.safetensors",
    )
    settings = json.loads((adapter / "adapter_config.json").read_text()) | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def weights(folder):
    """Every tensor of a folder's shards."""
    return {
        name: tensor
        for path in folder.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


def multimodal(name):
    return name.replace("model.", "model.language_model.", 1)


def write_shards(tensors, folder):
    """Three shards and their index, as large models are published."""
    index = {
        name: f"model-0000{i % 3 + 1}-of-00003.safetensors"
        for i, name in enumerate(sorted(tensors))
    }
    for shard in set(index.values()):
        save_file({name: tensors[name] for name in index if index[name] == shard}, folder / shard)
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))


def patched(source, target, old, new):
    """A copy of a file with one occurrence of `old` replaced by as many bytes."""
    data = source.read_bytes()
    assert data.count(old) >= 1
    assert len(old) == len(new)
    target.write_bytes(data.replace(old, new, 1))
    return target


@pytest.fixture(scope="module")
def trained(tiny_gemma3n, tmp_path_factory):
    """(adapter folder, losses) of six LoRA steps on one sentence."""
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_gemma3n, dtype=torch.float32), lora()
    )
    ids = AutoTokenizer.from_pretrained(tiny_gemma3n)(TEXT, return_tensors="pt").input_ids
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for _ in range(6):
        loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    folder = tmp_path_factory.mktemp("trained") / "adapter"
    model.save_pretrained(folder)
    return folder, losses


@pytest.fixture(scope="module")
def run(tiny_gemma3n, trained, tmp_path_factory):
    """A run folder with adapter/, merged/ and gguf/tiny-q8_0.gguf, and what each step returned."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(trained[0], folder / "adapter")
    steps = {
        "merge": merge.merge_adapter(tiny_gemma3n, folder / "adapter", folder / "merged"),
        "kv": merge.add_missing_shared_kv(folder / "merged", tiny_gemma3n),
        "gguf": gguf_export.write_gguf(
            folder / "merged",
            folder / "gguf" / "tiny-q8_0.gguf",
            "q8_0",
            {"name": "Tiny", "license.name": "gemma"},
        ),
    }
    return folder, steps


def test_tiny_model_is_lively_and_its_cache_agrees(tiny_gemma3n):
    model = AutoModelForCausalLM.from_pretrained(tiny_gemma3n, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(tiny_gemma3n)(TEXT, return_tensors="pt").input_ids
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
    adapter = random_adapter(tiny_gemma3n, tmp_path / "adapter", use_rslora=rslora)
    result = merge.merge_adapter(tiny_gemma3n, adapter, tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tiny_gemma3n, dtype=torch.bfloat16)
    theirs = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    ours, base = weights(tmp_path / "merged"), weights(tiny_gemma3n)
    assert ours.keys() == base.keys()
    assert result["merged"] == 215
    changed = {name for name in ours if not torch.equal(ours[name], base[name])}
    assert len(changed) == 215
    for name, tensor in ours.items():  # bf16 patterns of one sign count up: neighbours differ by 1
        apart = (tensor.view(torch.int16).int() - theirs[name].view(torch.int16).int()).abs()
        assert apart.max() <= 1, name
        assert (apart > 0).float().mean() < 0.001, name


def test_merge_keeps_the_whole_folder(tiny_gemma3n, run):
    merged = run[0] / "merged"
    for name in (
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ):
        assert (merged / name).read_bytes() == (tiny_gemma3n / name).read_bytes()
    assert run[1]["merge"]["merged"] == 215
    assert run[1]["merge"]["largest_change"] > 0
    assert not [path for path in run[0].rglob("*") if path.name.endswith((".tmp", ".old"))]
    loaded, notes = AutoModelForCausalLM.from_pretrained(merged, output_loading_info=True)
    assert not notes["missing_keys"]
    assert loaded.num_parameters() > 40e6
    before = AutoTokenizer.from_pretrained(tiny_gemma3n)
    assert AutoTokenizer.from_pretrained(merged)(TEXT).input_ids == before(TEXT).input_ids


def test_sharded_base_with_its_own_shared_kv_and_multimodal_names(
    tiny_gemma3n, trained, run, tmp_path
):
    """The published checkpoint's shape: several shards, an index, language_model in the names, K/V in all layers."""
    base, full = tmp_path / "base", tmp_path / "full"
    shutil.copytree(tiny_gemma3n, full)
    assert merge.add_missing_shared_kv(full) == {"from_base": 0, "placeholder": 45}
    shutil.copytree(full, base, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.manual_seed(2)
    extra = load_file(full / "model-shared-kv.safetensors")
    own = {name: torch.randn(tensor.shape).bfloat16() for name, tensor in extra.items()}
    tensors = {multimodal(name): tensor for name, tensor in (weights(full) | own).items()}
    write_shards(tensors, base)

    assert merge.merge_adapter(base, trained[0], tmp_path / "merged")["merged"] == 215
    merged, simple = (
        weights(tmp_path / "merged"),
        load_file(run[0] / "merged" / "model.safetensors"),
    )
    assert merged.keys() == tensors.keys()
    assert all(torch.equal(merged[multimodal(name)], simple[name]) for name in simple)
    assert all(torch.equal(merged[multimodal(name)], own[name]) for name in own)
    assert merge.add_missing_shared_kv(tmp_path / "merged") == {"from_base": 0, "placeholder": 0}

    # as save_pretrained leaves it: the base gives what is missing, and the index names it
    shutil.copytree(tiny_gemma3n, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    write_shards(weights(tiny_gemma3n), tmp_path / "bare")
    assert merge.add_missing_shared_kv(tmp_path / "bare", base) == {
        "from_base": 45,
        "placeholder": 0,
    }
    filled = weights(tmp_path / "bare")
    assert all(torch.equal(filled[name], own[name]) for name in own)
    assert json.loads((tmp_path / "bare" / INDEX).read_text())["weight_map"].keys() == filled.keys()

    (base / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00003"):
        merge.merge_adapter(base, trained[0], tmp_path / "merged")
    assert weights(tmp_path / "merged").keys() == tensors.keys(), (
        "a failed merge must leave the earlier one alone"
    )


def test_adapters_that_do_not_fit_are_refused(tiny_gemma3n, trained, tmp_path):
    good, tensors, up = (
        trained[0],
        (lambda t: t),
        "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight",
    )
    other = edit_adapter(
        good,
        tmp_path / "other",
        lambda t: {name.replace("layers.3.", "layers.93."): v for name, v in t.items()},
    )
    wide = edit_adapter(good, tmp_path / "wide", lambda t: t | {up: torch.cat([t[up], t[up]], 1)})
    dora = edit_adapter(good, tmp_path / "dora", tensors, use_dora=True)
    rank = edit_adapter(good, tmp_path / "rank", tensors, r=16)
    more = edit_adapter(
        good, tmp_path / "more", lambda t: t | {"base_model.model.lm_head.weight": torch.ones(2, 2)}
    )
    nan = edit_adapter(
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
        for n, v in weights(tiny_gemma3n).items()
    }
    save_file(packed, quantised / "model.safetensors")
    with pytest.raises(UserError, match="stored as U8: the base is quantised"):
        merge.merge_adapter(quantised, good, tmp_path / "merged")


def test_q8_0_is_complete(run):
    folder, steps = run
    assert steps["kv"] == {"from_base": 0, "placeholder": 45}
    made = steps["gguf"]
    assert made["architecture"] == "gemma3n"
    assert made["types"]["Q8_0"] > 300
    assert made["bytes"] < 56e6
    assert (made["eos_id"], made["eot_id"]) == (1, 6)


def test_gguf_without_shared_kv_is_refused_before_llama_cpp_sees_it(tiny_gemma3n, tmp_path):
    with pytest.raises(UserError, match=r"45 tensors are missing.*blk\.20\.attn_k"):
        gguf_export.write_gguf(tiny_gemma3n, tmp_path / "gguf" / "bare.gguf")
    assert list((tmp_path / "gguf").iterdir()) == []


def test_damaged_gguf_is_refused(run, tmp_path):
    folder, good = run[0] / "merged", run[0] / "gguf" / "tiny-q8_0.gguf"
    damage = (
        (
            b"blk.7.attn_q.weight",
            b"blk.7.attn_x.weight",
            r"1 tensors are missing, for example blk\.7\.attn_q",
        ),
        (b"'<start_of_turn>model", b"'<start_of_turm>model", "chat template is not"),
        (b"tokenizer.chat_template", b"tokenizer.chat_templatX", "there is no chat template"),
        (
            b"\x0d\0\0\0\0\0\0\0<end_of_turn>",
            b"\x0d\0\0\0\0\0\0\0<end_of_turm>",
            "control tokens are wrong",
        ),
    )
    for old, new, said in damage:
        with pytest.raises(UserError, match=said):
            gguf_export.check_gguf(patched(good, tmp_path / "bad.gguf", old, new), folder)
    for size in (good.stat().st_size - 4096, 300_000, 1000, 3):
        (tmp_path / "short.gguf").write_bytes(good.read_bytes()[:size])
        with pytest.raises(UserError, match="not a whole GGUF"):
            gguf_export.check_gguf(tmp_path / "short.gguf", folder)
    with pytest.raises(UserError, match="license.name is 'gemma'"):
        gguf_export.check_gguf(good, folder, {"general.license.name": "mit"})


def test_converter_failure_shows_its_last_lines(run, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(run[0] / "merged", broken)
    config = json.loads((broken / "config.json").read_text()) | {"architectures": ["NoSuchModel"]}
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="NoSuchModel"):
        gguf_export.write_gguf(broken, tmp_path / "out.gguf")
    with pytest.raises(UserError, match="q5_0.*Expected one of"):
        gguf_export.write_gguf(broken, tmp_path / "out.gguf", "q5_0")
    (broken / "tokenizer.model").unlink()
    with pytest.raises(UserError, match="no tokenizer.model"):
        gguf_export.write_gguf(broken, tmp_path / "out.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken"]


def test_metadata_names_base_data_and_training(tmp_path):
    (tmp_path / "data").mkdir()
    sources = [
        {"dataset": "bundled:first-aid", "revision": None, "commit": None},
        {"dataset": "a/b", "revision": "main", "commit": "c" * 40},
    ]
    (tmp_path / "data" / "data_card.json").write_text(json.dumps({"sources": sources}))
    job = Params(base_model="google/gemma-3n-E4B-it")
    (tmp_path / "results.json").write_text(
        json.dumps(
            {"train": {"steps": 22, "eval_loss_before": 3.98438, "eval_loss_after": 2.95162}}
        )
    )
    found = gguf_export.collect_metadata(
        job, tmp_path, tmp_path / "models--google--gemma" / "snapshots" / "abc"
    )
    assert "22 steps, held-out response loss 3.984 -> 2.952" in found["description"]
    assert (found["base_model.0.name"], found["base_model.0.version"]) == (
        "google/gemma-3n-E4B-it",
        "abc",
    )
    assert [found.get(f"dataset.{n}.{key}") for n in (0, 1) for key in ("name", "version")] == [
        "bundled:first-aid",
        None,
        "a/b",
        "c" * 40,
    ]
    (tmp_path / "results.json").write_text(
        json.dumps({"train": {"steps": 22, "eval_loss_before": None, "eval_loss_after": 2.9}})
    )
    other = job.model_copy(update={"base_revision": "v1", "base_model": str(tmp_path)})
    found = gguf_export.collect_metadata(other, tmp_path)
    assert str(tmp_path) not in json.dumps(found)
    assert found["description"].endswith("held-out response loss not measured.")
    assert found["base_model.0.version"] == "v1"


def test_artifacts_are_listed_with_their_hashes(run):
    listed = {item["path"]: item for item in gguf_export.describe_artifacts(run[0])}
    assert {
        "adapter/adapter_model.safetensors",
        "merged/model.safetensors",
        "gguf/tiny-q8_0.gguf",
    } <= listed.keys()
    made = listed["gguf/tiny-q8_0.gguf"]
    assert (made["bytes"], made["sha256"]) == (run[1]["gguf"]["bytes"], run[1]["gguf"]["sha256"])
