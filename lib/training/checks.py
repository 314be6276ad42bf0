"""Count a loaded model's operations and memory, check its cache, and add NEFTune's noise."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
import transformers

from lib.common.errors import UserError
from lib.model import adapter, device
from lib.model.end_token import end_row
from lib.params import Params, number_bytes
from lib.training import loss, plan


def count_flops(model: Any) -> dict[str, float]:
    """Return the constants of model FLOPs utilisation, for the ledger.

    `flops_per_token` are the operations in the layers, `flops_per_trained_token` those in the
    output layer: 4 per weight, 2 forward and 2 for the gradient of its input, since frozen weights
    have no gradient of their own; full fine-tuning adds 2 for that. Attention scores, the adapter
    and recomputation by checkpointing are not counted. `peak_flops` is the card's 16-bit datasheet
    rate, 0 if unknown.
    """
    layers = sum(
        adapter.count_numbers(module.weight)
        for name, module in model.named_modules()
        if _is_linear_of_a_layer(name, module)
    )
    output = end_row.plain_weight(model.get_output_embeddings())
    each = 6.0 if output.requires_grad else 4.0
    return {
        "flops_per_token": each * layers,
        "flops_per_trained_token": each * adapter.count_numbers(output),
        "peak_flops": device.peak_flops(),
    }


def _is_linear_of_a_layer(name: str, module: Any) -> bool:
    """Tell whether a module is a language layer's own linear layer, not an adapter's or tower's."""
    return (
        hasattr(module, "in_features")
        and ".layers." in name
        and "lora_" not in name
        and "tower" not in name
        and not hasattr(module, "base_layer")
        and isinstance(getattr(module, "weight", None), torch.nn.Parameter)
    )


def estimate_memory(model: Any, sizes: plan.Sizes, job: Params) -> dict[str, float]:
    """Estimate in GiB the loaded weights, the masters with AdamW's state, and the activations.

    Activations are those of the largest micro-batch, in 2 bytes. A layer keeps about 14 widths and
    5 MLP widths per position. With checkpointing, a layer keeps only its input (4 streams in Gemma
    3n), and one layer at a time keeps everything. This is a coarse estimate; the probe measures it.
    """
    text = model.config.get_text_config()
    mlp = text.intermediate_size
    if isinstance(mlp, list | tuple):
        mlp = max(mlp)
    streams = getattr(text, "altup_num_inputs", 1)
    layer = (14 + 2 * streams) * text.hidden_size + 5 * mlp
    if job.gradient_checkpointing:
        kept = text.num_hidden_layers * streams * text.hidden_size + layer
    else:
        kept = text.num_hidden_layers * layer
    if job.packing:
        positions = plan.find_shape(sizes, job).tokens
    else:
        _, rows = plan.find_extremes(sizes, job)
        positions = len(rows) * int(sizes.lengths[rows].max())
    loaded = sum(
        p.numel() * p.element_size() for p in model.parameters() if p.device == model.device
    )
    # float32 weights and gradients, and the optimizer's two moments
    trained = adapter.trainable(model).values()
    state = number_bytes.masters(sum(p.numel() for p in trained), job.optim)
    if job.full_finetuning:  # the model's own gradients, before the masters take them
        state += sum(p.numel() * p.element_size() for p in trained)
    logits = loss.count_buffer_bytes(model.device, text.vocab_size)
    return {
        "weights": loaded / 2**30,
        "masters and optimizer": state / 2**30,
        "activations": (2 * kept * positions + logits) / 2**30,
    }


@contextlib.contextmanager
def add_neftune_noise(model: Any, alpha: float) -> Iterator[None]:
    """Add uniform noise to the embeddings during training inside the block, unless alpha is 0.

    It is at most alpha / sqrt(tokens x width) (NEFTune, Jain et al., 2023, arXiv:2310.05914).
    """
    if not alpha:
        yield
        return

    def add_noise(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if not model.training:
            return output
        most = alpha / math.sqrt(output.shape[1] * output.shape[2])
        return output + torch.zeros_like(output).uniform_(-most, most)

    hook = model.get_input_embeddings().register_forward_hook(add_noise)
    try:
        yield
    finally:
        hook.remove()


def check_cache(model: Any, tokenizer: Any, tolerance: float = 0.05) -> float:
    """Compare logits computed at once with those computed through the key/value cache.

    Return their relative difference at the last token of a prompt. Raise UserError above the
    tolerance, a sign of broken key/value sharing as in older releases of Gemma 3n.
    """
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "How do I stop a nosebleed?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )["input_ids"].to(model.device)
    with torch.inference_mode():
        at_once = model(input_ids=ids, use_cache=False).logits[0, -1].float()
        cache = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
        last = model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True)
        cached = last.logits[0, -1].float()
    difference = float((at_once - cached).norm() / at_once.norm())
    if not difference <= tolerance:  # NaN fails too
        raise UserError(
            f"logits with and without the key/value cache differ by {difference:.1%} (expected "
            f"under {tolerance:.0%}): this base does not work with transformers "
            f"{transformers.__version__}. Nothing was trained."
        )
    return difference


def set_training(model: Any) -> None:
    """Set the model to training mode, with Unsloth's own method if it has one.

    Unsloth's generate turns gradient checkpointing off, and train() would not turn it on again.
    """
    if hasattr(model, "for_training"):
        model.for_training()
    else:
        model.train()
