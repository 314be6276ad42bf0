"""The training loop against plain transformers arithmetic, and what is left after it is stopped, killed or damaged.

python -m pytest tests/test_train.py
"""

import contextlib
import errno
import itertools
import json
import math
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback

import datasets
import numpy as np
import pytest
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

from lib.common import machine
from lib.common.errors import ROOT, UserError
from lib.data.label_mask import IGNORED
from lib.model import adapter, device, placement, ranks
from lib.params import Params
from lib.record import ledger
from lib.training import batches, checkpoint, compiled, evaluate, plan, stops
from lib.training import loop as train
from lib.training import masters as masters_module
from lib.training.held_out import HeldOut
from lib.training.step import seed_for
from lib.training.stops import Done

BASE = {
    "base_model": "some/base",
    "load_in_4bit": False,
    "optim": "adamw_torch",
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "warmup_steps": 2,
    "save_steps": 2,
    "lora_r": 2,
    "lora_dropout": 0.1,
    "seed": 5,
}
STEPS = 6  # of 23 rows by 4: one of them is a short step
OTHER = (
    "fp32" if device.precision()[0] == torch.bfloat16 else "bf16"
)  # than this machine computes in


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small_model(job, dtype=torch.float32):
    """Gemma 3n with every part of it (altup, laurel, shared K/V, sparse MLP, soft cap) and 60 thousand parameters, with a fresh adapter."""
    config = Gemma3nTextConfig(
        vocab_size=96,
        vocab_size_per_layer_input=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        hidden_size_per_layer_input=8,
        laurel_rank=4,
        altup_num_inputs=2,
        num_kv_shared_layers=2,
        activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0],
        layer_types=["sliding_attention", "full_attention"] * 2,
        sliding_window=8,
        max_position_embeddings=128,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    torch.manual_seed(0)
    return adapter.add(Gemma3nForCausalLM(config).to(dtype).eval().requires_grad_(False), job)


