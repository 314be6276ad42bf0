"""Cross entropy where a label is trained, and nowhere else: the output layer is most of a small Gemma's arithmetic.

Gemma's output layer has 262,144 rows. Positions without a label (28 % of the bundled set's tokens, more where questions
are long) need no logits, and none are computed for them. The gradient is formed chunk by chunk in the forward pass, so
no logits are kept.
"""

from typing import Any

import torch

from lib.training.batches import Batch

CHUNK = {
    "cpu": 192,
    "cuda": 512,
}  # positions at a time: 192 x 262,144 logits are 96 MiB in bfloat16, 192 MiB in float32
_workspace: dict[Any, tuple[torch.Tensor, ...]] = {}


def _buffers(like: torch.Tensor, vocabulary: int) -> tuple[torch.Tensor, ...]:
    """Logits in the model's precision, in float32, and their softmax: kept, because on a CPU fresh pages for buffers
    of this size cost more than filling them (float(): 51 ms fresh, 6 ms into a kept buffer, at 128 positions on 2 cores)."""
    key = (like.device, like.dtype, vocabulary)
    if key not in _workspace:
        _workspace.clear()
        with torch.inference_mode(
            False
        ):  # made while measuring the held-out loss, they must serve training too
            kinds, rows = (like.dtype, torch.float32, torch.float32), CHUNK[like.device.type]
            _workspace[key] = tuple(
                torch.empty(rows, vocabulary, dtype=d, device=like.device) for d in kinds
            )
    return _workspace[key]


class _FrozenHeadLoss(torch.autograd.Function):
    """Cross entropy of frozen-head logits, one value a target; saves d loss / d hidden instead of logits."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        softcap: float | None,
    ) -> torch.Tensor:
        losses, grad = (
            hidden.new_empty(targets.shape, dtype=torch.float32),
            torch.empty_like(hidden),
        )
        hidden, buffers = hidden.detach(), _buffers(weight, len(weight))
        for start in range(0, len(targets), len(buffers[0])):
            rows = slice(start, start + len(buffers[0]))
            target = targets[rows, None]
            narrow, logits, p = (b[: len(target)] for b in buffers)
            torch.mm(hidden[rows], weight.T, out=narrow)
            logits.copy_(narrow)
            if softcap:
                logits.div_(softcap).tanh_().mul_(softcap)
            top, picked = logits.amax(1), logits.gather(1, target)[:, 0]
            torch.softmax(logits, 1, out=p)
            losses[rows] = (
                top - p.amax(1).log() - picked
            )  # log-sum-exp: top - log softmax(top), which cannot underflow
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


def _fused(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, softcap: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for a chunk as one expression, for the compiler: losses, and their derivative by `hidden`."""
    logits = (hidden @ weight.T).float()
    bent = torch.tanh(logits / softcap) if softcap else None
    logits = softcap * bent if softcap else logits
    normaliser = torch.logsumexp(logits, 1)
    slope = (
        torch.exp(logits - normaliser[:, None])
        - (torch.arange(len(weight), device=weight.device) == targets[:, None]).float()
    )
    slope = slope * (1 - bent * bent) if softcap else slope
    return normaliser - logits.gather(1, targets[:, None])[:, 0], slope.to(hidden.dtype) @ weight


class _FusedHeadLoss(torch.autograd.Function):
    """_FrozenHeadLoss in one piece and compiled: the passes over the logits become two, for all the memory of two copies of them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        softcap: float | None,
    ) -> torch.Tensor:
        losses, grad = torch.compile(_fused, dynamic=False)(
            hidden.detach(), weight, targets, softcap
        )
        ctx.save_for_backward(grad)
        return losses

    backward = _FrozenHeadLoss.backward


def parts(model: Any) -> tuple[Any, torch.Tensor, float | None]:
    """The body that gives hidden states, the output layer's weight, and the final soft cap (Gemma 3n: 30)."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    text = causal.config.get_text_config()
    return (
        causal.model,
        causal.get_output_embeddings().weight,
        getattr(text, "final_logit_softcapping", None),
    )


def token_losses(model: Any, batch: Batch, fused: bool = False) -> torch.Tensor:
    """Cross entropy of each trained position of a batch, in nats, in the order of `batch.where`.

    Of a base spread over cards the hidden states lie on another one than the output layer, which shares the word embedding's weight.
    """
    body, weight, softcap = parts(model)
    packed = (
        {} if batch.bounds is None else {"position_ids": batch.position_ids, "bounds": batch.bounds}
    )
    hidden = body(input_ids=batch.input_ids, use_cache=False, **packed).last_hidden_state
    head = _FusedHeadLoss if fused else _FrozenHeadLoss
    trained = hidden.flatten(0, 1)[batch.where.to(hidden.device)].to(weight)
    return head.apply(trained, weight, batch.targets.to(weight.device), softcap)
