"""Types and size of a GGUF, planned before it exists.

python -m pytest tests/export/test_gguf_plan.py
"""

from collections import Counter

import pytest
from transformers import AutoConfig, Gemma3nTextConfig, Gemma3TextConfig

from lib.common.errors import UserError
from lib.common.gguf_types import FILE_TYPES
from lib.export import gguf_file, gguf_plan


def test_types_are_those_of_llama_cpps_quantiser():
    """The counts are those of llama_model_quantize for the bundled 270M and a tiny Gemma 3n of 35 layers (tests/benchmarks/quantisers.py)."""
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
            # with an importance matrix, it distrusts four bits in the first eighth of the layers
            weighted = metadata | {gguf_plan.IMATRIX_FILE: "mine.imatrix"}
            guarded = gguf_plan.choose_types(gguf_plan.plan_tensors(config), weighted, kind)
            other = {name: target for name, target in guarded.items() if target != types[name]}
            first = range(config.num_hidden_layers // 8 if kind == "q4_0" else 0)
            assert other == {f"blk.{layer}.ffn_down.weight": "Q4_1" for layer in first}


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