def make_rows(count, seed=1):
    """Rows of 4 to 30 tokens, of which the last third to half is trained."""
    draw = np.random.default_rng(seed)
    rows = []
    for n in range(count):
        length = int(draw.integers(4, 31))
        ids = [2, *draw.integers(3, 96, length - 1).tolist()]
        start = length - int(draw.integers(length // 3, length // 2 + 1))
        rows.append(
            {
                "id": f"row-{n}",
                "input_ids": ids,
                "labels": [IGNORED] * start + ids[start:],
                "length": length,
            }
        )
    return datasets.Dataset.from_list(rows)


ROWS, HELD_OUT = make_rows(23), make_rows(5, seed=2)


def a_job(**changes):
    return Params(**{**BASE, **changes})


def session(folder, job=None, rows=ROWS, held_out=HELD_OUT, **identity):
    """What the notebook does: base, adapter, train; returns the float32 masters."""
    job = job or a_job()
    folder.mkdir(exist_ok=True)
    net = small_model(job)
    return train.train(
        net,
        rows,
        held_out,
        job,
        folder,
        {**train.identity(job, "data-1", "base-1", adapter.count(net)[0]), **identity},
    )


def whole_run(folder, job=None, **options):
    """(weights, ledger entries) of a run nobody disturbed."""
    masters = session(folder, job, **options)
    return {n: w.clone() for n, w in masters.weights.items()}, ledger.read(folder / "metrics.jsonl")


def at_every_call(monkeypatch, action):
    """Do `action(losses, batch)` in every micro-batch of training; returns a list that grows by one for each."""
    calls = []

    def wrapped(net, batch, *rest):
        calls.append(batch)
        return action(token_losses(net, batch, *rest), batch)

    token_losses = compiled.token_losses
    monkeypatch.setattr(compiled, "token_losses", wrapped)
    return calls


def at_call(monkeypatch, number, action):
    """Do `action(losses)` in the `number`-th micro-batch (from 1) of training, whichever session it falls into."""
    calls = at_every_call(
        monkeypatch, lambda losses, _: action(losses) if len(calls) == number else losses
    )


def interrupt(losses):
    os.kill(os.getpid(), signal.SIGINT)
    return losses


def crash(losses):
    raise RuntimeError("the machine stopped")


def touch_stop(folder):
    def action(losses):
        (folder / "stop").touch()
        return losses

    return action


def of_rows(*groups):
    """A step of micro-batches given by their row numbers, as the loader makes it."""
    trained = sum(
        label != IGNORED
        for group in groups
        for labels in ROWS[group]["labels"]
        for label in labels[1:]
    )
    return {
        "batches": [
            (place, batches.of(ROWS[group], None, 1 / trained))
            for place, group in enumerate(groups)
        ]
    }


def take_step(net, masters, job, current, step=0, flags=lambda: (False, False, False)):
    return train.run_step(
        train.micro_batch(net, masters, job, None), masters, step, current, job, flags
    )


def train_step(net, masters, job, current, rate, step=0):
    done = take_step(net, masters, job, current, step)
    masters.step(done.norm, rate, job.max_grad_norm)
    return done


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """(weights, ledger entries) of a run nobody disturbed."""
    torch.set_num_threads(1)
    return whole_run(tmp_path_factory.mktemp("uninterrupted"))


def same_run(folder, masters, uninterrupted):
    """The weights and every step's numbers are those of the undisturbed run, bit for bit."""
    weights, entries = uninterrupted
    assert all(torch.equal(masters.weights[n], w) for n, w in weights.items())
    assert numbers(ledger.read(folder / "metrics.jsonl")) == numbers(entries)
    return ledger.summary(ledger.read(folder / "metrics.jsonl"))


def numbers(entries):
    keys = (
        "step",
        "steps",
        "loss",
        "lr",
        "grad_norm",
        "epoch",
        "rows",
        "tokens",
        "padded",
        "trained",
    )
    return [{k: e[k] for k in keys} for e in ledger.steps(entries)]


def checkpoints(folder):
    return sorted(p.name for p in (folder / "checkpoints").iterdir())


def evals(folder):
    """Held-out losses as (when, step, loss), in the order measured."""
    return [
        (e["when"], e["step"], e["eval_loss"])
        for e in ledger.read(folder / "metrics.jsonl")
        if e["event"] == "eval"
    ]


def apart(weights, others, job):
    """How far two ends of training lie apart, as a share of the way from the start to the first."""
    start = {n: p.detach().float() for n, p in adapter.trainable(small_model(job)).items()}
    way, gap = (
        math.sqrt(sum(float((w - to[n]).square().sum()) for n, w in weights.items()))
        for to in (start, others)
    )
    assert way > 0.1, "training must have gone somewhere"
    return gap / way


# ---------------------------------------------------------------------------------------------------------------------
# the same arithmetic as transformers


def pad(rows, value):
    return torch.tensor([r + [value] * (max(map(len, rows)) - len(r)) for r in rows])


def test_three_steps_equal_transformers_peft_and_torch():
    job = a_job(
        lora_dropout=0.0, max_steps=3, warmup_steps=1, lr_scheduler_type="cosine", max_grad_norm=0.5
    )
    loader = train.load_steps(ROWS, plan.sizes(ROWS), 0, job, None)
    ours, theirs = small_model(job).train(), small_model(job).train()
    start = {n: p.detach().clone() for n, p in adapter.trainable(theirs).items()}
    masters = train.Masters(ours, job)
    weights = list(adapter.trainable(theirs).values())
    optimizer = torch.optim.AdamW(weights, lr=job.learning_rate, weight_decay=job.weight_decay)
    schedule = transformers.get_scheduler(
        "cosine", optimizer, num_warmup_steps=1, num_training_steps=3
    )
    for number, (_, step) in enumerate(
        itertools.islice(plan.steps_from(np.array(ROWS["length"]), 0, job), 3)
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


def test_masters_keep_what_bfloat16_would_lose():
    job = a_job(lora_dropout=0.0, learning_rate=1e-5, warmup_steps=0)
    net = small_model(job, torch.bfloat16).train()
    masters = train.Masters(net, job)
    name = next(n for n in masters.weights if "layers.0" in n and "lora_A" in n)
    start = masters.weights[name].clone()
    for _ in range(4):
        train_step(net, masters, job, of_rows([0, 1]), 1e-5)
    moved = (masters.weights[name] - start).abs()
    assert (moved > 0).float().mean() > 0.9
    assert ((start + moved).bfloat16() == start.bfloat16()).float().mean() > 0.5, (
        "such a step must be one that bfloat16 cannot hold"
    )
    assert adapter.trainable(net)[name].dtype == torch.bfloat16
    assert torch.equal(adapter.trainable(net)[name].detach(), masters.weights[name].bfloat16())


@pytest.mark.parametrize("groups", [[[0, 1], [2, 3]], [[0], [1], [2], [3]], [[3, 1, 0], [2]]])
def test_accumulated_gradients_are_those_of_one_micro_batch(groups):
    """Rows of different lengths in uneven micro-batches: every trained token weighs the same."""
    job = a_job(lora_dropout=0.0)

    def gradients(*groups):
        net = small_model(job).train()
        masters = train.Masters(net, job)
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
        take_step(small_model(job), train.Masters(small_model(job), job), job, of_rows(group)).loss
        for group in groups
    ]
    assert abs(np.mean(means) - whole.loss) > 1e-3, "a mean of means must be another number"


def test_the_loss_of_a_micro_batch_is_its_share_of_the_step():
    """Each rank adds what its micro-batches give; the sum over all is the mean over the step's trained tokens."""
    job = a_job(lora_dropout=0.0)
    net = small_model(job)
    masters = train.Masters(net, job)
    take = train.micro_batch(net, masters, job, None)
    current = of_rows([0, 1], [2, 3])
    shares = [float(take(batch)) for _, batch in current["batches"]]
    losses = torch.cat([compiled.token_losses(net, batch) for _, batch in current["batches"]])
    assert sum(shares) == pytest.approx(losses.mean().item(), rel=1e-6)
    assert shares[0] != pytest.approx(shares[1], rel=0.01)


# ---------------------------------------------------------------------------------------------------------------------
# the loader


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_the_loader_gives_every_step_of_the_plan_in_order(threads):
    job = a_job(dataloader_num_workers=threads)
    sizes = plan.sizes(ROWS)
    with contextlib.closing(train.load_steps(ROWS, sizes, 4, job, None)) as loader:
        found = list(itertools.islice(loader, 9))
    for current, (epoch, step) in zip(
        found, itertools.islice(plan.steps_from(sizes.lengths, 4, job), 9), strict=True
    ):
        assert current["epoch"] == pytest.approx(epoch, abs=1e-4)
        assert current["rows"] == [r for b in step for r in b]
        assert [place for place, _ in current["batches"]] == list(range(len(step)))
        for (_, batch), rows in zip(current["batches"], step, strict=True):
            assert torch.equal(batch.input_ids, pad(ROWS[rows]["input_ids"], 0))


def test_ranks_share_out_the_micro_batches_of_a_step(monkeypatch):
    """Each on one rank, with its place in the step and its weight among all of the step's trained tokens; what fills up a short step weighs nothing."""
    job, sizes = a_job(gradient_accumulation_steps=3, dataloader_num_workers=0), plan.sizes(ROWS)
    whole = list(itertools.islice(train.load_steps(ROWS, sizes, 0, job, None), 4))
    assert sorted(len(current["batches"]) for current in whole) == [3, 3, 3, 3]
    monkeypatch.setattr(ranks, "world", lambda: 2)
    shared = []
    for rank in range(2):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        shared.append(list(itertools.islice(train.load_steps(ROWS, sizes, 0, job, None), 4)))
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


# ---------------------------------------------------------------------------------------------------------------------
# packed rows


def packed_like_padded(monkeypatch):
    """A packing job takes the rows of each micro-batch that a padding one would."""
    whole = plan.epoch_steps
    monkeypatch.setattr(
        plan,
        "epoch_steps",
        lambda lengths, epoch, job: whole(
            lengths, epoch, job.model_copy(update={"packing": False})
        ),
    )


def test_packed_rows_train_as_padded_ones_do(tmp_path, monkeypatch):
    job = a_job(lora_dropout=0.0, max_steps=10)
    weights, entries = whole_run(tmp_path / "padded", job)
    packed_like_padded(monkeypatch)
    packed_weights, packed_entries = whole_run(
        tmp_path / "packed", a_job(lora_dropout=0.0, max_steps=10, packing=True)
    )
    for ours, theirs in zip(ledger.steps(packed_entries), ledger.steps(entries), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
        assert (ours["rows"], ours["tokens"], ours["trained"]) == (
            theirs["rows"],
            theirs["tokens"],
            theirs["trained"],
        )
    assert apart(weights, packed_weights, job) < 1e-3
    found = [ledger.summary(e) for e in (packed_entries, entries)]
    assert found[0]["eval_loss_after"] == pytest.approx(found[1]["eval_loss_after"], rel=1e-5)


def test_packed_rows_do_not_see_each_other():
    """Each row has the loss and the gradient it has alone; with attention across rows they would be others."""

    def taken(current, **changes):
        job = a_job(lora_dropout=0.0, **changes)
        net = small_model(job)
        done = take_step(net, train.Masters(net, job), job, current)
        return done.loss, done.norm

    job, sizes = a_job(packing=True, dataloader_num_workers=0), plan.sizes(ROWS)
    current = next(train.load_steps(ROWS, sizes, 0, job, plan.shape(sizes, job)))
    alone = taken(of_rows(*[[r] for r in current["rows"]]))
    assert taken(current, packing=True) == pytest.approx(alone, rel=1e-5)
    together = {
        "batches": [
            (place, batch._replace(bounds=batch.bounds[[0, -1]]))
            for place, batch in current["batches"]
        ]
    }
    assert taken(together, packing=True) != pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("micro_batch", [4, 7])
def test_a_packing_run_interrupted_and_continued(tmp_path, monkeypatch, micro_batch):
    job = a_job(packing=True, max_steps=8)
    undisturbed = whole_run(tmp_path / "whole", job)
    at_call(monkeypatch, micro_batch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        session(tmp_path / "stopped", job)
    found = same_run(tmp_path / "stopped", session(tmp_path / "stopped", job), undisturbed)
    shape = plan.shape(plan.sizes(ROWS), job)
    lines = ledger.steps(undisturbed[1])
    assert [e["padded"] for e in lines] == [shape.tokens * math.ceil(e["rows"] / 2) for e in lines]
    assert found["padding_share"] == pytest.approx(
        1 - sum(e["tokens"] for e in lines) / sum(e["padded"] for e in lines)
    )


# ---------------------------------------------------------------------------------------------------------------------
# random numbers


def test_random_numbers_depend_on_seed_step_and_place_alone():
    def draw(seed, step, place):
        seed_for(a_job(seed=seed), step, place)
        return torch.rand(4).tolist()

    keys = list(itertools.product((5, 6), range(12), range(12)))
    drawn = [draw(*key) for key in keys]
    torch.rand(1000)
    assert [draw(*key) for key in reversed(keys)] == drawn[::-1]
    assert len({tuple(d) for d in drawn}) == len(keys)


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


# ---------------------------------------------------------------------------------------------------------------------
# stopped and continued


def test_an_undisturbed_run(tmp_path, uninterrupted):
    handler = signal.getsignal(signal.SIGINT)
    found = same_run(tmp_path, session(tmp_path), uninterrupted)
    assert (found["steps"], found["sessions"], found["steps_repeated"], found["epochs"]) == (
        STEPS,
        1,
        0,
        1.0,
    )
    assert found["eval_loss_after"] != found["eval_loss_before"]
    assert checkpoints(tmp_path) == ["step-000004", "step-000006"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_training_mode_is_what_the_base_calls_it(tmp_path, uninterrupted):
    """Unsloth's generate turns gradient checkpointing off in every layer, train() leaves it off, and for_training() turns it on."""
    net, job = small_model(a_job()), a_job(gradient_checkpointing=True)
    net.gradient_checkpointing_enable({"use_reentrant": False})
    layers = [m for m in net.modules() if hasattr(m, "gradient_checkpointing")]
    assert layers

    def checkpointing(on):
        for layer in layers:
            layer.gradient_checkpointing = on
        return net.train(on)

    net.for_training = lambda: checkpointing(True)
    checkpointing(False)  # what the answers before training leave behind
    train.train(
        net,
        ROWS,
        HELD_OUT,
        job,
        tmp_path,
        train.identity(job, "data-1", "base-1", adapter.count(net)[0]),
    )
    assert all(layer.gradient_checkpointing for layer in layers)


def test_nothing_is_compiled_for_no_step(tmp_path, monkeypatch, uninterrupted):
    """A run whose steps are done, killed before its last held-out loss, would pay 100 s for nothing."""
    session(tmp_path)
    ledger_file = tmp_path / "metrics.jsonl"
    ledger_file.write_text(
        "".join(
            line
            for line in ledger_file.read_text().splitlines(keepends=True)
            if '"after"' not in line
        )
    )
    monkeypatch.setattr(train, "micro_batch", lambda *_: pytest.fail("built for nothing"))
    found = same_run(tmp_path, session(tmp_path), uninterrupted)
    assert found["eval_loss_after"] is not None


def test_max_steps_beyond_an_epoch_goes_on_with_the_next(tmp_path):
    session(tmp_path, a_job(max_steps=8))
    lines = ledger.steps(ledger.read(tmp_path / "metrics.jsonl"))
    assert [e["epoch"] for e in lines] == pytest.approx([n / 6 for n in range(1, 9)], abs=1e-4)
    assert sum(e["rows"] for e in lines[:6]) == 23


@pytest.mark.parametrize(("micro_batch", "step"), [(1, 0), (5, 2), (6, 3), (11, 5)])
def test_ctrl_c_keeps_the_last_whole_step(
    tmp_path, monkeypatch, capsys, uninterrupted, micro_batch, step
):
    """In the first micro-batch of a step the accumulation is dropped; in the last one it is finished."""
    handler = signal.getsignal(signal.SIGINT)
    at_call(monkeypatch, micro_batch, interrupt)
    with pytest.raises(
        KeyboardInterrupt, match=f"stopped after step {step} of {STEPS}; its checkpoint is saved"
    ):
        session(tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    assert checkpoints(tmp_path)[-1] == f"step-{step:06d}"
    found = same_run(tmp_path, session(tmp_path), uninterrupted)
    assert f"continuing after step {step} of" in capsys.readouterr().out or step == 0
    assert (found["sessions"], found["steps_repeated"]) == (2, 0)
    assert [(when, at) for when, at, _ in evals(tmp_path)] == [("before", 0), ("after", STEPS)]


def test_a_stopped_step_leaves_no_trace():
    job, current = a_job(), of_rows([0, 1], [2])
    net = small_model(job).train()
    masters = train.Masters(net, job)
    answers = iter([(False, False, False), (True, False, False), (True, False, False)])
    done = take_step(net, masters, job, current, 3, lambda: next(answers))
    assert done == Done(None, None, "interrupted")
    assert not masters.flat.grad.any()
    assert all(p.grad is None for p in masters.live.values())
    untouched = small_model(job).train()
    again, first = (
        take_step(net, masters, job, current, 3),
        take_step(untouched, train.Masters(untouched, job), job, current, 3),
    )
    assert again == first, "the step taken again is the step nobody stopped"
    assert again != take_step(untouched, train.Masters(untouched, job), job, current, 4), (
        "there must be dropout to tell"
    )


def test_ranks_finish_their_step_together(monkeypatch):
    """One that dropped it would leave the others waiting for its gradients for ever."""
    monkeypatch.setattr(ranks, "world", lambda: 2)
    monkeypatch.setattr(ranks, "add", lambda *_: None)
    net, job = small_model(a_job()).train(), a_job()
    masters = train.Masters(net, job)
    done = take_step(net, masters, job, of_rows([0, 1], [2]), 3, lambda: (True, False, False))
    untouched = small_model(job).train()
    assert done == take_step(
        untouched, train.Masters(untouched, job), job, of_rows([0, 1], [2]), 3
    )._replace(stop="interrupted")


def test_out_of_memory_with_a_sharded_base_ends_the_rank(monkeypatch):
    """The other ranks wait for its part of the next layer: a sum to which it would add its trouble is never reached."""

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    net, job = small_model(a_job()).train(), a_job()
    masters = train.Masters(net, job)
    monkeypatch.setattr(compiled, "token_losses", full)
    assert take_step(net, masters, job, of_rows([0, 1], [2])).stop == "memory"
    monkeypatch.setattr(placement, "sharded_now", lambda _: True)
    monkeypatch.setattr(ranks, "add", lambda *_: pytest.fail("waits for ever"))
    with pytest.raises(UserError, match="not enough memory for a step of a sharded base"):
        take_step(net, masters, job, of_rows([0, 1], [2]))


def test_running_out_of_memory_keeps_the_last_whole_step(tmp_path, monkeypatch, uninterrupted):
    """The advice it gives is one that the checkpoint allows."""

    def full(losses):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    job = a_job(lora_dropout=0.0)
    wanted, entries = whole_run(tmp_path / "whole", job)
    with monkeypatch.context() as patch:
        at_call(patch, 8, full)  # the last micro-batch of step 4
        longest = max(
            ROWS["length"][r]
            for b in next(plan.steps_from(np.array(ROWS["length"]), 3, job))[1]
            for r in b
        )
        with pytest.raises(
            UserError,
            match=rf"out of memory in step 4, whose longest row has {longest} tokens. Step 3 is saved",
        ) as caught:
            session(tmp_path / "run", job)
    assert "half the per_device_train_batch_size and twice the gradient_accumulation_steps" in str(
        caught.value
    )
    assert checkpoints(tmp_path / "run") == ["step-000002", "step-000003"]
    smaller, found = whole_run(
        tmp_path / "run",
        a_job(lora_dropout=0.0, per_device_train_batch_size=1, gradient_accumulation_steps=4),
    )
    assert apart(wanted, smaller, job) < 1e-3
    assert [e["rows"] for e in ledger.steps(found)] == [e["rows"] for e in ledger.steps(entries)]
    assert ledger.summary(found)["steps_repeated"] == 0


def test_ctrl_c_in_the_last_step_is_not_swallowed(tmp_path, monkeypatch, uninterrupted):
    at_call(monkeypatch, 12, interrupt)
    with pytest.raises(KeyboardInterrupt, match=f"stopped after step {STEPS} of {STEPS}"):
        session(tmp_path)
    assert ledger.summary(ledger.read(tmp_path / "metrics.jsonl"))["eval_loss_after"] is None
    found = same_run(tmp_path, session(tmp_path), uninterrupted)
    assert found["eval_loss_after"] is not None


def test_max_minutes_one_step_a_session(tmp_path, uninterrupted):
    job = a_job(max_minutes=1e-9)
    for step in range(1, STEPS):
        with pytest.raises(
            stops.SessionOver,
            match=rf"is up after step {step} of 6.* about {STEPS - step} more sessions",
        ):
            session(tmp_path, job)
    found = same_run(tmp_path, session(tmp_path, job), uninterrupted)
    assert (found["sessions"], found["steps_repeated"]) == (STEPS, 0)


@pytest.mark.parametrize(("micro_batch", "step"), [(1, 1), (5, 3), (8, 4), (12, 6)])
def test_a_stop_file_ends_the_session_after_the_step_and_goes(
    tmp_path, monkeypatch, uninterrupted, micro_batch, step
):
    """Unlike Ctrl-C it lets the step finish, also when it comes in the first micro-batch; the same command continues."""
    at_call(monkeypatch, micro_batch, touch_stop(tmp_path))
    with pytest.raises(
        stops.SessionOver,
        match=f"^a stop file was found after step {step} of {STEPS}; its checkpoint is saved. The same command continues.$",
    ):
        session(tmp_path)
    assert not (tmp_path / "stop").exists()
    assert checkpoints(tmp_path)[-1] == f"step-{step:06d}"
    found = same_run(tmp_path, session(tmp_path), uninterrupted)
    assert (found["sessions"], found["steps_repeated"]) == (2, 0)


def test_ctrl_c_takes_a_stop_file_away_too(tmp_path, monkeypatch, uninterrupted):
    """Else the next session would stop after one step, for a wish already granted."""
    at_call(monkeypatch, 5, lambda losses: interrupt(touch_stop(tmp_path)(losses)))
    with pytest.raises(KeyboardInterrupt):
        session(tmp_path)
    same_run(tmp_path, session(tmp_path), uninterrupted)


def test_a_finished_run_started_again_changes_nothing(tmp_path, uninterrupted):
    session(tmp_path)
    found = same_run(tmp_path, session(tmp_path), uninterrupted)
    assert (found["sessions"], found["steps_repeated"]) == (2, 0)
    assert len(evals(tmp_path)) == 2


def python(code, *words):
    """Run code in a process of its own that has this file as module `t`."""
    return subprocess.run(
        [
            sys.executable,
            "-c",
            f"import pathlib, sys, pytest, test_train as t\nt.torch.set_num_threads(1)\n{code}",
            *map(str, words),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
            "OMP_NUM_THREADS": "1",
        },
    )


def test_kill_minus_nine(tmp_path, uninterrupted):
    """Killed in step 4: step 3 is in the ledger and not in a checkpoint, so it is run and counted again."""
    done = python(
        "with pytest.MonkeyPatch.context() as m:\n"
        "    t.at_call(m, 7, lambda losses: t.os.kill(t.os.getpid(), 9))\n    t.session(pathlib.Path(sys.argv[1]))",
        tmp_path,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert checkpoints(tmp_path) == ["step-000002"]
    found = same_run(tmp_path, session(tmp_path), uninterrupted)
    assert (found["sessions"], found["steps_repeated"]) == (2, 1)


MANY_KILLS = {"max_steps": 24, "save_steps": 2, "eval_steps": 4}


def killed_at(folder, everywhere, saving):
    """A session that is killed at the given call of a Python or C function, counted in all of `train` or in save_checkpoint alone (0: never)."""
    counts, inside = [0, 0], []

    def count(frame, event, _):
        if frame.f_code is checkpoint.save_checkpoint.__code__ and event in ("call", "return"):
            inside[:] = [True] if event == "call" else []
        if event in ("call", "c_call"):
            counts[0] += 1
            counts[1] += bool(inside)
            if counts[0] == everywhere or inside and counts[1] == saving:
                os.kill(os.getpid(), signal.SIGKILL)

    def counted(*args):
        sys.setprofile(count)
        try:
            return loop(*args)
        finally:
            sys.setprofile(None)

    loop, train.train = train.train, counted
    session(folder, a_job(**MANY_KILLS))
    return counts


def killed_ten_times(folder, seed):
    """Sessions in forked processes, so that torch is imported once: ten are killed, the last may finish. Prints what each kill left."""

    def forked(action):
        sys.stdout.flush()
        if not (child := os.fork()):
            torch.set_num_threads(
                1
            )  # again: threads that both find torch's pool left behind by the fork trip over each other
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    action()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def count_a_whole_session():
        (folder / "counts.json").write_text(json.dumps(killed_at(folder / "counted", 0, 0)))

    codes, left = [forked(count_a_whole_session)], []
    calls, of_saving = json.loads((folder / "counts.json").read_text())
    draw = random.Random(seed)
    saves = MANY_KILLS["max_steps"] // MANY_KILLS["save_steps"]
    moments = [(draw.randrange(1, calls // 3), 0) for _ in range(6)] + [
        (0, draw.randrange(1, of_saving // saves)) for _ in range(4)
    ]
    draw.shuffle(moments)
    for moment in moments:
        codes.append(forked(lambda moment=moment: killed_at(folder / "run", *moment)))
        left.append(
            sorted(
                str(p.relative_to(folder / "run" / "checkpoints"))
                for p in (folder / "run").glob("checkpoints/*")
            )
        )
    codes.append(forked(lambda: session(folder / "run", a_job(**MANY_KILLS))))
    print(json.dumps({"codes": codes, "left": left, "moments": moments}))


@pytest.mark.parametrize("seed", [11])
def test_killed_at_ten_random_moments(tmp_path, seed):
    """Four of the ten while a checkpoint is being written. In the end nobody can tell."""
    undisturbed = whole_run(tmp_path / "whole", a_job(**MANY_KILLS))
    done = python("t.killed_ten_times(pathlib.Path(sys.argv[1]), int(sys.argv[2]))", tmp_path, seed)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["codes"] == [0, *[-signal.SIGKILL] * 10, 0], (told, done.stderr[-3000:])
    assert any(name.startswith(".step") for names in told["left"] for name in names), (
        "one kill must leave a half-written checkpoint"
    )
    assert len({tuple(names) for names in told["left"]}) > 4, (
        "the kills must fall on different parts of the run"
    )
    found = same_run(tmp_path / "run", session(tmp_path / "run", a_job(**MANY_KILLS)), undisturbed)
    assert found["steps_repeated"] > 0
    assert {(when, step): loss for when, step, loss in evals(tmp_path / "run")} == {
        (when, step): loss for when, step, loss in evals(tmp_path / "whole")
    }
    assert checkpoints(tmp_path / "run") == checkpoints(tmp_path / "whole")


def test_ledger_lines_of_several_steps_never_span_a_checkpoint(
    tmp_path, monkeypatch, uninterrupted
):
    """Else the line written after a resume would replace a longer one, and steps would be lost from loss_mean."""
    at_call(monkeypatch, 12, crash)
    job = a_job(logging_steps=5)
    with pytest.raises(RuntimeError, match="machine stopped"):
        session(tmp_path, job)
    session(tmp_path, job)
    entries = ledger.read(tmp_path / "metrics.jsonl")
    found, wanted = ledger.summary(entries), ledger.summary(uninterrupted[1])
    assert sum(e["steps"] for e in ledger.steps(entries)) == STEPS
    assert found["steps_repeated"] == 1
    assert found["loss_mean"] == pytest.approx(wanted["loss_mean"], rel=1e-12)
    assert [e["epoch"] for e in ledger.steps(entries)] == pytest.approx(
        [e["step"] / 6 for e in ledger.steps(entries)], abs=1e-4
    )


def test_the_epoch_of_a_line_is_that_of_its_step_also_when_the_next_was_dropped(
    tmp_path, monkeypatch
):
    at_call(monkeypatch, 7, interrupt)
    with pytest.raises(KeyboardInterrupt):
        session(tmp_path, a_job(logging_steps=5, save_steps=100))
    (line,) = ledger.steps(ledger.read(tmp_path / "metrics.jsonl"))
    assert (line["step"], line["steps"], line["epoch"]) == (3, 3, 0.5)


# ---------------------------------------------------------------------------------------------------------------------
# the held-out loss during training, and early stopping


def test_evals_during_training_are_noted_and_disturb_nothing(tmp_path, uninterrupted):
    same_run(tmp_path, session(tmp_path, a_job(eval_steps=2)), uninterrupted)
    assert [(when, step) for when, step, _ in evals(tmp_path)] == [
        ("before", 0),
        ("during", 2),
        ("during", 4),
        ("after", 6),
    ]
    assert checkpoints(tmp_path) == ["step-000004", "step-000006"]


def test_an_eval_is_the_held_out_loss_of_the_model_at_its_step(tmp_path):
    session(tmp_path / "whole", a_job(eval_steps=2, lr_scheduler_type="constant"))
    during = {step: loss for when, step, loss in evals(tmp_path / "whole") if when == "during"}
    for step in (2, 4):
        session(tmp_path / str(step), a_job(max_steps=step, lr_scheduler_type="constant"))
        assert evals(tmp_path / str(step))[-1] == ("after", step, during[step])
        net = small_model(a_job()).eval()
        train.resume(tmp_path / str(step) / "checkpoints", train.Masters(net, a_job()), {})
        assert evaluate.response_loss(net, HELD_OUT)[0] == during[step], "measured without dropout"
    assert len({loss for *_, loss in evals(tmp_path / "whole")}) == 4


@pytest.mark.parametrize("action", [interrupt, crash])
@pytest.mark.parametrize("micro_batch", [3, 5, 8, 9, 10])
def test_evals_are_the_same_with_an_interruption(
    tmp_path, monkeypatch, uninterrupted, micro_batch, action
):
    job = a_job(eval_steps=2, save_steps=3)
    session(tmp_path / "whole", job)
    at_call(monkeypatch, micro_batch, action)
    with pytest.raises((KeyboardInterrupt, RuntimeError), match="stopped"):
        session(tmp_path / "stopped", job)
    same_run(tmp_path / "stopped", session(tmp_path / "stopped", job), uninterrupted)
    assert {(when, step): loss for when, step, loss in evals(tmp_path / "stopped")} == {
        (when, step): loss for when, step, loss in evals(tmp_path / "whole")
    }


def test_ctrl_c_does_not_wait_for_a_held_out_loss(tmp_path, monkeypatch, uninterrupted):
    """It may take minutes, and the runner kills after less; the next session makes up for it."""
    job = a_job(eval_steps=2)
    session(tmp_path / "whole", job)
    at_call(monkeypatch, 8, interrupt)  # in the last micro-batch of step 4
    with pytest.raises(KeyboardInterrupt, match="after step 4"):
        session(tmp_path / "stopped", job)
    assert [(when, step) for when, step, _ in evals(tmp_path / "stopped")] == [
        ("before", 0),
        ("during", 2),
    ]
    same_run(tmp_path / "stopped", session(tmp_path / "stopped", job), uninterrupted)
    assert evals(tmp_path / "stopped") == evals(tmp_path / "whole")


def test_ctrl_c_in_a_held_out_loss_ends_it_there(tmp_path, monkeypatch, uninterrupted):
    job, real, groups = a_job(eval_steps=2), evaluate._row_losses, []
    session(tmp_path / "whole", job)

    def interrupted_at_the_second(model, data, rows, bar):
        def counted(numbers):
            for n in bar(numbers):
                groups.append(n)
                if len(groups) == 2:
                    interrupt(None)
                yield n

        return real(
            model,
            data,
            1,
            counted if (tmp_path / "stopped/checkpoints/step-000004").exists() else bar,
        )

    monkeypatch.setattr(evaluate, "_row_losses", interrupted_at_the_second)
    assert len(HELD_OUT) > 3, "more groups of one row would follow"
    with pytest.raises(
        KeyboardInterrupt, match="held-out loss after step 4; its checkpoint is saved"
    ):
        session(tmp_path / "stopped", job)
    assert len(groups) == 2
    monkeypatch.setattr(evaluate, "_row_losses", real)
    same_run(tmp_path / "stopped", session(tmp_path / "stopped", job), uninterrupted)
    assert [e[:2] for e in evals(tmp_path / "stopped")] == [
        e[:2] for e in evals(tmp_path / "whole")
    ]


def test_no_held_out_rows_no_evals(tmp_path, uninterrupted):
    same_run(
        tmp_path,
        session(tmp_path, a_job(eval_steps=2), held_out=HELD_OUT.select([])),
        uninterrupted,
    )
    assert evals(tmp_path) == []


EARLY = {
    "max_steps": 30,
    "eval_steps": 2,
    "save_steps": 4,
    "lr_scheduler_type": "constant",
    "early_stopping_patience": 3,
}


@pytest.fixture(scope="session")
def stopped_early(tmp_path_factory):
    """(weights, folder) of a run whose held-out loss was best after step 10 and that stopped after step 16."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("early")
    weights, _ = whole_run(folder, a_job(**EARLY))
    return weights, folder


def test_early_stopping_stops_and_restores_the_best(tmp_path, stopped_early):
    weights, folder = stopped_early
    during = {step: loss for when, step, loss in evals(folder) if when == "during"}
    best = min(during, key=during.get)
    assert list(during) == list(range(2, best + 2 * 3 + 1, 2)), (
        "three evals without a better one, and no fourth"
    )
    assert max(during) < 30
    wanted = session(tmp_path, a_job(max_steps=best, lr_scheduler_type="constant"))
    assert all(torch.equal(weights[n], w) for n, w in wanted.weights.items())
    assert evals(folder)[-1] == ("after", max(during), during[best])
    assert ledger.summary(ledger.read(folder / "metrics.jsonl"))["best_step"] == best
    assert [p.name for p in (folder / "checkpoints" / "best").iterdir()] == [f"step-{best:06d}"]
    last = load_file(folder / "checkpoints" / f"step-{max(during):06d}" / "adapter.safetensors")
    assert any(not torch.equal(weights[n], w) for n, w in last.items()), (
        "the best must not be the last"
    )


@pytest.mark.parametrize("micro_batch", [3, 13, 20, 21, 25, 31, 32])
def test_a_resumed_run_stops_early_at_the_same_step(
    tmp_path, monkeypatch, stopped_early, micro_batch
):
    """Killed before or after the best eval, on the steps run again or past a checkpoint."""
    weights, folder = stopped_early
    at_call(monkeypatch, micro_batch, crash)
    with pytest.raises(RuntimeError, match="machine stopped"):
        session(tmp_path, a_job(**EARLY))
    same_run(
        tmp_path,
        session(tmp_path, a_job(**EARLY)),
        (weights, ledger.read(folder / "metrics.jsonl")),
    )
    assert {(when, step): loss for when, step, loss in evals(tmp_path)} == {
        (when, step): loss for when, step, loss in evals(folder)
    }


def test_a_run_stopped_early_and_started_again_changes_nothing(tmp_path, stopped_early):
    weights, folder = stopped_early
    shutil.copytree(folder, tmp_path / "run")
    same_run(
        tmp_path / "run",
        session(tmp_path / "run", a_job(**EARLY)),
        (weights, ledger.read(folder / "metrics.jsonl")),
    )
    assert evals(tmp_path / "run") == evals(folder)


@pytest.mark.parametrize(
    ("losses", "spent"),
    [
        ([], False),
        ([3.0], False),
        ([3.0, 4.0], False),
        ([3.0, 4.0, 5.0], True),
        ([3.0, 4.0, 2.0, 2.5], False),
        ([3.0, 4.0, 2.0, 2.5, 2.1], True),
        ([3.0, 3.0, 3.0], True),
        ([5.0, 4.0, 3.0, 2.0], False),
    ],
)
def test_patience(losses, spent):
    found = {
        ("before", 0): 1.0,
        **{("during", 2 * n): loss for n, loss in enumerate(losses, 1)},
        ("after", 99): 0.5,
    }
    for job, expected in (
        (a_job(early_stopping_patience=2, eval_steps=2), spent),
        (a_job(), False),
    ):
        assert HeldOut(None, None, job, found, None, None).patience_spent() is expected


def scripted(monkeypatch, *losses):
    """Held-out losses as given, one a measurement, where a decision is tested and not what a small model learns."""
    told = iter(losses)
    monkeypatch.setattr(
        evaluate, "row_losses", lambda *_, **__: np.array([[10 * next(told), 10.0]])
    )


def test_the_last_weights_are_kept_when_they_are_the_best(tmp_path, monkeypatch, uninterrupted):
    """With early stopping on, a run that gets better to its end must not go back to the last eval before it."""
    scripted(monkeypatch, 4.0, 3.0, 2.0, 1.0, 1.0)
    masters = session(tmp_path, a_job(eval_steps=2, early_stopping_patience=2))
    assert all(torch.equal(masters.weights[n], w) for n, w in uninterrupted[0].items())


def test_a_best_that_was_run_past_the_point_of_resume_is_forgotten(tmp_path, monkeypatch):
    """On a GPU the steps run again differ in the last bits, and another eval may be the best."""
    job = a_job(
        max_steps=8,
        eval_steps=2,
        save_steps=100,
        early_stopping_patience=5,
        lr_scheduler_type="constant",
    )
    with monkeypatch.context() as patch:
        scripted(patch, 5.0, 4.0, 3.0, 2.0)
        at_call(patch, 14, crash)  # in step 7; the best was step 6
        with pytest.raises(RuntimeError, match="machine stopped"):
            session(tmp_path / "run", job)
    for lost in (tmp_path / "run" / "checkpoints").glob("step-*"):
        shutil.rmtree(lost)
    scripted(monkeypatch, 3.0, *[4.0] * 9)
    masters = session(tmp_path / "run", job)
    wanted = session(tmp_path / "two", a_job(max_steps=2, lr_scheduler_type="constant"))
    assert all(torch.equal(masters.weights[n], w) for n, w in wanted.weights.items())


# ---------------------------------------------------------------------------------------------------------------------
# transformers' own numbers


def test_the_ledger_is_right_where_trainoutput_is_not(tmp_path, monkeypatch):
    """Both resume two steps before the end of 40: TrainOutput gives their loss over all steps, and all rows over their seconds."""
    job = a_job(lora_dropout=0.0, max_steps=40, save_steps=38, dataloader_num_workers=0)

    class StopsAt38(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step == 38

    def trainer(*callbacks):
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / "theirs"),
            per_device_train_batch_size=4,
            max_steps=40,
            save_steps=38,
            logging_steps=1,
            learning_rate=1e-2,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=True,
        )
        return transformers.Trainer(
            small_model(job),
            arguments,
            train_dataset=ROWS,
            callbacks=list(callbacks),
            data_collator=lambda rows: {
                "input_ids": pad([r["input_ids"] for r in rows], 0),
                "labels": pad([r["labels"] for r in rows], IGNORED),
            },
        )

    trainer(StopsAt38()).train()
    resumed = trainer()
    theirs = resumed.train(resume_from_checkpoint=str(tmp_path / "theirs" / "checkpoint-38"))
    logged = [e["loss"] for e in resumed.state.log_history if "loss" in e]
    assert (theirs.global_step, len(logged)) == (40, 40)
    assert theirs.training_loss < np.mean(logged) / 10
    assert theirs.training_loss == pytest.approx(sum(logged[-2:]) / 40, rel=0.05)
    assert theirs.metrics["train_samples_per_second"] * theirs.metrics[
        "train_runtime"
    ] == pytest.approx(160, rel=0.02), "8 rows were trained in it"

    losses, rows, seconds = {}, [], []

    def timed(take, masters, step, current, *rest):
        begun = time.monotonic()
        done = run_step(take, masters, step, current, *rest)
        losses[step] = done.loss
        rows.append(len(current["rows"]))
        seconds.append(time.monotonic() - begun)
        return done

    run_step = train.run_step
    monkeypatch.setattr(train, "run_step", timed)
    at_call(monkeypatch, 77, crash)  # the first of two micro-batches of step 39
    begun = time.monotonic()
    with pytest.raises(RuntimeError, match="machine stopped"):
        session(tmp_path / "ours", job)
    middle = time.monotonic()
    session(tmp_path / "ours", job)
    walls = middle - begun, time.monotonic() - middle
    found = ledger.summary(ledger.read(tmp_path / "ours" / "metrics.jsonl"))
    assert (found["steps"], found["sessions"], found["steps_repeated"]) == (40, 2, 0)
    assert found["loss_mean"] == pytest.approx(sum(losses.values()) / 40, rel=1e-12)
    assert found["loss_mean"] == pytest.approx(np.mean(logged), rel=0.05)
    assert sum(seconds) <= found["seconds"] + 0.01
    assert found["seconds"] <= sum(walls)
    assert sum(rows) == sum(
        len(b)
        for _, step in itertools.islice(plan.steps_from(np.array(ROWS["length"]), 0, job), 40)
        for b in step
    )
    assert found["samples_per_second_with_warm_up"] == pytest.approx(
        sum(rows) / found["seconds"], rel=1e-3
    )
    lines = ledger.steps(ledger.read(tmp_path / "ours" / "metrics.jsonl"))
    assert [e["session"] for e in lines] == [1] * 38 + [2] * 2
    assert all(e["seconds"] >= own for e, own in zip(lines, seconds, strict=True))
    warm = [
        n for n in range(40) if n not in (0, 38)
    ]  # the first step of a session loads and takes memory
    assert found["samples_per_second"] == pytest.approx(
        sum(rows[n] for n in warm) / sum(lines[n]["seconds"] for n in warm), rel=1e-9
    )
    assert 2 * found["samples_per_second"] < sum(rows) / sum(e["seconds"] for e in lines[-2:]), (
        "what theirs would be for this run"
    )


# ---------------------------------------------------------------------------------------------------------------------
# checkpoints


@pytest.fixture(scope="session")
def stopped(tmp_path_factory):
    """A run that crashed in step 5, with checkpoints of steps 2 and 4: copy before use."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(RuntimeError):
        at_call(patch, 9, crash)
        session(folder)
    assert checkpoints(folder) == ["step-000002", "step-000004"]
    return folder


@pytest.fixture
def stopped_copy(stopped, tmp_path):
    return pathlib.Path(shutil.copytree(stopped, tmp_path / "run"))


def flip(path, at=-3):
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


DAMAGE = {
    "truncated adapter": lambda c: os.truncate(c / "adapter.safetensors", 100),
    "empty optimizer": lambda c: (c / "optimizer.safetensors").write_bytes(b""),
    "flipped bit in adapter": lambda c: flip(c / "adapter.safetensors"),
    "flipped bit in optimizer": lambda c: flip(c / "optimizer.safetensors"),
    "flipped bit in the optimizer's numbers": lambda c: flip(c / "optimizer.json", 20),
    "missing optimizer's numbers": lambda c: (c / "optimizer.json").unlink(),
    "missing optimizer": lambda c: (c / "optimizer.safetensors").unlink(),
    "missing checkpoint.json": lambda c: (c / "checkpoint.json").unlink(),
    "torn checkpoint.json": lambda c: os.truncate(c / "checkpoint.json", 90),
    "checkpoint.json not UTF-8": lambda c: (c / "checkpoint.json").write_bytes(b"\xff\xfe"),
    "checkpoint.json of another shape": lambda c: (c / "checkpoint.json").write_text("[1]"),
    "flipped bit in the step": lambda c: (c / "checkpoint.json").write_text(
        (c / "checkpoint.json").read_text().replace('"step": 4', '"step": 5')
    ),
    "flipped bit in an identity": lambda c: (c / "checkpoint.json").write_text(
        (c / "checkpoint.json").read_text().replace('"data-1"', '"data-3"')
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_it_says_so(stopped_copy, capsys, damage):
    DAMAGE[damage](stopped_copy / "checkpoints" / "step-000004")
    path, state = checkpoint.newest_checkpoint(stopped_copy / "checkpoints")
    assert (path.name, state["step"]) == ("step-000002", 2)
    assert "checkpoint step-000004 is damaged (" in capsys.readouterr().out
    assert any(name.startswith("damaged-step-000004") for name in checkpoints(stopped_copy))


def test_training_from_the_checkpoint_before_a_damaged_one(stopped_copy, capsys, uninterrupted):
    flip(stopped_copy / "checkpoints" / "step-000004" / "optimizer.safetensors")
    found = same_run(stopped_copy, session(stopped_copy), uninterrupted)
    assert (found["sessions"], found["steps_repeated"]) == (2, 2)
    assert "continuing after step 2 of" in capsys.readouterr().out
    assert [n for n in checkpoints(stopped_copy) if n.startswith("step")] == [
        "step-000004",
        "step-000006",
    ]


def test_without_a_good_checkpoint_training_starts_over(stopped_copy, uninterrupted):
    for path in (stopped_copy / "checkpoints").glob("step-*"):
        os.truncate(path / "adapter.safetensors", 50)
    found = same_run(stopped_copy, session(stopped_copy), uninterrupted)
    assert found["steps_repeated"] == 4


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"lora_r": 3}, "lora_r: checkpoint 2, now 3"),
        ({"learning_rate": 2e-2}, "learning_rate: checkpoint 0.01, now 0.02"),
        ({"seed": 6}, "seed: checkpoint 5, now 6"),
        ({"gradient_accumulation_steps": 4}, "rows_a_step: checkpoint 4, now 8"),
        ({"per_device_train_batch_size": 3}, "rows_a_step: checkpoint 4, now 6"),
        ({"packing": True}, "packing: checkpoint False, now True"),
        ({"load_in_4bit": True}, "load_in_4bit: checkpoint False, now True"),
        ({"precision": OTHER}, f"computes in: checkpoint {device.precision()[0]}, now"),
        ({"use_rslora": True}, "use_rslora: checkpoint False, now True"),
        ({"neftune_noise_alpha": 1.0}, "neftune_noise_alpha: checkpoint 0.0, now 1.0"),
        ({"base_model": "other/base"}, "base_model: checkpoint some/base, now other/base"),
        ({"max_steps": 2}, "max_steps: checkpoint -1, now 2"),
        ({"finetune_mlp_modules": False}, "finetune_mlp_modules: checkpoint True, now False"),
    ],
)
def test_a_checkpoint_of_another_job_is_refused_with_the_difference(stopped_copy, changes, shown):
    before = (stopped_copy / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=re.escape(shown)):
        session(stopped_copy, a_job(**changes))
    assert checkpoints(stopped_copy) == ["step-000002", "step-000004"]
    assert (stopped_copy / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("what", ["data", "base"])
def test_a_checkpoint_of_other_data_or_another_base_is_refused(stopped_copy, what):
    with pytest.raises(
        UserError,
        match=rf"step-000004 does not belong to this job:\n  {what}: checkpoint {what}-1, now {what}-2\nStart .*FORCE=1",
    ):
        session(stopped_copy, **{what: f"{what}-2"})


def test_the_micro_batch_of_a_packing_job_is_part_of_it():
    """Its plan depends on it: packed micro-batches are filled with rows that sum up well."""
    jobs = [
        a_job(packing=True),
        a_job(packing=True, per_device_train_batch_size=4, gradient_accumulation_steps=1),
    ]
    ours, theirs = (train.identity(job, "data-1", "base-1", 1) for job in jobs)
    assert {k for k in ours if ours[k] != theirs[k]} == {"micro_batch"}


@pytest.mark.parametrize("package", ["torch", "transformers", "peft"])
def test_a_checkpoint_of_another_library_is_refused_with_the_difference(
    stopped_copy, monkeypatch, package
):
    versions = machine.packages()
    monkeypatch.setattr(machine, "packages", lambda: {**versions, package: "99.1.2"})
    now = ".".join(versions[package].split(".")[:2])
    with pytest.raises(
        UserError,
        match=rf"does not belong to this job:\n  {package} version: checkpoint {re.escape(now)}, now 99\.1\nStart",
    ):
        session(stopped_copy)
    assert checkpoints(stopped_copy) == ["step-000002", "step-000004"]


def test_a_patch_of_a_library_is_no_other_library(stopped_copy, monkeypatch, uninterrupted):
    versions = machine.packages()
    patched = {k: ".".join([*v.split(".")[:2], "99"]) for k, v in versions.items()}
    assert patched["torch"] != versions["torch"]
    monkeypatch.setattr(machine, "packages", lambda: patched)
    same_run(stopped_copy, session(stopped_copy), uninterrupted)


def test_fewer_steps_than_are_done_are_refused(stopped_copy):
    before = (stopped_copy / "metrics.jsonl").read_bytes()
    with pytest.raises(
        UserError,
        match=r"step-000004 does not belong to this job:\n  max_steps: checkpoint -1, now 3\nStart .* RUN=",
    ):
        session(stopped_copy, a_job(max_steps=3))
    assert checkpoints(stopped_copy) == ["step-000002", "step-000004"]
    assert (stopped_copy / "metrics.jsonl").read_bytes() == before


def test_what_changes_no_weight_may_change_between_sessions(stopped_copy, uninterrupted):
    session_job = a_job(
        save_steps=1,
        save_total_limit=3,
        max_minutes=60.0,
        sample_tokens=5,
        dataloader_num_workers=0,
        eval_steps=3,
    )
    same_run(stopped_copy, session(stopped_copy, session_job), uninterrupted)
    assert checkpoints(stopped_copy) == ["step-000004", "step-000005", "step-000006"]


@pytest.mark.parametrize(("rows", "accumulation"), [(4, 1), (1, 4)])
def test_the_micro_batch_may_change_between_sessions(tmp_path, monkeypatch, rows, accumulation):
    """The same rows a step in other micro-batches: only the rounding differs, whether from the start or from step 4 on."""
    job, other = (
        a_job(
            lora_dropout=0.0,
            per_device_train_batch_size=r,
            gradient_accumulation_steps=a,
            max_steps=12,
        )
        for r, a in ((2, 2), (rows, accumulation))
    )
    weights, entries = whole_run(tmp_path / "whole", job)
    with monkeypatch.context() as patch:
        at_call(patch, 9, crash)
        with pytest.raises(RuntimeError, match="machine stopped"):
            session(tmp_path / "run", job)
    resumed, resumed_entries = whole_run(tmp_path / "run", other)
    assert ledger.summary(resumed_entries)["sessions"] == 2
    assert apart(weights, resumed, job) < 1e-3
    for ours, theirs in zip(ledger.steps(resumed_entries), ledger.steps(entries), strict=True):
        assert (ours["step"], ours["rows"], ours["tokens"], ours["trained"]) == (
            theirs["step"],
            theirs["rows"],
            theirs["tokens"],
            theirs["trained"],
        )
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    unlike, _ = whole_run(tmp_path / "unlike", job.model_copy(update={"seed": 6}))
    assert apart(weights, unlike, job) > 0.1, "other rows must give other weights"


def test_save_total_limit_of_one(tmp_path):
    session(tmp_path, a_job(save_total_limit=1))
    assert checkpoints(tmp_path) == ["step-000006"]


def test_a_folder_half_written_by_a_kill_is_ignored_and_goes(stopped_copy, uninterrupted):
    for name in (".step-000006.tmp", ".step-000005.tmp"):
        (stopped_copy / "checkpoints" / name).mkdir()
        (stopped_copy / "checkpoints" / name / "adapter.safetensors").write_bytes(b"half")
    same_run(stopped_copy, session(stopped_copy), uninterrupted)
    assert checkpoints(stopped_copy) == ["step-000004", "step-000006"]
    assert not checkpoint.files.damaged(
        stopped_copy / "checkpoints" / "step-000006",
        checkpoint.newest_checkpoint(stopped_copy / "checkpoints")[1]["files"],
    )


def test_a_checkpoint_appears_under_its_name_only_when_complete(tmp_path, monkeypatch):
    seen = []

    def describe(folder, names):
        seen.append((folder.name, sorted(p.name for p in folder.parent.glob("step-*"))))
        return real(folder, names)

    real = checkpoint.files.describe
    monkeypatch.setattr(checkpoint.files, "describe", describe)
    session(tmp_path, a_job(max_steps=4))
    assert seen == [(".step-000002.tmp", []), (".step-000004.tmp", ["step-000002"])]


NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("file", "error"),
    [
        ("adapter.safetensors", NO_SPACE),
        ("optimizer.safetensors", NO_SPACE),
        ("optimizer.json", NO_SPACE),
        ("checkpoint.json", NO_SPACE),
        (
            "optimizer.safetensors",
            SafetensorError(
                "Error while serializing: I/O error: No space left on device (os error 28)"
            ),
        ),
    ],
)
def test_a_full_disk_leaves_the_earlier_checkpoints_and_says_so(
    tmp_path, monkeypatch, uninterrupted, file, error
):
    """What was half written goes, for it is what fills the disk; with space again the same command continues."""

    def refuse(path):
        if path.parent.name == ".step-000006.tmp" and path.name == file:
            raise error

    def save(tensors, path):
        path.write_bytes(b"half")
        refuse(path)
        save_file(tensors, path)

    def move(source, target):
        refuse(pathlib.Path(target))
        replace(source, target)

    save_file, replace = masters_module.save_file, os.replace
    with monkeypatch.context() as patch:
        patch.setattr(masters_module, "save_file", save)
        patch.setattr(os, "replace", move)
        with pytest.raises(
            UserError,
            match="checkpoint of step 6 could not be saved: .*No space left on device.* Earlier checkpoints are whole",
        ):
            session(tmp_path)
    assert checkpoints(tmp_path) == ["step-000002", "step-000004"]
    for name in checkpoints(tmp_path):
        state = json.loads((tmp_path / "checkpoints" / name / "checkpoint.json").read_text())
        assert not checkpoint.files.damaged(tmp_path / "checkpoints" / name, state["files"])
    found = same_run(tmp_path, session(tmp_path), uninterrupted)
    assert (found["sessions"], found["steps_repeated"]) == (2, 2)


def test_no_pickle_anywhere(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("pickled")

    monkeypatch.setattr(torch, "save", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr("pickle.dumps", refuse)
    job = a_job(max_steps=2)
    net = small_model(job)
    masters = train.Masters(net, job)
    train_step(net.train(), masters, job, of_rows([0]), 1e-3)
    train.save_checkpoint(tmp_path, 1, masters, {}, 2)
    assert sorted(p.name for p in (tmp_path / "step-000001").iterdir()) == [
        "adapter.safetensors",
        "checkpoint.json",
        "optimizer.json",
        "optimizer.safetensors",
    ]
    again = train.Masters(small_model(job), job)
    assert train.resume(tmp_path, again, {}) == 1
    assert torch.equal(again.flat, masters.flat)
    assert all(torch.equal(again.live[n], p) for n, p in masters.live.items())


class LikeBitsandbytes(torch.optim.AdamW):
    """bitsandbytes 0.50's habits: an int step, one quantisation map for all parameters, state_dict() with nested tensors."""

    qmap = torch.linspace(-1, 1, 256)

    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(
                        step=0,
                        state1=torch.zeros_like(p, dtype=torch.uint8),
                        qmap1=self.qmap,
                        absmax1=torch.zeros(1),
                    )
                state["step"] += 1
                state["state1"] += 3
                state["absmax1"] += p.grad.abs().max()
                p -= group["lr"] * p.grad * state["qmap1"][128 + state["step"]] * state["absmax1"]

    def state_dict(self):
        found = super().state_dict()
        found["state"] = {
            n: {"step": s["step"], "__nested__": {k: v for k, v in s.items() if k != "step"}}
            for n, s in found["state"].items()
        }
        return found


@pytest.mark.parametrize("real", [False, True])
def test_8_bit_adamw_survives_a_stop(tmp_path, monkeypatch, real):
    if real:
        pytest.importorskip("bitsandbytes")
    else:
        monkeypatch.setattr(torch.optim, "AdamW", LikeBitsandbytes)
    job = a_job(
        optim="adamw_8bit" if real else "adamw_torch", lora_r=128
    )  # wide enough for bitsandbytes' 8-bit state, which starts at 4,096 numbers
    whole = session(tmp_path / "whole", job)
    with monkeypatch.context() as patch:
        at_call(patch, 7, interrupt)
        with pytest.raises(KeyboardInterrupt):
            session(tmp_path / "stopped", job)
    state = load_file(
        tmp_path / "stopped" / "checkpoints" / "step-000003" / "optimizer.safetensors"
    )
    assert any(t.dtype == torch.uint8 for t in state.values())
    resumed = session(tmp_path / "stopped", job)
    assert all(torch.equal(whole.weights[n], w) for n, w in resumed.weights.items())


# ---------------------------------------------------------------------------------------------------------------------
# divergence


def caught_masters(monkeypatch):
    """The list into which a session's Masters go when it is made."""
    made = []

    def make(*args):
        made.append(masters_module.Masters(*args))
        return made[-1]

    monkeypatch.setattr(train, "Masters", make)
    return made


POISON = {
    "loss": (lambda losses: losses * math.nan, "loss nan"),
    "gradient": (
        lambda losses: (losses.register_hook(lambda g: g * math.inf), losses)[1],
        "gradient norm (inf|nan)",
    ),
    "explosion": (lambda losses: losses * 20, "loss [3-9][0-9]"),
}


@pytest.mark.parametrize("poison", POISON)
def test_a_diverged_step_stops_before_it_spoils_anything(tmp_path, monkeypatch, poison):
    job, (action, shown) = a_job(save_steps=1, max_steps=9), POISON[poison]
    undisturbed = whole_run(tmp_path / "whole", job)
    step = next(plan.steps_from(np.array(ROWS["length"]), 6, job))[1]
    made = caught_masters(monkeypatch)
    with monkeypatch.context() as patch:
        at_call(patch, 13, action)
        with pytest.raises(stops.Diverged, match=f"step 7 has .*{shown}") as caught:
            session(tmp_path / "run", job)
    assert re.findall(r"'(row-\d+)'", str(caught.value)) == [f"row-{n}" for b in step for n in b]
    path, state = checkpoint.newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert state["step"] == 6
    saved = load_file(path / "adapter.safetensors")
    assert all(t.isfinite().all() for t in saved.values())
    assert all(torch.equal(made[0].weights[n], w) for n, w in saved.items()), (
        "the step must not have moved a weight"
    )
    assert [e["step"] for e in ledger.steps(ledger.read(tmp_path / "run" / "metrics.jsonl"))] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    assert not (tmp_path / "run" / "checkpoints" / "best").exists()
    same_run(tmp_path / "run", session(tmp_path / "run", job), undisturbed)


def test_an_explosion_is_seen_again_after_a_resume(tmp_path, monkeypatch):
    """The rows that blew it up come again soon after the checkpoint; what came before it must not be forgotten."""
    job = a_job(save_steps=6, max_steps=9)
    step = next(plan.steps_from(np.array(ROWS["length"]), 7, job))[1]
    assert step[0] not in sum(plan.epoch_steps(np.array(ROWS["length"]), 0, job), []), (
        "these rows must not meet before"
    )
    poisoned = pad(ROWS[step[0]]["input_ids"], 0)
    at_every_call(
        monkeypatch,
        lambda losses, batch: losses * 20 if torch.equal(batch.input_ids, poisoned) else losses,
    )
    for _ in range(2):
        with pytest.raises(stops.Diverged, match="step 8 has the loss"):
            session(tmp_path, job)
    assert checkpoints(tmp_path) == ["step-000006"]


@pytest.mark.parametrize(
    ("loss", "norm", "recent", "expected"),
    [
        (math.nan, 1.0, [], True),
        (math.inf, 1.0, [], True),
        (1.0, math.inf, [], True),
        (1.0, math.nan, [1.0] * 20, True),
        (50.0, 1.0, [4.0] * 4, False),
        (50.0, 1.0, [4.0] * 5, True),
        (11.9, 1.0, [4.0] * 5, False),
        (12.1, 1.0, [4.0] * 5, True),
        (4.5, 1.0, [1.0] * 20, False),
        (4.6, 1.0, [1.0] * 20, True),
    ],
)
def test_what_counts_as_diverged(loss, norm, recent, expected):
    """Three times the mean of the last steps, and worse than guessing among 96 tokens, whose loss is 4.56."""
    assert stops.diverged(Done(loss, norm, ""), train.collections.deque(recent, 20), 96) is expected


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_one_gradient_that_is_no_number_is_seen(bad):
    masters = train.Masters(small_model(a_job()), a_job())
    next(iter(masters.gradients.values()))[0, 0] = bad
    assert stops.diverged(Done(1.0, masters.norm(), ""), train.collections.deque(), 96)


# ---------------------------------------------------------------------------------------------------------------------
# float16's loss scale


@pytest.fixture
def float16(monkeypatch):
    """The loss scale of a float16 job, around float32 arithmetic, in which a power of two changes no bit."""
    monkeypatch.setattr(device, "precision", lambda job=None: (torch.float16, "a test"))


def overflows_from(limit):
    """The gradient overflows wherever it would exceed the limit, as float16's does beyond 65,504."""

    def action(losses, _):
        losses.register_hook(lambda g: torch.where(g.abs() > limit, math.inf, g))
        return losses

    return action


def scales(folder):
    """Of each checkpoint, by its step: the loss scale, and how many steps it has held."""
    told = {
        int(p.name[5:]): json.loads((p / "optimizer.json").read_text())
        for p in sorted((folder / "checkpoints").glob("step-*"))
    }
    return {step: (t["scale"], t["steps_at_scale"]) for step, t in told.items()}


def test_a_step_that_overflows_is_repeated_at_half_the_scale(
    tmp_path, monkeypatch, float16, uninterrupted
):
    """No rows are lost, none counts twice, and the weights are those of a run without a scale."""
    calls = []

    def once(losses, batch):
        if len(calls) == 7:  # in step 4
            losses.register_hook(lambda g: g * math.inf)
        return losses

    calls = at_every_call(monkeypatch, once)
    masters = session(tmp_path)
    same_run(tmp_path, masters, uninterrupted)
    assert (masters_module.START_SCALE, masters.scale, masters.steps_at_scale) == (2**14, 2**13, 3)
    assert len(calls) == 12 + 2
    assert all(
        torch.equal(a.input_ids, b.input_ids) for a, b in zip(calls[6:8], calls[8:10], strict=True)
    )


def test_the_scale_is_halved_as_often_as_it_takes(tmp_path, monkeypatch, float16, uninterrupted):
    largest = masters_module.START_SCALE / min(train_step_sizes())
    calls = at_every_call(monkeypatch, overflows_from(largest / 20))
    masters = session(tmp_path)
    same_run(tmp_path, masters, uninterrupted)
    assert masters.scale in (2**10, 2**9)
    assert len(calls) > 12 + 2 * 3


def train_step_sizes():
    sizes = plan.sizes(ROWS)
    return [
        sum(int(sizes.trained[b].sum()) for b in step)
        for step in plan.epoch_steps(sizes.lengths, 0, a_job())
    ]


@pytest.mark.parametrize(("micro_batch", "step"), [(9, 4), (11, 5), (17, 6)])
def test_the_scale_survives_a_resume(tmp_path, monkeypatch, float16, micro_batch, step):
    """It neither starts anew, nor does the count of steps until it is doubled."""
    monkeypatch.setattr(masters_module, "GROWTH_STEPS", 4)
    overflow = overflows_from(masters_module.START_SCALE / min(train_step_sizes()) / 1.5)
    job = a_job(max_steps=12, save_total_limit=9)
    with monkeypatch.context() as patch:
        calls = at_every_call(patch, overflow)
        whole = whole_run(tmp_path / "whole", job)
    in_whole = len(calls)
    told = scales(tmp_path / "whole")
    assert len({scale for scale, _ in told.values()}) > 1, (
        "the scale must have been halved and doubled in between"
    )
    with monkeypatch.context() as patch:
        at_every_call(patch, overflow)
        at_call(patch, micro_batch, interrupt)
        with pytest.raises(KeyboardInterrupt):
            session(tmp_path / "run", job)
    saved = scales(tmp_path / "run")[step]
    assert saved != (masters_module.START_SCALE, 0), "starting anew must be something else"
    calls = at_every_call(monkeypatch, overflow)
    same_run(tmp_path / "run", session(tmp_path / "run", job), whole)
    assert {k: v for k, v in scales(tmp_path / "run").items() if k in told} == told
    assert len(calls) < in_whole
    loaded = train.Masters(small_model(job), job)
    train.resume(tmp_path / "run" / "checkpoints", loaded, {})
    assert (loaded.scale, loaded.steps_at_scale) == told[12]


def test_the_scale_doubles_after_enough_steps_and_no_sooner(tmp_path, monkeypatch, float16):
    monkeypatch.setattr(masters_module, "GROWTH_STEPS", 3)
    session(tmp_path, a_job(save_steps=1, save_total_limit=9))
    assert list(scales(tmp_path).values()) == [
        (2**14, 1),
        (2**14, 2),
        (2**15, 0),
        (2**15, 1),
        (2**15, 2),
        (2**16, 0),
    ]


def test_an_overflow_at_every_scale_is_a_divergence(tmp_path, monkeypatch, float16):
    calls = at_every_call(monkeypatch, overflows_from(0))
    with pytest.raises(
        stops.Diverged, match="step 1 has the loss 4.* and the gradient norm (inf|nan)"
    ):
        session(tmp_path)
    assert len(calls) == 2 * 15, "2^14 down to 1, and no further"


def test_a_loss_that_is_no_number_is_not_tried_again(tmp_path, monkeypatch, float16):
    calls = at_every_call(monkeypatch, lambda losses, _: losses * math.nan)
    with pytest.raises(stops.Diverged, match="loss nan"):
        session(tmp_path)
    assert len(calls) == 2


def test_without_float16_there_is_no_scale(monkeypatch):
    masters = train.Masters(small_model(a_job()), a_job())
    assert masters.scale == 1.0
    assert not masters.lower_scale()


# ---------------------------------------------------------------------------------------------------------------------
# the adapter


def test_the_saved_adapter_is_the_trained_model(tiny_gemma3n, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def base():
        return AutoModelForCausalLM.from_pretrained(
            tiny_gemma3n, dtype=torch.float32
        ).requires_grad_(False)

    job = a_job(base_model="owner/base", base_revision="v1", lora_dropout=0.0)
    net = adapter.add(base(), job)
    masters = train.Masters(net.train(), job)
    row = {"input_ids": [[2, 50, 60, 70, 80, 90]], "labels": [[IGNORED] * 3 + [70, 80, 90]]}
    for _ in range(2):
        train_step(net, masters, job, {"batches": [(0, batches.of(row, None, 1 / 3))]}, 0.05)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "of-an-earlier-run").write_text("")
    adapter.save(net, masters.weights, tmp_path / "adapter", job)

    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter"]
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert sum(t.numel() for t in tensors.values()) == adapter.count(net)[0]
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/base", "v1")
    assert str(tiny_gemma3n) not in json.dumps(config)

    ids = torch.randint(5, 2000, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        live, plain = net.eval()(input_ids=ids).logits, base()(input_ids=ids).logits
        loaded = (
            PeftModel.from_pretrained(base(), tmp_path / "adapter").eval()(input_ids=ids).logits
        )
    assert (live - plain).norm() > 1e-2 * plain.norm(), "training must have changed something"
    torch.testing.assert_close(loaded, live, rtol=1e-5, atol=1e-5)


def test_the_saved_adapter_has_the_masters_precision(tmp_path):
    job = a_job(lora_dropout=0.0)
    net = small_model(job, torch.bfloat16).train()
    masters = train.Masters(net, job)
    train_step(net, masters, job, of_rows([0, 1]), 1e-3)
    adapter.save(net, masters.weights, tmp_path / "adapter", job)
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name, weight in masters.weights.items():
        assert torch.equal(tensors[name.replace(".default", "")], weight)
    assert any(not torch.equal(t, t.bfloat16().float()) for t in tensors.values())
