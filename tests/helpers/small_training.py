"""A training job of a few seconds: a small Gemma 3n, 23 rows, and ways to interfere with a session."""

import math
import os
import signal

import datasets
import numpy as np
import torch
from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

from lib.data.label_mask import IGNORED
from lib.model import adapter
from lib.model.end_token import end_row
from lib.params import Params
from lib.record import ledger
from lib.training import batches, checkpoint, compiled, loop
from lib.training.step import build_accumulate, run_step
from lib.training.stops import StopRequests

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
    "train_end_token": False,
    "seed": 5,
}


END = 7  # the end token of jobs that train its row
STEPS = 6  # of 23 rows by 4: one of them is a short step


def small_model(job, dtype=torch.float32):
    """Make a Gemma 3n with all its parts (altup, laurel, shared K/V, sparse MLP, soft cap), 60 thousand parameters and a new adapter."""
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
    net = adapter.add(Gemma3nForCausalLM(config).to(dtype).eval().requires_grad_(False), job)
    if job.train_end_token is True:
        end_row.add(net, END)
    return net


def make_rows(count, seed=1):
    """Make rows of 4 to 30 tokens, of which the last third to half is trained."""
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


def session(folder, job=None, rows=ROWS, held_out=HELD_OUT, place="cpu", **identity):
    """Run what the notebook does (base, adapter, train); return the float32 masters."""
    job = job or a_job()
    folder.mkdir(exist_ok=True)
    net = small_model(job).to(place)
    return loop.train(
        net,
        rows,
        held_out,
        job,
        folder,
        {
            **checkpoint.describe_identity(
                job, "data-1", "base-1", adapter.count_parameters(net)[0]
            ),
            **identity,
        },
    )


def whole_run(folder, job=None, **options):
    """Return (weights, ledger entries) of an undisturbed run."""
    masters = session(folder, job, **options)
    return {n: w.clone() for n, w in masters.weights.items()}, ledger.read_ledger(
        folder / "metrics.jsonl"
    )


def at_every_call(monkeypatch, action):
    """Call `action(losses, batch)` in every micro-batch of training; return a list that grows by one for each."""
    calls = []

    def wrapped(net, batch, *rest):
        calls.append(batch)
        return action(token_losses(net, batch, *rest), batch)

    token_losses = compiled.token_losses
    monkeypatch.setattr(compiled, "token_losses", wrapped)
    return calls


def at_call(monkeypatch, number, action):
    """Call `action(losses)` in the `number`-th micro-batch (from 1) of training, in whichever session that is."""
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
    """Return a step of micro-batches given by their row numbers, in the loader's form."""
    trained = sum(
        label != IGNORED
        for group in groups
        for labels in ROWS[group]["labels"]
        for label in labels[1:]
    )
    return {
        "batches": [
            (place, batches.make_batch(ROWS[group], None, 1 / trained))
            for place, group in enumerate(groups)
        ]
    }


NO_REQUEST = StopRequests(False, False, False)
INTERRUPTED = StopRequests(True, False, False)


def take_step(net, masters, job, current, step=0, look=lambda: NO_REQUEST):
    return run_step(
        build_accumulate(net, masters, job.packing), masters, step, current, job.seed, look
    )


def train_step(net, masters, job, current, rate, step=0):
    done = take_step(net, masters, job, current, step)
    masters.step(done.norm, rate, job.max_grad_norm)
    return done


def same_run(folder, masters, uninterrupted):
    """Check that the weights and every step's numbers are those of the undisturbed run, bit for bit."""
    weights, entries = uninterrupted
    assert all(torch.equal(masters.weights[n], w) for n, w in weights.items())
    assert numbers(ledger.read_ledger(folder / "metrics.jsonl")) == numbers(entries)
    return ledger.summarise(ledger.read_ledger(folder / "metrics.jsonl"))


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
    return [{k: e[k] for k in keys} for e in ledger.valid_steps(entries)]


def checkpoints(folder):
    return sorted(p.name for p in (folder / "checkpoints").iterdir())


def evals(folder):
    """Return held-out losses as (when, step, loss), in the order measured."""
    return [
        (e["when"], e["step"], e["eval_loss"])
        for e in ledger.read_ledger(folder / "metrics.jsonl")
        if e["event"] == "eval"
    ]


def apart(weights, others, job):
    """Return the distance between two ends of training, as a share of that from the start to the first."""
    start = {n: p.detach().float() for n, p in adapter.trainable(small_model(job)).items()}
    way, gap = (
        math.sqrt(sum(float((w - to[n]).square().sum()) for n, w in weights.items()))
        for to in (start, others)
    )
    assert way > 0.1, "training must have gone somewhere"
    return gap / way


def pad(rows, value):
    return torch.tensor([r + [value] * (max(map(len, rows)) - len(r)) for r in rows])
