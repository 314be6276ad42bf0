"""The table of GGUF types: complete, and the same as what the parameters offer.

python -m pytest tests/common/test_gguf_types.py
"""

import typing

import gguf

from lib.common.gguf_types import FILE_TYPES, TENSOR_TYPES, GgufType
from lib.params import Params


def test_every_type_that_can_be_asked_for_has_a_row():
    assert typing.get_args(GgufType) == tuple(FILE_TYPES)
    assert Params(gguf_types=list(FILE_TYPES)).gguf_types == list(FILE_TYPES)


def test_rows_name_types_that_llama_cpp_has():
    for name, row in FILE_TYPES.items():
        assert f"MOSTLY_{name.upper()}" in gguf.LlamaFileType.__members__
        assert {row.weights, row.embeddings, row.finer} <= TENSOR_TYPES.keys()
        assert row.guarded in {"", *TENSOR_TYPES}
        assert row.is_weighted == (name in ("q6_k", "q5_k_m", "q4_k_m", "q4_0"))
    for name, row in TENSOR_TYPES.items():
        block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
        assert bool(row.fallback) == (block > 32), "rows of 32 numbers have no type to fall back to"
        if row.fallback:
            fallback = gguf.GGMLQuantizationType[row.fallback]
            assert gguf.GGML_QUANT_SIZES[fallback][0] == 32


def test_fewer_bits_take_less_and_may_differ_more():
    rows = list(FILE_TYPES.values())
    for finer, coarser in zip(rows, rows[1:], strict=False):
        assert finer.disk_share >= coarser.disk_share
        assert finer.bounds.kl <= coarser.bounds.kl
        assert finer.bounds.perplexity_ratio <= coarser.bounds.perplexity_ratio
        assert finer.bounds.agreement >= coarser.bounds.agreement
        assert finer.precise or not coarser.precise
