"""Quantised GGUF files, their predicted size, and the LoRA adapter as a GGUF, on a tiny Gemma 3n with 35 layers.

python -m pytest tests/test_quantise.py
"""

import errno
import json
import os
import shutil
from collections import Counter

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3nTextConfig, Gemma3TextConfig

from lib.common.errors import UserError
from lib.common.gguf_types import FILE_TYPES
from lib.export import (
    convert,
    gguf_export,
    gguf_file,
    gguf_lora,
    gguf_plan,
    gguf_weights,
    merge,
    quantise,
)
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
PROMPTS = ["What should I do first for a deep cut?", "Press firmly on the", "Call an ambulance"]


@pytest.fixture(scope="module")
def base(tiny_gemma3n, tmp_path_factory):
    """The tiny model's folder with every tensor llama.cpp wants."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    shutil.copytree(tiny_gemma3n, folder)
    merge.add_missing_shared_kv(folder)
    return folder


@pytest.fixture(scope="module")
def made(base, tmp_path_factory):
    """{type: what to_ggufs returned} of the tiny model, each with its path."""
    outs = {
        kind: tmp_path_factory.getbasetemp() / "made" / f"tiny-{kind}.gguf"
        for kind in ("bf16", "q4_k_m", "q4_0")
    }
    fields = {
        "name": "Tiny",
        "license.name": "Gemma Terms of Use",
        "base_model.count": 1,
        "base_model.0.name": "tiny",
    }
    return {
        one["type"]: one | {"path": outs[one["type"]]}
        for one in gguf_export.write_ggufs(base, outs, fields)
    }


@pytest.fixture(scope="module")
def whole(made):
    return made["bf16"]["path"]


@pytest.fixture(scope="module")
def adapted(base, whole, tiny_gemma3n, tmp_path_factory):
    """A folder with a random rsLoRA adapter of the tiny model, the adapter as lora.gguf, and merged.gguf without any code of ours."""
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


def near(path, other):
    """Mean difference in nats of the ten likeliest next tokens."""
    found = []
    for file in (path, other):
        with llama.load_gguf(file) as engine:
            found.append([engine.next_token_logprobs(prompt) for prompt in PROMPTS])
    return np.mean(
        [
            abs(b[token] - a.get(token, min(a.values())))
            for a, b in zip(*found, strict=True)
            for token in sorted(b, key=b.get)[-10:]
        ]
    )


def packed(numbers, kind):
    """Rows of numbers packed and, by the gguf package's reader, unpacked again."""
    tensor = gguf_file.Tensor("t.weight", numbers.shape[::-1], "F32")
    data = np.frombuffer(quantise.pack_numbers(numbers, len(numbers), tensor, kind), np.uint8)
    return data, gguf.dequantize(data, gguf.GGMLQuantizationType[kind]).reshape(numbers.shape)


@pytest.mark.parametrize("kind", ["q4_k_m", "q4_0"])
def test_a_quantised_file_loads_answers_and_says_nearly_the_same(made, whole, kind):
    one, header = made[kind], gguf_file.read_header(made[kind]["path"])
    assert one["bytes"] == one["path"].stat().st_size
    assert abs(one["predicted_bytes"] / one["bytes"] - 1) < 1e-3
    assert header.metadata["general.base_model.0.name"] == "tiny"
    assert "not medical advice" in header.metadata["general.description"]
    assert (
        header.metadata["tokenizer.ggml.tokens"][header.metadata["tokenizer.ggml.eot_token_id"]]
        == "<end_of_turn>"
    )
    assert gguf.LlamaFileType(header.metadata["general.file_type"]).name == f"MOSTLY_{kind.upper()}"
    with llama.load_gguf(one["path"]) as engine:
        assert engine.chat([{"role": "user", "content": PROMPTS[0]}], max_tokens=8)["tokens"] > 0
    assert 0 < near(one["path"], whole) < 0.8
    assert sorted(path.name for path in one["path"].parent.iterdir()) == [
        "tiny-bf16.gguf",
        "tiny-q4_0.gguf",
        "tiny-q4_k_m.gguf",
    ]


