"""Compute the cross entropy at trained positions only.

The output layer, with 262,144 rows, is most of a small Gemma's arithmetic. Positions without a
label (28 % of the bundled set's tokens, more with long questions) need no logits, so none are
computed for them. The gradient is formed chunk by chunk in the forward pass, so no logits are kept;
in full fine-tuning that of the output layer's weight too.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from lib.model.end_token import end_row
from lib.training.batches import Batch

# Positions at a time: 384 x 262,144 logits are 192 MiB in bfloat16. On a processor, products with
# the output layer take 1.5 times as long per position with 192 of them as with 384.
CHUNK = {"cpu": 384, "cuda": 512}

Buffers = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

_workspace: dict[Any, tuple[torch.Tensor, ...]] = {}


def cap_logits(logits: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """Cap logits in place to softcap * tanh(logits / softcap), as Gemma 2 and 3n do, if given."""
    return logits.div_(softcap).tanh_().mul_(softcap) if softcap else logits


def split_model(model: Any) -> tuple[Any, torch.Tensor, float | None]:
    """Return the body that computes hidden states, the output layer's weight, and the soft cap.

    The soft cap is 30 in Gemma 3n, None in Gemma 3. A trained row must be folded in first.
    """
    assert end_row.find(model) is None, "the weight alone would lack the trained row"
    return _split_around_row(model)


def _split_around_row(model: Any) -> tuple[Any, torch.Tensor, float | None]:
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    softcap = getattr(causal.config.get_text_config(), "final_logit_softcapping", None)
    return causal.model, end_row.plain_weight(causal.get_output_embeddings()), softcap


def token_losses(model: Any, batch: Batch, fused: bool = False) -> torch.Tensor:
    """Return the cross entropy of each trained position, in nats, in the order of `batch.where`.

    `fused` uses the compiled loss, which needs memory for two copies of all logits.
    """
    trained, _, _ = _find_trained(model, batch)
    return losses_of_trained(model, trained, batch.targets, fused)


def losses_of_trained(
    model: Any, trained: torch.Tensor, targets: torch.Tensor, fused: bool = False
) -> torch.Tensor:
    """Return `token_losses` from the hidden states at the trained positions, (trained, width)."""
    _, weight, softcap = _split_around_row(model)
    head_loss = _FusedHeadLoss if fused else _FrozenHeadLoss
    targets, end = targets.to(weight.device), end_row.find(model)
    if end is None:
        return head_loss.apply(trained, weight, targets, None, (softcap, -1))
    row = end.row.to(weight.device)
    return head_loss.apply(trained, weight, targets, row, (softcap, end.token))


def trains_output_layer(model: Any) -> bool:
    """Tell whether the output layer's weight is trained, which `token_losses` gives no gradient."""
    return _split_around_row(model)[1].requires_grad


def weighted_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Return the weighted sum of a batch's losses; its gradient reaches the output layer too."""
    trained, weight, softcap = _find_trained(model, batch)
    targets, shares = batch.targets.to(weight.device), batch.weights.to(weight.device)
    return _TrainedHeadLoss.apply(trained, weight, targets, shares, softcap)


def _find_trained(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, float | None]:
    """Return the hidden states at trained positions, the output layer's weight, the soft cap."""
    body, weight, softcap = _split_around_row(model)
    packing: dict[str, Any] = {}
    if batch.bounds is not None:
        packing = {
            "position_ids": batch.position_ids,
            "bounds": batch.bounds,
            "longest": batch.longest,
        }
    hidden = body(input_ids=batch.input_ids, use_cache=False, **packing).last_hidden_state
    # if the base is spread over cards, the hidden states are on another card than the output
    # layer, which shares the weight of the word embedding
    return hidden.flatten(0, 1)[batch.where.to(hidden.device)].to(weight), weight, softcap


def free_buffers() -> None:
    """Free the memory that the loss keeps for its logits."""
    _workspace.clear()


def _wide_rows(device: torch.device) -> int:
    """Return how many positions have float32 logits at a time."""
    chunk = CHUNK[device.type]
    return min(chunk, torch.get_num_threads()) if device.type == "cpu" else chunk


def count_buffer_bytes(device: torch.device, vocabulary: int) -> int:
    """Return the bytes of the logits: a chunk's in 16 bits, in float32, and their softmax."""
    return vocabulary * (2 * CHUNK[device.type] + 8 * _wide_rows(device))


