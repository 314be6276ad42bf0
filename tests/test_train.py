"""The training loop against plain transformers arithmetic, and what is left after it is stopped, killed or damaged.

    python -m pytest tests/test_train.py
"""

import contextlib
import json
import math
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

from lib import checkpoint, evaluate, ledger, model, train
from lib.loss import IGNORED
from lib.params import ROOT, Params, UserError

BASE = {"base_model": "some/base", "load_in_4bit": False, "optim": "adamw_torch", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2, "warmup_steps": 2, "save_steps": 2, "lora_r": 2, "lora_dropout": 0.1, "seed": 5}
STEPS = 6  # of 23 rows by 4: one of them is a short step


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small_model(job, dtype=torch.float32):
    """Gemma 3n with every part of it (altup, laurel, shared K/V, sparse MLP, soft cap) and 60 thousand parameters, with a fresh adapter."""
    config = Gemma3nTextConfig(
        vocab_size=96, vocab_size_per_layer_input=96, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, hidden_size_per_layer_input=8, laurel_rank=4, altup_num_inputs=2, num_kv_shared_layers=2,
        activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0], layer_types=["sliding_attention", "full_attention"] * 2, sliding_window=8,
        max_position_embeddings=128, pad_token_id=0, eos_token_id=1, bos_token_id=2)
    torch.manual_seed(0)
    return model.add_lora(Gemma3nForCausalLM(config).to(dtype).eval().requires_grad_(False), job)


