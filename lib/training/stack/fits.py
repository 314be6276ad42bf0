"""Which jobs the hand-written layers fit; the others train with transformers' own, compiled.

This needs no triton, which is only on machines with an NVIDIA GPU.
"""

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch

from lib.model import placement
from lib.model.end_token import end_row
from lib.params import Params
from lib.training.compiled import is_joinable

PROJECTIONS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}


def find_hindrance(model: Any, job: Params) -> str:
    """Return why the hand-written layers cannot train this model in this job; "" if they can."""
    for reasons in (_of_job(job), _of_model(model), _of_adapter(model)):
        for applies, reason in reasons:
            if applies:
                return reason
    return ""


def _of_job(job: Params) -> Iterator[tuple[bool, str]]:
    yield importlib.util.find_spec("triton") is None, "triton is not installed"
    yield job.full_finetuning, "all weights are trained"
    yield job.load_in_4bit, "the base is in 4 bits"
    yield not job.packing, "rows are padded, not packed"
    yield not job.torch_compile, "torch_compile is off"
    yield job.gradient_checkpointing, "gradient_checkpointing computes the forward pass twice"
    yield job.neftune_noise_alpha > 0, "neftune_noise_alpha adds noise to the embeddings"


def _of_model(model: Any) -> Iterator[tuple[bool, str]]:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    name = type(base).__name__
    yield name != "Gemma3nForCausalLM", f"it is written for Gemma 3n, and this is {name}"
    config = base.config.get_text_config()
    apart = placement.is_spread(base) or placement.is_sharded(base)
    yield apart, "the base is spread over several cards"
    yield (
        base.device.type == "cuda" and base.dtype != torch.bfloat16,
        f"the base is in {str(base.dtype).removeprefix('torch.')}, not bfloat16",
    )
    altup = config.altup_num_inputs, config.altup_active_idx, config.altup_correct_scale
    yield altup != (4, 0, True), "AltUp is not of four streams, of which the first is active"
    activation = config.hidden_activation
    yield activation != "gelu_pytorch_tanh", f"the activation is {activation}, not GELU's tanh form"
    for what, width in (
        ("hidden width", config.hidden_size),
        ("head size", config.head_dim),
        ("per-layer width", config.hidden_size_per_layer_input),
    ):
        yield width & (width - 1) > 0, f"the {what} {width} is no power of two"


def _of_adapter(model: Any) -> Iterator[tuple[bool, str]]:
    yield not hasattr(model, "peft_config"), "there is no adapter"
    yield end_row.find(model) is not None, "the end token's row is trained too"
    modules = list(_list_projections(model))
    for name, module in modules:
        yield not hasattr(module, "lora_A"), f"{name} has no adapter"
        yield (
            not is_joinable(module),
            (
                f"{name} has dropout, DoRA, a bias, a rank that is no multiple of 8, or another "
                "precision than its adapter"
            ),
        )
    kinds = {(len(m.lora_A["default"].weight), m.scaling["default"]) for _, m in modules}
    yield len(kinds) > 1, "ranks or scales differ between modules"
    adapted = sum(hasattr(module, "lora_A") for module in model.modules())
    yield adapted > len(modules), "modules outside the language layers' projections have adapters"


def _list_projections(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield name and module of each projection of the language layers."""
    for number, layer in enumerate(model.get_base_model().model.layers):
        for part, names in PROJECTIONS.items():
            block = getattr(layer, part)
            for name in names:
                if hasattr(block, name):  # a layer that shares another's keys has no k and v
                    yield f"{name} of layer {number}", getattr(block, name)
