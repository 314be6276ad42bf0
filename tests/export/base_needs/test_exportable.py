"""What would keep a base from being exported is said before it is trained, with what to do.

python -m pytest tests/export/base_needs/test_exportable.py
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import tiny_gemma3
from lib.common.errors import UserError
from lib.export.base_needs.exportable import require_exportable


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_gemma3.build(tmp_path_factory.mktemp("base") / "tiny")


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: change(tensor) for name, tensor in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


def as_config(**values):
    return lambda folder: edit_json(folder / "config.json", lambda c: c.update(values))


def without(name):
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize("family", ["Gemma2", "Llama", "Qwen2", "Qwen3"])
def test_other_families_are_refused_at_once(tmp_path, family):
    folder = tiny_gemma3.build_other(tmp_path / "base", family)
    with pytest.raises(UserError, match=r"Only Gemma 3 and Gemma 3n are trained here") as caught:
        require_exportable(folder, weights=False)
    text = str(caught.value)
    assert f"family '{family.lower()}'" in text
    assert "Set base_model to one of model_type gemma3_text, gemma3, gemma3n_text" in text
    assert "f16" not in text


SOUND = {
    "as it is": lambda folder: None,
    "without tokenizer.model": without("tokenizer.model"),
    "without generation_config.json": without("generation_config.json"),
    "in float32": lambda folder: edit_weights(folder, torch.Tensor.float),
    "in float16": lambda folder: edit_weights(folder, torch.Tensor.half),
    "untied": as_config(tie_word_embeddings=False),
    "12 layers": as_config(
        num_hidden_layers=12,
        layer_types=[*["sliding_attention"] * 5, "full_attention"] * 2,
    ),
    "27B": as_config(
        num_hidden_layers=62, query_pre_attn_scalar=168, hidden_size=5376, num_attention_heads=32,
        layer_types=(["sliding_attention"] * 5 + ["full_attention"]) * 10 + ["sliding_attention"] * 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", SOUND.values(), ids=SOUND)
def test_what_can_be_exported_passes(tiny, tmp_path, change):
    folder = shutil.copytree(tiny, tmp_path / "base")
    change(folder)
    require_exportable(folder)


def _no_bpe(folder):
    without("tokenizer.model")(folder)
    edit_json(folder / "tokenizer.json", lambda t: t["model"].update(type="Unigram"))


def _forget_turn_end(folder):
    def change(tokenizer):
        kept = [t for t in tokenizer["added_tokens"] if t["content"] != "<end_of_turn>"]
        tokenizer["added_tokens"] = kept

    edit_json(folder / "tokenizer.json", change)


HINDERED = {
    "full attention elsewhere": (
        as_config(layer_types=["full_attention", "sliding_attention"]),
        r"full attention in layers \[0\], but llama.cpp always computes \[\]",
    ),
    "another scale": (
        as_config(query_pre_attn_scalar=256),
        "query_pre_attn_scalar 256, but llama.cpp always computes 64",
    ),
    "another Gemma 3n": (
        as_config(
            model_type="gemma3n_text", architectures=["Gemma3nForCausalLM"], laurel_rank=32,
            num_kv_shared_layers=0,
        ),
        r"laurel_rank 32.*64.\n.*layers up to 2, but llama.cpp always computes 20",
    ),
    "no output layer": (
        as_config(architectures=["Gemma3TextModel"]),
        r"architectures \['Gemma3TextModel'\].*Expected \[\"Gemma3ForCausalLM\"\]",
    ),
    "no class": (as_config(architectures=None), "architectures None"),
    "quantised": (
        as_config(quantization_config={"quant_method": "bitsandbytes"}),
        "weights are quantised.*16-bit repository",
    ),
    "float64": (
        lambda folder: edit_weights(folder, torch.Tensor.double),
        "28 weights are not stored as BF16, F16, F32, for example .* as F64",
    ),
    "float8": (
        lambda folder: edit_weights(folder, lambda t: t.to(torch.float8_e4m3fn)),
        "28 weights .* as F8_E4M3",
    ),
    "a cut weight file": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 9),
        "model.safetensors has no header of safetensors: it is damaged, or",
    ),
    "no weights": (without("model.safetensors"), "has no model.safetensors"),
    "no fast tokenizer": (without("tokenizer.json"), "tokenizer.json is missing"),
    "no end of a turn": (_forget_turn_end, "the end of a turn is <end_of_turn>, which is no token"),
    "no tokenizer.model to be made": (
        _no_bpe,
        r"none can be made\s*from tokenizer.json: its model is Unigram.*Take tokenizer.model from",
    ),
    "another tokenizer.model": (
        lambda folder: (folder / "tokenizer.model").write_bytes(b"no model"),
        "tokenizer.model is not that of tokenizer.json",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "reason"), HINDERED.values(), ids=HINDERED)
def test_what_cannot_be_exported_is_said_with_what_to_do(tiny, tmp_path, change, reason):
    folder = shutil.copytree(tiny, tmp_path / "base")
    change(folder)
    with pytest.raises(UserError, match=f"(?s){reason}") as caught:
        require_exportable(folder)
    assert len(str(caught.value)) < 1500, "one screen"


def test_all_hindrances_are_told_together_and_weights_only_where_they_are_read(tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "base")
    as_config(query_pre_attn_scalar=1)(folder)
    without("tokenizer_config.json")(folder)
    edit_weights(folder, torch.Tensor.double)
    with pytest.raises(UserError) as caught:
        require_exportable(folder)
    assert str(caught.value).count("\n- ") == 3
    with pytest.raises(UserError) as caught:
        require_exportable(folder, weights=False)
    assert str(caught.value).count("\n- ") == 2
