"""Rows as tensors: padding and packing, and that every planned micro-batch fits the job's fixed shape.

python -m pytest tests/training/test_batches.py
"""

import numpy as np
import pytest
import torch

from lib.data.label_mask import IGNORED
from lib.params import Params
from lib.training import batches, plan
from lib.training.batches import Batch
from lib.training.plan import Shape

# of three, one and five tokens; the second has no trained token, and the first token of the third is marked though nothing predicts it
ROWS = [
    {"input_ids": [2, 11, 12], "labels": [IGNORED, 11, 12]},
    {"input_ids": [2], "labels": [IGNORED]},
    {"input_ids": [2, 21, 22, 23, 24], "labels": [2, IGNORED, 22, IGNORED, 24]},
]
COLUMNS = {key: [r[key] for r in ROWS] for key in ("input_ids", "labels")}


def pairs(batch):
    """Return (predicting token, predicted token, weight) of every entry with a weight."""
    ids = batch.input_ids.flatten()[batch.where]
    return [
        (a, b, w)
        for a, b, w in zip(
            ids.tolist(), batch.targets.tolist(), batch.weights.tolist(), strict=True
        )
        if w
    ]


TRAINED = [(2, 11, 0.25), (11, 12, 0.25), (21, 22, 0.25), (23, 24, 0.25)]


def test_a_padded_batch():
    batch = batches.pad_rows(ROWS, 0.25)
    assert batch.input_ids.tolist() == [[2, 11, 12, 0, 0], [2, 0, 0, 0, 0], [2, 21, 22, 23, 24]]
    assert batch.where.tolist() == [0, 1, 11, 13]
    assert pairs(batch) == TRAINED
    assert (batch.position_ids, batch.bounds, batch.longest) == (None, None, None)


def test_labels_of_one_row_never_predict_the_next_row():
    """A row that fills the width ends where the next begins."""
    ids = torch.tensor([[2, 5], [6, 7]])
    batch = batches.batch_from_labels(ids, ids, 1.0)
    assert pairs(batch) == [(2, 5, 1.0), (6, 7, 1.0)]
    row = {"input_ids": [2, 5], "labels": [2, 5]}
    other = {"input_ids": [6, 7], "labels": [6, 7]}
    assert pairs(batches.pack_rows([row, other], Shape(4, 2, 2))) == [(2, 5, 1.0), (6, 7, 1.0)]


def test_a_packed_batch():
    """Positions start at 0 in each row and in the filler; missing rows have no tokens; fillers have weight 0."""
    batch = batches.pack_rows(ROWS, Shape(12, 5, 6), 0.25)
    assert batch.input_ids.shape == (1, 12)
    assert batch.input_ids[0, :9].tolist() == [2, 11, 12, 2, 2, 21, 22, 23, 24]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 0, 1, 2, 3, 4, 0, 1, 2]]
    assert batch.bounds.tolist() == [0, 3, 4, 9, 9, 9, 12]
    assert batch.bounds.dtype == torch.int32, "what FlashAttention takes"
    assert batch.where.tolist() == [0, 1, 5, 7, 0, 0]
    assert batch.targets.tolist() == [11, 12, 22, 24, 0, 0]
    assert batch.weights.tolist() == [0.25] * 4 + [0.0] * 2
    assert pairs(batch) == TRAINED


def test_a_packed_batch_without_room_to_spare():
    batch = batches.pack_rows(ROWS, Shape(9, 3, 4))
    assert batch.bounds.tolist() == [0, 3, 4, 9, 9]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 0, 1, 2, 3, 4]]
    assert batch.weights.tolist() == [1.0] * 4


def test_a_filler_is_no_longer_than_a_row_may_be():
    """Attention on a GPU computes no position of a row beyond the longest, and would leave it as it was in memory."""
    for rows, bounds in (
        (ROWS, [0, 3, 4, 9, 9, 14, 17, 17, 17]),
        (ROWS[:1], [0, 3, 3, 3, 3, 8, 13, 17, 17]),
        (ROWS[1:2], [0, 1, 1, 1, 1, 6, 11, 16, 17]),
    ):
        batch = batches.pack_rows(rows, Shape(17, 4, 6, 5))
        assert batch.bounds.tolist() == bounds
        assert batch.longest == 5 >= batch.bounds.diff().max()
        whole = batches.pack_rows(rows, Shape(17, 4, 6))
        assert whole.longest == 17
        assert all(torch.equal(a, b) for a, b in zip(batch[:5], whole[:5], strict=True))


def test_a_row_longer_than_the_longest_is_an_error():
    assert batches.pack_rows(ROWS, Shape(12, 5, 6, 5)).longest == 5
    with pytest.raises(AssertionError, match="a row of 5 tokens, the longest is 4"):
        batches.pack_rows(ROWS, Shape(12, 5, 6, 4))


