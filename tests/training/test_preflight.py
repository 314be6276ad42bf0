"""The checks before training: the largest micro-batch, what fits, what would fit, time and disk.

python -m pytest tests/training/test_preflight.py
"""

import weakref

import numpy as np
import pytest
import torch

from helpers.small_training import HELD_OUT, ROWS, a_job, small_model
from lib.common import files
from lib.common.errors import UserError
from lib.model import adapter, device, ranks
from lib.training import checkpoint, checks, compiled, plan, preflight
from lib.training.masters import Masters

SIZES = plan.read_sizes(ROWS)


def a_card(monkeypatch, positions):
    """Pretend a GPU on which a micro-batch of more positions runs out of memory; return the positions tried."""
    tried, real = [], compiled.forward_backward

    def limited(net, batch, *args, **options):
        tried.append(batch.input_ids.numel())
        if batch.input_ids.numel() > positions:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(net, batch, *args, **options)

    monkeypatch.setattr(compiled, "forward_backward", limited)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, value in (
        ("synchronize", None),
        ("empty_cache", None),
        ("reset_peak_memory_stats", None),
        ("max_memory_reserved", 0),
        ("max_memory_allocated", 2**30),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(device, "card", lambda: device.Card("A100", 40.0))
    monkeypatch.setattr(preflight.ranks, "count_gpus", lambda *_: 1)
    return tried


@pytest.mark.parametrize("packing", [False, True])
def test_the_largest_micro_batch_is_the_one_probed(packing):
    job = a_job(packing=packing)
    every = [b for step in plan.plan_epoch(SIZES.lengths, 0, job) for b in step]
    cost = {
        n: sum(SIZES.lengths[b]) if packing else len(b) * max(SIZES.lengths[b])
        for n, b in enumerate(every)
    }
    for rows, end in zip(plan.find_extremes(SIZES, job), (min, max), strict=True):
        assert rows in [every[n] for n, c in cost.items() if c == end(cost.values())]


def test_a_probe_leaves_no_trace():
    """It leaves no gradient and no changed weight, and restores the mode."""
    job = a_job()
    net = small_model(job).eval()
    before = {n: p.clone() for n, p in net.named_parameters()}
    _, rows = plan.find_extremes(SIZES, job)
    seconds, positions = preflight.probe_micro_batch(net, ROWS, SIZES, job, rows)
    assert seconds > 0
    assert positions == len(rows) * max(SIZES.lengths[rows])
    assert all(torch.equal(before[n], p) and p.grad is None for n, p in net.named_parameters())
    assert not net.training


def test_what_fits_is_reported_as_it_is(tmp_path):
    job, told = preflight.check_fit(small_model(a_job()), ROWS, len(HELD_OUT), a_job(), tmp_path)
    assert job == a_job()
    assert (told["training rows"], told["held-out rows"], told["steps in all"]) == (23, 5, 6)
    assert told["GPUs"] == 0
    net_bytes = sum(p.numel() * p.element_size() for p in small_model(a_job()).parameters())
    assert told["  of it weights"] == pytest.approx(net_bytes / 2**30)
    assert told["time estimated, minutes"] > 0


def test_auto_takes_the_largest_that_fits_and_keeps_the_rows_a_step(monkeypatch, tmp_path, capsys):
    tried = a_card(monkeypatch, 130)
    job, _ = preflight.check_fit(
        small_model(a_job()),
        ROWS,
        5,
        a_job(per_device_train_batch_size="auto", gradient_accumulation_steps=2),
        tmp_path,
    )
    assert plan.rows_per_step(job) == 8
    assert job.per_device_train_batch_size == 4, (
        "8 rows of up to 29 tokens are 232 positions, 4 are 116"
    )
    assert tried[:3] == [232, 116, 116]
    assert len(tried) == 5
    assert tried[3] == tried[4] < 116, "the shortest, for the time it takes"
    assert "micro-batches of 8 rows do not fit" in capsys.readouterr().out


def test_auto_on_a_processor_takes_the_usual(tmp_path):
    job, _ = preflight.check_fit(
        small_model(a_job()),
        ROWS,
        5,
        a_job(per_device_train_batch_size="auto", gradient_accumulation_steps=3),
        tmp_path,
    )
    assert (job.per_device_train_batch_size, job.gradient_accumulation_steps) == (4, 3)


def test_auto_shares_out_among_the_devices(monkeypatch, tmp_path):
    a_card(monkeypatch, 10_000)
    monkeypatch.setattr(preflight.ranks, "count_gpus", lambda *_: 2)
    job, told = preflight.check_fit(
        small_model(a_job()),
        ROWS,
        5,
        a_job(per_device_train_batch_size="auto", gradient_accumulation_steps=4),
        tmp_path,
    )
    assert (job.per_device_train_batch_size, job.gradient_accumulation_steps) == (8, 2)
    assert told["GPUs"] == 2


def test_auto_keeps_the_micro_batch_of_a_packed_run(monkeypatch, tmp_path):
    """Free memory may differ the next time; the order of packed rows depends on the micro-batch."""
    settled_on(tmp_path, 2)
    a_card(monkeypatch, 10_000)
    job, _ = preflight.check_fit(
        small_model(a_job()),
        ROWS,
        5,
        a_job(per_device_train_batch_size="auto", gradient_accumulation_steps=2),
        tmp_path,
    )
    assert (job.per_device_train_batch_size, job.gradient_accumulation_steps) == (2, 4)


def settled_on(folder, rows):
    """Write checkpoints of a packed run: a good one of that micro-batch, and a damaged one after it."""
    masters = Masters(small_model(a_job()), a_job())
    masters.step(1.0, 0.0, 1.0)
    checkpoint.save_checkpoint(folder / "checkpoints", 2, masters, {"micro_batch": rows}, 5)
    (folder / "checkpoints/step-000003").mkdir()
    (folder / "checkpoints/step-000003/checkpoint.json").write_text('{"step": 3, "micro_ba')


def test_a_settled_micro_batch_on_two_gpus(monkeypatch, tmp_path):
    """One step of one micro-batch cannot be shared: `auto` takes one card, and two asked for are refused with the reason."""
    settled_on(tmp_path, 8)
    gpus = ranks.count_gpus
    a_card(monkeypatch, 10_000)
    monkeypatch.setattr(ranks, "count_gpus", gpus)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    job = a_job(per_device_train_batch_size="auto", gradient_accumulation_steps=2)
    settled, told = preflight.check_fit(small_model(job), ROWS, 5, job, tmp_path)
    assert (
        settled.per_device_train_batch_size,
        settled.gradient_accumulation_steps,
        told["GPUs"],
    ) == (8, 1, 1)
    with pytest.raises(
        UserError,
        match="which 2 GPUs cannot share evenly. This run's checkpoints require micro-batches of 8 rows: set num_gpus: 1",
    ):
        preflight.check_fit(
            small_model(job), ROWS, 5, job.model_copy(update={"num_gpus": 2}), tmp_path
        )


def test_a_settled_micro_batch_on_a_smaller_card(monkeypatch, tmp_path):
    settled_on(tmp_path, 8)
    a_card(monkeypatch, 130)
    job = a_job(per_device_train_batch_size="auto", gradient_accumulation_steps=2)
    with pytest.raises(UserError, match="require micro-batches of 8 rows, which do not fit A100"):
        preflight.check_fit(small_model(job), ROWS, 5, job, tmp_path)


def test_a_base_over_several_cards_is_not_probed(monkeypatch, tmp_path):
    """The ranks will shard it, and one process that has all of it would measure something else."""
    tried = a_card(monkeypatch, 10_000)
    monkeypatch.setattr(preflight.ranks, "count_gpus", lambda *_: 2)
    monkeypatch.setattr(preflight.placement, "is_spread", lambda net: True)
    job, told = preflight.check_fit(small_model(a_job()), ROWS, 5, a_job(), tmp_path)
    assert (job, tried, told["time estimated, minutes"]) == (
        a_job(),
        [],
        "not probed, the base is sharded",
    )
    with pytest.raises(UserError, match="auto cannot be probed for a base that is sharded"):
        preflight.check_fit(
            small_model(a_job()), ROWS, 5, a_job(per_device_train_batch_size="auto"), tmp_path
        )


def test_a_failed_probe_gives_its_memory_back(monkeypatch):
    """This happens before the next candidate, which would otherwise be measured with the first one's memory."""
    tried, taken = a_card(monkeypatch, 130), []
    limited = compiled.forward_backward

    def holding(net, batch, *args, **options):
        assert not [r for r in taken if r() is not None]
        mine = torch.zeros(8)
        taken.append(weakref.ref(mine))
        return limited(net, batch, *args, **options)

    monkeypatch.setattr(compiled, "forward_backward", holding)
    job = a_job(per_device_train_batch_size="auto", gradient_accumulation_steps=2)
    assert (
        preflight.find_fitting(
            small_model(job), ROWS, SIZES, preflight.smaller_micro_batches(job, 1)
        )[0].per_device_train_batch_size
        == 4
    )
    assert len(tried) == 3


def test_what_does_not_fit_names_the_setting_that_does(monkeypatch, tmp_path):
    a_card(monkeypatch, 70)
    with pytest.raises(UserError) as error:
        preflight.check_fit(
            small_model(a_job()),
            ROWS,
            5,
            a_job(per_device_train_batch_size=8, gradient_accumulation_steps=2),
            tmp_path,
        )
    assert (
        "per_device_train_batch_size=8 does not fit A100 (40.0 GB) with rows of up to 29 tokens"
        in str(error.value)
    )
    assert "per_device_train_batch_size=2 gradient_accumulation_steps=8" in str(error.value)


def test_when_not_even_one_row_fits(monkeypatch, tmp_path):
    a_card(monkeypatch, 20)
    job = a_job(gradient_checkpointing=False)
    with pytest.raises(
        UserError,
        match="No smaller micro-batch fits either. Set gradient_checkpointing: true or load_in_4bit: true",
    ):
        preflight.check_fit(small_model(job), ROWS, 5, job, tmp_path)


def test_a_full_reserve_counts_as_not_fitting(monkeypatch):
    """Memory with less than a twentieth to spare would not last."""
    a_card(monkeypatch, 10_000)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: int(39e9))
    with pytest.raises(preflight.DoesNotFit):
        preflight.probe_micro_batch(small_model(a_job()), ROWS, SIZES, a_job(), [0, 1])


