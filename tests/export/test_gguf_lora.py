"""The adapter as a GGUF for --lora: with the base it equals the merged model, or it is refused.

python -m pytest tests/export/test_gguf_lora.py
"""

import shutil

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from helpers import adapters
from lib.common.errors import UserError
from lib.export import gguf_export, gguf_file, gguf_lora, merge, servers
from lib.export.parity import reference
from lib.model import llama, shards
from lib.model.load import load_merged
from lib.pages import cautions

PARTS = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


@pytest.fixture(scope="module")
def adapted(base, whole, tiny_gemma3n, tmp_path_factory):
    """Return a folder with a random rsLoRA adapter of the tiny model, the adapter as lora.gguf, and merged.gguf made without our code."""
    folder = tmp_path_factory.mktemp("adapted")
    model = AutoModelForCausalLM.from_pretrained(tiny_gemma3n)
    targets = r".*layers\.\d+\.(?:self_attn\.(?:q|k|v|o)_proj|mlp\.(?:gate|up|down)_proj)"
    adapter = get_peft_model(
        model,
        LoraConfig(
            r=4, lora_alpha=2, use_rslora=True, target_modules=targets, init_lora_weights=False
        ),
    )
    adapter.save_pretrained(folder / "adapter")
    shutil.copyfile(whole, folder / "merged.gguf")
    merged = {
        tensor.name: tensor.data for tensor in gguf.GGUFReader(folder / "merged.gguf", "r+").tensors
    }
    for name, weight in adapter.merge_and_unload().bfloat16().named_parameters():
        *_, layer, _, part, _ = ("", "", *name.split("."))
        if part in PARTS:
            merged[f"blk.{layer}.{PARTS[part]}.weight"][:] = (
                weight.detach().view(torch.uint8).numpy()
            )
    return folder, gguf_lora.write_adapter(base, folder / "adapter", folder / "lora.gguf")


IDS = [[2, 5 + n, 9, 11] for n in range(6)]


def test_what_is_written_is_the_adapter(base, adapted):
    folder, made = adapted
    # rsLoRA: 2 / sqrt(4) = 4.0 / 4
    assert (made["pairs"], made["rank"], made["alpha"]) == (165, 4, 4.0)
    metadata = gguf_file.read_header(folder / "lora.gguf").metadata
    assert (
        metadata["general.type"],
        metadata["adapter.type"],
        metadata["general.architecture"],
    ) == ("adapter", "lora", "gemma3n")
    gguf_lora.require_same_numbers(folder / "lora.gguf", base, folder / "adapter", "x")


def test_the_model_with_an_adapter_added_is_the_merged_one(base, adapted, tmp_path):
    """The expected effect is PEFT's own."""
    pairs, scale, _ = merge.read_adapter(adapted[0] / "adapter")
    net = load_merged(base, torch.float32)
    with reference.adapted(net, pairs, scale):
        ours = gguf_lora._predict_16bit(net, IDS)
    theirs = gguf_lora._predict_16bit(
        PeftModel.from_pretrained(net, adapted[0] / "adapter").merge_and_unload(), IDS
    )
    for one, other in zip(ours, theirs, strict=True):
        assert np.abs(one - other).max() < 1e-3


