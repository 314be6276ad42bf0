"""Gemma 3's layers with LoRA on a processor, with fewer passes over their activations.

    lean.lighten(net)     # after the adapter is added; returns how many modules were changed

transformers and PEFT write norms, rotations and LoRA as a dozen tensor operations each, and
autograd as many for their derivatives. In the demo, which has few rows of few tokens, these take
longer than the products of matrices. Here each is one operation with its own derivative, which
computes in the same precision and rounds to bfloat16 less often.
"""

from typing import Any

import torch
from peft.tuners.lora import Linear
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gemma3.modeling_gemma3 import (
    Gemma3Attention,
    Gemma3RMSNorm,
    eager_attention_forward,
)

SHORT = 512  # tokens: 4 rows of them, with 4 heads, have 16 MiB of scores


def lighten(model: Any) -> int:
    """Let a model's plain LoRA layers, frozen norms and attention compute in fewer passes.

    Their weights and names stay as they are. Return how many modules were changed.
    """
    changed = 0
    for module in model.modules():
        lean = _find_lean(module)
        if lean is not None:
            module.__class__ = lean
            changed += 1
    return changed


def _find_lean(module: Any) -> type | None:
    if type(module) is Linear and is_plain(module):
        return LeanLinear
    if type(module) is Gemma3RMSNorm and not module.weight.requires_grad:
        return LeanNorm
    if type(module) is Gemma3Attention:
        return LeanAttention
    return None


def is_plain(layer: Linear) -> bool:
    """Tell whether a LoRA layer is no more than two products beside a frozen one.

    Layers with dropout, DoRA, biases or quantised weights compute more.
    """
    if set(layer.lora_A) != {"default"}:
        return False
    base, a, b = layer.base_layer, layer.lora_A["default"], layer.lora_B["default"]
    return (
        type(base) is torch.nn.Linear
        and base.bias is None
        and not base.weight.requires_grad
        and type(layer.lora_dropout["default"]) is torch.nn.Identity
        and not layer.lora_variant
        and b.bias is None
        and a.weight.dtype == b.weight.dtype == base.weight.dtype
    )


# --------------------------------------------------------------------------------------------------
# LoRA


