"""The float32 masters: their precision, 8-bit AdamW, float16's loss scale, and the adapter saved from them.

python -m pytest tests/training/test_masters.py
"""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from helpers.small_training import (
    ROWS,
    a_job,
    at_call,
    at_every_call,
    interrupt,
    of_rows,
    same_run,
    session,
    small_model,
    train_step,
    whole_run,
)
from lib.data.label_mask import IGNORED
from lib.model import adapter, device
from lib.training import batches, checkpoint, plan, stops
from lib.training import masters as masters_module
from lib.training.masters import Masters

pytestmark = pytest.mark.usefixtures("one_thread")


# --------------------------------------------------------------------------------------------------
# precision and optimizer


def test_masters_keep_what_bfloat16_would_lose():
    job = a_job(lora_dropout=0.0, learning_rate=1e-5, warmup_steps=0)
    net = small_model(job, torch.bfloat16).train()
    masters = Masters(net, job)
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


# --------------------------------------------------------------------------------------------------
# float16's loss scale


@pytest.fixture
def float16(monkeypatch):
    """The loss scale of a float16 job, around float32 arithmetic, in which a power of two changes no bit."""
    monkeypatch.setattr(device, "choose_precision", lambda *_: (torch.float16, "a test"))


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
    sizes = plan.read_sizes(ROWS)
    return [
        sum(int(sizes.trained[b].sum()) for b in step)
        for step in plan.plan_epoch(sizes.lengths, 0, a_job())
    ]


@pytest.mark.slow
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
    loaded = Masters(small_model(job), job)
    checkpoint.resume(tmp_path / "run" / "checkpoints", loaded, {})
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
    masters = Masters(small_model(a_job()), a_job())
    assert masters.scale == 1.0
    assert not masters.lower_scale()


# --------------------------------------------------------------------------------------------------
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
    masters = Masters(net.train(), job)
    row = {"input_ids": [[2, 50, 60, 70, 80, 90]], "labels": [[IGNORED] * 3 + [70, 80, 90]]}
    for _ in range(2):
        train_step(
            net, masters, job, {"batches": [(0, batches.make_batch(row, None, 1 / 3))]}, 0.05
        )
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "of-an-earlier-run").write_text("")
    adapter.save(net, masters.weights, tmp_path / "adapter", job.base_model, job.base_revision)

    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter"]
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert sum(t.numel() for t in tensors.values()) == adapter.count_parameters(net)[0]
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
    masters = Masters(net, job)
    train_step(net, masters, job, of_rows([0, 1]), 1e-3)
    adapter.save(net, masters.weights, tmp_path / "adapter", job.base_model, job.base_revision)
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name, weight in masters.weights.items():
        assert torch.equal(tensors[name.replace(".default", "")], weight)
    assert any(not torch.equal(t, t.bfloat16().float()) for t in tensors.values())
