"""Full weights and the trained end token on an NVIDIA GPU: they train as on the processor.

.venv/bin/python -m pytest -m cuda
"""

import pytest
import torch

from helpers import full_training, small_training
from helpers.small_training import HELD_OUT, ROWS
from lib.model import adapter
from lib.model.end_token import end_row
from lib.record import ledger
from lib.training import checkpoint, loop, stops

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def train(net, job, folder, place):
    """Train on a device; return (float32 masters, ledger's summary)."""
    folder.mkdir(exist_ok=True)
    net = net.to(place)
    count = adapter.count_parameters(net)[0]
    identity = checkpoint.describe_identity(job, "data-1", "base-1", count)
    masters = loop.train(net, ROWS, HELD_OUT, job, folder, identity)
    return masters.weights, ledger.summarise(ledger.read_ledger(folder / "metrics.jsonl"))


def gap(ours, theirs):
    """Return the largest difference of two sets of weights, relative to what they hold."""
    return max(
        float((ours[name].cpu() - w.cpu()).norm() / w.cpu().norm().clamp(min=1e-6))
        for name, w in theirs.items()
    )


def test_the_trained_row_learns_what_it_learns_on_the_processor(tmp_path):
    job = small_training.a_job(train_end_token=True, lora_dropout=0.0)
    results = {}
    for place in ("cpu", "cuda"):
        net = small_training.small_model(job)
        assert end_row.find(net) is not None
        results[place] = train(net, job, tmp_path / place, place)
    assert gap(results["cuda"][0], results["cpu"][0]) < 1e-2
    assert results["cuda"][1]["eval_loss_after"] < results["cuda"][1]["eval_loss_before"]


def test_full_weights_learn_what_they_learn_on_the_processor(tmp_path):
    base = full_training.write_base(tmp_path / "base")
    job = full_training.a_job()
    results = {
        place: train(full_training.load(base), job, tmp_path / place, place)
        for place in ("cpu", "cuda")
    }
    assert gap(results["cuda"][0], results["cpu"][0]) < 1e-2


def test_full_weights_in_bfloat16_with_8_bit_adamw_go_on_after_a_stop(tmp_path):
    """The model computes in bfloat16 with the masters' numbers, rounded."""
    pytest.importorskip("bitsandbytes")
    base = full_training.write_base(tmp_path / "base")

    def session(folder, **changes):
        net = full_training.load(base, torch.bfloat16)
        job = full_training.a_job(optim="adamw_8bit", **changes)
        weights, summary = train(net, job, tmp_path / folder, "cuda")
        live = dict(net.named_parameters())
        assert all(p.is_cuda and p.dtype == torch.bfloat16 for p in live.values())
        for name, weight in weights.items():
            assert torch.equal(weight.to(live[name]), live[name]), name
        return weights, summary

    whole, summary = session("whole")
    plain = full_training.a_job()
    _, expected = train(full_training.load(base), plain, tmp_path / "cpu", "cpu")
    assert abs(summary["eval_loss_after"] - expected["eval_loss_after"]) < 0.05
    for _ in range(small_training.STEPS - 1):
        with pytest.raises(stops.SessionOver):
            session("stopped", max_minutes=1e-9)
    resumed, _ = session("stopped", max_minutes=1e-9)
    assert gap(resumed, whole) < 1e-3