class _Product(torch.autograd.Function):
    """x W' + scale (x A') B' of a frozen W; LoRA's share is added by the product that makes it."""

    @staticmethod
    def forward(  # noqa: PLR0913 - a layer's weights
        ctx: Any,
        x: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        weight: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        low = x @ a.T
        ctx.save_for_backward(x, low, a, b, weight)
        ctx.scale = scale
        return (x @ weight.T).addmm_(low, b.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, low, a, b, weight = ctx.saved_tensors
        low_grad = (grad @ b).mul_(ctx.scale)
        x_grad = (grad @ weight).addmm_(low_grad, a) if ctx.needs_input_grad[0] else None
        return x_grad, low_grad.T @ x, (grad.T @ low).mul_(ctx.scale), None, None


class LeanLinear(Linear):
    """PEFT's LoRA layer with the product above."""

    def forward(self, x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if self.disable_adapters or self.merged or args or options:
            return super().forward(x, *args, **options)
        a, b = self.lora_A["default"].weight, self.lora_B["default"].weight
        scale = self.scaling["default"]
        rows = _Product.apply(x.flatten(0, -2), a, b, self.base_layer.weight, scale)
        return rows.unflatten(0, x.shape[:-1])


# --------------------------------------------------------------------------------------------------
# norms


class _Norm(torch.autograd.Function):
    """x / root mean square of x, times 1 + weight, in float32; the weight is frozen."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x.to(torch.float32, copy=True)
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        factor = 1.0 + weight.float()
        ctx.save_for_backward(x, inverse, factor)
        return wide.mul_(inverse).mul_(factor).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, inverse, factor = ctx.saved_tensors
        normal = x.to(torch.float32, copy=True).mul_(inverse)
        slope = grad.to(torch.float32, copy=True).mul_(factor)
        share = torch.linalg.vecdot(slope, normal)[..., None].div_(x.shape[-1])
        return slope.sub_(normal.mul_(share)).mul_(inverse).to(x.dtype), None, None


class LeanNorm(Gemma3RMSNorm):
    """Gemma 3's norm with a frozen weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Norm.apply(x, self.weight, self.eps)


# --------------------------------------------------------------------------------------------------
# attention


class _Rotation(torch.autograd.Function):
    """Rotary embedding: pairs from both halves of a head, turned by an angle; back by its minus."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, sin, -1), None, None


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, way: int) -> torch.Tensor:
    out = x * cos
    (x1, x2), (out1, out2), (sin1, sin2) = (t.chunk(2, -1) for t in (x, out, sin))
    out1.addcmul_(x2, sin1, value=-way)
    out2.addcmul_(x1, sin2, value=way)
    return out


class _Attention(torch.autograd.Function):
    """Causal attention of several heads to one key and value head, without a mask.

    The query is (rows, tokens, heads, size), key and value are (rows, tokens, size). torch's own
    takes twice as long on a processor, most of it for the derivative. Scores are float32, as there.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        tokens, heads = query.shape[1:3]
        flat = query.flatten(1, 2)
        scores = torch.bmm(flat.float(), key.float().mT).mul_(scale)
        later = torch.ones(tokens, tokens, dtype=torch.bool).triu_(1)
        scores.unflatten(1, (tokens, heads)).masked_fill_(later[:, None], -torch.inf)
        shares = scores.softmax(-1)
        ctx.save_for_backward(flat, key, value, shares)
        ctx.scale = scale
        return torch.bmm(shares.to(value.dtype), value).unflatten(1, (tokens, heads))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flat, key, value, shares = ctx.saved_tensors
        grad_flat = grad.flatten(1, 2)
        value_grad = torch.bmm(shares.to(grad.dtype).mT, grad_flat)
        slope = torch.bmm(grad_flat.float(), value.float().mT)
        slope.sub_(torch.linalg.vecdot(slope, shares)[..., None]).mul_(shares).mul_(ctx.scale)
        narrow = slope.to(grad.dtype)
        query_grad = torch.bmm(narrow, key).view(grad.shape)
        return query_grad, torch.bmm(narrow.mT, flat), value_grad, None


class LeanAttention(Gemma3Attention):
    """Gemma 3's attention with the rotation above, and in training with the attention above."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        shape = hidden_states.shape[:-1]
        heads = (*shape, -1, self.head_dim)
        query = self.q_norm(self.q_proj(hidden_states).view(heads))
        key = self.k_norm(self.k_proj(hidden_states).view(heads))
        value = self.v_proj(hidden_states).view(heads)
        cos, sin = (t.unsqueeze(2) for t in position_embeddings)
        query, key = _Rotation.apply(query, cos, sin), _Rotation.apply(key, cos, sin)
        weights = None
        if self._is_short(attention_mask, past_key_values, shape[-1], key.shape[2]):
            out = _Attention.apply(query, key[:, :, 0], value[:, :, 0], self.scaling)
        else:
            options |= {"attention_mask": attention_mask, "cache": past_key_values}
            out, weights = self._attend(query, key, value, **options)
        return self.o_proj(out.reshape(*shape, -1).contiguous()), weights

    def _is_short(self, mask: Any, cache: Any, tokens: int, key_heads: int) -> bool:
        """Tell whether the scores of all pairs of tokens are few, and none is masked."""
        return (
            self.training
            and mask is None
            and cache is None
            and key_heads == 1
            and tokens <= SHORT
            and self.is_causal
            and not self.attention_dropout
            and self.config._attn_implementation == "sdpa"
            and (not self.sliding_window or tokens <= self.sliding_window)
        )

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: Any,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend as transformers does."""
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        return attend(
            self,
            query,
            key,
            value,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **options,
        )
