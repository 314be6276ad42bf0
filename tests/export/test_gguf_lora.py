"""The adapter as a GGUF for --lora: with the base it equals the merged model, or it is refused.

python -m pytest tests/export/test_gguf_lora.py
"""

import shutil

import gguf
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from helpers.export_runs import PROMPTS
from lib.common.errors import UserError
from lib.export import gguf_export, gguf_file, gguf_lora
from lib.model import llama, shards

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


def test_adapter_in_llama_cpp_is_the_merged_model(whole, adapted):
    folder, made = adapted
    assert (made["pairs"], made["rank"], made["alpha"]) == (
        215,
        4,
        4.0,
    )  # rsLoRA: 2 / sqrt(4) = 4.0 / 4
    found = gguf_lora.compare_with_merged(
        whole, folder / "lora.gguf", folder / "merged.gguf", PROMPTS
    )
    assert found["apart"] < found["apart_without"] / 4
    metadata = gguf_file.read_header(folder / "lora.gguf").metadata
    assert (
        metadata["general.type"],
        metadata["adapter.type"],
        metadata["general.architecture"],
    ) == ("adapter", "lora", "gemma3n")


def test_an_adapter_gets_its_name_once_it_is_the_merged_model(
    tiny_gemma3n, whole, adapted, tmp_path, monkeypatch
):
    untouched, folder, run, asked, ids = (
        tiny_gemma3n,
        adapted[0],
        tmp_path / "x",
        [],
        [[2, 5 + n, 9, 11] for n in range(3)],
    )
    shutil.copytree(folder / "adapter", run / "adapter")

    def made_before(source, out, kind):
        asked.append(kind)
        added = source == run / "merged" or set(shards.locate_tensors(source)) - set(
            shards.locate_tensors(untouched)
        )
        assert added, "llama.cpp refuses a Gemma 3n without them"
        shutil.copyfile(folder / "merged.gguf" if source == run / "merged" else whole, out)

    monkeypatch.setattr(gguf_export, "write_gguf", made_before)

    def verified(**merged):
        return gguf_lora.export_adapter(untouched, run, merged, ids, {"url": "here", "name": "x"})

    with pytest.raises(UserError, match="nats from"):
        verified(bf16=whole)  # the untuned base
    assert not [*(run / "gguf").iterdir()]
    found = verified(bf16=folder / "merged.gguf")
    assert (found["pairs"], found["compared_in"], found["prompts"]) == (215, "bf16", 3)
    assert [p.name for p in (run / "gguf").iterdir()] == ["x-lora.gguf"], (
        "the base made for the comparison is gone"
    )
    metadata = gguf_file.read_header(run / "gguf" / "x-lora.gguf").metadata
    assert (metadata["general.name"], metadata["general.url"]) == ("x-lora", "here")
    asked.clear()
    assert verified(q4_0=whole)["compared_in"] == "q8_0", (
        "a file of four bits is not what it is held against"
    )
    assert asked == ["q8_0", "q8_0"]


def test_adapters_that_are_not_the_merged_model_are_refused(base, whole, adapted, tmp_path):
    folder, data = adapted[0], (adapted[0] / "lora.gguf").read_bytes()
    key, value = (
        gguf_file.encode_pair("adapter.lora.alpha", 4.0),
        gguf_file.encode_pair("adapter.lora.alpha", -4.0),
    )
    (tmp_path / "negative.gguf").write_bytes(data.replace(key, value))
    with pytest.raises(UserError, match="nats from"):
        gguf_lora.compare_with_merged(
            whole, tmp_path / "negative.gguf", folder / "merged.gguf", PROMPTS
        )
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
