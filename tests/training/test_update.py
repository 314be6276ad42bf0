"""The update whose numbers are read a step late: the same bits as a step at a time, and nothing moves after a step that diverged.

python -m pytest tests/training/test_update.py

A GPU replays the update as a graph; on a processor the same operations run, so that what is late in a session is tested here.
"""

import math
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.killed import NAMES
from helpers.small_training import (
    HELD_OUT,
    INTERRUPTED,
    NO_REQUEST,
    ROWS,
    STEPS,
    a_job,
    at_call,
    at_every_call,
    checkpoints,
    crash,
    interrupt,
    numbers,
    of_rows,
    same_run,
    session,
    small_model,
    touch_stop,
    whole_run,
)
from lib.common.errors import ROOT, UserError
from lib.model import ranks
from lib.record import ledger
from lib.training import checkpoint, compiled, loop, plan, stops
from lib.training import masters as masters_module
from lib.training import step as step_module
from lib.training.masters import Masters
from lib.training.step import Runner, build_accumulate
from lib.training.stops import Done, Guard

pytestmark = pytest.mark.usefixtures("one_thread")

PLACES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


@pytest.fixture
def late(monkeypatch):
    """Sessions run as where a GPU records their updates."""
    monkeypatch.setattr(masters_module, "can_record", lambda job: True)


class AtOnce(Runner):
    """Runs each step to its end, with the optimizer of a late one."""

    def __init__(self, *args):
        super().__init__(*args)
        self.is_late = False


