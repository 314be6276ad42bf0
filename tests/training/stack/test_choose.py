"""Which layers train a compiled job, in whole sessions; a run goes on with those it began with.

python -m pytest tests/training/stack/test_choose.py
"""

import copy

import pytest
import torch

pytest.importorskip("triton")

from helpers.packed_rows import gemma3n
from helpers.small_training import HELD_OUT, a_job, make_rows
from lib.common import files
from lib.common.errors import UserError
from lib.model import adapter
from lib.record import ledger
from lib.training import checkpoint, loop, plan
from lib.training.stack import choose

ROWS = make_rows(60, seed=3).filter(lambda row: row["length"] <= 7)
FITTING = {
    "lora_r": 8,
    "lora_dropout": 0.0,
    "packing": True,
    "gradient_checkpointing": False,
    "precision": "fp32",
    "max_steps": 2,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-2,
    "warmup_steps": 1,
}


@pytest.fixture(scope="module", autouse=True)
def small_tiles():
    """The interpreter's time is that of the positions, fillers included."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "TILE", 4)
        yield


def fitting(job):
    """Make a model of one layer with a new adapter, which the hand-written layers fit."""
    net = gemma3n(1, altup_num_inputs=4, shared=0)
    return adapter.add(net.float().eval().requires_grad_(False), job)


def session(folder, **changes):
    """Train a model that the hand-written layers fit; return (weights, ledger)."""
    job = a_job(**{**FITTING, **changes})
    net = fitting(job)
    folder.mkdir(exist_ok=True)
    identity = checkpoint.describe_identity(job, "data-1", "base-1", 0)
    masters = loop.train(net, ROWS, HELD_OUT, job, folder, identity)
    weights = {name: weight.clone() for name, weight in masters.weights.items()}
    live = {name: p.detach().clone() for name, p in masters.live.items()}
    assert all(torch.equal(weights[name], live[name]) for name in weights)
    return weights, ledger.read_ledger(folder / "metrics.jsonl")


def losses(entries):
    return [e["loss"] for e in entries if e["event"] == "step"]


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hand") / "run"
    return folder, *session(folder, torch_compile=True, save_steps=2)


def test_a_session_learns_what_transformers_layers_learn(by_hand, tmp_path):
    folder, weights, entries = by_hand
    (begun,) = [e for e in entries if e["event"] == "session"]
    assert begun["layers"] == "hand-written"
    others, plain = session(tmp_path)
    assert "layers" not in next(e for e in plain if e["event"] == "session")
    assert losses(entries) == pytest.approx(losses(plain), rel=1e-5)
    for name, weight in weights.items():
        assert (weight - others[name]).norm() <= 1e-3 * others[name].norm(), name
    ours, theirs = (ledger.summarise(of)["eval_loss_after"] for of in (entries, plain))
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_run_goes_on_with_the_bits_of_an_undisturbed_one(by_hand, tmp_path):
    _, weights, _ = by_hand
    folder = tmp_path / "run"
    session(folder, torch_compile=True, save_steps=1, max_steps=1, lr_scheduler_type="constant")
    state = files.read_json(folder / "checkpoints/step-000001/checkpoint.json", "record")
    assert state["layers by"] == choose.HAND_WRITTEN
    more, _ = session(folder, torch_compile=True, lr_scheduler_type="constant")
    whole, _ = session(tmp_path / "whole", torch_compile=True, lr_scheduler_type="constant")
    assert more.keys() == weights.keys()
    assert all(torch.equal(more[name], whole[name]) for name in whole)


def test_a_checkpoint_of_one_is_not_continued_by_the_other(by_hand, tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match=r"(?s)step-000002 was trained by.*here: layers: compiled"):
        session(by_hand[0], torch_compile=True, layers="compiled")

    # a checkpoint of transformers' layers, as those of earlier versions: it has no name of them
    fused = []
    monkeypatch.setattr(choose.compiled, "fuse", fused.append)
    session(tmp_path / "run", max_steps=1)
    path = tmp_path / "run" / "checkpoints"
    job = a_job(**FITTING, torch_compile=True)
    net = fitting(job)
    before = copy.deepcopy(dict(net.named_parameters()))
    assert choose.prepare_layers(net, job, 30, path) == (None, choose.COMPILED)
    assert "(the checkpoint was trained by them)" in capsys.readouterr().out
    assert fused == [net]
    assert all(p.data_ptr() and torch.equal(p, before[name]) for name, p in net.named_parameters())


def test_a_job_that_does_not_fit_is_compiled_and_says_why(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(choose.compiled, "fuse", lambda net: None)
    for changes, why in (
        ({"layers": "compiled"}, "layers: compiled"),
        ({"lora_r": 4}, "a rank that is no multiple of 8"),
    ):
        job = a_job(**{**FITTING, "torch_compile": True, **changes})
        assert choose.prepare_layers(fitting(job), job, 30, tmp_path)[0] is None
        assert why in capsys.readouterr().out
