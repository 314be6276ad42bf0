"""Quantised GGUF files, on a tiny Gemma 3n of the true architecture.

python -m pytest tests/export/test_quantise.py
"""

import errno
import os

import gguf
import numpy as np
import pytest

from helpers.export_runs import PROMPTS
from lib.common.errors import UserError
from lib.export import (
    gguf_file,
    quantise,
)
from lib.model import llama


def near(path, other):
    """Return the mean difference in nats of the ten likeliest next tokens."""
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
    """Pack rows of numbers, and unpack them with the gguf package's reader."""
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
        "tiny-q8_0.gguf",
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


def test_pieces_and_threads_change_no_byte(whole, made, tmp_path, monkeypatch):
    monkeypatch.setattr(quantise, "PIECE", 50_000)
    quantise.quantise(whole, tmp_path / "pieces.gguf", "q4_0", threads=3)
    assert (tmp_path / "pieces.gguf").read_bytes() == made["q4_0"][
        "path"
    ].read_bytes()  # and metadata that is set already


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
        ("short.gguf", "q8_0", "not a complete GGUF"),
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
