"""Which rows go into which micro-batch of which step, and the rate of each step.

python -m pytest tests/training/test_plan.py
"""

import itertools
import math

import datasets
import numpy as np
import pytest
import torch
import transformers

from lib.common.errors import UserError
from lib.data.label_mask import IGNORED
from lib.params import Params
from lib.training import plan

BASE = {
    "base_model": "some/base",
    "load_in_4bit": False,
    "optim": "adamw_torch",
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "warmup_steps": 2,
    "seed": 5,
}
SHAPES = [(2, 2), (4, 1), (1, 4), (4, 4)]  # rows a micro-batch, micro-batches a step


def a_job(rows=2, accumulation=2, **changes):
    return Params(
        **{
            **BASE,
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": accumulation,
            **changes,
        }
    )


def lengths_of(count, longest=99, seed=0):
    return np.random.default_rng(seed).integers(4, longest, count)


def long_tailed(count, seed=0):
    """Return lengths like those of questions and answers: most short, a few of 1,024 tokens."""
    return np.minimum(1024, np.random.default_rng(seed).lognormal(4.8, 0.7, count)).astype(int)


def sizes_of(lengths):
    return plan.Sizes(lengths, lengths // 2)


def flat(steps):
    return [row for step in steps for batch in step for row in batch]


def first(count, lengths, done, job):
    return list(itertools.islice(plan.iterate_steps(lengths, done, job), count))


# --------------------------------------------------------------------------------------------------
# order


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize(("rows", "accumulation"), SHAPES)
@pytest.mark.parametrize("count", [1, 3, 4, 5, 16, 22, 150])
def test_every_row_once_an_epoch_and_only_one_step_is_short(count, rows, accumulation, packing):
    job, size = a_job(rows, accumulation, packing=packing), rows * accumulation
    for epoch in (0, 1):
        steps = plan.plan_epoch(lengths_of(count), epoch, job)
        assert sorted(flat(steps)) == list(range(count))
        assert len(steps) == math.ceil(count / size)
        assert sorted(sum(map(len, s)) for s in steps)[1:] == [size] * (len(steps) - 1)
        assert all(0 < len(batch) <= rows for s in steps for batch in s)
        assert all(len(s) <= accumulation for s in steps)
        assert sum(len(batch) < rows for s in steps for batch in s) <= 1, (
            "rows are shared out full micro-batch by full micro-batch"
        )


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize(("rows", "accumulation"), SHAPES)
def test_order_depends_on_seed_and_epoch_alone(packing, rows, accumulation):
    lengths, job = lengths_of(150), a_job(rows, accumulation, packing=packing)
    steps = plan.plan_epoch(lengths, 0, job)
    np.random.default_rng(9).random(5)
    np.random.seed(3)
    torch.manual_seed(99)
    assert plan.plan_epoch(lengths, 0, job) == steps
    assert plan.plan_epoch(lengths, 1, job) != steps
    assert plan.plan_epoch(lengths, 0, job.model_copy(update={"seed": 6})) != steps


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize(("rows", "accumulation"), SHAPES)
def test_other_rows_meet_in_a_step_of_the_next_epoch(packing, rows, accumulation):
    lengths, job = lengths_of(150), a_job(rows, accumulation, packing=packing)
    sets = [{frozenset(flat([s])) for s in plan.plan_epoch(lengths, e, job)} for e in (0, 1)]
    assert len(sets[0] & sets[1]) < 5


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize(("rows", "accumulation"), SHAPES)
def test_steps_do_not_run_from_long_to_short(packing, rows, accumulation):
    lengths = lengths_of(150)
    longest = np.array(
        [
            max(lengths[flat([s])])
            for s in plan.plan_epoch(lengths, 0, a_job(rows, accumulation, packing=packing))
        ]
    )
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.4


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("done", [0, 1, 5, 6, 7, 13])
def test_a_resumed_plan_is_the_rest_of_the_whole_plan(done, packing):
    lengths, job = lengths_of(23), a_job(packing=packing)
    whole = first(20, lengths, 0, job)
    assert first(20 - done, lengths, done, job) == whole[done:]
    assert [epoch for epoch, _ in whole] == pytest.approx([n / 6 for n in range(1, 21)])
    for epoch in range(3):
        assert sorted(flat([s for _, s in whole[6 * epoch : 6 * epoch + 6]])) == list(range(23)), (
            "every epoch is a whole one"
        )


def test_micro_batches_are_cut_from_the_same_steps():
    """What lets a job resume with another micro-batch: 2 x 2 and 4 x 1 rows are the same rows a step, of the same tokens."""
    lengths = lengths_of(23)
    halves, whole = (first(12, lengths, 0, a_job(*shape)) for shape in ((2, 2), (4, 1)))
    assert [sorted(flat([s])) for _, s in halves] == [sorted(flat([s])) for _, s in whole]
    assert [epoch for epoch, _ in halves] == [epoch for epoch, _ in whole]


# --------------------------------------------------------------------------------------------------
# packing


@pytest.mark.parametrize("count", [64, 203, 1000])
@pytest.mark.parametrize("rows", [4, 8])
def test_packed_micro_batches_hold_nearly_the_same_tokens(count, rows):
    lengths, job = long_tailed(count), a_job(rows, 4, packing=True)
    packed = [
        int(lengths[b].sum()) for s in plan.plan_epoch(lengths, 0, job) for b in s if len(b) == rows
    ]
    shuffled = np.random.default_rng(1).permutation(lengths)
    random = shuffled[: count // rows * rows].reshape(-1, rows).sum(1)
    assert np.std(packed) < 0.25 * random.std()
    assert min(packed) > 0.7 * np.mean(packed)
    assert max(packed) < 1.1 * max(np.mean(packed), lengths.max()), (
        "a row longer than the mean fills a micro-batch alone, nothing else may"
    )
    assert random.max() > 1.1 * max(random.mean(), lengths.max()), (
        "the rows must be such that packing them is an achievement"
    )


@pytest.mark.parametrize("count", [64, 203, 1000])
def test_packing_wastes_little(count):
    lengths, job = long_tailed(count), a_job(8, 2, packing=True)
    rows = sizes_of(lengths)
    padded = plan.describe_plan(rows, 0, a_job(8, 2), None)["padding, share of positions"]
    packed = plan.describe_plan(rows, 0, job, plan.find_shape(rows, job))[
        "padding, share of positions"
    ]
    assert packed < 0.15
    assert packed < padded


@pytest.mark.parametrize(("rows", "accumulation"), SHAPES)
@pytest.mark.parametrize("count", [1, 3, 22, 150, 333])
def test_every_packed_micro_batch_fits_the_shape(count, rows, accumulation):
    """Of every epoch, the short step's too; and a smaller shape would not do."""
    for seed in range(5):
        lengths, job = (
            long_tailed(count, seed),
            a_job(rows, accumulation, packing=True, num_train_epochs=2.5, seed=seed),
        )
        all_rows = plan.Sizes(lengths, np.random.default_rng(seed).integers(1, lengths))
        shape = plan.find_shape(all_rows, job)
        batches = [
            b for _, step in first(plan.count_steps(count, job), lengths, 0, job) for b in step
        ]
        tokens, trained = (max(int(column[b].sum()) for b in batches) for column in all_rows)
        assert shape.longest == max(int(lengths[b].max()) for b in batches)
        assert shape.rows == rows >= max(map(len, batches))
        assert shape.tokens % plan.TILE == shape.trained % plan.TILE == 0
        assert (shape.tokens - plan.TILE < tokens <= shape.tokens, trained <= shape.trained) == (
            True,
            True,
        )


def test_the_shape_covers_steps_beyond_the_first_epoch():
    """Rows that meet only in a later epoch count; a max_steps job goes round the rows."""
    lengths = np.array([64, 64, 192, 192, 320])
    job = a_job(2, 1, packing=True, max_steps=40)
    trained = np.array([1, 63, 1, 191, 200])
    shape = plan.find_shape(plan.Sizes(lengths, trained), job)
    batches = [b for _, step in first(40, lengths, 0, job) for b in step]
    assert shape.trained >= max(int(trained[b].sum()) for b in batches)
    one_epoch = plan.find_shape(
        plan.Sizes(lengths, trained), job.model_copy(update={"max_steps": 1})
    )
    assert shape.trained > one_epoch.trained, "the rows must be such that later epochs matter"


@pytest.mark.parametrize("left", [1, 2, 3])
def test_the_short_step_does_not_set_the_shape(left):
    lengths, job = long_tailed(200 + left), a_job(4, 1, packing=True)
    short = next(s for s in plan.plan_epoch(lengths, 0, job) if len(flat([s])) < 4)
    whole = [
        int(lengths[b].sum()) for s in plan.plan_epoch(lengths, 0, job) for b in s if len(b) == 4
    ]
    assert len(flat([short])) == left
    assert lengths[flat([short])].sum() < np.mean(whole)
    assert (
        plan.find_shape(sizes_of(lengths), job).tokens
        == math.ceil(max(whole) / plan.TILE) * plan.TILE
    )


# --------------------------------------------------------------------------------------------------
# sizes and figures


def test_sizes_are_read_from_the_rows():
    """A row's first token has nothing before it: a label there trains nothing."""
    rows = datasets.Dataset.from_list(
        [
            {"input_ids": [2, 5, 6, 7], "labels": [IGNORED, IGNORED, 6, 7], "length": 4},
            {"input_ids": [2, 5, 6], "labels": [2, 5, 6], "length": 3},
            {"input_ids": [2, 5], "labels": [IGNORED, IGNORED], "length": 2},
        ]
    )
    found = plan.read_sizes(rows)
    assert found.lengths.tolist() == [4, 3, 2]
    assert found.trained.tolist() == [2, 2, 0]


def test_sizes_of_more_rows_than_are_read_at_once():
    rows = datasets.Dataset.from_dict(
        {
            "length": [3] * 5000,
            "labels": [[IGNORED, IGNORED, n] if n % 3 else [IGNORED, n, n] for n in range(5000)],
        }
    )
    assert plan.read_sizes(rows).trained.tolist() == [1 if n % 3 else 2 for n in range(5000)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 6),
        ({"num_train_epochs": 0.5}, 3),
        ({"num_train_epochs": 1.1}, 7),
        ({"num_train_epochs": 0.01}, 1),
        ({"num_train_epochs": 3.0}, 18),
        ({"max_steps": 2}, 2),
        ({"max_steps": 40}, 40),
        ({"max_steps": 40, "num_train_epochs": 0.5}, 40),
        ({"max_steps": 0}, 6),
    ],
)
def test_total_steps_are_those_of_transformers(changes, expected):
    """max_steps wins over num_train_epochs, also beyond an epoch: training goes round the rows again."""
    assert plan.count_steps(22, a_job(**changes)) == expected