@pytest.mark.parametrize(
    ("short", "long", "start", "each"),
    [
        ((1.2, 100), (2.0, 500), 1.0, 0.002),
        ((2.1, 100), (2.0, 500), 0.0, 0.004),  # noise: by the longer one alone
        ((0.1, 100), (2.0, 500), 0.0, 0.004),  # the same: it would start below zero
        ((1.0, 400), (2.0, 500), 0.0, 0.004),  # too much alike
        ((2.0, 500), (2.0, 500), 0.0, 0.004),
    ],
)  # packed: all are of one shape
def test_the_time_estimated_is_a_line_through_two_micro_batches(short, long, start, each):
    """Kernels are launched at their pace however few positions there are: on an H100 the largest alone said 0.23 minutes of 0.58."""
    steps = plan.plan_epoch(SIZES.lengths, 0, a_job())
    expected = sum(start + each * len(b) * SIZES.lengths[b].max() for step in steps for b in step)
    assert preflight._seconds_an_epoch(short, long, SIZES, a_job(), None) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("engine", "gpus", "fits"),
    [("unsloth", 2, False), ("unsloth", 1, True), ("transformers", 2, True)],
)
def test_unsloths_ranks_take_more_than_one_process(monkeypatch, tmp_path, engine, gpus, fits):
    """One process took 29 of 40 GB: a third more is over the 38 that may be used."""
    a_card(monkeypatch, 10_000)
    monkeypatch.setattr(preflight, "choose_backend", lambda job: (engine, "as set"))
    monkeypatch.setattr(preflight.ranks, "count_gpus", lambda *_: gpus)
    key, taken = "  in each of several processes, about", [15e9]
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: int(taken[0]))
    told = preflight.check_fit(
        small_model(a_job()), ROWS, 5, a_job(gradient_accumulation_steps=2), tmp_path
    )[1]
    assert told.get(key) == (None if fits else pytest.approx(4 / 3))
    taken[0] = 29e9
    if fits:
        preflight.check_fit(
            small_model(a_job()), ROWS, 5, a_job(gradient_accumulation_steps=2), tmp_path
        )
    else:
        with pytest.raises(UserError, match="per_device_train_batch_size=2 does not fit"):
            preflight.check_fit(
                small_model(a_job()), ROWS, 5, a_job(gradient_accumulation_steps=2), tmp_path
            )


