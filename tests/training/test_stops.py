"""A session that ends before its last step: Ctrl-C, a stop file, no time, no memory, a loss that diverges.

python -m pytest tests/training/test_stops.py
"""

import math
import re
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helpers.small_training import (
    ROWS,
    STEPS,
    a_job,
    apart,
    at_call,
    at_every_call,
    checkpoints,
    evals,
    interrupt,
    pad,
    same_run,
    session,
    small_model,
    touch_stop,
    whole_run,
)
from lib.common.errors import UserError
from lib.record import ledger
from lib.training import checkpoint, loop, plan, stops
from lib.training import masters as masters_module
from lib.training.masters import Masters

pytestmark = pytest.mark.usefixtures("one_thread")


# --------------------------------------------------------------------------------------------------
# stopped and continued


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


def test_ctrl_c_in_the_last_step_is_not_swallowed(tmp_path, monkeypatch, uninterrupted):
    at_call(monkeypatch, 12, interrupt)
    with pytest.raises(KeyboardInterrupt, match=f"stopped after step {STEPS} of {STEPS}"):
        session(tmp_path)
    assert (
        ledger.summarise(ledger.read_ledger(tmp_path / "metrics.jsonl"))["eval_loss_after"] is None
    )
    found = same_run(tmp_path, session(tmp_path), uninterrupted)
    assert found["eval_loss_after"] is not None


def test_running_out_of_memory_keeps_the_last_whole_step(tmp_path, monkeypatch, uninterrupted):
    """Its advice is one that the checkpoint allows."""

    def full(losses):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    job = a_job(lora_dropout=0.0)
    wanted, entries = whole_run(tmp_path / "whole", job)
    with monkeypatch.context() as patch:
        at_call(patch, 8, full)  # the last micro-batch of step 4
        longest = max(
            ROWS["length"][r]
            for b in next(plan.iterate_steps(np.array(ROWS["length"]), 3, job))[1]
            for r in b
        )
        with pytest.raises(
            UserError,
            match=rf"out of memory in step 4, whose longest row has {longest} tokens. Step 3 is saved",
        ) as caught:
            session(tmp_path / "run", job)
    smaller_batches = 'SET="per_device_train_batch_size=1 gradient_accumulation_steps=4"'
    assert f"go on with smaller micro-batches, {smaller_batches}" in str(caught.value)
    assert checkpoints(tmp_path / "run") == ["step-000002", "step-000003"]
    smaller, found = whole_run(
        tmp_path / "run",
        a_job(lora_dropout=0.0, per_device_train_batch_size=1, gradient_accumulation_steps=4),
    )
    assert apart(wanted, smaller, job) < 1e-3
    assert [e["rows"] for e in ledger.valid_steps(found)] == [
        e["rows"] for e in ledger.valid_steps(entries)
    ]
    assert ledger.summarise(found)["steps_repeated"] == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "go on with smaller micro-batches, SET="),
        ({"per_device_train_batch_size": 3}, "=1 gradient_accumulation_steps=6"),
        ({"per_device_train_batch_size": 6}, "=3 gradient_accumulation_steps=4"),
        ({"packing": True}, "start over with per_device_train_batch_size=1"),
        ({"per_device_train_batch_size": 1}, "smaller max_seq_length"),
    ],
)
def test_the_advice_of_a_full_memory_is_one_that_can_be_followed(changes, words):
    assert words in str(stops.explain_memory(3, 30, a_job(**{"lora_dropout": 0.0, **changes})))


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
    """Otherwise the next session would stop after one step, for a request already met."""
    at_call(monkeypatch, 5, lambda losses: interrupt(touch_stop(tmp_path)(losses)))
    with pytest.raises(KeyboardInterrupt):
        session(tmp_path)
    same_run(tmp_path, session(tmp_path), uninterrupted)


# --------------------------------------------------------------------------------------------------
# divergence


def caught_masters(monkeypatch):
    """Return a list that collects each session's Masters."""
    made = []

    def make(*args):
        made.append(masters_module.Masters(*args))
        return made[-1]

    monkeypatch.setattr(loop, "Masters", make)
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
    step = next(plan.iterate_steps(np.array(ROWS["length"]), 6, job))[1]
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
    assert [
        e["step"]
        for e in ledger.valid_steps(ledger.read_ledger(tmp_path / "run" / "metrics.jsonl"))
    ] == [
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
    step = next(plan.iterate_steps(np.array(ROWS["length"]), 7, job))[1]
    assert step[0] not in sum(plan.plan_epoch(np.array(ROWS["length"]), 0, job), []), (
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
    assert stops.Guard(recent, 96).refuses(loss, norm) is expected


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_one_gradient_that_is_no_number_is_seen(bad):
    masters = Masters(small_model(a_job()), a_job())
    next(iter(masters.gradients.values()))[0, 0] = bad
    assert stops.Guard([], 96).refuses(1.0, masters.norm())
