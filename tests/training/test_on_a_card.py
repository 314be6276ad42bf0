"""Full weights and the trained end token on an NVIDIA GPU: they train as on the processor.

.venv/bin/python -m pytest -m cuda
"""

import pytest
import torch

from helpers import full_training, small_training
from lib.model.end_token import end_row
from lib.record import ledger
from lib.training import stops

pytestmark = pytest.mark.cuda


def summarise(folder):
    return ledger.summarise(ledger.read_ledger(folder / "metrics.jsonl"))


def gap(ours, theirs):
    """Return the largest difference of two sets of weights, relative to what they hold."""
    return max(
        float((ours[name].cpu() - w.cpu()).norm() / w.cpu().norm().clamp(min=1e-6))
        for name, w in theirs.items()
    )


def test_the_trained_row_learns_what_it_learns_on_the_processor(tmp_path):
    job = small_training.a_job(train_end_token=True, lora_dropout=0.0)
    assert end_row.find(small_training.small_model(job)) is not None
    here, there = (
        small_training.session(tmp_path / place, job, place=place) for place in ("cpu", "cuda")
    )
    assert gap(there.weights, here.weights) < 1e-2
    summary = summarise(tmp_path / "cuda")
    assert summary["eval_loss_after"] < summary["eval_loss_before"]


def test_full_weights_learn_what_they_learn_on_the_processor(tmp_path):
    base = full_training.write_base(tmp_path / "base")
    here, there = (
        full_training.session(base, tmp_path / place, place=place)[1] for place in ("cpu", "cuda")
    )
    assert gap(there.weights, here.weights) < 1e-2


def test_full_weights_in_bfloat16_with_8_bit_adamw_go_on_after_a_stop(tmp_path):
    """The model computes in bfloat16 with the masters' numbers, rounded."""
    pytest.importorskip("bitsandbytes")
    base = full_training.write_base(tmp_path / "base")

    def session(folder, **changes):
        job = full_training.a_job(optim="adamw_8bit", **changes)
        net, masters = full_training.session(base, tmp_path / folder, job, torch.bfloat16, "cuda")
        live = dict(net.named_parameters())
        assert all(p.is_cuda and p.dtype == torch.bfloat16 for p in live.values())
        for name, weight in masters.weights.items():
            assert torch.equal(weight.to(live[name]), live[name]), name
        return masters.weights

    whole = session("whole")
    full_training.session(base, tmp_path / "cpu")
    after, expected = (summarise(tmp_path / name)["eval_loss_after"] for name in ("whole", "cpu"))
    assert abs(after - expected) < 0.05
    for _ in range(small_training.STEPS - 1):
        with pytest.raises(stops.SessionOver):
            session("stopped", max_minutes=1e-9)
    assert gap(session("stopped", max_minutes=1e-9), whole) < 1e-3
