"""Attention over rows packed end to end: a position sees the earlier ones of its own row alone.

It is registered with transformers under the name `packed`, so that its own model code runs
unchanged. On a GPU of compute capability 8.0 or more FlashAttention's variable-length kernel does
it (a head size of 256 has a backward pass there since FlashAttention 2); elsewhere plain attention
under the same mask does, which costs the square of the packed length.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

NAME = "packed"


def same_row_mask(bounds: torch.Tensor, tokens: int, window: int) -> torch.Tensor:
    """Return (tokens, tokens), true where a query may look.

    That is in its own row, not later, and at most `window - 1` positions back (0: no limit).
    """
    position = torch.arange(tokens, device=bounds.device)
    row = torch.searchsorted(bounds, position, right=True)
    back = position[:, None] - position[None]
    return (row[:, None] == row[None]) & (back >= 0) & (back < (window or tokens))


# --------------------------------------------------------------------------------------------------
# the flash kernel
#
# Two operators that are opaque to the compiler on purpose: torch.ops.aten's own have no stable
# autograd. `back` is how far a query may look back, -1 without limit.


@torch.library.custom_op("medrescue::packed_attention", mutates_args=())
def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    back: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    # the longest row only sets the launch grid: all tokens are as good as the true one, which would
    # have to be read back from the GPU
    longest = query.shape[0]
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        bounds,
        bounds,
        longest,
        longest,
        0.0,
        True,
        return_debug_mask=False,
        scale=scale,
        window_size_left=back,
        window_size_right=0 if back >= 0 else -1,
    )
    return out, lse


@_flash.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    back: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, heads = query.shape[:2]
    return torch.empty_like(query), query.new_empty((heads, tokens), dtype=torch.float32)


# as many arguments as the kernel has
@torch.library.custom_op("medrescue::packed_attention_backward", mutates_args=())
def _flash_backward(  # noqa: PLR0913
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    bounds: torch.Tensor,
    back: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    longest = query.shape[0]
    no_dropout = torch.zeros(2, dtype=torch.uint64, device=query.device)  # a generator's state
    return torch.ops.aten._flash_attention_backward(
        grad.contiguous(),
        query,
        key,
        value,
        out,
        lse,
        bounds,
        bounds,
        longest,
        longest,
        0.0,
        True,
        no_dropout,
        torch.empty(0, device=query.device),
        scale=scale,
        window_size_left=back,
        window_size_right=0 if back >= 0 else -1,
    )


@_flash_backward.register_fake
def _(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *_: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:3], *output, inputs[3])
    ctx.constants = inputs[4:]


def _backward(ctx: Any, grad: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
    return (*_flash_backward(grad, *ctx.saved_tensors, *ctx.constants), None, None, None)


_flash.register_autograd(_backward, setup_context=_save)


# --------------------------------------------------------------------------------------------------
# attention for transformers


# as many arguments as transformers passes
def attention(  # noqa: PLR0913
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    bounds: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within rows: heads of (1, heads, tokens, size) give (1, tokens, heads, size)."""
    scale = module.head_dim**-0.5 if scaling is None else scaling
    window = sliding_window or 0
    if query.is_cuda:
        parts = (t[0].transpose(0, 1).contiguous() for t in (query, key, value))
        out, _ = _flash(*parts, bounds, window - 1, scale)
        return out[None], None
    out = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=same_row_mask(bounds, query.shape[2], window),
        scale=scale,
        enable_gqa=True,
    )
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)


@contextlib.contextmanager
def attend_within_rows(model: Any) -> Iterator[None]:
    """Let the language layers attend within packed rows inside the block.

    Outside it, when answers are generated, the model has its own attention.
    """
    config = model.config.get_text_config()
    before, config._attn_implementation = config._attn_implementation, NAME
    try:
        yield
    finally:
        config._attn_implementation = before