@pytest.mark.parametrize("share", [1.0, pytest.param(1e-3, marks=pytest.mark.slow)])
def test_the_effect_is_told_at_every_size_and_a_wrong_one_refused(
    base, made, adapted, tmp_path, share
):
    """In q8_0; the smaller adapter moves predictions far less than rounding the base does."""
    smaller = adapters.edit(
        adapted[0] / "adapter",
        tmp_path / "small",
        lambda tensors: {n: t * share if "lora_B" in n else t for n, t in tensors.items()},
    )
    lora, rounded = tmp_path / "lora.gguf", made["q8_0"]["path"]
    gguf_lora.write_adapter(base, smaller, lora)
    found = gguf_lora.measure_effect(rounded, lora, base, smaller, IDS)
    gguf_lora.require_effect(found, "x", "q8_0")
    assert found["telling"]
    assert found["slope"] == pytest.approx(1, abs=0.1)
    assert (found["strength"] > 1) == (share < 1) == (found["effect"] < found["rounding"])
    sound = lora.read_bytes()
    key = gguf_file.encode_pair("adapter.lora.alpha", 4.0)
    for wrong in (8.0, 2.0, -4.0):
        lora.write_bytes(sound.replace(key, gguf_file.encode_pair("adapter.lora.alpha", wrong)))
        other = gguf_lora.measure_effect(rounded, lora, base, smaller, IDS)
        with pytest.raises(UserError, match="does not apply them rightly"):
            gguf_lora.require_effect(other, "x", "q8_0")


def damaged(kind, halves, fields):
    """Return the content of an adapter's file that is wrong in one way."""
    first = next(iter(halves))
    key = "adapter.lora.alpha"
    if kind == "twice the scale":
        fields = fields | {key: 2 * fields[key]}
    elif kind == "another sign":
        halves = halves | {first: -halves[first]}
    elif kind == "halves swapped":
        second = first.replace("lora_a", "lora_b")
        halves = halves | {first: halves[second], second: halves[first]}
    elif kind == "a layer is missing":
        halves = {name: t for name, t in halves.items() if not name.startswith("blk.7.")}
    elif kind == "one number":
        halves = halves | {first: halves[first].clone()}
        halves[first][0, 0] += 1e-6
    elif kind == "another run":
        halves = {name: torch.randn_like(t) for name, t in halves.items()}
    return gguf_lora._encode_file(fields, halves)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("twice the scale", "adapter.lora.alpha is 8.0, expected 4.0"),
        ("another sign", "the numbers of 1 tensors differ"),
        ("halves swapped", "the numbers of 2 tensors differ"),
        ("a layer is missing", "14 tensors are missing"),
        ("one number", "the numbers of 1 tensors differ"),
        ("another run", "the numbers of 330 tensors differ"),
    ],
)
def test_a_file_that_is_not_the_adapter_is_refused_whatever_its_effect(
    base, adapted, tmp_path, kind, said
):
    folder = adapted[0]
    pairs, _, _ = merge.read_adapter(folder / "adapter")
    halves = gguf_lora._name_halves(base, folder / "adapter", pairs)
    fields = {
        "general.architecture": "gemma3n",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 4.0,
    }
    (tmp_path / "bad.gguf").write_bytes(damaged(kind, halves, fields))
    with pytest.raises(UserError, match=said) as error:
        gguf_lora.require_same_numbers(
            tmp_path / "bad.gguf", base, folder / "adapter", "run-lora.gguf"
        )
    assert str(error.value).startswith("run-lora.gguf is not the adapter")


def test_an_effect_that_cannot_be_told_is_said_and_not_judged():
    found = {"telling": False, "effect": 1e-9, "rounding": 0.1, "strength": 1e6}
    found |= {"slope": 0.0, "unexplained": 9.0}
    gguf_lora.require_effect(found, "x", "q8_0")
    assert gguf_lora.judge(found, "q8_0") == (
        "weights equal the adapter's; its effect of 1e-09 nats is below q8_0's rounding and was "
        "not checked by prediction"
    )
    with pytest.raises(UserError, match=r"^run-lora.gguf has"):
        gguf_lora.require_effect(found | {"telling": True}, "run-lora.gguf", "q8_0")
    for key, telling in (("slope", True), ("effect", False), ("rounding", False)):
        wrong = found | {"slope": 1.0, "unexplained": 0.0, "telling": telling, key: float("nan")}
        with pytest.raises(UserError):
            gguf_lora.require_effect(wrong, "x", "q8_0")


