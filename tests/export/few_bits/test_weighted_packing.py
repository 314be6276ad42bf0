"""Packing by importance: llama.cpp's arithmetic, and an error that is smaller where it matters.

    python -m pytest tests/export/few_bits/test_weighted_packing.py

That whole files are llama-quantize's, byte for byte, was measured: tests/benchmarks/README.md.
"""

import gguf
import numpy as np
import pytest
from transformers import AutoConfig

from lib.common.errors import UserError
from lib.common.gguf_types import TENSOR_TYPES
from lib.export import gguf_file, gguf_plan, gguf_weights, quantise
from lib.export.few_bits.imatrix import Imatrix

WEIGHTED = [kind for kind, row in TENSOR_TYPES.items() if row.is_weighted]
EXACT = [kind for kind in TENSOR_TYPES if kind not in WEIGHTED and kind != "F32"]
F = np.float32


def pack(numbers, kind, importance=None):
    tensor = gguf_file.Tensor("t.weight", numbers.shape[::-1], "F32")
    return bytes(quantise.pack_numbers(numbers, len(numbers), tensor, kind, importance))


def unpack(data, kind, shape):
    return gguf.dequantize(np.frombuffer(data, np.uint8), gguf.GGMLQuantizationType[kind]).reshape(
        shape
    )


@pytest.fixture(scope="module")
def case():
    """Return (rows of numbers, an importance of their columns over four decades)."""
    random = np.random.default_rng(0)
    numbers = random.standard_normal((24, 512)).astype(F)
    return numbers, np.exp(random.normal(0, 2, 512)).astype(F)


def nearest(value):
    return int((F(value) + F(12582912)).view(np.int32) & 0x007FFFFF) - 0x00400000


def scale_and_codes(x, top, weights):
    """Return make_qx_quants of ggml-quants.c, in float32 and in its order."""

    def round_by(factor):
        codes = [max(-top, min(top - 1, nearest(F(factor * v)))) for v in x]
        dot = square = F(0)
        for w, v, code in zip(weights, x, codes, strict=True):
            dot = F(dot + F(F(w * v) * F(code)))
            square = F(square + F(F(w * F(code)) * F(code)))
        return codes, dot, square

    largest = x[np.abs(x).argmax()]
    codes, dot, square = round_by(F(F(-top) / largest))
    scale = F(dot / square) if square else F(0)
    best = F(scale * dot)
    for step in [*range(-9, 0), *range(1, 10)]:
        factor = F(-F(F(top) + F(F(0.1) * F(step))) / largest)
        other, dot, square = round_by(factor)
        if square > 0 and F(dot * dot) > F(best * square):
            codes, scale = other, F(dot / square)
            best = F(scale * dot)
    return scale, [code + top for code in codes]


def port_of_q4_0(row, importance):
    """Return quantize_row_q4_0_impl of ggml-quants.c, written anew."""
    total = F(0)
    for value in row:
        total = F(total + F(value * value))
    mean = F(total / F(len(row)))
    packed = b""
    for first in range(0, len(row), 32):
        x, given = row[first : first + 32], importance[first : first + 32]
        weights = [F(g * np.sqrt(F(mean + F(v * v)))) for g, v in zip(given, x, strict=True)]
        scale, codes = scale_and_codes(x, 8, weights)
        packed += np.float16(scale).tobytes()
        packed += bytes(low | high << 4 for low, high in zip(codes[:16], codes[16:], strict=True))
    return packed


def test_four_bits_are_those_of_a_port_of_the_c_code(case):
    numbers, importance = case
    rows = numbers[:6, :128].copy()
    weights = importance[:128].copy()
    expected = b"".join(port_of_q4_0(row, weights) for row in rows)
    assert pack(rows, "Q4_0", weights) == expected
    assert pack(rows, "Q4_0") != expected


@pytest.mark.parametrize("kind", WEIGHTED)
def test_the_weighted_error_is_smaller_and_only_ratios_of_importance_count(case, kind):
    numbers, importance = case
    plain, weighted = pack(numbers, kind), pack(numbers, kind, importance)
    assert plain != weighted
    assert pack(numbers, kind, importance * F(4)) == weighted
    errors = [
        (importance * (unpack(data, kind, numbers.shape) - numbers) ** 2).sum()
        for data in (plain, weighted)
    ]
    assert errors[1] < 0.9 * errors[0], errors


@pytest.mark.parametrize("kind", EXACT)
def test_types_of_8_bits_and_more_ignore_an_importance(case, kind):
    numbers, importance = case
    assert pack(numbers, kind, importance) == pack(numbers, kind)
    assert pack(numbers, kind, np.ones_like(importance)) == pack(numbers, kind)


