"""One optimizer step: the same arithmetic as transformers, rows read ahead, random numbers, ranks that wait for each other.

python -m pytest tests/training/test_step.py
"""

import contextlib
import itertools

import numpy as np
import pytest
import torch
import transformers

from helpers.small_training import (
    INTERRUPTED,
    NO_REQUEST,
    ROWS,
    a_job,
    apart,
    at_call,
    at_every_call,
    interrupt,
    of_rows,
    pad,
    same_run,
    session,
    small_model,
    take_step,
    train_step,
    whole_run,
)
from lib.common.errors import UserError
from lib.data.label_mask import IGNORED
from lib.model import adapter, placement, ranks
from lib.training import compiled, plan
from lib.training.masters import Masters
from lib.training.step import build_accumulate, load_steps, seed_micro_batch
from lib.training.stops import Done

pytestmark = pytest.mark.usefixtures("one_thread")


# --------------------------------------------------------------------------------------------------
# the same arithmetic as transformers


def test_three_steps_equal_transformers_peft_and_torch():
    job = a_job(
        lora_dropout=0.0, max_steps=3, warmup_steps=1, lr_scheduler_type="cosine", max_grad_norm=0.5
    )
    loader = load_steps(ROWS, plan.read_sizes(ROWS), 0, job, None)
    ours, theirs = small_model(job).train(), small_model(job).train()
    start = {n: p.detach().clone() for n, p in adapter.trainable(theirs).items()}
    masters = Masters(ours, job)
    weights = list(adapter.trainable(theirs).values())
    optimizer = torch.optim.AdamW(weights, lr=job.learning_rate, weight_decay=job.weight_decay)
    schedule = transformers.get_scheduler(
        "cosine", optimizer, num_warmup_steps=1, num_training_steps=3
    )
    for number, (_, step) in enumerate(
        itertools.islice(plan.iterate_steps(np.array(ROWS["length"]), 0, job), 3)
    ):
        current = next(loader)
        done = train_step(ours, masters, job, current, plan.learning_rate(number, 3, job), number)

        items = sum(label != IGNORED for b in step for r in b for label in ROWS[r]["labels"][1:])
        total, positions = 0.0, 0
        for batch in step:
            picked = ROWS[batch]
            ids, labels, mask = (
                pad(picked["input_ids"], 0),
                pad(picked["labels"], IGNORED),
                pad([[1] * len(r) for r in picked["input_ids"]], 0),
            )
            out = theirs(
                input_ids=ids,
                attention_mask=mask,
                labels=labels,
                num_items_in_batch=torch.tensor(items),
            )
            out.loss.backward()
            total, positions = total + out.loss.item(), positions + ids.numel()
        expected_norm = float(torch.nn.utils.clip_grad_norm_(weights, job.max_grad_norm))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        assert done.loss == pytest.approx(total, rel=1e-5)
        assert done.norm == pytest.approx(expected_norm, rel=1e-4)
        assert done.norm > job.max_grad_norm, "the clipping must be part of what is compared"
        assert current["trained"] == items
        assert current["rows"] == [r for b in step for r in b]
        assert (
            current["tokens"]
            == sum(ROWS[r]["length"] for b in step for r in b)
            < current["padded"]
            == positions
        )
    for name, weight in adapter.trainable(theirs).items():
        moved = (weight.detach() - start[name]).norm()
        assert moved > 0
        assert (masters.weights[name] - weight.detach()).norm() < 1e-4 * moved, (
            name
        )  # of the change: the weight itself would hide it