def test_an_adapter_gets_its_name_once_its_effect_is_right(
    tiny_gemma3n, whole, adapted, tmp_path, monkeypatch
):
    run, asked = tmp_path / "x", []
    shutil.copytree(adapted[0] / "adapter", run / "adapter")

    def made_before(source, out, kind):
        asked.append(kind)
        added = set(shards.locate_tensors(source)) - set(shards.locate_tensors(tiny_gemma3n))
        assert added, "llama.cpp refuses a Gemma 3n without them"
        shutil.copyfile(whole, out)

    monkeypatch.setattr(gguf_export, "write_gguf", made_before)
    header = {"url": "here", "name": "x"}
    with monkeypatch.context() as patch:
        patch.setattr(gguf_lora, "SLOPES", (2.0, 3.0))
        with pytest.raises(UserError, match=r"^x-lora.gguf has"):
            gguf_lora.export_adapter(tiny_gemma3n, run, ["bf16"], IDS, header)
    assert not [*(run / "gguf").iterdir()]
    found = gguf_lora.export_adapter(tiny_gemma3n, run, ["q4_0"], IDS, header)
    assert asked == ["bf16", "q8_0"], "a file of four bits is not what it is held against"
    assert (found["pairs"], found["compared_in"], found["prompts"]) == (165, "q8_0", 6)
    assert found["verdict"].startswith("weights equal the adapter's; it changes predictions")
    assert found["apart"] < found["apart_without"] / 4
    assert [p.name for p in (run / "gguf").iterdir()] == ["x-lora.gguf"], (
        "the base made for the comparison is gone"
    )
    metadata = gguf_file.read_header(run / "gguf" / "x-lora.gguf").metadata
    assert (metadata["general.name"], metadata["general.url"]) == ("x-lora", "here")


def test_adapters_that_do_not_fit_a_base_are_refused(base, whole, adapted, tmp_path):
    folder, data = adapted[0], (adapted[0] / "lora.gguf").read_bytes()
    for old, new, reason in (
        (b"blk.9.attn_q", b"blk.9.attn_z", "does not exist in base model"),
        (b"gemma3n", b"gemma3x", "arch mismatch"),
    ):
        (tmp_path / "bad.gguf").write_bytes(data.replace(old, new))
        with (
            pytest.raises(UserError, match=reason),
            llama.load_gguf(whole, lora=tmp_path / "bad.gguf"),
        ):
            pass
    shutil.copytree(folder / "adapter", tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b"layers.3.mlp.up", b"layers.3.mlp.un"))
    with pytest.raises(UserError, match=r"does not belong .*layers\.3\.mlp\.un_proj"):
        gguf_lora.write_adapter(base, tmp_path / "adapter", tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_the_file_of_an_adapter_with_a_trained_row_says_that_it_lacks_it(
    base, tiny_gemma3n, tmp_path, monkeypatch
):
    """By its name, its header and its verdict; its pairs are LoRA's all the same."""
    run = tmp_path / "run"
    adapters.save_random(tiny_gemma3n, run / "adapter", trainable_token_indices=[106])
    found = {"telling": True, "strength": 1.0, "effect": 1.0, "slope": 1.0, "unexplained": 0.0}
    monkeypatch.setattr(gguf_export, "write_gguf", lambda *_: None)
    monkeypatch.setattr(gguf_lora, "measure_effect", lambda *_: {**found, "rounding": 0.0})
    made = gguf_lora.export_adapter(base, run, ["q8_0"], IDS, {"description": "Mine."})
    path = run / "gguf" / "run-without-end-token-lora.gguf"
    assert gguf_export.name_lora(run) == path
    assert made["pairs"] == 165
    assert made["without_end_token"] is True
    assert "answers may not end" in made["verdict"]
    told = gguf_file.read_header(path).metadata["general.description"]
    assert told == f"{gguf_export.WITHOUT_ROW} Mine."
    assert cautions._warn_of_files({"lora": made}, "") == [
        f"the adapter's own GGUF: {made['verdict']}"
    ]
    assert "answers may not end" in servers.format_commands("", "bundled:x", 512, path.name)