def test_figures():
    job, rows = a_job(), sizes_of(lengths_of(23))
    found = plan.describe_plan(rows, 5, job, None)
    width = sum(
        len(b) * max(rows.lengths[r] for r in b)
        for s in plan.plan_epoch(rows.lengths, 0, job)
        for b in s
    )
    assert found["steps in all"] == found["steps an epoch"] == 6
    assert (
        found["training rows"],
        found["held-out rows"],
        found["rows a step (micro-batch x accumulation)"],
    ) == (23, 5, 4)
    assert found["tokens an epoch"] == sum(rows.lengths)
    assert found["tokens a step, mean"] == pytest.approx(sum(rows.lengths) / 6)
    assert found["padding, share of positions"] == pytest.approx(1 - sum(rows.lengths) / width)


def test_figures_with_packing():
    job, rows = a_job(packing=True), sizes_of(lengths_of(23))
    shape = plan.find_shape(rows, job)
    micro_batches = sum(len(s) for s in plan.plan_epoch(rows.lengths, 0, job))
    assert plan.describe_plan(rows, 5, job, shape)["padding, share of positions"] == pytest.approx(
        1 - sum(rows.lengths) / (micro_batches * shape.tokens)
    )


@pytest.mark.parametrize("packing", [False, True])
def test_no_rows_are_a_user_error(packing):
    job = a_job(packing=packing)
    rows = plan.read_sizes(
        datasets.Dataset.from_list([{"input_ids": [2], "labels": [2], "length": 1}]).select([])
    )
    with pytest.raises(UserError, match="no rows"):
        plan.describe_plan(rows, 5, job, plan.find_shape(rows, job) if packing else None)


# --------------------------------------------------------------------------------------------------
# rates


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("linear", "linear"), ("cosine", "cosine"), ("constant", "constant_with_warmup")],
)
@pytest.mark.parametrize("warmup", [0, 5, 40])
def test_schedules_equal_transformers(ours, theirs, warmup):
    job, total = a_job(lr_scheduler_type=ours, warmup_steps=warmup), 30
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=job.learning_rate)
    schedule = transformers.get_scheduler(
        theirs, optimizer, num_warmup_steps=warmup, num_training_steps=total
    )
    for step in range(total):
        assert plan.learning_rate(step, total, job) == pytest.approx(
            schedule.get_last_lr()[0], rel=1e-9, abs=1e-15
        ), step
        optimizer.step()
        schedule.step()
