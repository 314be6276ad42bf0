"""Attention over rows packed end to end: a position sees only earlier positions of its own row.

It is registered with transformers under the name `packed`, so that its own model code runs
unchanged. A GPU of compute capability 8.0 or more uses FlashAttention's variable-length kernel (a
head size of 256 has a backward pass there since FlashAttention 2). Other devices use plain
attention under the same mask, which costs the square of the packed length.
"""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

NAME = "packed"
# torch 2.11 accepts fewer heads of keys and values without a flag; later versions require one
SHARED_HEADS = (
    {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
)


def same_row_mask(bounds: torch.Tensor, tokens: int, window: int) -> torch.Tensor:
    """Return a mask (tokens, tokens), true where a query may look.

    It may look at itself and earlier positions of its row, at most `window - 1` back (0: no limit).
    """
    position = torch.arange(tokens, device=bounds.device)
    row = torch.searchsorted(bounds, position, right=True)
    back = position[:, None] - position[None]
    return (row[:, None] == row[None]) & (back >= 0) & (back < (window or tokens))


# the arguments that transformers passes
def attention(  # noqa: PLR0913
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    bounds: torch.Tensor | None = None,
    longest: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within rows: return (1, tokens, heads, size) for heads of (1, heads, tokens, size).

    No row is longer than `longest`.
    """
    scale = module.head_dim**-0.5 if scaling is None else scaling
    window = sliding_window or 0
    if query.is_cuda:
        # The longest row sets the launch grid. That of the job, known beforehand, serves as well as
        # the batch's, which would have to be read back from the GPU.
        longest = longest or query.shape[2]
        # a window of W means "W - 1 back" to the kernel, and -1 means no limit
        looks_back = (window - 1, 0)
        parts = (t[0].transpose(0, 1).contiguous() for t in (query, key, value))
        out = varlen_attn(
            *parts,
            bounds,
            bounds,
            longest,
            longest,
            scale=scale,
            window_size=looks_back,
            **SHARED_HEADS,
        )
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

    Outside it, for example to generate answers, the model has its own attention.
    """
    config = model.config.get_text_config()
    before, config._attn_implementation = config._attn_implementation, NAME
    try:
        yield
    finally:
        config._attn_implementation = before