@pytest.mark.parametrize("groups", [[[0, 1], [2, 3]], [[0], [1], [2], [3]], [[3, 1, 0], [2]]])
def test_accumulated_gradients_are_those_of_one_micro_batch(groups):
    """Rows of different lengths in uneven micro-batches: every trained token weighs the same."""
    job = a_job(lora_dropout=0.0)

    def gradients(*groups):
        net = small_model(job).train()
        masters = Masters(net, job)
        for p in masters.weights.values():
            p += 0.1  # B starts at zero, which leaves A without a gradient
        masters.publish()
        return take_step(net, masters, job, of_rows(*groups)), masters.gradients

    whole, wanted = gradients([0, 1, 2, 3])
    parts, found = gradients(*groups)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert parts.norm == pytest.approx(whole.norm, rel=1e-5)
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() < 1e-4 * gradient.norm() + 1e-7 * whole.norm, name
    assert all(gradient.any() for gradient in wanted.values())
    means = [
        take_step(small_model(job), Masters(small_model(job), job), job, of_rows(group)).loss
        for group in groups
    ]
    assert abs(np.mean(means) - whole.loss) > 1e-3, "a mean of means must be another number"


def test_the_loss_of_a_micro_batch_is_its_share_of_the_step():
    """Each rank adds what its micro-batches give; the sum over all is the mean over the step's trained tokens."""
    job = a_job(lora_dropout=0.0)
    net = small_model(job)
    masters = Masters(net, job)
    take = build_accumulate(net, masters, job.packing)
    current = of_rows([0, 1], [2, 3])
    shares = [float(take(batch)) for _, batch in current["batches"]]
    losses = torch.cat([compiled.token_losses(net, batch) for _, batch in current["batches"]])
    assert sum(shares) == pytest.approx(losses.mean().item(), rel=1e-6)
    assert shares[0] != pytest.approx(shares[1], rel=0.01)


# --------------------------------------------------------------------------------------------------
# the loader


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_the_loader_gives_every_step_of_the_plan_in_order(threads):
    job = a_job(dataloader_num_workers=threads)
    sizes = plan.read_sizes(ROWS)
    with contextlib.closing(load_steps(ROWS, sizes, 4, job, None)) as loader:
        found = list(itertools.islice(loader, 9))
    for current, (epoch, step) in zip(
        found, itertools.islice(plan.iterate_steps(sizes.lengths, 4, job), 9), strict=True
    ):
        assert current["epoch"] == pytest.approx(epoch, abs=1e-4)
        assert current["rows"] == [r for b in step for r in b]
        assert [place for place, _ in current["batches"]] == list(range(len(step)))
        for (_, batch), rows in zip(current["batches"], step, strict=True):
            assert torch.equal(batch.input_ids, pad(ROWS[rows]["input_ids"], 0))


def test_ranks_share_out_the_micro_batches_of_a_step(monkeypatch):
    """Each on one rank, with its place in the step and its weight among all of the step's trained tokens; what fills up a short step weighs nothing."""
    job, sizes = (
        a_job(gradient_accumulation_steps=3, dataloader_num_workers=0),
        plan.read_sizes(ROWS),
    )
    whole = list(itertools.islice(load_steps(ROWS, sizes, 0, job, None), 4))
    assert sorted(len(current["batches"]) for current in whole) == [3, 3, 3, 3]
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    shared = []
    for rank in range(2):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        shared.append(list(itertools.islice(load_steps(ROWS, sizes, 0, job, None), 4)))
    for current, *parts in zip(whole, *shared, strict=True):
        assert [[place for place, _ in part["batches"]] for part in parts] == [[0, 2], [1, 3]], (
            "as many on each, for they wait for each other"
        )
        ours = dict(sum((part["batches"] for part in parts), []))
        assert not ours.pop(3).weights.any()
        for place, batch in current["batches"]:
            assert all(
                torch.equal(a, b) for a, b in zip(batch[:4], ours.pop(place)[:4], strict=True)
            )
        for key in ("rows", "tokens", "padded", "trained", "epoch"):
            assert [part[key] for part in parts] == [current[key]] * 2


def test_threads_of_the_loader_change_no_bit(tmp_path, uninterrupted):
    assert a_job().dataloader_num_workers == 2, "the undisturbed run must be one with threads"
    same_run(tmp_path, session(tmp_path, a_job(dataloader_num_workers=0)), uninterrupted)