def test_every_type_is_packed_as_closely_as_it_can_be():
    numbers = np.random.default_rng(0).standard_normal((8, 512)).astype(np.float32)
    errors = [
        np.linalg.norm(packed(numbers, kind)[1] - numbers) / np.linalg.norm(numbers)
        for kind in ("BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_0")
    ]
    assert errors == sorted(errors)
    assert errors[0] < 0.003
    assert errors[-1] < quantise.FAR / 2
    for kind in (
        "Q8_0",
        "Q5_1",
        "Q5_0",
        "Q4_0",
        "BF16",
        "F16",
    ):  # those the gguf package can pack itself
        assert np.array_equal(
            packed(numbers, kind)[0],
            gguf.quantize(numbers, gguf.GGMLQuantizationType[kind]).view(np.uint8).ravel(),
        )


def test_types_are_those_of_llama_cpps_quantiser():
    """Counts are what llama_model_quantize gave for the bundled 270M and the tiny Gemma 3n (tests/benchmarks/quantisers.py)."""
    small = Gemma3TextConfig(
        vocab_size=262144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
    )
    expected = {
        "q8_0": ({"Q8_0": 127}, {"Q8_0": 317}),
        "q6_k": ({"Q6_K": 36, "Q8_0": 91}, {"Q6_K": 317}),
        "q5_k_m": ({"Q5_1": 81, "Q5_K": 27, "Q6_K": 9, "Q8_0": 10}, {"Q5_K": 281, "Q6_K": 36}),
        "q4_k_m": ({"Q5_0": 81, "Q4_K": 27, "Q6_K": 9, "Q8_0": 10}, {"Q4_K": 281, "Q6_K": 36}),
        "q4_0": ({"Q4_0": 126, "Q8_0": 1}, {"Q4_0": 315, "Q6_K": 2}),
    }
    assert set(expected) == {name for name, row in FILE_TYPES.items() if row.is_packed}
    for kind, counts in expected.items():
        for config, others, count in (
            (small, {"F32": 109}, counts[0]),
            (Gemma3nTextConfig(), {"F32": 422, "BF16": 108}, counts[1]),
        ):
            model = config.model_type.removesuffix("_text")
            metadata = {
                "general.architecture": model,
                f"{model}.block_count": config.num_hidden_layers,
            }
            types = gguf_plan.choose_types(gguf_plan.plan_tensors(config), metadata, kind)
            assert Counter(types.values()) == count | others, (model, kind)
            if (model, kind) == ("gemma3n", "q4_k_m"):
                finer = {name for name, target in types.items() if target == "Q6_K"}
                layers = (0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 31, 32, 33, 34)
                assert finer == {
                    f"blk.{i}.{part}.weight" for i in layers for part in ("attn_v", "ffn_down")
                } | set(gguf_plan.EMBEDDINGS)
                assert {types[name] for name in types if "altup" in name or "laurel" in name} == {
                    "BF16",
                    "F32",
                }


def test_sizes_are_predicted_from_the_configuration_alone(base, whole):
    config = AutoConfig.from_pretrained(base)
    assert {t._replace(offset=0) for t in gguf_file.read_header(whole).tensors} == set(
        gguf_plan.plan_tensors(config)
    )
    assert abs(gguf_plan.predict_bytes(config, "bf16") / whole.stat().st_size - 1) < 1e-3
    # the published Q8_0 of E4B; it has the 262,144 tokens of text, and today's converter writes 262,400
    assert abs(gguf_plan.predict_bytes(Gemma3nTextConfig(), "q8_0") / 7_353_292_256 - 1) < 1e-3
    assert (
        abs(
            gguf_plan.predict_bytes(Gemma3nTextConfig(vocab_size=262_144), "q8_0") / 7_353_292_256
            - 1
        )
        < 1e-6
    )
    assert {
        t.rows
        for t in gguf_plan.plan_tensors(Gemma3nTextConfig())
        if t.name in gguf_plan.EMBEDDINGS
    } == {262_400}
    with pytest.raises(UserError, match="no such architecture"):
        gguf_plan.map_names([], 1, "gemma9")


