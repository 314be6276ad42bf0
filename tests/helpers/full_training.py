"""Full fine-tuning of a small Gemma 3n or Gemma 3 in seconds: its folder, and sessions on it."""

import torch
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

from helpers import small_training
from helpers.small_training import ROWS
from lib.model import adapter, trained
from lib.params import Params
from lib.record import ledger
from lib.training import checkpoint, loop


def a_job(**changes):
    kept = {k: v for k, v in small_training.BASE.items() if not k.startswith("lora")}
    return Params(**{**kept, "full_finetuning": True, "learning_rate": 1e-3, **changes})


def write_base(folder, dtype=torch.bfloat16, family="gemma3n", **config):
    """Write a small base without a tokenizer, which training does not need."""
    if family == "gemma3n":
        net = small_training.small_model(Params(), dtype).unload()
    else:
        small = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "head_dim": 16}
        heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
        torch.manual_seed(0)
        net = Gemma3ForCausalLM(Gemma3TextConfig(**small, **heads, sliding_window=8, **config))
    with torch.no_grad():  # what begins with zeros or ones has an effect too
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    net.to(dtype).save_pretrained(folder)
    return folder


def load(base, dtype=torch.float32):
    net = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()
    net.config.use_cache = False
    return trained.unfreeze(net, base)


def session(base, folder, job=None, dtype=torch.float32, place="cpu"):
    """Run what the notebook does (load, train); return the model and its float32 masters."""
    job = job or a_job()
    folder.mkdir(exist_ok=True)
    net = load(base, dtype).to(place)
    identity = checkpoint.describe_identity(
        job, "data-1", "base-1", adapter.count_parameters(net)[0]
    )
    return net, loop.train(net, ROWS, ROWS, job, folder, identity)


def whole_run(base, folder, job=None):
    """Return (weights, ledger entries) of an undisturbed run."""
    _, masters = session(base, folder, job)
    weights = {name: weight.clone() for name, weight in masters.weights.items()}
    return weights, ledger.read_ledger(folder / "metrics.jsonl")
