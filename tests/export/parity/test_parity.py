"""A GGUF compared with the folder it was made from: sound files pass, damaged files are named, the figures are right.

python -m pytest tests/export/parity/test_parity.py
"""

import json
import math
import struct

import numpy as np
import pytest

from lib.common.errors import UserError
from lib.common.gguf_types import FILE_TYPES
from lib.export import gguf_file
from lib.export.parity import compare, reference, verdicts
from lib.model import llama
from lib.pages import show

PROMPTS = ("Call an ambulance?", "Cool the burn")


def damaged(parity_run, tmp_path, change):
    data = bytearray(parity_run[1].read_bytes())
    change(data, {tensor.name: tensor for tensor in gguf_file.read_header(parity_run[1]).tensors})
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    return path


def replaced(old, new):
    def change(data, tensors):
        at = data.index(old)
        data[at : at + len(old)] = new

    return change


def test_a_sound_file_passes_with_figures_for_the_record(parity_run):
    merged, path, truth, _ = parity_run
    figures, answers = compare.check_parity(
        path, "q8_0", compare.Origin(merged), truth, PROMPTS, max_tokens=4
    )
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert (
        figures["positions"],
        figures["rows"],
        figures["texts"],
        figures["prompts"],
        figures["tensors"],
    ) == (16, 4, 60, 2, 607)
    assert figures["rows_from"] == "validation and test"
    assert figures["arithmetic_16bit"] == "float32"
    assert 0 < figures["kl_mean"] <= figures["kl_max"] < 0.01
    assert abs(figures["perplexity_ratio"] - 1) < 0.03
    assert figures["verdict"] == "as the 16-bit model"
    assert 0.003 < figures["largest_block_error"]["Q8_0"] < 0.0045
    assert len(answers) == 2
    [shown] = show.parity_table({"q8_0": figures})
    assert shown["predicts"] == figures["verdict"]
    assert [verdicts.judge_kl(kl)[:5] for kl in (0.01, 0.011, 0.1, 0.11, math.nan)] == [
        "as th",
        "close",
        "close",
        "much ",
        "much ",
    ]


def flipped(name, begin, end):
    def change(data, tensors):
        at = tensors[name].offset
        data[at + begin : at + end] = bytes(255 - byte for byte in data[at + begin : at + end])

    return change


def not_a_number(data, tensors):
    at = tensors["blk.3.attn_q.weight"].offset + 34 * 40
    data[at : at + 2] = struct.pack("<e", math.nan)


def turned(data, tensors):
    """Return the same bytes as rows of another length."""
    at = data.index(b"blk.4.attn_k.weight") + len("blk.4.attn_k.weight") + 4
    assert struct.unpack_from("<2Q", data, at) == (256, 128)
    struct.pack_into("<2Q", data, at, 128, 256)


def half_precision_norms(data, tensors):
    """Store a tensor in another type than the file's kind gives it, so that the bytes after it are misread."""
    at = data.index(b"blk.4.attn_norm.weight") + len("blk.4.attn_norm.weight") + 4 + 8
    assert struct.unpack_from("<I", data, at) == (0,)
    struct.pack_into("<I", data, at, 1)


wrong_epsilon = replaced(
    b"rms_epsilon\x06\0\0\0" + struct.pack("<f", 1e-6),
    b"rms_epsilon\x06\0\0\0" + struct.pack("<f", 1.0),
)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            flipped("blk.17.ffn_down.weight", 34 * 100, 34 * 101),
            r"a block of blk\.17\.ffn_down\.weight \(Q8_0\) is off by [\d.e+]+ of its largest number",
        ),
        (
            flipped("blk.24.inp_gate.weight", 34 * 7 + 20, 34 * 7 + 21),
            r"a block of blk\.24\.inp_gate\.weight \(Q8_0\) is off",
        ),
        (
            flipped("output_norm.weight", 40, 41),
            r"a block of output_norm\.weight \(F32\) is off by .* rounding explains at most 0",
        ),
        (not_a_number, r"blk\.3\.attn_q\.weight \(Q8_0\) is off by nan"),
        (
            turned,
            r"blk\.4\.attn_k\.weight is \[256, 128\], but .*layers\.4\.self_attn\.k_proj\.weight is \[128, 256\]",
        ),
        (
            half_precision_norms,
            r"1 tensors have another type than a q8_0 file's, for example blk\.4\.attn_norm\.weight: F16, expected F32",
        ),
        (
            replaced(b"blk.7.attn_q.weight", b"blk.7.attn_x.weight"),
            r"1 tensors are missing, for example blk\.7\.attn_q\.weight",
        ),
        (
            replaced(b"blk.22.attn_v.weight", b"blk.22.attn_x.weight"),
            r"1 tensors are missing, for example blk\.22\.attn_v\.weight",
        ),
        (
            replaced(b"'<start_of_turn>model", b"'<start_of_turm>model"),
            "renders a conversation of 1 turns by its chat template as .* from token",
        ),
        (replaced("▁bleeding".encode(), "▁bleedinx".encode()), "tokenises .*bleeding.* as"),
        (
            wrong_epsilon,
            r"is broken: at 16 held-out answer tokens llama\.cpp is [\d.]+ nats .* from what the file's own numbers give in torch, expected at most 0\.01",
        ),
        (lambda data, tensors: data.__delitem__(slice(-4096, None)), "is not a complete GGUF"),
    ],
)
def test_a_damaged_file_fails_and_says_where(parity_run, tmp_path, change, said):
    merged, _, truth, _ = parity_run
    truth = truth._replace(texts=["The bleeding", *truth.texts])
    with pytest.raises(UserError, match=said):
        compare.check_parity(
            damaged(parity_run, tmp_path, change),
            "q8_0",
            compare.Origin(merged),
            truth,
            PROMPTS,
            max_tokens=4,
        )


