"""Attention within packed rows, forward and backward, for heads laid out (tokens, heads, D).

On a card it is FlashAttention's variable-length kernel, elsewhere plain attention under the same
mask, as in lib/training/packed.py. Keys and values may have fewer heads than queries.
"""

from typing import NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from lib.training.packed import same_row_mask


class Rows(NamedTuple):
    """The packed rows' bounds, and how many positions the longest may have.

    The kernel's launch grid is for the longest row: with all tokens instead, attention takes twice
    as long at 8,576 tokens. A row beyond it would stay without a result.
    """

    bounds: torch.Tensor
    longest: int


Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # q, k, v


def attend(heads: Heads, rows: Rows, window: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the attended values, like q, and what the way back needs.

    A query sees at most `window - 1` positions back, 0 is no limit. Gemma 3n does not scale scores.
    """
    if not heads[0].is_cuda:
        return _attend_plainly(heads, rows.bounds, window), None
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        *heads,
        *(rows.bounds, rows.bounds, rows.longest, rows.longest),
        *(0.0, not window, False),  # dropout, causal (a window's right side says so too), debug
        scale=1.0,
        window_size_left=window - 1,  # -1 is no limit
        window_size_right=0,
    )
    return out, lse


def attend_back(
    grad: torch.Tensor,
    heads: Heads,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    rows: Rows,
    window: int,
) -> Heads:
    """Return the contiguous gradients of q, k and v from that of the attended values `out`."""
    if lse is None:
        with torch.enable_grad():
            leaves = tuple(head.detach().requires_grad_() for head in heads)
            again = _attend_plainly(leaves, rows.bounds, window)
        gq, gk, gv = torch.autograd.grad(again, leaves, grad)
        return gq.contiguous(), gk.contiguous(), gv.contiguous()
    # without dropout no random numbers are drawn, but their state is an argument
    state = torch.empty(2, dtype=torch.uint64, device=grad.device)
    gq, gk, gv = torch.ops.aten._flash_attention_backward(
        grad,
        *heads,
        *(out, lse),
        *(rows.bounds, rows.bounds, rows.longest, rows.longest),
        *(0.0, not window),
        *(state, torch.empty(0, device=grad.device)),
        scale=1.0,
        window_size_left=window - 1,
        window_size_right=0,
    )
    return gq.contiguous(), gk.contiguous(), gv.contiguous()  # as they are, nothing is copied


def _attend_plainly(heads: Heads, bounds: torch.Tensor, window: int) -> torch.Tensor:
    q, k, v = (head.transpose(0, 1)[None] for head in heads)
    mask = same_row_mask(bounds, q.shape[2], window)
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0, enable_gqa=True)
    return out[0].transpose(0, 1).contiguous()
