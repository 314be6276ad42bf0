"""The importance of columns is measured on training rows, and what comes from elsewhere is checked.

python -m pytest tests/export/few_bits/test_importance.py
"""

import struct
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch

from lib import params
from lib.common.errors import UserError
from lib.data import splits
from lib.export import gguf_export, gguf_file
from lib.export.few_bits import imatrix, importance
from lib.model.load import load_merged


@pytest.fixture(scope="module")
def measured(tuned):
    run, _ = tuned
    return importance.measure(run / "data", run / "merged", 7, "few.imatrix")


def write_legacy(path, matrix, calls=3):
    """Write the older form as llama-imatrix's --output-format dat does."""
    data = struct.pack("<i", len(matrix.sums))
    for name, sums in matrix.sums.items():
        mean = sums / np.float32(matrix.counts[name]) * np.float32(calls)
        data += struct.pack("<i", len(name)) + name.encode()
        data += struct.pack("<ii", calls, len(sums)) + mean.astype("<f4").tobytes()
    text = matrix.dataset.encode()
    path.write_bytes(data + struct.pack("<ii", 9, len(text)) + text)
    return path


def job(**changes):
    return params.check_values({"gguf_types": ["q8_0", "q4_0"], **changes}, "test")


def test_each_sum_is_that_of_the_squared_inputs(tuned, measured):
    run, _ = tuned
    net = load_merged(run / "merged")
    sums = {}
    with torch.inference_mode():
        for ids in importance.draw_rows(run / "data", 7):
            found = net.model(
                torch.tensor([ids]), output_hidden_states=True, use_cache=False
            ).hidden_states
            inputs = net.model.layers[0].input_layernorm(found[0])
            sums["attn_q"] = sums.get("attn_q", 0) + inputs.double().square().sum((0, 1))
    for part in ("attn_q", "attn_k", "attn_v"):
        assert np.allclose(measured.sums[f"blk.0.{part}.weight"], sums["attn_q"], rtol=1e-5)
    tokens = sum(map(len, importance.draw_rows(run / "data", 7)))
    assert set(measured.counts.values()) == {tokens}
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    assert set(measured.sums) == {f"blk.{n}.{part}.weight" for n in (0, 1) for part in parts}
    means = measured.importance["blk.1.ffn_down.weight"]
    assert means.dtype == np.float32
    assert np.array_equal(means, measured.sums["blk.1.ffn_down.weight"] / np.float32(tokens))


def test_rows_are_training_rows_drawn_by_the_seed_and_none_is_held_out(
    tuned, measured, monkeypatch
):
    data = tuned[0] / "data"
    rows = importance.draw_rows(data, 7)
    train = [row["input_ids"] for row in splits.load_split(data, "train")]
    held_out = [
        row["input_ids"] for side in ("validation", "test") for row in splits.load_split(data, side)
    ]
    assert any(ids in held_out for ids in train), "the case has a row on both sides"
    assert len(rows) == 6
    assert all(ids in train and ids not in held_out for ids in rows)
    assert len(measured.rows) == measured.chunks == 6
    assert rows == importance.draw_rows(data, 7) != importance.draw_rows(data, 8)
    monkeypatch.setattr(importance, "ROWS", 4)
    assert importance.draw_rows(data, 7) == rows[:4]
    monkeypatch.setattr(importance, "TOKENS", len(rows[0]) + len(rows[1]))
    assert importance.draw_rows(data, 7) == rows[:2]


def test_a_matrix_of_held_out_rows_is_found(tuned, measured):
    data = tuned[0] / "data"
    importance.require_no_held_out(measured, data)
    secret = splits.load_split(data, "validation")[1]["input_ids"]
    with pytest.raises(UserError, match="6 rows, of which 1 are held out"):
        importance.require_no_held_out(
            measured._replace(rows=[*measured.rows[:5], importance._hash_row(secret)]), data
        )


def test_a_file_is_read_again_as_it_was_and_by_the_gguf_package(measured, tmp_path):
    path = tmp_path / "few.imatrix"
    imatrix.write(path, measured)
    again = imatrix.read(path)
    assert again._replace(sums={}) == measured._replace(sums={})
    for name, sums in measured.sums.items():
        assert np.array_equal(again.sums[name], sums)
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == [measured.dataset]
    assert {t.name: t.data.ravel().tolist() for t in reader.tensors} == {
        f"{name}.{part}": values
        for name in measured.sums
        for part, values in (
            ("in_sum2", measured.sums[name].tolist()),
            ("counts", [measured.counts[name]]),
        )
    }


