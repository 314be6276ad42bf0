"""Cross entropy where a label is trained, and nowhere else: the output layer is most of a small Gemma's arithmetic.

Gemma's output layer has 262,144 rows. Positions without a label (28 % of the bundled set's tokens, more where questions
are long) need no logits, and none are computed for them. The gradient is formed chunk by chunk in the forward pass, so
no logits are kept.
"""

from typing import Any

import torch

from lib.chat import IGNORED

CHUNK = 192  # positions at a time: 192 x 262,144 logits are 96 MiB in bfloat16, 192 MiB in float32
_workspace: dict[Any, tuple[torch.Tensor, ...]] = {}


def _buffers(like: torch.Tensor, vocabulary: int) -> tuple[torch.Tensor, ...]:
    """Logits in the model's precision, in float32, and their softmax: kept, because on a CPU fresh pages for buffers
    of this size cost more than filling them (float(): 51 ms fresh, 6 ms into a kept buffer, at 128 positions on 2 cores)."""
    key = (like.device, like.dtype, vocabulary)
    if key not in _workspace:
        _workspace.clear()
        with torch.inference_mode(False):  # made while measuring the held-out loss, they must serve training too
            _workspace[key] = tuple(torch.empty(CHUNK, vocabulary, dtype=d, device=like.device) for d in (like.dtype, torch.float32, torch.float32))
    return _workspace[key]


class _FrozenHeadLoss(torch.autograd.Function):
    """Cross entropy of frozen-head logits, one value a target; saves d loss / d hidden instead of logits."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, softcap: float | None) -> torch.Tensor:
        losses, grad = hidden.new_empty(targets.shape, dtype=torch.float32), torch.empty_like(hidden)
        hidden, buffers = hidden.detach(), _buffers(weight, len(weight))
        for start in range(0, len(targets), CHUNK):
            rows, target = slice(start, start + CHUNK), targets[start:start + CHUNK, None]
            narrow, logits, p = (b[:len(target)] for b in buffers)
            torch.mm(hidden[rows], weight.T, out=narrow)
            logits.copy_(narrow)
            if softcap:
                logits.div_(softcap).tanh_().mul_(softcap)
            top, picked = logits.amax(1), logits.gather(1, target)[:, 0]
            torch.softmax(logits, 1, out=p)
            losses[rows] = top - p.amax(1).log() - picked  # log-sum-exp: top - log softmax(top), which cannot underflow
            if ctx.needs_input_grad[0]:
                p.scatter_add_(1, target, p.new_full(target.shape, -1.0))
                if softcap:
                    p.mul_(1 - logits.div_(softcap).square_())  # d capped / d raw
                torch.mm(narrow.copy_(p), weight, out=grad[rows])
        ctx.save_for_backward(grad)
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        # upstream in float32: 1 / trained tokens, rounded to bfloat16, would scale every gradient by up to 0.4 %
        return (grad * upstream[:, None]).to(grad.dtype), None, None, None


def parts(model: Any) -> tuple[Any, torch.Tensor, float | None]:
    """The body that gives hidden states, the output layer's weight, and the final soft cap (Gemma 3n: 30)."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    text = causal.config.get_text_config()
    return causal.model, causal.get_output_embeddings().weight, getattr(text, "final_logit_softcapping", None)


def token_losses(model: Any, input_ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy of each trained token and the row it belongs to; both of shape (trained tokens,).

    Rows are padded on the right and no attention mask is passed: under causal attention no real position can see a
    later one, so the result is exact, and the faster mask-free attention kernels apply.
    """
    body, weight, softcap = parts(model)
    hidden = body(input_ids=input_ids, use_cache=False).last_hidden_state
    targets = labels[:, 1:]
    where = targets != IGNORED
    losses = _FrozenHeadLoss.apply(hidden[:, :-1][where], weight, targets[where], softcap)
    return losses, where.nonzero()[:, 0]