def at_once(folder, job=None):
    """Return (weights, ledger entries) of an undisturbed run that reads each step's numbers before its update."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masters_module, "can_record", lambda job: True)
        patch.setattr(loop, "Runner", AtOnce)
        return whole_run(folder, job)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    torch.set_num_threads(1)
    return at_once(tmp_path_factory.mktemp("undisturbed"))


def everything(masters):
    """Return copies of all that a step moves: weights, their roundings in the model, moments and step count."""
    moments = {
        f"{n}/{key}": value
        for n, piece in enumerate(masters.pieces)
        for key, value in masters.optimizer.state[piece].items()
    }
    live = {f"live/{name}": p.detach() for name, p in masters.live.items()}
    return {k: v.clone() for k, v in {**masters.weights, **live, **moments}.items()}


def same_bits(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in theirs)


# --------------------------------------------------------------------------------------------------
# the rule for divergence


def diverged(loss, norm, recent, vocabulary):
    """Tell by the rule in plain Python."""
    if not math.isfinite(loss + norm):
        return True
    if len(recent) < 5:
        return False
    return loss > max(math.log(vocabulary), 3 * sum(recent) / len(recent))


NUMBERS = st.floats(0, 40, width=32) | st.sampled_from([math.nan, math.inf, 4.5, 4.6, 14.0])


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.floats(0, 9, width=32), max_size=30),
    st.lists(st.tuples(NUMBERS, NUMBERS)),
)
def test_the_guard_judges_as_the_rule_in_plain_python_does(before, steps):
    """The losses of refused steps are forgotten, and all steps after the first refused one are refused."""
    guard, recent, refused = Guard(before, 96), before[-20:], False
    for loss, norm in steps:
        refused = refused or diverged(loss, norm, recent[-20:], 96)
        recent += [] if refused else [loss]
        assert guard.refuses(loss, norm) is refused
    known = guard.recent[guard.recent.isfinite()].tolist()
    assert known == recent[-20:]


def test_the_guard_knows_the_last_losses_of_earlier_sessions():
    """Twenty of them: three times their mean is 6, that of the first twenty 27."""
    losses = [9.0] * 20 + [2.0] * 20
    assert Guard(losses, 96).refuses(6.1, 1.0)
    assert not Guard(losses, 96).refuses(5.9, 1.0)
    assert not Guard(losses[:20], 96).refuses(6.1, 1.0)


# --------------------------------------------------------------------------------------------------
# the update itself


def recorded(job, place="cpu", losses=()):
    """Return the masters of a small model that is joined as on the compiled path, an update and its guard."""
    net = small_model(job, torch.bfloat16).to(place).train()
    assert compiled.fuse(net)
    masters = Masters(net, job)
    draw = torch.Generator().manual_seed(3)
    masters.flat.copy_(torch.randn(masters.flat.shape, generator=draw))
    masters.publish()
    guard = Guard(losses, 96, place)
    return masters, guard, compiled.Update(masters, guard, job.max_grad_norm)


def gradient(masters, seed, size=1.0):
    draw = torch.Generator().manual_seed(seed)
    return size * torch.randn(masters.flat.shape, generator=draw).to(masters.flat.device)


def total(loss, *votes):
    return torch.tensor([loss, *(votes or [0.0] * len(stops.STOPS))])


def move(masters, update, seed, loss=3.0, rate=2.0**-7, size=1.0):
    """Make the update with a gradient drawn by the seed; return what it says: loss, norm, whether it was refused."""
    masters.flat.grad.copy_(gradient(masters, seed, size))
    masters.set_rate(rate)
    loss, *_, norm, refused = update(total(loss).to(masters.flat.device))()
    return loss, norm, refused


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("end_token", [False, True])
@pytest.mark.parametrize(("max_norm", "size"), [(0.0, 1.0), (1.0, 1.0), (1e6, 1.0), (1e-3, 1e-4)])
def test_updates_equal_clipping_and_adamw_step_by_step(late, place, end_token, max_norm, size):
    """To the bit, with rates that float32 holds: torch's own fused AdamW, a Python number for the factor, a plain copy."""
    job = a_job(
        lora_r=8,
        lora_dropout=0.0,
        train_end_token=end_token,
        weight_decay=0.3,
        max_grad_norm=max_norm,
    )
    masters, _, update = recorded(job, place)
    theirs = masters.flat.clone()
    rows = sum(p.numel() for n, p in masters.live.items() if "trainable_tokens" in n)
    parts = [p for p in theirs.split([rows, len(theirs) - rows]) if len(p)]
    assert len(parts) == 1 + end_token
    groups = [{"params": [p], "weight_decay": 0.3} for p in parts]
    if end_token:
        groups[0]["weight_decay"] = 0.0
    optimizer = torch.optim.AdamW(groups, lr=1.0, fused=True)
    assert not torch.equal(theirs, small_flat(job, place)), "there must be something to draw back"
    for seed, rate in enumerate([0.0, 2.0**-7, 2.0**-6, 2.0**-9]):
        loss, norm, refused = move(masters, update, seed, 3.0 + seed, rate, size)
        grads = gradient(masters, seed, size)
        expected = float(grads.norm())
        grads.mul_(min(1.0, (max_norm or math.inf) / (expected + 1e-6)))
        for p, part in zip(parts, grads.split([len(p) for p in parts]), strict=True):
            p.grad = part
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        assert (loss, norm, refused) == (3.0 + seed, expected, 0.0)
        assert (norm > max_norm) == (max_norm < 1e6), "the others must be clipped"
        assert torch.equal(masters.flat, theirs)
        assert not masters.flat.grad.any()
        for (name, p), w in zip(
            masters.live.items(),
            theirs.split([p.numel() for p in masters.live.values()]),
            strict=True,
        ):
            assert torch.equal(p, w.view_as(p).to(p.dtype)), name
    for ours, p in zip(masters.pieces, parts, strict=True):
        assert same_bits(masters.optimizer.state[ours], optimizer.state[p])
        assert masters.optimizer.state[ours]["step"] == 4


def small_flat(job, place):
    return Masters(small_model(job, torch.bfloat16).to(place), job).flat