def test_a_card_that_fills_up_while_probed_costs_the_estimate_alone(monkeypatch, tmp_path):
    tried = a_card(monkeypatch, 10_000)
    monkeypatch.setattr(
        torch.cuda, "max_memory_reserved", lambda: int(39e9) if len(tried) > 2 else 0
    )
    assert (
        preflight.check_fit(small_model(a_job()), ROWS, 5, a_job(), tmp_path)[1][
            "time estimated, minutes"
        ]
        > 0
    )
    assert len(tried) > 2


def test_what_an_earlier_candidate_had_taken_is_not_held_against_the_next(monkeypatch, tmp_path):
    """The card's peak is a running maximum, which only a reset lowers."""
    tried, peak = a_card(monkeypatch, 10_000), [int(39.9e9)]
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: peak.__setitem__(0, 0))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: peak[0])
    assert preflight.check_fit(small_model(a_job()), ROWS, 5, a_job(), tmp_path)[0] == a_job()
    assert tried


def test_early_stopping_needs_held_out_rows(tmp_path):
    job = a_job(early_stopping_patience=2, eval_steps=2)
    with pytest.raises(
        UserError,
        match="early_stopping_patience needs held-out rows, but there are none. Set validation_size",
    ):
        preflight.check_fit(small_model(job), ROWS, 0, job, tmp_path)


