"""Each reason for which a job trains with transformers' layers.

python -m pytest tests/training/stack/test_fits.py
"""

import importlib.util

import peft
import pytest
import torch

from helpers.packed_rows import PROJECTIONS, gemma3, gemma3n
from helpers.tiny_models import a_job
from lib.training.stack import fits

FITTING = {"altup_num_inputs": 4, "laurel_rank": 8}


def fitting_job(**changes):
    return a_job(packing=True, torch_compile=True, gradient_checkpointing=False, **changes)


def adapted(net=None, **options):
    options = {"r": 8, "target_modules": PROJECTIONS, **options}
    net = net or gemma3n(**FITTING)
    return peft.get_peft_model(
        net.requires_grad_(False), peft.LoraConfig(**options), autocast_adapter_dtype=False
    )


@pytest.fixture(autouse=True)
def has_triton(monkeypatch):
    """This machine may have it or not."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "triton" or find(name))


def test_nothing_hinders_the_preset_of_a_large_card():
    assert fits.find_hindrance(adapted(), fitting_job()) == ""
    assert fits.find_hindrance(adapted().to(torch.bfloat16), fitting_job()) == ""
    assert fits.find_hindrance(adapted(r=16, lora_alpha=32, use_rslora=True), fitting_job()) == ""


def test_triton_is_needed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert fits.find_hindrance(adapted(), fitting_job()) == "triton is not installed"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"load_in_4bit": True}, "the base is in 4 bits"),
        ({"full_finetuning": True}, "all weights are trained"),
        ({"packing": False}, "rows are padded, not packed"),
        ({"torch_compile": False}, "torch_compile is off"),
        (
            {"gradient_checkpointing": True},
            "gradient_checkpointing computes the forward pass twice",
        ),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha adds noise to the embeddings"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_jobs_that_do_not_fit(changes, reason):
    assert fits.find_hindrance(adapted(), fitting_job().model_copy(update=changes)) == reason


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (gemma3, "it is written for Gemma 3n, and this is Gemma3ForCausalLM"),
        (
            lambda: gemma3n(),
            "AltUp is not of four streams, of which the first is active",
        ),
        (
            lambda: gemma3n(hidden_activation="gelu", **FITTING),
            "the activation is gelu, not GELU's tanh form",
        ),
        (
            lambda: gemma3n(hidden_size=48, **FITTING),
            "the hidden width 48 is no power of two",
        ),
        (
            lambda: gemma3n(head_dim=24, **FITTING),
            "the head size 24 is no power of two",
        ),
        (
            lambda: gemma3n(hidden_size_per_layer_input=12, **FITTING),
            "the per-layer width 12 is no power of two",
        ),
    ],
    ids=["family", "streams", "activation", "width", "head", "per-layer"],
)
def test_models_that_do_not_fit(make, reason):
    assert fits.find_hindrance(adapted(make()), fitting_job()) == reason


PLAIN = (
    "q_proj of layer 0 has dropout, DoRA, a bias, a rank that is no multiple of 8, or another "
    "precision than its adapter"
)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"target_modules": ["q_proj", "v_proj"]}, "k_proj of layer 0 has no adapter"),
        ({"target_modules": PROJECTIONS[:4]}, "gate_proj of layer 0 has no adapter"),
        (
            {"target_modules": [*PROJECTIONS, "linear_left"]},
            "modules outside the language layers' projections have adapters",
        ),
        ({"r": 12}, PLAIN),
        ({"lora_dropout": 0.1}, PLAIN),
        ({"use_dora": True}, PLAIN),
        ({"rank_pattern": {"up_proj": 16}}, "ranks or scales differ between modules"),
        ({"alpha_pattern": {"up_proj": 16}}, "ranks or scales differ between modules"),
        ({"trainable_token_indices": [5]}, "the end token's row is trained too"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_adapters_that_do_not_fit(options, reason):
    assert fits.find_hindrance(adapted(**options), fitting_job()) == reason


def test_a_base_without_an_adapter_or_in_another_precision():
    assert fits.find_hindrance(gemma3n(**FITTING), fitting_job()) == "there is no adapter"
    net = adapted()
    for name, p in net.named_parameters():
        if "lora_" not in name:
            p.data = p.data.to(torch.bfloat16)
    assert fits.find_hindrance(net, fitting_job()) == PLAIN