def test_a_block_is_never_worse_than_without_where_its_scale_is_its_own():
    """Q4_0 and Q5_0 try the plain scale too, and keep the best one by these weights."""
    random = np.random.default_rng(1)
    for kind in ("Q4_0", "Q5_0"):
        for spread in (0, 1, 4):
            numbers = random.laplace(size=(40, 256)).astype(F)
            importance = np.exp(random.normal(0, spread, 256)).astype(F)
            spread_of_row = (numbers**2).mean(1, keepdims=True)
            weights = importance * np.sqrt(spread_of_row + numbers**2)

            def norm(values, weights=weights):
                return np.sqrt((weights * values**2).reshape(-1, 32).sum(1))

            plain, better = (
                norm(unpack(data, kind, numbers.shape) - numbers)
                for data in (pack(numbers, kind), pack(numbers, kind, importance))
            )
            # the scale is stored in 16 bits
            assert (better <= plain + 2**-10 * norm(numbers)).all(), (kind, spread)


# --------------------------------------------------------------------------------------------------
# whole files


def importance_of(path):
    """Return a matrix for all packed layers of a GGUF but one, as llama.cpp knows missing entries."""
    random = np.random.default_rng(2)
    sums = {
        tensor.name: np.exp(random.normal(0, 1, tensor.shape[0])).astype(F)
        for tensor in gguf_file.read_header(path).tensors
        if tensor.name.startswith("blk.") and gguf_plan.is_packable(tensor)
    }
    sums.pop("blk.2.ffn_up.weight")
    return Imatrix(sums, dict.fromkeys(sums, 2.0), "some rows", 3, 5, "mine.imatrix")


@pytest.fixture(scope="module")
def weighted(base, whole, tmp_path_factory):
    """Return (the matrix, {type: its file}) for the tiny Gemma 3n of 25 layers."""
    folder = tmp_path_factory.mktemp("weighted")
    matrix = importance_of(whole)
    ggufs = {kind: folder / f"tiny-{kind}.gguf" for kind in ("q4_k_m", "q4_0")}
    config = AutoConfig.from_pretrained(base)
    for kind, path in ggufs.items():
        written = quantise.quantise(whole, path, kind, matrix=matrix)
        assert abs(gguf_plan.predict_bytes(config, kind, True) / written["bytes"] - 1) < 1e-3
    return matrix, ggufs


def test_a_file_says_by_which_matrix_it_was_packed(weighted, made):
    matrix, ggufs = weighted
    for path in ggufs.values():
        noted = {k: v for k, v in gguf_file.read_header(path).metadata.items() if "imatrix" in k}
        assert noted == {
            "quantize.imatrix.file": "mine.imatrix",
            "quantize.imatrix.dataset": "some rows",
            "quantize.imatrix.entries_count": len(matrix.sums),
            "quantize.imatrix.chunks_count": 3,
        }
    tensors = {kind: gguf_file.read_header(path).tensors for kind, path in ggufs.items()}
    guarded = {t.name for t in tensors["q4_0"] if t.kind == "Q4_1"}
    assert guarded == {f"blk.{layer}.ffn_down.weight" for layer in range(25 // 8)}
    plain = made["q4_0"]["path"]
    for name, same in (
        ("token_embd.weight", True),
        ("blk.2.ffn_up.weight", True),
        ("blk.3.ffn_up.weight", False),
    ):
        data = [
            path.read_bytes()[tensor.offset : tensor.end]
            for path in (plain, ggufs["q4_0"])
            for tensor in gguf_file.read_header(path).tensors
            if tensor.name == name
        ]
        assert (data[0] == data[1]) == same, name


def test_its_weights_are_compared_by_importance_and_a_wrong_scale_is_found(
    weighted, base, tmp_path
):
    matrix, ggufs = weighted
    for kind, path in ggufs.items():
        worst = gguf_weights.compare_weights(path, kind, base, matrix=matrix)["worst"]
        assert all(worst[kind] <= TENSOR_TYPES[kind].block_limit for kind in worst), worst
    path = ggufs["q4_0"]
    tensor = next(t for t in gguf_file.read_header(path).tensors if t.name == "blk.9.ffn_up.weight")
    data = bytearray(path.read_bytes())
    at = tensor.offset + 18 * 7  # the eighth block, which begins with its scale
    scale = np.frombuffer(data, np.float16, 1, at)[0]
    data[at : at + 2] = np.float16(scale * 1.6).tobytes()
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(data)
    with pytest.raises(UserError, match=r"a block of blk\.9\.ffn_up\.weight \(Q4_0\) is off by"):
        gguf_weights.compare_weights(bad, "q4_0", base, matrix=matrix)


def test_a_row_that_is_misplaced_while_packing_is_found(whole, tmp_path, monkeypatch):
    matrix = importance_of(whole)
    pack_numbers = quantise.pack_numbers
    monkeypatch.setattr(
        quantise, "pack_numbers", lambda numbers, *a: pack_numbers(np.roll(numbers, 32), *a)
    )
    with pytest.raises(UserError, match="is far from its source"):
        quantise.quantise(whole, tmp_path / "out.gguf", "q4_0", matrix=matrix)