def test_micro_batches_that_the_gpus_cannot_share(monkeypatch, tmp_path):
    a_card(monkeypatch, 10_000)
    monkeypatch.setattr(preflight.ranks, "count_gpus", lambda *_: 2)
    with pytest.raises(
        UserError, match="gradient_accumulation_steps is 3, which 2 GPUs cannot share evenly"
    ):
        preflight.check_fit(
            small_model(a_job()), ROWS, 5, a_job(gradient_accumulation_steps=3), tmp_path
        )


def test_no_disk_for_the_checkpoints(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        files, "require_disk", lambda folder, size, what: asked.append((size, what))
    )
    job = a_job(save_total_limit=3)
    preflight.check_fit(small_model(job), ROWS, 5, job, tmp_path)
    trainable = adapter.count_parameters(small_model(job))[0]
    assert asked == [(trainable * (12 * 4 + 4), "the checkpoints, 0 MB each")], (
        "float32 weights and two moments, three kept and one being written; then the weights"
    )


def test_an_empty_split(tmp_path):
    with pytest.raises(UserError, match="the training split has no rows"):
        preflight.check_fit(small_model(a_job()), ROWS.select([]), 5, a_job(), tmp_path)


def test_the_estimate_grows_with_what_it_should():
    """More positions, no checkpointing, a state of four bytes instead of one."""
    net = small_model(a_job())
    of = lambda **changes: checks.estimate_memory(net, SIZES, a_job(**changes))  # noqa: E731
    assert of(per_device_train_batch_size=4)["activations"] > of()["activations"]
    assert of(gradient_checkpointing=False)["activations"] > of()["activations"]
    assert of()["masters and optimizer"] > of(optim="adamw_8bit")["masters and optimizer"]
    assert np.isfinite(list(of().values())).all()