# --------------------------------------------------------------------------------------------------
# random numbers


def test_random_numbers_depend_on_seed_step_and_place_alone():
    def draw(seed, step, place):
        seed_micro_batch(seed, step, place)
        return torch.rand(4).tolist()

    keys = list(itertools.product((5, 6), range(12), range(12)))
    drawn = [draw(*key) for key in keys]
    torch.rand(1000)
    assert [draw(*key) for key in reversed(keys)] == drawn[::-1]
    assert len({tuple(d) for d in drawn}) == len(keys)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"lora_dropout": 0.3}, {"lora_dropout": 0.0, "neftune_noise_alpha": 5.0}]
)
@pytest.mark.parametrize("micro_batch", [6, 7])
def test_noise_is_the_same_after_a_resume(tmp_path, monkeypatch, micro_batch, changes):
    """Dropout and NEFTune draw what they would have drawn, although nothing of the generator is saved."""
    job = a_job(**changes)
    undisturbed = whole_run(tmp_path / "whole", job)
    quiet, _ = whole_run(tmp_path / "quiet", a_job(lora_dropout=0.0))
    assert apart(quiet, undisturbed[0], job) > 0.01, "the noise must matter"
    with monkeypatch.context() as patch:
        at_call(patch, micro_batch, interrupt)
        with pytest.raises(KeyboardInterrupt):
            session(tmp_path / "stopped", job)
    assert not list((tmp_path / "stopped").rglob("*rng*"))
    at_every_call(
        monkeypatch, lambda losses, _: (torch.rand(7), losses)[1]
    )  # others may draw in between
    same_run(tmp_path / "stopped", session(tmp_path / "stopped", job), undisturbed)


# --------------------------------------------------------------------------------------------------
# a step that is dropped, or finished for the other ranks


def test_a_stopped_step_leaves_no_trace():
    job, current = a_job(), of_rows([0, 1], [2])
    net = small_model(job).train()
    masters = Masters(net, job)
    answers = iter([NO_REQUEST, INTERRUPTED, INTERRUPTED])
    done = take_step(net, masters, job, current, 3, lambda: next(answers))
    assert done == Done(None, None, "interrupted")
    assert not masters.flat.grad.any()
    assert all(p.grad is None for p in masters.live.values())
    untouched = small_model(job).train()
    again, first = (
        take_step(net, masters, job, current, 3),
        take_step(untouched, Masters(untouched, job), job, current, 3),
    )
    assert again == first, "the step taken again is the step nobody stopped"
    assert again != take_step(untouched, Masters(untouched, job), job, current, 4), (
        "there must be dropout to tell"
    )


def test_ranks_finish_their_step_together(monkeypatch):
    """One that dropped it would leave the others waiting for its gradients for ever."""
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    monkeypatch.setattr(ranks, "sum_in_place", lambda *_: None)
    net, job = small_model(a_job()).train(), a_job()
    masters = Masters(net, job)
    done = take_step(net, masters, job, of_rows([0, 1], [2]), 3, lambda: INTERRUPTED)
    untouched = small_model(job).train()
    assert done == take_step(
        untouched, Masters(untouched, job), job, of_rows([0, 1], [2]), 3
    )._replace(stop="interrupted")


def test_out_of_memory_with_a_sharded_base_ends_the_rank(monkeypatch):
    """The other ranks wait for its part of the next layer: a sum to which it would add its trouble is never reached."""

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    net, job = small_model(a_job()).train(), a_job()
    masters = Masters(net, job)
    monkeypatch.setattr(compiled, "token_losses", full)
    assert take_step(net, masters, job, of_rows([0, 1], [2])).stop == "memory"
    monkeypatch.setattr(placement, "is_sharded", lambda _: True)
    monkeypatch.setattr(ranks, "sum_in_place", lambda *_: pytest.fail("waits for ever"))
    with pytest.raises(UserError, match="not have enough memory for a step of a sharded base"):
        take_step(net, masters, job, of_rows([0, 1], [2]))