@pytest.mark.parametrize("kind", ["q4_k_m", pytest.param("q4_0", marks=pytest.mark.slow)])
def test_wrong_metadata_are_told_from_the_rounding_of_four_bits(parity_run, made, tmp_path, kind):
    """Four bits may cost more than this fault does, so the bounds of their type do not see it."""
    merged, _, truth, _ = parity_run
    sound = made[kind]["path"]
    figures, _ = compare.check_parity(
        sound, kind, compare.Origin(merged), truth, PROMPTS, max_tokens=4
    )
    assert verdicts.SAME_KL < figures["kl_mean"] < FILE_TYPES[kind].bounds.kl
    assert figures["own_numbers_kl"] < 0.005
    bad = damaged((merged, sound), tmp_path, wrong_epsilon)
    with pytest.raises(verdicts.OutsideBounds, match=r"bad\.gguf is broken") as caught:
        compare.check_parity(bad, kind, compare.Origin(merged), truth, PROMPTS, max_tokens=4)
    assert caught.value.figures["kl_mean"] < FILE_TYPES[kind].bounds.kl


def test_figures_by_hand():
    p = np.log(np.array([[0.5, 0.3, 0.1, 0.1], [0.6, 0.1, 0.2, 0.1]], np.float32))
    truth = reference.Reference([[3, 0, 1]], [[1, 2]], p, [], "", "")
    found = [{0: math.log(0.4), 1: math.log(0.3)}, {2: math.log(0.5), 0: math.log(0.3)}]
    figures = compare.compare_predictions(truth, found)
    kl = [
        0.5 * math.log(0.5 / 0.4)
        + 0.3 * math.log(0.3 / 0.3)
        + 0.2 * math.log(0.2 / 0.3),  # the others as one
        0.2 * math.log(0.2 / 0.5) + 0.6 * math.log(0.6 / 0.3) + 0.2 * math.log(0.2 / 0.2),
    ]
    assert figures["kl_mean"] == pytest.approx(sum(kl) / 2, rel=1e-6)
    assert figures["kl_max"] == pytest.approx(max(kl), rel=1e-6)
    # token 1, the true one, is not among the two found at the second place: it counts as the last of them, 0.3, and as the second likeliest, 0.2
    assert figures["perplexity_16bit"] == pytest.approx((0.5 * 0.2) ** -0.5, rel=1e-6)
    assert figures["perplexity"] == pytest.approx((0.4 * 0.3) ** -0.5, rel=1e-6)
    low, high = figures["perplexity_ratio_ci95"]
    assert low < figures["perplexity_ratio"] < high
    # two positions, of which one agrees
    assert figures["greedy_agreement_ci95"] == pytest.approx([0.0945, 0.9055], abs=1e-4)
    assert figures["beyond_top"] == 1
    assert (figures["greedy_agreement"], figures["near_ties"], figures["clear_disagreements"]) == (
        0.5,
        0,
        1,
    )
    same = compare.compare_predictions(truth, [dict(enumerate(row.tolist())) for row in p])
    assert same["kl_mean"] < 1e-6
    assert (same["perplexity_ratio"], same["greedy_agreement"]) == (pytest.approx(1), 1.0)


@pytest.mark.parametrize("kind", FILE_TYPES)
def test_bounds_hold_on_both_sides_and_no_number_fails(kind):
    kl, ratio, agreement = FILE_TYPES[kind].bounds
    edge = {
        "positions": 128,
        "kl_mean": kl,
        "perplexity_ratio": ratio,
        "greedy_agreement": agreement,
    }
    verdicts.require_within_bounds(edge, kind, "x")
    verdicts.require_within_bounds(edge | {"perplexity_ratio": 1 / ratio}, kind, "x")
    for key, value, said in (
        ("kl_mean", kl * 1.01, "mean KL"),
        ("perplexity_ratio", ratio * 1.01, "perplexity"),
        ("perplexity_ratio", 0.99 / ratio, "perplexity"),
        ("greedy_agreement", agreement - 0.01, "likeliest"),
    ):
        for wrong in (value, math.nan):
            with pytest.raises(UserError, match=said):
                verdicts.require_within_bounds(edge | {key: wrong}, kind, "x")