def test_pieces_and_threads_change_no_byte(whole, made, tmp_path, monkeypatch):
    monkeypatch.setattr(quantise, "PIECE", 50_000)
    quantise.quantise(whole, tmp_path / "pieces.gguf", "q4_0", threads=3)
    assert (tmp_path / "pieces.gguf").read_bytes() == made["q4_0"][
        "path"
    ].read_bytes()  # and metadata that is set already


def test_embeddings_that_go_past_the_converter_are_the_folders(base, whole, tmp_path, monkeypatch):
    """As at Gemma 3n E4B's size. As there, the table of words is longer than the per-layer one, which is padded."""
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
    fields = convert.convert_to_16bit(folder, tmp_path / "whole.gguf")
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


def test_what_cannot_be_quantised_is_refused_and_leaves_nothing(whole, made, tmp_path, monkeypatch):
    out = tmp_path / "out.gguf"
    place = next(
        t for t in gguf_file.read_header(whole).tensors if t.name == "blk.7.ffn_up.weight"
    ).offset
    data = bytearray(whole.read_bytes())
    data[place + 2 : place + 4] = b"\xc0\x7f"  # a bfloat16 that is no number
    (tmp_path / "nan.gguf").write_bytes(data)
    (tmp_path / "other.gguf").write_bytes(whole.read_bytes().replace(b"gemma3n", b"gemma9n"))
    (tmp_path / "short.gguf").write_bytes(whole.read_bytes()[:-100_000])
    done = made["q4_0"]["path"]
    out.write_text("what was there before")
    files = sorted(tmp_path.iterdir())
    for source, kind, said in (
        ("nan.gguf", "q8_0", r"blk\.7\.ffn_up\.weight cannot be stored as Q8_0"),
        ("short.gguf", "q8_0", "not a whole GGUF"),
        ("other.gguf", "q8_0", "architecture gemma9n cannot be made q8_0"),
        (done, "q8_0", "tensors in Q4_0"),
        (whole, "q3_x", "Expected one of f16, bf16, q8_0"),
    ):
        with pytest.raises(UserError, match=said):
            quantise.quantise(tmp_path / source, out, kind)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    pack = quantise.pack_numbers
    for owner, name, wrong, said in (
        (os, "fsync", full, "No space left"),
        (quantise, "pack_numbers", lambda *a: bytes(len(pack(*a))), "is far from its source"),
        (
            quantise,
            "pack_numbers",
            lambda numbers, *a: pack(np.roll(numbers, 32), *a),
            "is far from its source",
        ),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, wrong)
            with pytest.raises(UserError, match=said):
                quantise.quantise(whole, out, "q8_0")
    assert sorted(tmp_path.iterdir()) == files
    assert out.read_text() == "what was there before"


def test_a_head_is_read_as_the_gguf_package_reads_it_and_written_back_to_the_byte(whole):
    path = whole
    ours, theirs = gguf_file.read_header(path), gguf.GGUFReader(path)
    assert ours.metadata == {
        key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")
    }
    assert ours.tensors == [
        gguf_file.Tensor(t.name, tuple(t.shape.tolist()), t.tensor_type.name, t.data_offset)
        for t in theirs.tensors
    ]
    data, placed = gguf_file.build_header(ours.pairs, ours.tensors)
    assert placed == ours.tensors
    assert data == path.read_bytes()[: len(data)]
    values = {"a": "text, größer", "b": True, "c": 7, "d": 0.5}
    assert (
        gguf_file.parse_header(
            gguf_file.build_header({k: gguf_file.encode_pair(k, v) for k, v in values.items()}, [])[
                0
            ]
        ).metadata
        == values
    )


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