def make_rows(count, seed=1):
    """Rows of 4 to 30 tokens, of which the last third to half is trained."""
    draw = np.random.default_rng(seed)
    rows = []
    for n in range(count):
        length = int(draw.integers(4, 31))
        ids = [2, *draw.integers(3, 96, length - 1).tolist()]
        start = length - int(draw.integers(length // 3, length // 2 + 1))
        rows.append({"id": f"row-{n}", "input_ids": ids, "labels": [IGNORED] * start + ids[start:], "length": length})
    return datasets.Dataset.from_list(rows)


ROWS, HELD_OUT = make_rows(23), make_rows(5, seed=2)


def a_job(**changes):
    return Params(**{**BASE, **changes})


def session(folder, job=None, rows=ROWS, held_out=HELD_OUT, **identity):
    """What the notebook does: base, adapter, train; returns the float32 masters."""
    job = job or a_job()
    folder.mkdir(exist_ok=True)
    net = small_model(job)
    return train.train(net, rows, held_out, job, folder, {**train.identity(job, "data-1", model.count(net)[0]), **identity})


def at_call(monkeypatch, number, action):
    """Do `action(losses)` in the `number`-th micro-batch (from 1) of training, whichever session it falls into."""
    calls = []

    def wrapped(*args):
        losses, rows = token_losses(*args)
        calls.append(1)
        return (action(losses) if len(calls) == number else losses), rows

    token_losses = train.token_losses
    monkeypatch.setattr(train, "token_losses", wrapped)


def interrupt(losses):
    os.kill(os.getpid(), signal.SIGINT)
    return losses


def crash(losses):
    raise RuntimeError("the machine stopped")


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """(weights, ledger entries) of a run nobody disturbed."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("uninterrupted")
    masters = session(folder)
    return {n: w.clone() for n, w in masters.weights.items()}, ledger.read(folder / "metrics.jsonl")


def same_run(folder, masters, uninterrupted):
    """The weights and every step's loss are those of the undisturbed run, bit for bit."""
    weights, entries = uninterrupted
    assert all(torch.equal(masters.weights[n], w) for n, w in weights.items())
    found = ledger.steps(ledger.read(folder / "metrics.jsonl"))
    wanted = ledger.steps(entries)
    assert [(e["step"], e["loss"], e["lr"], e["grad_norm"], e["epoch"], e["tokens"]) for e in found] \
        == [(e["step"], e["loss"], e["lr"], e["grad_norm"], e["epoch"], e["tokens"]) for e in wanted]
    return ledger.summary(ledger.read(folder / "metrics.jsonl"))


def checkpoints(folder):
    return sorted(p.name for p in (folder / "checkpoints").iterdir())


# ---------------------------------------------------------------------------------------------------------------------
# the same arithmetic as transformers


def test_three_steps_equal_transformers_peft_and_torch():
    job = a_job(lora_dropout=0.0, max_steps=3, warmup_steps=1, lr_scheduler_type="cosine", max_grad_norm=0.5)
    plan = [step for _, step in zip(range(3), train.steps_from(np.array(ROWS["length"]), 0, job), strict=False)]
    ours, theirs = small_model(job).train(), small_model(job).train()
    start = {n: p.detach().clone() for n, p in model.trainable(theirs).items()}
    masters = train.Masters(ours, job)
    weights = list(model.trainable(theirs).values())
    optimizer = torch.optim.AdamW(weights, lr=job.learning_rate, weight_decay=job.weight_decay)
    schedule = transformers.get_scheduler("cosine", optimizer, num_warmup_steps=1, num_training_steps=3)
    for number, (_, batches) in enumerate(plan):
        loss, real, padded, trained = train.run_step(ours, masters, [ROWS.select(b).to_list() for b in batches])
        norm = masters.step(train.learning_rate(number, 3, job), job.max_grad_norm)

        items = sum(label != IGNORED for b in batches for r in b for label in ROWS[r]["labels"][1:])
        total = 0.0
        for batch in batches:
            picked = ROWS[batch]
            ids, labels = evaluate.pad(picked["input_ids"], 0, "cpu"), evaluate.pad(picked["labels"], IGNORED, "cpu")
            mask = evaluate.pad([[1] * len(r) for r in picked["input_ids"]], 0, "cpu")
            out = theirs(input_ids=ids, attention_mask=mask, labels=labels, num_items_in_batch=torch.tensor(items))
            out.loss.backward()
            total += out.loss.item()
        expected_norm = float(torch.nn.utils.clip_grad_norm_(weights, job.max_grad_norm))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        assert loss == pytest.approx(total, rel=1e-5)
        assert norm == pytest.approx(expected_norm, rel=1e-4)
        assert norm > job.max_grad_norm, "the clipping must be part of what is compared"
        assert trained == items
        assert real == sum(ROWS[r]["length"] for b in batches for r in b) < padded
    for name, weight in model.trainable(theirs).items():
        moved = (weight.detach() - start[name]).norm()
        assert moved > 0
        assert (masters.weights[name] - weight.detach()).norm() < 1e-4 * moved, name  # of the change: the weight itself would hide it


@pytest.mark.parametrize(("ours", "theirs"), [("linear", "linear"), ("cosine", "cosine"), ("constant", "constant_with_warmup")])
@pytest.mark.parametrize("warmup", [0, 5, 40])
def test_schedules_equal_transformers(ours, theirs, warmup):
    job, total = a_job(lr_scheduler_type=ours, warmup_steps=warmup), 30
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=job.learning_rate)
    schedule = transformers.get_scheduler(theirs, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    for step in range(total):
        assert train.learning_rate(step, total, job) == pytest.approx(schedule.get_last_lr()[0], rel=1e-9, abs=1e-15), step
        optimizer.step()
        schedule.step()


def test_masters_keep_what_bfloat16_would_lose():
    job = a_job(lora_dropout=0.0, learning_rate=1e-5, warmup_steps=0)
    net = small_model(job, torch.bfloat16).train()
    masters = train.Masters(net, job)
    name = next(n for n in masters.weights if "layers.0" in n and "lora_A" in n)
    start = masters.weights[name].clone()
    for _ in range(4):
        train.run_step(net, masters, [ROWS.select([0, 1]).to_list()])
        masters.step(1e-5, 1.0)
    moved = (masters.weights[name] - start).abs()
    assert (moved > 0).float().mean() > 0.9
    assert ((start + moved).bfloat16() == start.bfloat16()).float().mean() > 0.5, "such a step must be one that bfloat16 cannot hold"
    assert model.trainable(net)[name].dtype == torch.bfloat16
    assert torch.equal(model.trainable(net)[name].detach(), masters.weights[name].bfloat16())


# ---------------------------------------------------------------------------------------------------------------------
# order


def flat(steps):
    return [row for step in steps for batch in step for row in batch]


@pytest.mark.parametrize("count", [1, 3, 4, 22, 150])
def test_every_row_once_an_epoch_and_only_one_step_is_short(count):
    job, lengths = a_job(), np.random.default_rng(0).integers(4, 99, count)
    steps = train.epoch_steps(lengths, 0, job)
    assert sorted(flat(steps)) == list(range(count))
    assert len(steps) == math.ceil(count / 4)
    assert sorted(sum(map(len, s)) for s in steps)[1:] == [4] * (len(steps) - 1)
    assert all(0 < len(batch) <= 2 for s in steps for batch in s)


def test_order_depends_on_seed_and_epoch_alone():
    lengths = np.random.default_rng(0).integers(4, 99, 150)
    first = train.epoch_steps(lengths, 0, a_job())
    np.random.default_rng(9).random(5)
    torch.manual_seed(99)
    assert train.epoch_steps(lengths, 0, a_job()) == first
    assert train.epoch_steps(lengths, 1, a_job()) != first
    assert train.epoch_steps(lengths, 0, a_job(seed=6)) != first
    # other rows meet in a step, and steps do not run from long to short
    sets = [{frozenset(flat([s])) for s in train.epoch_steps(lengths, e, a_job())} for e in (0, 1)]
    assert len(sets[0] & sets[1]) < 5
    sizes = [max(lengths[flat([s])]) for s in first]
    assert sizes != sorted(sizes, reverse=True)


@pytest.mark.parametrize("done", [0, 1, 5, 6, 7, 13])
def test_a_resumed_plan_is_the_rest_of_the_whole_plan(done):
    lengths, job = np.array(ROWS["length"]), a_job()
    whole = [s for _, s in zip(range(20), train.steps_from(lengths, 0, job), strict=False)]
    rest = [s for _, s in zip(range(20 - done), train.steps_from(lengths, done, job), strict=False)]
    assert rest == whole[done:]
    assert [epoch for epoch, _ in whole[:STEPS]] == pytest.approx([n / 6 for n in range(1, 7)])
    assert sorted(flat([s for _, s in whole[STEPS:2 * STEPS]])) == list(range(23)), "the second epoch is a whole one too"


@pytest.mark.parametrize(("changes", "expected"), [
    ({}, 6), ({"num_train_epochs": 0.5}, 3), ({"num_train_epochs": 1.1}, 7), ({"num_train_epochs": 0.01}, 1), ({"num_train_epochs": 3.0}, 18),
    ({"max_steps": 2}, 2), ({"max_steps": 40}, 40), ({"max_steps": 40, "num_train_epochs": 0.5}, 40), ({"max_steps": 0}, 6)])
def test_total_steps_are_those_of_transformers(changes, expected):
    """max_steps wins over num_train_epochs, also beyond an epoch: training goes round the rows again."""
    assert train.total_steps(22, a_job(**changes)) == expected


def test_max_steps_beyond_an_epoch_goes_on_with_the_next(tmp_path):
    session(tmp_path, a_job(max_steps=8))
    lines = ledger.steps(ledger.read(tmp_path / "metrics.jsonl"))
    assert [e["epoch"] for e in lines] == pytest.approx([n / 6 for n in range(1, 9)], abs=1e-4)
    assert sum(e["rows"] for e in lines[:6]) == 23


def test_plan_figures():
    job = a_job()
    figures = train.plan(ROWS, HELD_OUT, job)
    width = sum(len(b) * max(ROWS[r]["length"] for r in b) for s in train.epoch_steps(np.array(ROWS["length"]), 0, job) for b in s)
    assert figures["steps in all"] == figures["steps an epoch"] == STEPS
    assert figures["tokens an epoch"] == sum(ROWS["length"])
    assert figures["padding, share of positions"] == pytest.approx(1 - sum(ROWS["length"]) / width)
    with pytest.raises(UserError, match="no rows"):
        train.plan(ROWS.select([]), HELD_OUT, job)


# ---------------------------------------------------------------------------------------------------------------------
# stopped and continued


def test_an_undisturbed_run(tmp_path, uninterrupted):
    handler = signal.getsignal(signal.SIGINT)
    found = same_run(tmp_path, session(tmp_path), uninterrupted)
    assert (found["steps"], found["sessions"], found["steps_repeated"], found["epochs"]) == (STEPS, 1, 0, 1.0)
    assert found["eval_loss_after"] != found["eval_loss_before"]
    assert checkpoints(tmp_path) == ["step-000004", "step-000006"]
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize(("micro_batch", "step"), [(1, 0), (5, 2), (6, 3), (11, 5)])
def test_ctrl_c_keeps_the_last_whole_step(tmp_path, monkeypatch, capsys, uninterrupted, micro_batch, step):
    """In the first micro-batch of a step the accumulation is dropped, dropout's random numbers put back; in the last one it is finished."""
    handler = signal.getsignal(signal.SIGINT)
    at_call(monkeypatch, micro_batch, interrupt)
    with pytest.raises(KeyboardInterrupt, match=f"stopped after step {step} of {STEPS}; its checkpoint is saved"):
        session(tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    assert checkpoints(tmp_path)[-1] == f"step-{step:06d}"
    found = same_run(tmp_path, session(tmp_path), uninterrupted)
    assert f"continuing after step {step} of" in capsys.readouterr().out or step == 0
    assert (found["sessions"], found["steps_repeated"]) == (2, 0)
    assert [e["when"] for e in ledger.read(tmp_path / "metrics.jsonl") if e["event"] == "eval"] == ["before", "after"]


def test_a_stopped_step_leaves_no_trace():
    job = a_job()
    net = small_model(job).train()
    masters, before = train.Masters(net, job), torch.get_rng_state()
    answers = iter([False, True])
    assert train.run_step(net, masters, [ROWS.select([0, 1]).to_list(), ROWS.select([2]).to_list()], lambda: next(answers)) is None
    assert all(not w.grad.any() for w in masters.weights.values())
    assert all(p.grad is None for p in masters.live.values())
    assert torch.equal(torch.get_rng_state(), before)


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
        with pytest.raises(train.SessionOver, match=rf"is up after step {step} of 6.* about {STEPS - step} more sessions"):
            session(tmp_path, job)
    found = same_run(tmp_path, session(tmp_path, job), uninterrupted)
    assert (found["sessions"], found["steps_repeated"]) == (STEPS, 0)


def test_a_finished_run_started_again_changes_nothing(tmp_path, uninterrupted):
    session(tmp_path)
    found = same_run(tmp_path, session(tmp_path), uninterrupted)
    assert (found["sessions"], found["steps_repeated"]) == (2, 0)
    assert sum(e["event"] == "eval" for e in ledger.read(tmp_path / "metrics.jsonl")) == 2


def test_kill_minus_nine(tmp_path, uninterrupted):
    """Killed in step 4: step 3 is in the ledger and not in a checkpoint, so it is run and counted again."""
    code = "import pathlib, sys, pytest, test_train as t\nwith pytest.MonkeyPatch.context() as m:\n" \
           "    t.torch.set_num_threads(1)\n    t.at_call(m, 7, lambda losses: t.os.kill(t.os.getpid(), 9))\n    t.session(pathlib.Path(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert checkpoints(tmp_path) == ["step-000002"]
    found = same_run(tmp_path, session(tmp_path), uninterrupted)
    assert (found["sessions"], found["steps_repeated"]) == (2, 1)


def test_ledger_lines_of_several_steps_never_span_a_checkpoint(tmp_path, monkeypatch, uninterrupted):
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
    assert [e["epoch"] for e in ledger.steps(entries)] == pytest.approx([e["step"] / 6 for e in ledger.steps(entries)], abs=1e-4)


def test_the_epoch_of_a_line_is_that_of_its_step_also_when_the_next_was_dropped(tmp_path, monkeypatch):
    at_call(monkeypatch, 7, interrupt)
    with pytest.raises(KeyboardInterrupt):
        session(tmp_path, a_job(logging_steps=5, save_steps=100))
    (line,) = ledger.steps(ledger.read(tmp_path / "metrics.jsonl"))
    assert (line["step"], line["steps"], line["epoch"]) == (3, 3, 0.5)


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
    "missing random state": lambda c: (c / "rng.safetensors").unlink(),
    "missing optimizer": lambda c: (c / "optimizer.safetensors").unlink(),
    "missing checkpoint.json": lambda c: (c / "checkpoint.json").unlink(),
    "torn checkpoint.json": lambda c: os.truncate(c / "checkpoint.json", 90),
    "checkpoint.json not UTF-8": lambda c: (c / "checkpoint.json").write_bytes(b"\xff\xfe"),
    "checkpoint.json of another shape": lambda c: (c / "checkpoint.json").write_text("[1]"),
    "flipped bit in the step": lambda c: (c / "checkpoint.json").write_text((c / "checkpoint.json").read_text().replace('"step": 4', '"step": 5')),
    "flipped bit in an identity": lambda c: (c / "checkpoint.json").write_text((c / "checkpoint.json").read_text().replace('"data-1"', '"data-3"')),
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
    assert [n for n in checkpoints(stopped_copy) if n.startswith("step")] == ["step-000004", "step-000006"]


def test_without_a_good_checkpoint_training_starts_over(stopped_copy, uninterrupted):
    for path in (stopped_copy / "checkpoints").glob("step-*"):
        os.truncate(path / "adapter.safetensors", 50)
    found = same_run(stopped_copy, session(stopped_copy), uninterrupted)
    assert found["steps_repeated"] == 4


@pytest.mark.parametrize(("changes", "shown"), [
    ({"lora_r": 3}, "lora_r: checkpoint 2, now 3"), ({"learning_rate": 2e-2}, "learning_rate: checkpoint 0.01, now 0.02"),
    ({"seed": 6}, "seed: checkpoint 5, now 6"), ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps: checkpoint 2, now 4"),
    ({"load_in_4bit": True}, "load_in_4bit: checkpoint False, now True"),
    ({"base_model": "other/base"}, "base_model: checkpoint some/base, now other/base"),
    ({"finetune_mlp_modules": False}, "finetune_mlp_modules: checkpoint True, now False")])
def test_a_checkpoint_of_another_job_is_refused_with_the_difference(stopped_copy, changes, shown):
    with pytest.raises(UserError, match=re.escape(shown)):
        session(stopped_copy, a_job(**changes))
    assert checkpoints(stopped_copy) == ["step-000002", "step-000004"]


def test_a_checkpoint_of_other_data_is_refused(stopped_copy):
    with pytest.raises(UserError, match=r"step-000004 does not belong to this job:\n  data: checkpoint data-1, now data-2\nStart .*FORCE=1"):
        session(stopped_copy, data="data-2")


def test_what_changes_no_weight_may_change_between_sessions(stopped_copy, uninterrupted):
    session_job = a_job(save_steps=1, save_total_limit=3, max_minutes=60.0, sample_tokens=5)
    same_run(stopped_copy, session(stopped_copy, session_job), uninterrupted)
    assert checkpoints(stopped_copy) == ["step-000004", "step-000005", "step-000006"]


def test_save_total_limit_of_one(tmp_path):
    session(tmp_path, a_job(save_total_limit=1))
    assert checkpoints(tmp_path) == ["step-000006"]


def test_a_folder_half_written_by_a_kill_is_ignored_and_goes(stopped_copy, uninterrupted):
    for name in (".step-000006.tmp", ".step-000005.tmp"):
        (stopped_copy / "checkpoints" / name).mkdir()
        (stopped_copy / "checkpoints" / name / "adapter.safetensors").write_bytes(b"half")
    same_run(stopped_copy, session(stopped_copy), uninterrupted)
    assert checkpoints(stopped_copy) == ["step-000004", "step-000006"]
    assert not checkpoint.files.damaged(stopped_copy / "checkpoints" / "step-000006", checkpoint.newest_checkpoint(stopped_copy / "checkpoints")[1]["files"])


def test_a_checkpoint_appears_under_its_name_only_when_complete(tmp_path, monkeypatch):
    seen = []

    def describe(folder, names):
        seen.append((folder.name, sorted(p.name for p in folder.parent.glob("step-*"))))
        return real(folder, names)

    real = checkpoint.files.describe
    monkeypatch.setattr(checkpoint.files, "describe", describe)
    session(tmp_path, a_job(max_steps=4))
    assert seen == [(".step-000002.tmp", []), (".step-000004.tmp", ["step-000002"])]


def test_no_pickle_anywhere(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("pickled")

    monkeypatch.setattr(torch, "save", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr("pickle.dumps", refuse)
    job = a_job(max_steps=2)
    net = small_model(job)
    masters = train.Masters(net, job)
    train.run_step(net.train(), masters, [ROWS.select([0]).to_list()])
    masters.step(1e-3, 1.0)
    train.save_checkpoint(tmp_path, 1, masters, {}, 2)
    assert sorted(p.name for p in (tmp_path / "step-000001").iterdir()) == \
        ["adapter.safetensors", "checkpoint.json", "optimizer.json", "optimizer.safetensors", "rng.safetensors"]
    assert train.resume(tmp_path, train.Masters(small_model(job), job), {}) == 1


class LikeBitsandbytes(torch.optim.AdamW):
    """bitsandbytes 0.50's habits: an int step, one quantisation map for all parameters, state_dict() with nested tensors."""

    qmap = torch.linspace(-1, 1, 256)

    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(step=0, state1=torch.zeros_like(p, dtype=torch.uint8), qmap1=self.qmap, absmax1=torch.zeros(1))
                state["step"] += 1
                state["state1"] += 3
                state["absmax1"] += p.grad.abs().max()
                p -= group["lr"] * p.grad * state["qmap1"][128 + state["step"]] * state["absmax1"]

    def state_dict(self):
        found = super().state_dict()
        found["state"] = {n: {"step": s["step"], "__nested__": {k: v for k, v in s.items() if k != "step"}} for n, s in found["state"].items()}
        return found


@pytest.mark.parametrize("real", [False, True])
def test_8_bit_adamw_survives_a_stop(tmp_path, monkeypatch, real):
    if real:
        pytest.importorskip("bitsandbytes")
    else:
        monkeypatch.setattr(torch.optim, "AdamW", LikeBitsandbytes)
    job = a_job(optim="adamw_8bit" if real else "adamw_torch", lora_r=128)  # wide enough for bitsandbytes' 8-bit state, which starts at 4,096 numbers
    whole = session(tmp_path / "whole", job)
    with monkeypatch.context() as patch:
        at_call(patch, 7, interrupt)
        with pytest.raises(KeyboardInterrupt):
            session(tmp_path / "stopped", job)
    state = load_file(tmp_path / "stopped" / "checkpoints" / "step-000003" / "optimizer.safetensors")
    assert any(t.dtype == torch.uint8 for t in state.values())
    resumed = session(tmp_path / "stopped", job)
    assert all(torch.equal(whole.weights[n], w) for n, w in resumed.weights.items())


# ---------------------------------------------------------------------------------------------------------------------
# divergence


@pytest.mark.parametrize(("poison", "shown"), [
    (lambda losses: losses * math.nan, "loss nan"),
    (lambda losses: (losses.register_hook(lambda g: g * math.inf), losses)[1], "gradient norm (inf|nan)")])
def test_a_diverged_step_stops_before_it_spoils_anything(tmp_path, monkeypatch, poison, shown):
    at_call(monkeypatch, 7, poison)  # in step 4
    job = a_job(save_steps=1)
    batches = next(train.steps_from(np.array(ROWS["length"]), 3, job))[1]
    with pytest.raises(train.Diverged, match=f"step 4 has .*{shown}") as caught:
        session(tmp_path, job)
    assert all(f"'row-{n}'" in str(caught.value) for b in batches for n in b)
    assert len(re.findall("row-", str(caught.value))) == 4
    path, state = checkpoint.newest_checkpoint(tmp_path / "checkpoints")
    assert state["step"] == 3
    assert all(t.isfinite().all() for t in load_file(path / "adapter.safetensors").values())
    assert [e["step"] for e in ledger.steps(ledger.read(tmp_path / "metrics.jsonl"))] == [1, 2, 3]


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_gradient_that_is_no_number_moves_no_weight(bad):
    masters = train.Masters(small_model(a_job()), a_job())
    before = {n: w.clone() for n, w in masters.weights.items()}
    next(iter(masters.weights.values())).grad[0, 0] = bad
    assert not math.isfinite(masters.step(1e-2, 1.0))
    assert all(torch.equal(before[n], w) for n, w in masters.weights.items())


# ---------------------------------------------------------------------------------------------------------------------
# the adapter


def test_the_saved_adapter_is_the_trained_model(tiny_gemma3n, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def base():
        return AutoModelForCausalLM.from_pretrained(tiny_gemma3n, dtype=torch.float32).requires_grad_(False)

    job = a_job(base_model="owner/base", base_revision="v1", lora_dropout=0.0)
    net = model.add_lora(base(), job)
    masters = train.Masters(net.train(), job)
    rows = [{"input_ids": [2, 50, 60, 70, 80, 90], "labels": [IGNORED] * 3 + [70, 80, 90]}]
    for _ in range(2):
        train.run_step(net, masters, [rows])
        masters.step(0.05, 1.0)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "of-an-earlier-run").write_text("")
    train.save_adapter(net, masters, tmp_path / "adapter", job)

    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter"]
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert sum(t.numel() for t in tensors.values()) == model.count(net)[0]
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/base", "v1")
    assert str(tiny_gemma3n) not in json.dumps(config)

    ids = torch.randint(5, 2000, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        live, plain = net.eval()(input_ids=ids).logits, base()(input_ids=ids).logits
        loaded = PeftModel.from_pretrained(base(), tmp_path / "adapter").eval()(input_ids=ids).logits
    assert (live - plain).norm() > 1e-2 * plain.norm(), "training must have changed something"
    torch.testing.assert_close(loaded, live, rtol=1e-5, atol=1e-5)


def test_the_saved_adapter_has_the_masters_precision(tmp_path):
    job = a_job(lora_dropout=0.0)
    net = small_model(job, torch.bfloat16).train()
    masters = train.Masters(net, job)
    train.run_step(net, masters, [ROWS.select([0, 1]).to_list()])
    masters.step(1e-3, 1.0)
    train.save_adapter(net, masters, tmp_path / "adapter", job)
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name, weight in masters.weights.items():
        assert torch.equal(tensors[name.replace(".default", "")], weight)
    assert any(not torch.equal(t, t.bfloat16().float()) for t in tensors.values())
