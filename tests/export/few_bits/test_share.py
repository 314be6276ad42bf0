"""The share of the tuning in a file: 1 for the merged weights, 0 for the base's, and what lies between.

python -m pytest tests/export/few_bits/test_share.py
"""

import shutil

import gguf
import numpy as np
import pytest

from lib.export import gguf_export, gguf_file, gguf_weights, quantise
from lib.export.few_bits import share
from lib.pages import card_tables, cautions, show

TENSOR = gguf_file.Tensor("blk.0.ffn_up.weight", (256, 64), "Q4_0")
F = np.float32


def to_bfloat16(numbers):
    return share._round(np.ascontiguousarray(numbers, F), "BF16")


def packed(numbers, kind):
    data = quantise.pack_numbers(np.ascontiguousarray(numbers, F), len(numbers), TENSOR, kind)
    unpacked = gguf.dequantize(np.frombuffer(data, np.uint8), gguf.GGMLQuantizationType[kind])
    return unpacked.reshape(numbers.shape)


@pytest.fixture(scope="module")
def weights():
    """Return a base, and the same after a change of 1 %, both in bfloat16."""
    random = np.random.default_rng(0)
    base = to_bfloat16(random.standard_normal((64, 256)))
    return base, to_bfloat16(base + 0.01 * random.standard_normal(base.shape))


def figures(file, merged, base, tensor=TENSOR):
    tuning = share.Tuning()
    tuning.add(tensor, file, merged, base, "BF16")
    return tuning.figures()


def test_a_file_between_base_and_merged_has_the_share_of_its_way(weights):
    base, merged = weights
    for part in (0, 0.25, 0.5, 1, 1.5):
        found = figures(base + F(part) * (merged - base), merged, base)
        assert found["share_of_tuning"] == pytest.approx(part, abs=1e-4)
        assert found["rounding_to_tuning"] == pytest.approx(abs(1 - part), abs=1e-4)
    assert figures(base, merged, base)["layers_as_base"] == 1
    noise = np.random.default_rng(1).standard_normal(base.shape).astype(F) * F(0.1)
    found = figures(merged + noise, merged, base)
    assert found["share_of_tuning"] == pytest.approx(1, abs=0.3), "ten times, but in no direction"
    assert found["rounding_to_tuning"] == pytest.approx(10, rel=0.1)


def test_rows_that_training_left_alone_do_not_count(weights):
    base, merged = weights
    one = base.copy()
    one[5] = merged[5]  # as one trained row of the embedding
    embedding = TENSOR._replace(name="token_embd.weight")
    found = figures(packed(one, "Q4_0"), one, base, embedding)
    assert found["tuned_numbers"] == 256
    assert "layers_as_base" not in found
    alone = figures(packed(one[5:6], "Q4_0"), merged[5:6], base[5:6], embedding)
    assert found["rounding_to_tuning"] == pytest.approx(alone["rounding_to_tuning"])
    nothing = figures(packed(base, "Q4_0"), base, base)
    assert nothing == {"share_of_tuning": None, "tuned_numbers": 0}
    assert share.caution(nothing) == ""
    assert share.format_share(nothing) == "nothing was changed"


def test_a_base_on_the_grid_takes_the_change_back_and_the_caution_says_why(weights):
    free, _ = weights
    on_grid = to_bfloat16(packed(free, "Q4_0"))
    change = F(0.01) * np.random.default_rng(2).standard_normal(free.shape).astype(F)
    found = {}
    for name, base in (("free", free), ("on grid", on_grid)):
        merged = to_bfloat16(base + change)
        found[name] = figures(packed(merged, "Q4_0"), merged, base)
    assert found["on grid"]["layers_as_base"] > 2 * share.ON_GRID
    assert found["free"]["layers_as_base"] < share.ON_GRID / 2
    figure = {"share_by_tensor_type": {"Q4_0": 0.02}, "layers_as_base": 0.268}
    said = share.caution(figure | {"share_of_tuning": 0.02})
    assert said.startswith("the file keeps 2% of what training changed")
    assert "27% of its changed layers' weights are the base's to the bit" in said
    assert "the base itself lies on a grid" in said
    assert "grid" not in share.caution(figure | {"share_of_tuning": 0.4, "layers_as_base": 0.01})
    kept = figure | {"share_of_tuning": 0.5, "rounding_to_tuning": 1.9}
    assert share.caution(kept) == ""
    assert "13.4 times" in share.caution(
        kept | {"share_of_tuning": 5.3, "rounding_to_tuning": 13.43}
    )


def test_rounding_to_bfloat16_is_to_the_nearest_even():
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -2.5e-3], F)
    assert to_bfloat16(values)[:4].tolist() == [1.0, 1.0, 1 + 2**-6, 1 + 2**-7]
    torch = pytest.importorskip("torch")
    assert np.array_equal(to_bfloat16(values), torch.from_numpy(values).bfloat16().float().numpy())


def test_files_are_compared_with_the_base_that_was_tuned(tuned, tmp_path):
    run, base = tuned
    ggufs = {kind: tmp_path / f"few-{kind}.gguf" for kind in ("bf16", "q4_0")}
    gguf_export.write_ggufs(run / "merged", ggufs)
    found = {
        kind: gguf_weights.compare_weights(path, kind, run / "merged", base)["tuning"]
        for kind, path in ggufs.items()
    }
    assert found["bf16"] == {
        "share_of_tuning": 1.0,
        "tuned_numbers": found["q4_0"]["tuned_numbers"],
        "rounding_to_tuning": 0.0,
        "share_by_tensor_type": {"BF16": 1.0},
    }
    assert 0.9 < found["q4_0"]["share_of_tuning"] < 1.1, "a random adapter is a large change"
    assert set(found["q4_0"]["share_by_tensor_type"]) == {"Q4_0"}
    own = shutil.copytree(run / "merged", tmp_path / "own")
    nothing = gguf_weights.compare_weights(ggufs["bf16"], "bf16", run / "merged", own)
    assert nothing["tuning"] == {"share_of_tuning": None, "tuned_numbers": 0}
    assert "tuning" not in gguf_weights.compare_weights(ggufs["bf16"], "bf16", run / "merged")


def test_records_with_and_without_the_share_are_shown():
    old = {"kl_mean": 0.1, "verdict": "close to the 16-bit model"}
    new = old | {
        "share_of_tuning": 0.0432,
        "rounding_to_tuning": 13.1,
        "share_by_tensor_type": {"Q4_K": 0.015, "Q8_0": 0.9},
        "layers_as_base": 0.268,
    }
    rows = show.parity_table({"q8_0": old, "q4_k_m": new})
    assert [row["share of the tuning"] for row in rows] == [None, "4.3%"]
    assert [row["rounding / tuning"] for row in rows] == [None, 13.1]
    [warning] = cautions._warn_of_files({"parity": {"q8_0": old, "q4_k_m": new}}, "")
    assert warning.startswith("q4_k_m: the file keeps 4% of what training changed")
    assert cautions._warn_of_files({"parity": {"q8_0": old}}, "") == []
    for export in ({"parity": {"q8_0": old}}, {"parity": {"q4_k_m": new}}):
        titles = [title for title, _ in card_tables.list_sections({"export": export})]
        assert not [title for title in titles if title.startswith("Importance")]
    told = {"imatrix": {"from": "training rows of this run", "types": ["q4_0"]}, "parity": {}}
    sections = dict(card_tables.list_sections({"export": told}))
    [rows] = [rows for title, rows in sections.items() if title.startswith("Importance")]
    assert ["from", "training rows of this run"] in rows