def test_few_positions_refuse_only_what_is_outside_with_its_whole_interval():
    """The figures of a sound q8_0 file of a Gemma 3 270M after 3 steps on 53 rows, at 133 positions."""
    sound = {
        "positions": 133,
        "kl_mean": 0.0112,
        "kl_mean_ci95": [0.0088, 0.0135],
        "perplexity_ratio": 1.072,
        "perplexity_ratio_ci95": [1.045, 1.102],
        "greedy_agreement": 0.87,
        "greedy_agreement_ci95": [0.80, 0.92],
    }
    verdicts.require_within_bounds(sound, "q8_0", "x")
    for key, interval, said in (
        ("kl_mean", [0.0101, 0.0135], r"mean KL is 0.0112 nats, expected at most 0.01 \(95 % int"),
        ("perplexity_ratio", [1.09, 1.102], r"perplexity is 1.072 times .* interval 1.09 to 1.1"),
        ("perplexity_ratio", [0.8, 0.9], "perplexity is"),
        ("greedy_agreement", [0.80, 0.87], "the same at 87.0% of positions, expected at least 88%"),
    ):
        with pytest.raises(
            UserError, match=f"(?s){said}.*Known: its numbers.*Do not ship"
        ) as caught:
            verdicts.require_within_bounds(sound | {f"{key}_ci95": interval}, "q8_0", "x")
        assert caught.value.figures["positions"] == 133


def test_a_barely_trained_model_may_lose_more_if_rounding_explains_it():
    """The figures of sound files of a Gemma 3 270M after 3 steps on 53 rows, at 133 positions."""
    q8_0 = {
        "positions": 133,
        "kl_mean": 0.0247,
        "kl_mean_ci95": [0.0191, 0.0310],
        "perplexity_ratio": 1.042,
        "perplexity_ratio_ci95": [0.999, 1.087],
        "greedy_agreement": 0.92,
        "greedy_agreement_ci95": [0.87, 0.96],
    }
    own = {"own_numbers_kl": 0.00205, "own_numbers_kl_ci95": [0.00179, 0.00232]}
    assert verdicts.asks_for_rounding(q8_0, "q8_0")
    assert verdicts.require_within_bounds(q8_0 | own, "q8_0", "x") == [
        "mean KL is 0.0247 nats, expected at most 0.01 (95 % interval 0.0191 to 0.031)"
    ]
    with pytest.raises(verdicts.OutsideBounds, match="(?s)mean KL is 0.0247.*export again"):
        verdicts.require_within_bounds(q8_0, "q8_0", "x")
    for wrong in ([0.0101, 0.02], [math.nan, math.nan]):
        broken = own | {"own_numbers_kl_ci95": wrong}
        with pytest.raises(verdicts.OutsideBounds, match="x is broken"):
            verdicts.require_within_bounds(q8_0 | broken, "q8_0", "x")
        with pytest.raises(verdicts.OutsideBounds, match="x is broken"):
            verdicts.require_within_bounds(q8_0 | {"kl_mean": 0.001} | broken, "q4_0", "x")
    q4_0 = q8_0 | own | {"kl_mean": 3.41, "kl_mean_ci95": [3.2, 3.6]}
    with pytest.raises(verdicts.OutsideBounds, match="(?s)The file is sound.*rounding of q4_0"):
        verdicts.require_within_bounds(q4_0, "q4_0", "x")
    assert not verdicts.asks_for_rounding(q8_0, "f16"), "16 bits explain nothing"
    assert not verdicts.asks_for_rounding(q8_0 | {"kl_mean": 0.002, "kl_mean_ci95": [0, 0]}, "q8_0")


def test_probabilities_also_where_the_likeliest_token_is_part_of_a_character(parity_run):
    """By default, llama.cpp returns none there."""
    random, seen = np.random.default_rng(0), 0
    with llama.load_gguf(parity_run[1]) as engine:
        for _ in range(200):
            ids = [2, *random.integers(300, 2000, 10).tolist()]
            found = engine.next_token_logprobs(ids, 5)
            assert list(found.values()) == sorted(found.values(), reverse=True)
            if engine.complete(ids, max_tokens=1)["text"] == "\ufffd":
                seen += 1
                assert 7 <= next(iter(found)) < 263  # a byte
                break
    assert seen