def test_the_older_form_gives_the_same_importance(measured, tmp_path):
    old = imatrix.read(write_legacy(tmp_path / "old.dat", measured))
    assert (old.dataset, old.chunks) == (measured.dataset, 9)
    for name, means in measured.importance.items():
        assert np.allclose(old.importance[name], means, rtol=1e-6)


def test_a_tensor_without_tokens_counts_evenly_as_in_llama_quantize(measured):
    name = "blk.0.ffn_up.weight"
    unseen = measured._replace(counts=measured.counts | {name: 0.0})
    assert (unseen.importance[name] == 1).all()


def without(matrix, name):
    return matrix._replace(sums={key: sums for key, sums in matrix.sums.items() if key != name})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: without(m, "blk.1.attn_k.weight"), r"1 tensors have no entry, such as blk\.1"),
        (
            lambda m: m._replace(sums=m.sums | {"blk.2.attn_k.weight": np.ones(256, "f4")}),
            r"1 entries are of no tensor, such as blk\.2\.attn_k",
        ),
        (
            lambda m: m._replace(sums=m.sums | {"blk.1.attn_k.weight": np.ones(128, "f4")}),
            r"blk\.1\.attn_k\.weight: 128 columns, expected 256",
        ),
    ],
)
def test_a_matrix_of_another_model_is_refused(tuned, measured, change, said):
    imatrix.require_own(measured, tuned[0] / "merged")
    with pytest.raises(UserError, match=said) as caught:
        imatrix.require_own(change(measured), tuned[0] / "merged")
    assert "Set imatrix: auto" in str(caught.value)


def test_what_is_no_imatrix_file_is_refused(measured, tmp_path):
    path = tmp_path / "x.imatrix"
    imatrix.write(path, measured)
    whole = path.read_bytes()
    cases = [
        (b"", "is no imatrix file"),
        (b"hello, this is text", "is no imatrix file"),
        (whole[:-3000], "not a complete GGUF"),
        (whole.replace(b"imatrix.chunk_size", b"imatrix.chunk_sise"), "it has no imatrix.chunk_"),
        (whole.replace(b".in_sum2", b".in_sumz"), "it has no sums of squares"),
        (write_legacy(path, measured).read_bytes()[:-900], "is no imatrix file"),
    ]
    for content, said in cases:
        path.write_bytes(content)
        with pytest.raises(UserError, match=said):
            imatrix.read(path)
    imatrix.write(path, measured._replace(sums={"blk.0.attn_q.weight": np.full(256, -1, "f4")}))
    with pytest.raises(UserError, match="negative or not finite"):
        imatrix.read(path)
    with pytest.raises(UserError, match=r"missing\.imatrix` cannot be read: No such file"):
        imatrix.require_readable(job(imatrix=str(tmp_path / "missing.imatrix")))
    imatrix.require_readable(job())


def test_a_job_gets_the_matrix_that_it_asks_for(tuned, measured, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for part in ("data", "merged"):
        (folder / part).symlink_to(tuned[0] / part)
    run = SimpleNamespace(folder=folder)
    for changes, why in (
        ({"imatrix": "none"}, "none: imatrix is none"),
        ({"gguf_types": ["q8_0", "bf16"]}, "none: no type below 8 bits"),
    ):
        origin = importance.prepare(run, job(**changes), tuned[1])
        assert origin == (folder / "merged", tuned[1], None, {"from": why})
    _, _, matrix, told = importance.prepare(run, job(seed=7), tuned[1])
    assert (told["types"], told["rows_recorded"]) == (["q4_0"], 6)
    assert matrix.rows == measured.rows
    kept = folder / "gguf" / "mine.imatrix"
    assert imatrix.read(kept).rows == matrix.rows
    _, _, again, told = importance.prepare(run, job(imatrix=str(kept)), tuned[1])
    assert told["from"] == "mine.imatrix"
    given = tmp_path / "given.imatrix"
    imatrix.write(given, measured._replace(dataset="/home/me/texts/rows.txt"))
    assert importance.prepare(run, job(imatrix=str(given)), tuned[1]).matrix.dataset == "rows.txt"
    paths = {kind: tmp_path / f"{kind}.gguf" for kind in ("q8_0", "q4_0")}
    gguf_export.write_ggufs(folder / "merged", paths, matrix=again)
    noted = {kind: gguf_file.read_header(path).metadata for kind, path in paths.items()}
    assert noted["q4_0"]["quantize.imatrix.file"] == "mine.imatrix"
    assert not [key for key in noted["q8_0"] if "imatrix" in key]
