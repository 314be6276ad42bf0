"""What is checked of a loaded model, and what is added to it, before the first step."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
import transformers

from lib.common.errors import UserError
from lib.model import adapter, device


def flops(model: Any) -> dict[str, float]:
    """What model FLOPs utilisation is computed from: operations a token in the layers, and a trained token in the output layer.

    4 a weight: 2 forward and 2 for the gradient of its input; frozen weights have none of their own. Attention scores, the
    adapter and what checkpointing computes again are left out. `peak_flops` is the card's 16-bit datasheet rate; 0 if not known.
    """
    layers = sum(
        adapter.count_numbers(m.weight)
        for n, m in model.named_modules()
        if hasattr(m, "in_features")
        and ".layers." in n
        and "lora_" not in n
        and "tower" not in n
        and not hasattr(m, "base_layer")
        and isinstance(getattr(m, "weight", None), torch.nn.Parameter)
    )
    return {
        "flops_per_token": 4.0 * layers,
        "flops_per_trained_token": 4.0
        * adapter.count_numbers(model.get_output_embeddings().weight),
        "peak_flops": device.peak_flops(),
    }


@contextlib.contextmanager
def neftune(model: Any, alpha: float) -> Iterator[None]:
    """Uniform noise on the embeddings while training, alpha / sqrt(tokens x width) at most (Jain et al., 2023, arXiv:2310.05914)."""

    def noise(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        most = alpha / math.sqrt(output.shape[1] * output.shape[2])
        return output + torch.zeros_like(output).uniform_(-most, most) if model.training else output

    hook = model.get_input_embeddings().register_forward_hook(noise) if alpha else None
    try:
        yield
    finally:
        if hook:
            hook.remove()


def check_cache(model: Any, tokenizer: Any, tolerance: float = 0.05) -> float:
    """Largest relative difference between logits computed at once and token by token through the key/value cache.

    UserError above the tolerance: the sign of broken key/value sharing, seen in older releases of Gemma 3n.
    """
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "How do I stop a nosebleed?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )["input_ids"].to(model.device)
    with torch.inference_mode():
        whole = model(input_ids=ids, use_cache=False).logits[0, -1].float()
        past = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
        step = (
            model(input_ids=ids[:, -1:], past_key_values=past, use_cache=True).logits[0, -1].float()
        )
    difference = float((whole - step).norm() / whole.norm())
    if not difference <= tolerance:  # NaN fails too
        raise UserError(
            f"logits with and without the key/value cache differ by {difference:.1%} (expected under {tolerance:.0%}): "
            f"this base and transformers {transformers.__version__} do not fit together. Nothing was trained."
        )
    return difference