def _buffers(like: torch.Tensor, vocabulary: int) -> tuple[torch.Tensor, ...]:
    """Return buffers for a chunk's logits in the model's precision, in float32, and their softmax.

    On a processor, the last two have a row for each thread, so that they stay in its cache: all
    that is done to them takes half the time (Xeon, 2 MiB of cache a core).

    The buffers are kept, because on a CPU new pages for buffers of this size cost more than filling
    them (float() takes 51 ms into new memory, 6 ms into a kept buffer: 128 positions on 2 cores).
    """
    key = (like.device, like.dtype, vocabulary)
    if key not in _workspace:
        _workspace.clear()
        chunk, rows = CHUNK[like.device.type], _wide_rows(like.device)
        # buffers made while measuring the held-out loss must be usable in training too
        with torch.inference_mode(False):
            _workspace[key] = tuple(
                torch.empty(count, vocabulary, dtype=dtype, device=like.device)
                for count, dtype in (
                    (chunk, like.dtype),
                    (rows, torch.float32),
                    (rows, torch.float32),
                )
            )
    return _workspace[key]


class _FrozenHeadLoss(torch.autograd.Function):
    """Cross entropy of a frozen output layer's logits, one value per target.

    It saves d loss / d hidden for the backward pass instead of the logits. `constants` are the soft
    cap and the token of a trained `row` (1, width), which stands in for the token's weights; for
    its gradient, d loss / d logit of that token is saved too.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        row: torch.Tensor | None,
        constants: tuple[float | None, int],
    ) -> torch.Tensor:
        softcap, token = constants
        losses = hidden.new_empty(targets.shape, dtype=torch.float32)
        slope = losses.new_empty(targets.shape)
        grad = torch.empty_like(hidden)
        hidden, buffers = hidden.detach(), _buffers(weight, len(weight))

        def take_out_row(p: torch.Tensor, places: slice) -> None:
            if row is not None:
                slope[places] = p[:, token]
                p[:, token] = 0

        edit = take_out_row if ctx.needs_input_grad[0] else None
        for rows in _slices(0, len(targets), len(buffers[0])):
            narrow = buffers[0][: rows.stop - rows.start]
            torch.mm(hidden[rows], weight.T, out=narrow)
            if row is not None:
                narrow[:, token] = hidden[rows] @ row[0]
            for part, own in _read_parts(rows, narrow, buffers[1:]):
                losses[part] = _part_losses(targets[part, None], softcap, own, edit, part)
            if edit:
                torch.mm(narrow, weight, out=grad[rows])
                if row is not None:
                    grad[rows] += slope[rows, None].to(grad.dtype) * row
        ctx.save_for_backward(grad, *(() if row is None else (hidden, slope)))
        ctx.row_dtype = None if row is None else row.dtype
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad, *of_row = ctx.saved_tensors
        row_grad = None
        if of_row:
            hidden, slope = of_row
            row_grad = ((upstream * slope)[None] @ hidden.float()).to(ctx.row_dtype)
        # upstream stays float32: rounding 1 / trained tokens to bfloat16 would change the scale of
        # every gradient by up to 0.4 %
        return (grad * upstream[:, None]).to(grad.dtype), None, None, row_grad, None


class _TrainedHeadLoss(torch.autograd.Function):
    """The sum of `shares` times the cross entropies of a trained output layer's logits.

    It forms the gradients of hidden states and weight in the forward pass, and saves those.
    """

    @staticmethod
    def forward(  # noqa: PLR0913 - as many as the frozen layer's, and the shares
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        shares: torch.Tensor,
        softcap: float | None,
    ) -> torch.Tensor:
        total = shares.new_zeros((), dtype=torch.float32)
        hidden, weight = hidden.detach(), weight.detach()
        grad, weight_grad = torch.empty_like(hidden), torch.zeros_like(weight)
        buffers = _buffers(weight, len(weight))

        def weigh(p: torch.Tensor, places: slice) -> None:
            p.mul_(shares[places, None])

        for rows in _slices(0, len(targets), len(buffers[0])):
            narrow = buffers[0][: rows.stop - rows.start]
            torch.mm(hidden[rows], weight.T, out=narrow)
            for part, own in _read_parts(rows, narrow, buffers[1:]):
                losses = _part_losses(targets[part, None], softcap, own, weigh, part)
                total += (losses * shares[part]).sum()
            torch.mm(narrow, weight, out=grad[rows])
            weight_grad.addmm_(narrow.T, hidden[rows])
        ctx.save_for_backward(grad, weight_grad)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad, weight_grad = ctx.saved_tensors
        if upstream != 1:
            grad, weight_grad = grad * upstream, weight_grad * upstream
        return grad, weight_grad, None, None, None


def _slices(start: int, stop: int, size: int) -> list[slice]:
    return [slice(n, min(n + size, stop)) for n in range(start, stop, size)]


def _read_parts(
    rows: slice, narrow: torch.Tensor, wide: Sequence[torch.Tensor]
) -> Iterator[tuple[slice, Buffers]]:
    """Yield the parts of a chunk that fit the two `wide` buffers, each with its own buffers."""
    for part in _slices(rows.start, rows.stop, len(wide[0])):
        own = narrow[part.start - rows.start : part.stop - rows.start]
        yield part, (own, wide[0][: len(own)], wide[1][: len(own)])


def _part_losses(
    target: torch.Tensor,
    softcap: float | None,
    buffers: Buffers,
    edit: Callable[[torch.Tensor, slice], None] | None,
    part: slice,
) -> torch.Tensor:
    """Return the losses of logits, not yet capped, that are in the first buffer.

    With `edit`, replace them by d loss / d logits, after it has changed these (float32).
    """
    narrow, logits, p = buffers
    logits.copy_(narrow)
    cap_logits(logits, softcap)
    top, picked = logits.amax(1), logits.gather(1, target)[:, 0]
    torch.softmax(logits, 1, out=p)
    # log-sum-exp as top - log softmax(top), which cannot underflow
    losses = top - p.amax(1).log() - picked
    if edit:
        _to_logit_gradients(p, logits, target, softcap)
        edit(p, part)
        narrow.copy_(p)
    return losses


def _to_logit_gradients(
    p: torch.Tensor, logits: torch.Tensor, target: torch.Tensor, softcap: float | None
) -> None:
    """Turn the softmax `p` into d loss / d logits: minus 1 at the target, through the soft cap."""
    p.scatter_add_(1, target, p.new_full(target.shape, -1.0))
    if softcap:
        p.mul_(1 - logits.div_(softcap).square_())  # d capped / d raw


def _fused(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    softcap: float | None,
    row: torch.Tensor | None = None,
    token: int = -1,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return losses, their derivative by `hidden`, and by the token's logit if it has a `row`.

    It is one expression for the compiler.
    """
    words = torch.arange(len(weight), device=weight.device)
    logits = (hidden @ weight.T).float()
    if row is not None:
        logits = torch.where(words == token, (hidden @ row.T).float(), logits)
    # cap_logits written out: the derivative needs the tanh, and the compiler keeps it in registers
    if softcap:
        bent = torch.tanh(logits / softcap)
        logits = softcap * bent
    normaliser = torch.logsumexp(logits, 1)
    slope = torch.exp(logits - normaliser[:, None]) - (words == targets[:, None]).float()
    if softcap:
        slope = slope * (1 - bent * bent)
    losses = normaliser - logits.gather(1, targets[:, None])[:, 0]
    if row is None:
        return losses, slope.to(hidden.dtype) @ weight, None
    of_row = slope[:, token]
    grad = torch.where(words == token, 0.0, slope).to(hidden.dtype) @ weight
    return losses, grad + of_row[:, None].to(hidden.dtype) * row, of_row


class _FusedHeadLoss(torch.autograd.Function):
    """_FrozenHeadLoss compiled in one piece.

    It passes over the logits only twice, but needs memory for two copies of all logits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        row: torch.Tensor | None,
        constants: tuple[float | None, int],
    ) -> torch.Tensor:
        softcap, token = constants
        compiled = torch.compile(_fused, dynamic=False)
        hidden = hidden.detach()
        row = None if row is None else row.detach()
        losses, grad, slope = compiled(hidden, weight, targets, softcap, row, token)
        ctx.save_for_backward(grad, *(() if slope is None else (hidden, slope)))
        ctx.row_dtype = None if row is None else row.dtype
        return losses

    backward = _FrozenHeadLoss.backward