@pytest.mark.parametrize("shape", [Shape(8, 3, 4), Shape(9, 3, 3)], ids=["tokens", "trained"])
def test_rows_beyond_the_shape_are_an_error(shape):
    """Nothing is silently cut off."""
    with pytest.raises(RuntimeError):
        batches.pack_rows(ROWS, shape)


def test_all_batches_of_a_shape_have_its_sizes():
    """This matters because a recorded graph copies one batch over another."""
    for shape, bounds in ((Shape(64, 4, 16), 4 + 2), (Shape(64, 4, 16, 5), 4 + 1 + 13)):
        found = [
            [(t.shape, t.dtype) for t in batches.pack_rows(rows, shape)[:6]]
            for rows in (ROWS, ROWS[:1], ROWS + ROWS[:1])
        ]
        assert found[0] == found[1] == found[2]
        assert found[0][-1][0] == (bounds,)


def test_a_batch_is_copied_over_another():
    """As a replay reads it: into the same memory, and only if no row may be longer than in the recording."""
    first, second = (batches.pack_rows(rows, Shape(12, 5, 6, 5)) for rows in (ROWS, ROWS[:1]))
    ours = first.copied_to("cpu")
    places = [t.data_ptr() for t in ours[:6]]
    assert not set(places) & {t.data_ptr() for t in first[:6]}
    ours.copy_from(second)
    assert [t.data_ptr() for t in ours[:6]] == places
    assert all(torch.equal(a, b) for a, b in zip(ours[:6], second[:6], strict=True))
    with pytest.raises(AssertionError, match="rows of 12 and 5 tokens"):
        ours.copy_from(batches.pack_rows(ROWS, Shape(12, 5, 6)))


def test_columns_are_packed_into_a_shape_and_padded_without_one():
    for ours, theirs in (
        (batches.make_batch(COLUMNS, None, 0.25), batches.pad_rows(ROWS, 0.25)),
        (
            batches.make_batch(COLUMNS, Shape(12, 5, 6), 0.25),
            batches.pack_rows(ROWS, Shape(12, 5, 6), 0.25),
        ),
    ):
        assert ours.longest == theirs.longest
        assert all(
            a is b is None or torch.equal(a, b) for a, b in zip(ours[:6], theirs[:6], strict=True)
        )
    with pytest.raises(ValueError, match="zip"):
        batches.make_batch({**COLUMNS, "labels": COLUMNS["labels"][:2]})


def test_a_batch_moves_whole():
    for batch in (batches.pad_rows(ROWS), batches.pack_rows(ROWS, Shape(12, 5, 6))):
        moved = batch.to("meta")
        assert isinstance(moved, Batch)
        assert [t is None for t in moved] == [t is None for t in batch]
        assert {t.device.type for t in moved[:6] if t is not None} == {"meta"}
        assert moved.longest == batch.longest


@pytest.mark.parametrize("count", [1, 7, 24, 61])
def test_every_planned_micro_batch_fits_the_one_shape(count):
    """Over all epochs of a job, short step and all; and the shape is no larger than a tile more than the fullest."""
    draw = np.random.default_rng(count)
    job = Params(
        load_in_4bit=False,
        packing=True,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        num_train_epochs=3.0,
    )
    rows = []
    for _ in range(count):
        ids = draw.integers(3, 96, int(draw.integers(2, 200))).tolist()
        start = int(draw.integers(0, len(ids)))
        rows.append({"input_ids": ids, "labels": [IGNORED] * start + ids[start:]})
    lengths, trained = (
        np.array([len(r["input_ids"]) for r in rows]),
        np.array([sum(x != IGNORED for x in r["labels"][1:]) for r in rows]),
    )
    shape = plan.find_shape(plan.Sizes(lengths, trained), job)
    used = []
    for (_, step), _ in zip(
        plan.iterate_steps(lengths, 0, job), range(plan.count_steps(count, job)), strict=False
    ):
        for micro_batch in step:
            batch = batches.pack_rows([rows[n] for n in micro_batch], shape, 1.0)
            assert batch.bounds.shape == (shape.rows + 1 + shape.fillers(),)
            assert batch.bounds.diff().max() <= shape.longest == batch.longest
            assert batch.bounds[-1] == shape.tokens
            assert sorted(b for _, b, _ in pairs(batch)) == sorted(
                x for n in micro_batch for x in rows[n]["labels"][1:] if x != IGNORED
            )
            used.append((int(lengths[micro_batch].sum()), int(trained[micro_batch].sum())))
    assert shape.longest == lengths.max()
    assert [
        side - max(full) < plan.TILE
        for side, full in zip((shape.tokens, shape.trained), zip(*used, strict=True), strict=True)
    ] == [True, True]