BAD = {
    "loss nan": {"loss": math.nan},
    "loss inf": {"loss": math.inf},
    "loss explodes": {"loss": 15.0},
    "norm nan": {"size": math.nan},
    "norm inf": {"size": math.inf},
    "norm overflows": {"size": 1e30},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("bad", BAD)
def test_a_refused_update_moves_nothing_and_no_later_one_does(late, place, bad):
    job = a_job(lora_r=8, lora_dropout=0.0, weight_decay=0.3, max_grad_norm=1.0)
    masters, guard, update = recorded(job, place, [4.0] * 3)
    for seed in range(3):
        assert move(masters, update, seed)[2] == 0
    before, recent = everything(masters), guard.recent.clone()
    assert before["0/exp_avg"].any()
    loss, norm, refused = move(masters, update, 3, **BAD[bad])
    assert refused == 1
    assert not math.isfinite(loss + norm) or loss == 15.0
    for seed in (4, 5):
        assert same_bits(everything(masters), before)
        assert torch.equal(guard.recent.nan_to_num(), recent.nan_to_num())
        assert not masters.flat.grad.any(), "the next step must not begin with what was refused"
        assert move(masters, update, seed)[2] == 1
    guard.refused.zero_()
    assert move(masters, update, 6)[2] == 0
    moved = everything(masters)
    assert not any(torch.equal(moved[k], before[k]) for k in before), "with the flag away they move"


@pytest.mark.parametrize("place", PLACES)
def test_making_an_update_changes_nothing(late, place, tmp_path):
    """Neither the masters of a new run nor the moments that a checkpoint brought; a replay goes on from those."""
    job = a_job(lora_r=8, lora_dropout=0.0, weight_decay=0.3)
    masters, _, update = recorded(job, place)
    start = everything(masters)
    assert start["0/step"] == 0
    assert not start["0/exp_avg"].any()
    for seed in range(2):
        move(masters, update, seed)
    masters.save(tmp_path)
    wanted = everything(masters)
    other, _, _ = recorded(job, place)
    assert same_bits(everything(other), start)
    other.load(tmp_path)
    again = compiled.Update(other, Guard([], 96, place), job.max_grad_norm)
    assert same_bits(everything(other), wanted)
    for m, u in ((masters, update), (other, again)):
        move(m, u, 9)
    assert same_bits(everything(other), everything(masters))
    assert everything(other)["0/step"] == 3


class Operations(TorchDispatchMode):
    """Collects the names of torch's operations in a block."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_an_update_reads_nothing_back_and_makes_no_number_of_its_own(late):
    """Neither could be recorded: a read waits for the GPU, and a new number is copied from memory that is not pinned."""
    for end_token in (False, True):
        job = a_job(lora_r=8, lora_dropout=0.0, train_end_token=end_token)
        masters, guard, update = recorded(job, losses=[4.0] * 9)
        masters.flat.grad.copy_(gradient(masters, 1))
        with Operations() as operations:
            update._run()
        assert {"_fused_adamw_", "_foreach_copy_", "zero_"} <= set(operations.names)
        unrecordable = {"_local_scalar_dense", "is_nonzero", "lift_fresh", "scalar_tensor"}
        assert not unrecordable & set(operations.names)
        assert operations.names.count("_foreach_copy_") == len(masters.copies)
        with Operations() as operations:
            guard.refuses(3.0, 1.0)
        assert unrecordable & set(operations.names), "the same numbers judged on the processor"


def test_parameters_are_published_in_few_lists(late):
    """Joined ones that are columns of a base's storage apart: among them, a GPU would copy every other one by itself too."""
    masters, _, _ = recorded(a_job(lora_r=8, lora_dropout=0.0, train_end_token=True))
    lists = [{(p.dtype, p.is_contiguous()) for p in live} for live, _ in masters.copies]
    assert all(len(kinds) == 1 for kinds in lists)
    assert len(lists) == len({kinds.pop() for kinds in lists}) > 1
    assert sum(len(live) for live, _ in masters.copies) == len(masters.live)
    dense = max((live for live, _ in masters.copies), key=len)
    assert all(p.is_contiguous() for p in dense)


def test_what_can_be_recorded():
    """bitsandbytes' optimizer counts its steps in Python."""
    for changes, expected in (
        ({"torch_compile": True}, True),
        ({}, False),
        ({"torch_compile": True, "optim": "adamw_8bit"}, False),
    ):
        assert masters_module.can_record(a_job().model_copy(update=changes)) is expected


# --------------------------------------------------------------------------------------------------
# whole sessions, read a step late


@pytest.fixture
def order(monkeypatch):
    """Return a list that grows by ("launch", step) and ("read", step), both from 0."""
    seen, launch = [], Runner.launch

    def spy(self, step, *args):
        launched = launch(self, step, *args)
        seen.append(("launch", step))
        return launched._replace(read=lambda: seen.append(("read", step)) or launched.read())

    monkeypatch.setattr(Runner, "launch", spy)
    return seen


CHANGES = [
    {},
    {"max_grad_norm": 0.05, "save_steps": 100},
    {"max_grad_norm": 0.0, "save_steps": 3, "logging_steps": 2},
    {"packing": True, "save_steps": 100, "max_steps": 9},
    {"train_end_token": True, "weight_decay": 0.3, "save_steps": 4},
    {"eval_steps": 2, "early_stopping_patience": 9, "save_steps": 100},
    {"eval_steps": 3, "save_steps": 100, "max_steps": 8},
    {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "save_steps": 5},
]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_a_late_run_equals_one_that_reads_each_step_first(tmp_path, late, order, changes):
    job = a_job(**changes)
    wanted = at_once(tmp_path / "at-once", job)
    order.clear()
    found = same_run(tmp_path / "late", session(tmp_path / "late", job), wanted)
    for name in ("eval_loss_before", "eval_loss_after", "steps", "loss_mean", "best_step"):
        theirs = ledger.summarise(wanted[1])
        assert found.get(name) == theirs.get(name), name
    assert checkpoints(tmp_path / "late") == checkpoints(tmp_path / "at-once")
    for path in sorted((tmp_path / "at-once" / "checkpoints").rglob("*.safetensors")):
        ours = tmp_path / "late" / path.relative_to(tmp_path / "at-once")
        assert same_bits(load_file(ours), load_file(path)), path
    total = plan.count_steps(len(ROWS), job)
    ends = [
        n
        for n in range(1, total + 1)
        if n == total or n % job.save_steps == 0 or job.eval_steps and n % job.eval_steps == 0
    ]
    expected = []
    for step in range(total):
        expected.append(("launch", step))
        if step and step not in ends:
            expected.append(("read", step - 1))
        if step + 1 in ends:
            expected.append(("read", step))
    assert order == expected


def test_a_step_is_read_when_the_next_one_is_launched(tmp_path, late, order):
    session(tmp_path, a_job(save_steps=4))
    launches = [f"{what[0]}{step}" for what, step in order]
    assert launches == "l0 l1 r0 l2 r1 l3 r2 r3 l4 l5 r4 r5".split()


def test_nothing_is_late_without_a_recorded_update(tmp_path, order):
    session(tmp_path, a_job(save_steps=100))
    assert order == [(what, step) for step in range(STEPS) for what in ("launch", "read")]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_each_update_has_the_rate_of_its_step(tmp_path, late, monkeypatch, schedule):
    rates, run = [], compiled.Update._run

    def spy(self):
        rates.append(float(self.masters.optimizer.param_groups[0]["lr"]))
        run(self)

    monkeypatch.setattr(compiled.Update, "_run", spy)
    job = a_job(lr_scheduler_type=schedule, save_steps=100)
    session(tmp_path, job)
    wanted = [plan.learning_rate(step, STEPS, job) for step in range(STEPS)]
    assert rates[1:] == [float(np.float32(rate)) for rate in wanted], (
        "the first one is the rehearsal"
    )
    lines = ledger.valid_steps(ledger.read_ledger(tmp_path / "metrics.jsonl"))
    assert [e["lr"] for e in lines] == wanted
    assert len(set(wanted)) > 3


def test_the_seconds_of_late_steps_add_up_to_their_time(tmp_path, late, monkeypatch):
    """A step is launched in 20 ms, and its result can be read 30 ms after that of the one before."""
    launch = Runner.launch

    def slow(self, *args):
        time.sleep(0.02)
        launched = launch(self, *args)
        return launched._replace(read=lambda: time.sleep(0.03) or launched.read())

    monkeypatch.setattr(Runner, "launch", slow)
    begun = time.monotonic()
    session(tmp_path, a_job(save_steps=4))
    wall = time.monotonic() - begun
    lines = ledger.valid_steps(ledger.read_ledger(tmp_path / "metrics.jsonl"))
    seconds = [e["seconds"] for e in lines]
    assert STEPS * 0.05 <= sum(seconds) <= wall
    assert min(seconds) >= 0.03
    assert seconds[0] >= 2 * 0.02 + 0.03, "the first one waits for the second one's launch"


# --------------------------------------------------------------------------------------------------
# divergence


POISON = {
    "loss": (lambda losses: losses * math.nan, "loss nan"),
    "gradient": (
        lambda losses: (losses.register_hook(lambda g: g * math.inf), losses)[1],
        "gradient norm (inf|nan)",
    ),
    "explosion": (lambda losses: losses * 20, "loss [3-9][0-9]"),
}


def caught_masters(monkeypatch):
    made = []

    def make(*args):
        made.append(masters_module.Masters(*args))
        return made[-1]

    monkeypatch.setattr(loop, "Masters", make)
    return made


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize(
    ("changes", "launched", "saved"),
    [
        ({"save_steps": 6}, 8, 6),
        ({"save_steps": 100, "packing": True}, 8, 0),
        pytest.param({"save_steps": 1}, 7, 6, marks=pytest.mark.slow),
        pytest.param({"save_steps": 4, "logging_steps": 2}, 8, 4, marks=pytest.mark.slow),
        pytest.param({"save_steps": 7}, 7, 0, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_late_divergence_leaves_the_state_before_its_step(
    tmp_path, monkeypatch, late, order, poison, changes, launched, saved
):
    """To the bit, although the next step was launched before the loss was read; the run then continues as if nothing had been."""
    job, (action, shown) = a_job(max_steps=9, **changes), POISON[poison]
    wanted = at_once(tmp_path / "whole", job)
    made = caught_masters(monkeypatch)
    with monkeypatch.context() as patch:
        at_call(patch, 13, interrupt)  # the first micro-batch of step 7
        patch.setattr(loop, "Runner", AtOnce)
        with pytest.raises(KeyboardInterrupt, match="stopped after step 6 of 9"):
            session(tmp_path / "before", job)
    order.clear()
    with monkeypatch.context() as patch:
        at_call(patch, 13, action)
        with pytest.raises(stops.Diverged, match=f"^step 7 has .*{shown}") as caught:
            session(tmp_path / "run", job)
    rows = list(plan.iterate_steps(np.array(ROWS["length"]), 6, job).__next__()[1])
    assert str([f"row-{n}" for batch in rows for n in batch]) in str(caught.value)
    assert [step for what, step in order if what == "launch"] == list(range(launched))
    assert order[-1] == ("read", 6)
    before, after = map(everything, made)
    assert before["0/step"] == 6
    assert same_bits(after, before)

    entries = ledger.read_ledger(tmp_path / "run" / "metrics.jsonl")
    kept = [e for e in numbers(wanted[1]) if e["step"] <= 6]
    assert numbers(entries) == kept
    newest = checkpoint.newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert (newest[1]["step"] if newest else 0) == saved
    same_run(tmp_path / "run", session(tmp_path / "run", job), wanted)


def compiled_session(folder, place, **changes):
    """Run a session of the compiled path; on a processor, of its update alone."""
    job = a_job(lora_r=8, lora_dropout=0.0, packing=True, **changes)
    if place == "cuda":
        job = job.model_copy(update={"torch_compile": True})
    net = small_model(job, torch.bfloat16).to(place)
    folder.mkdir(exist_ok=True)
    identity = checkpoint.describe_identity(job, "data-1", "base-1", 0)
    return loop.train(net, ROWS, HELD_OUT, job, folder, identity)


SPOIL = {
    "loss": lambda masters, loss: loss * math.nan,
    "gradient": lambda masters, loss: (masters.flat.grad[7:9].fill_(math.nan), loss)[1],
    "explosion": lambda masters, loss: loss * 40,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("spoil", SPOIL)
def test_a_divergence_beside_a_recorded_micro_batch(tmp_path, monkeypatch, late, place, spoil):
    """On a card, the whole compiled path: the state after step 7 of 9 and the launched step 8 is that before it, to the bit."""
    made, before, calls, build = caught_masters(monkeypatch), {}, [], loop.build_accumulate

    def spoiling(*args):
        accumulate = build(*args)

        def spoiled(batch):
            calls.append(batch)
            if len(calls) != 13:
                return accumulate(batch)
            before.update(everything(made[0]))
            return SPOIL[spoil](made[0], accumulate(batch))

        return spoiled

    with monkeypatch.context() as patch:
        patch.setattr(loop, "build_accumulate", spoiling)
        with pytest.raises(stops.Diverged, match="step 7 has the loss"):
            compiled_session(tmp_path, place, max_steps=9, save_steps=4)
    assert len(calls) == 16, "the eighth step was launched"
    assert before["0/step"] == 6
    assert same_bits(everything(made[0]), before)
    assert checkpoints(tmp_path) == ["step-000004"]
    compiled_session(tmp_path, place, max_steps=9, save_steps=4)
    lines = ledger.valid_steps(ledger.read_ledger(tmp_path / "metrics.jsonl"))
    assert [e["step"] for e in lines] == list(range(1, 10))
    assert everything(made[1])["0/step"] == 9


@pytest.mark.cuda
def test_a_compiled_session_on_a_card_learns_what_its_eager_twin_does(tmp_path, monkeypatch):
    """Losses, rates and norms of every step, and the weights, up to the rounding of bfloat16."""
    changes = {"max_steps": 9, "save_steps": 4}
    masters = compiled_session(tmp_path / "late", "cuda", **changes)
    assert masters.recordable
    with monkeypatch.context() as patch:
        patch.setattr(masters_module, "can_record", lambda job: False)
        twin = compiled_session(tmp_path / "at-once", "cuda", **changes)
    ours, theirs = (
        ledger.valid_steps(ledger.read_ledger(tmp_path / name / "metrics.jsonl"))
        for name in ("late", "at-once")
    )
    assert [e["lr"] for e in ours] == [e["lr"] for e in theirs]
    assert [e["loss"] for e in ours] == pytest.approx([e["loss"] for e in theirs], rel=2e-2)
    assert [e["grad_norm"] for e in ours] == pytest.approx(
        [e["grad_norm"] for e in theirs], rel=0.1
    )
    start = Masters(small_model(a_job(lora_r=8, lora_dropout=0.0), torch.bfloat16), a_job()).flat
    way = (twin.flat.cpu() - start).norm()
    assert (masters.flat - twin.flat).norm().cpu() < 0.2 * way


@pytest.mark.parametrize("step", [1, 9])
def test_the_first_and_the_last_step_may_diverge(tmp_path, monkeypatch, late, step):
    job, made = a_job(max_steps=9, save_steps=100), caught_masters(monkeypatch)
    at_call(monkeypatch, 2 * step, lambda losses: losses * math.nan)
    with pytest.raises(stops.Diverged, match=f"step {step} has the loss nan"):
        session(tmp_path, job)
    assert everything(made[0])["0/step"] == step - 1
    assert checkpoints(tmp_path) == []
    lines = ledger.valid_steps(ledger.read_ledger(tmp_path / "metrics.jsonl"))
    assert [e["step"] for e in lines] == list(range(1, step))


def test_two_steps_that_diverge_are_told_as_the_first(tmp_path, monkeypatch, late):
    calls = at_every_call(
        monkeypatch, lambda losses, _: losses * (math.nan if len(calls) > 6 else 1)
    )
    with pytest.raises(stops.Diverged, match="step 4 has the loss nan"):
        session(tmp_path, a_job(save_steps=100))


def test_a_stop_in_a_step_that_diverges_is_a_divergence(tmp_path, monkeypatch, late):
    """As in a run that is not late: the weights of the step before are in no new checkpoint."""
    at_call(monkeypatch, 7, lambda losses: touch_stop(tmp_path)(losses) * math.nan)
    with pytest.raises(stops.Diverged, match="step 4 has the loss nan"):
        session(tmp_path, a_job(save_steps=100))
    assert checkpoints(tmp_path) == []


# --------------------------------------------------------------------------------------------------
# stops


@pytest.mark.parametrize(("micro_batch", "step"), [(1, 0), (5, 2), (6, 3), (11, 5), (12, 6)])
@pytest.mark.parametrize("save_steps", [2, 100])
def test_ctrl_c_of_a_late_run(
    tmp_path, monkeypatch, late, undisturbed, micro_batch, step, save_steps
):
    job = a_job(save_steps=save_steps)
    at_call(monkeypatch, micro_batch, interrupt)
    with pytest.raises(
        KeyboardInterrupt, match=f"stopped after step {step} of {STEPS}; its checkpoint is saved"
    ):
        session(tmp_path, job)
    assert checkpoints(tmp_path)[-1] == f"step-{step:06d}"
    found = same_run(tmp_path, session(tmp_path, job), undisturbed)
    assert (found["sessions"], found["steps_repeated"]) == (2, 0)


@pytest.mark.parametrize(("micro_batch", "step"), [(1, 1), (5, 3), (8, 4), (12, 6)])
def test_a_stop_file_of_a_late_run(tmp_path, monkeypatch, late, undisturbed, micro_batch, step):
    job = a_job(save_steps=100)
    at_call(monkeypatch, micro_batch, touch_stop(tmp_path))
    with pytest.raises(stops.SessionOver, match=f"^a stop file was found after step {step} of"):
        session(tmp_path, job)
    assert not (tmp_path / "stop").exists()
    assert checkpoints(tmp_path) == [f"step-{step:06d}"]
    found = same_run(tmp_path, session(tmp_path, job), undisturbed)
    assert (found["sessions"], found["steps_repeated"]) == (2, 0)


def test_max_minutes_of_a_late_run(tmp_path, late, undisturbed):
    job = a_job(max_minutes=1e-9, save_steps=100)
    for step in range(1, STEPS):
        with pytest.raises(stops.SessionOver, match=f"is up after step {step} of 6"):
            session(tmp_path, job)
    found = same_run(tmp_path, session(tmp_path, job), undisturbed)
    assert (found["sessions"], found["steps_repeated"]) == (STEPS, 0)


@pytest.mark.parametrize("micro_batch", [7, 8])
def test_running_out_of_memory_in_a_late_run(tmp_path, monkeypatch, late, undisturbed, micro_batch):
    """What the other micro-batch added to the gradients is dropped with the step."""

    def full(losses):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    job, made = a_job(save_steps=100), caught_masters(monkeypatch)
    with monkeypatch.context() as patch:
        at_call(patch, micro_batch, full)
        with pytest.raises(UserError, match=r"out of memory in step 4.* Step 3 is saved"):
            session(tmp_path, job)
    assert not made[0].flat.grad.any()
    assert checkpoints(tmp_path) == ["step-000003"]
    found = same_run(tmp_path, session(tmp_path, job), undisturbed)
    assert found["steps_repeated"] == 0


@pytest.mark.parametrize("micro_batch", [4, 7, 12])
def test_a_late_run_that_crashes_is_continued_to_the_bit(
    tmp_path, monkeypatch, late, undisturbed, micro_batch
):
    at_call(monkeypatch, micro_batch, crash)
    with pytest.raises(RuntimeError, match="machine stopped"):
        session(tmp_path)
    same_run(tmp_path, session(tmp_path), undisturbed)


def test_early_stopping_of_a_late_run(tmp_path, late):
    """It measures the weights of the step, keeps the best, and ends as soon."""
    job = a_job(
        max_steps=30,
        eval_steps=2,
        save_steps=100,
        lr_scheduler_type="constant",
        early_stopping_patience=3,
    )
    wanted = at_once(tmp_path / "at-once", job)
    same_run(tmp_path / "late", session(tmp_path / "late", job), wanted)
    ours, theirs = (
        [(e["step"], e["eval_loss"]) for e in entries if e["event"] == "eval"]
        for entries in (ledger.read_ledger(tmp_path / "late" / "metrics.jsonl"), wanted[1])
    )
    assert ours == theirs
    assert ledger.summarise(wanted[1])["steps"] < 30


# --------------------------------------------------------------------------------------------------
# several ranks


def runner_of(job):
    net = small_model(job).train()
    masters = Masters(net, job)
    guard = Guard([], 96)
    return masters, Runner(build_accumulate(net, masters, job.packing), masters, guard, job)


def test_a_rank_without_memory_moves_no_rank_s_weights(late, monkeypatch):
    """The other ranks add its vote before anyone has read one; the step that was launched meanwhile moves nothing either."""
    job = a_job()
    masters, runner = runner_of(job)
    runner.launch(0, of_rows([0, 1], [2]), 0.01, lambda: NO_REQUEST)
    before = everything(masters)

    def from_another_rank(votes, gradients):
        votes[0] += math.nan
        votes[1 + stops.STOPS.index("memory")] += 1

    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    with monkeypatch.context() as patch:
        patch.setattr(ranks, "sum_in_place", from_another_rank)
        full = runner.launch(1, of_rows([3, 4]), 0.01, lambda: NO_REQUEST)
    monkeypatch.setattr(ranks, "sum_in_place", lambda *_: None)
    runner.launch(2, of_rows([5, 6]), 0.01, lambda: NO_REQUEST)
    assert full.stop == ""
    assert full.read() == Done(None, None, "memory")
    assert same_bits(everything(masters), before)
    assert not masters.flat.grad.any()


def test_several_ranks_learn_why_to_stop_with_the_result(late, monkeypatch):
    masters, runner = runner_of(a_job())
    alone = runner.launch(0, of_rows([0, 1]), 0.01, lambda: NO_REQUEST._replace(stop_file=True))
    assert (alone.stop, alone.read().stop) == ("file", "file")
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    monkeypatch.setattr(ranks, "sum_in_place", lambda *_: None)
    shared = runner.launch(1, of_rows([0, 1]), 0.01, lambda: INTERRUPTED)
    assert (shared.stop, shared.read().stop) == ("", "interrupted")
    assert everything(masters)["0/step"] == 2


@pytest.mark.parametrize(("micro_batch", "step"), [(5, 4), (8, 5), (10, 6), (12, 6)])
def test_several_ranks_stop_after_the_step_that_is_launched_already(
    tmp_path, monkeypatch, late, undisturbed, micro_batch, step
):
    """The checkpoint and the message are of the same step, and every step has its line."""
    real = step_module._sum_gradients

    def among_two(*args):
        with monkeypatch.context() as patch:
            patch.setattr(ranks, "world_size", lambda: 2)
            patch.setattr(ranks, "sum_in_place", lambda *_: None)
            return real(*args)

    # a thread of the loader would share the micro-batches out too
    job = a_job(save_steps=100, dataloader_num_workers=0)
    with monkeypatch.context() as patch:
        patch.setattr(step_module, "_sum_gradients", among_two)
        at_call(patch, micro_batch, touch_stop(tmp_path))
        with pytest.raises(stops.SessionOver, match=f"found after step {step} of {STEPS}"):
            session(tmp_path, job)
    assert checkpoints(tmp_path) == [f"step-{step:06d}"]
    found = same_run(tmp_path, session(tmp_path, job), undisturbed)
    assert (found["sessions"], found["steps_repeated"]) == (2, 0)


def test_a_rank_without_memory_ends_all_after_the_last_whole_step(
    tmp_path, monkeypatch, late, undisturbed
):
    """Of the steps 4, without memory on another rank, and 5, launched meanwhile, nothing is left."""
    real, steps = step_module._sum_gradients, []

    def among_two(*args):
        steps.append(args[2])

        def add(votes, gradients):
            if args[2] == 3:
                votes[0] += math.nan
                votes[1 + stops.STOPS.index("memory")] += 1

        with monkeypatch.context() as patch:
            patch.setattr(ranks, "world_size", lambda: 2)
            patch.setattr(ranks, "sum_in_place", add)
            return real(*args)

    job = a_job(save_steps=100, dataloader_num_workers=0)
    with monkeypatch.context() as patch:
        patch.setattr(step_module, "_sum_gradients", among_two)
        with pytest.raises(UserError, match=r"out of memory in step 4.* Step 3 is saved"):
            session(tmp_path, job)
    assert steps == [0, 1, 2, 3, 4]
    assert checkpoints(tmp_path) == ["step-000003"]
    same_run(tmp_path, session(tmp_path, job), undisturbed)


RANK = """
import math
import torch.distributed as dist
from lib.training import masters, stops
from lib.training.masters import Masters
masters.can_record = lambda job: True
made = []
loop.Masters = lambda *args: made.append(Masters(*args)) or made[-1]
dist.init_process_group("gloo")
calls = []
real = compiled.token_losses
def poisoned(net, batch, *rest):
    calls.append(batch)
    bad = dist.get_rank() == 1 and len(calls) == int(sys.argv[2])
    return real(net, batch, *rest) * (math.nan if bad else 1)
compiled.token_losses = poisoned
try:
    session(pathlib.Path(sys.argv[1]), a_job(save_steps=2, dataloader_num_workers=0))
except stops.Diverged as error:
    print(error)
state = made[0].optimizer.state[made[0].flat]
print("END", int(state["step"]), made[0].flat.double().sum().item(), state["exp_avg"].double().sum().item())
sys.stdout.flush()
os._exit(0)
"""


def two_ranks(folder, poisoned_call):
    """Run a late session in two processes; return what each printed at its end."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    folder.mkdir(exist_ok=True)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", NAMES + RANK, str(folder), str(poisoned_call)],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
                "OMP_NUM_THREADS": "1",
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=240)[0] for process in processes]
    assert all("END" in text for text in said), said
    return [text[text.index("END") :] for text in said], said


@pytest.mark.slow
def test_two_late_processes_train_what_one_does(tmp_path, undisturbed):
    ends, _ = two_ranks(tmp_path / "run", 0)
    assert ends[0] == ends[1]
    assert ends[0].startswith(f"END {STEPS} ")
    found, wanted = (
        numbers(entries)
        for entries in (ledger.read_ledger(tmp_path / "run" / "metrics.jsonl"), undisturbed[1])
    )
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
        assert (ours["step"], ours["lr"], ours["rows"]) == (
            theirs["step"],
            theirs["lr"],
            theirs["rows"],
        )
    weights = load_file(tmp_path / "run" / "checkpoints" / "step-000006" / "adapter.safetensors")
    for name, weight in undisturbed[0].items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_loss_that_is_no_number_on_one_rank_ends_both_before_the_step(tmp_path, undisturbed):
    ends, said = two_ranks(tmp_path / "run", 5)
    assert ends[0] == ends[1]
    assert ends[0].startswith("END 4 "), "the step that diverged is the fifth"
    assert all("step 5 has the loss nan" in text for text in said)
    assert checkpoints(tmp_path / "run") == ["step-000002", "step-000004"]
    lines = ledger.valid_steps(ledger.read_ledger(tmp_path / "run" / "metrics.jsonl"))
    assert [e["step"] for e in lines] == [1, 2, 3, 4]
