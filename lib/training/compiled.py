"""The compiled path of training, for 16-bit bases and packed micro-batches of one fixed shape.

LoRA is computed inside the frozen weight's own matrix products, layers are compiled, and a whole
micro-batch is replayed as one CUDA graph, and the update of the weights as another; between the two
the ranks sum their gradients. All this is applied to transformers' own model code.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft.tuners.lora import Linear
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextAltUp

from lib.model.layers import lean
from lib.training.batches import Batch
from lib.training.loss import token_losses, trains_output_layer, weighted_loss
from lib.training.masters import Masters, measure_norm
from lib.training.stops import STOPS, Guard

# --------------------------------------------------------------------------------------------------
# LoRA without passes of its own
#
# y = x W' + (x A') B' costs a read and a write of y besides the product with W, and products of 8
# columns run far below the card's peak rate. But [x, x A'] [W, B]' is one product whose inner
# dimension grows by the rank, 2,048 to 2,056 on Gemma 3n, and in the backward pass g [W, B] gives
# both gradients at once. So the narrower of A and B is stored in extra columns of W's own storage
# (extra rows, if the layer narrows), and the optimizer updates it there.


class _Widening(torch.autograd.Function):
    """The product of a layer with out >= in: `wide` is [W, B] of (out, in + r).

    `b` is a view of it, passed for its gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        wide: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        low = (x @ a.T) * scale
        ctx.save_for_backward(x, low, a, wide)
        ctx.scale = scale
        return torch.cat([x, low], 1) @ wide.T

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, low, a, wide = ctx.saved_tensors
        both = grad @ wide
        low_grad = both[:, x.shape[1] :] * ctx.scale
        # (low' grad)' instead of grad' low: cuBLAS's kernel for 8 columns has a tenth of the speed
        return both[:, : x.shape[1]] + low_grad @ a, low_grad.T @ x, (low.T @ grad).T, None, None


class _Narrowing(torch.autograd.Function):
    """The product of a layer with out < in: `tall` is [W; A] of (out + r, in).

    `a` is a view of it, passed for its gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        tall: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        both = x @ tall.T
        low = both[:, len(b) :] * scale
        ctx.save_for_backward(x, low, b, tall)
        ctx.scale = scale
        return both[:, : len(b)] + low @ b.T

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, low, b, tall = ctx.saved_tensors
        low_grad = (grad @ b) * ctx.scale
        return torch.cat([grad, low_grad], 1) @ tall, low_grad.T @ x, (low.T @ grad).T, None, None


class FusedLinear(Linear):
    """peft's LoRA layer with the products above; `fuse` turns existing layers into it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.disable_adapters or self.merged:
            return super().forward(x)
        a, b = self.lora_A["default"].weight, self.lora_B["default"].weight
        product = _Widening if len(b) >= a.shape[1] else _Narrowing
        rows = x.flatten(0, -2)
        out = product.apply(rows, a, b, self.joined, self.scaling["default"])
        return out.unflatten(0, x.shape[:-1])


class FusedAltUp(Gemma3nTextAltUp):
    """AltUp's prediction as four multiply-adds.

    The kernel for transformers' own product, 4 x 4 per token, is ten times slower than the card's
    memory.
    """

    def predict(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # held-out batches are larger: four float32 copies of their streams would take gigabytes
        if not self.training:
            return super().predict(hidden_states)
        count, clip = self.config.altup_num_inputs, self.config.altup_coef_clip
        weight = self.prediction_coefs.weight
        modalities = self.compute_router_modalities(hidden_states[self.config.altup_active_idx])
        if clip:
            weight = weight.clamp(-clip, clip)
        coefs = torch.nn.functional.linear(modalities, weight)
        # (to, from, 1, tokens, 1)
        coefs = coefs.unflatten(-1, (count, count)).float().permute(2, 3, 0, 1)[..., None]
        wide = hidden_states.float()
        return ((coefs * wide[None]).sum(1) + wide).type_as(hidden_states)


def fuse(model: Any) -> int:
    """Give every plain LoRA layer of a 16-bit base the joined storage; return their number.

    The others keep peft's own code. Move or copy the model before this call, since doing so
    afterwards would separate the joined weights.
    """
    for altup in [m for m in model.modules() if type(m) is Gemma3nTextAltUp]:
        altup.__class__ = FusedAltUp
    layers = [m for m in model.modules() if type(m) is Linear and is_joinable(m)]
    for layer in layers:
        _join_storage(layer)
    return len(layers)


def is_joinable(layer: Linear) -> bool:
    """Tell whether the products above compute the same as the layer.

    The rank must be a multiple of 8, since rows must stay 16-byte aligned.
    """
    return lean.is_plain(layer) and len(layer.lora_A["default"].weight) % 8 == 0


def _join_storage(layer: Linear) -> None:
    """Put W and the narrower of A and B into one tensor, and replace them by views of it."""
    base, a, b = layer.base_layer, layer.lora_A["default"].weight, layer.lora_B["default"].weight
    if len(b) >= a.shape[1]:
        joined = torch.cat([base.weight.data, b.data], 1)
        base.weight.data, b.data = joined[:, : a.shape[1]], joined[:, a.shape[1] :]
    else:
        joined = torch.cat([base.weight.data, a.data], 0)
        base.weight.data, a.data = joined[: len(b)], joined[len(b) :]
    layer.joined = joined
    layer.__class__ = FusedLinear


# --------------------------------------------------------------------------------------------------
# compiled layers, and the whole micro-batch as one launch


@contextlib.contextmanager
def compile_layers(model: Any) -> Iterator[None]:
    """Compile each decoder layer's forward for fixed shapes inside the block.

    Layers of the same kind share compiled code.
    """
    layers = [m for m in model.modules() if type(m).__name__.endswith("DecoderLayer")]
    # accelerate's hooks replace a layer's forward by one in the instance, which must be restored
    own = [vars(layer).get("forward") for layer in layers]
    with torch._dynamo.config.patch(recompile_limit=64):
        try:
            for layer in layers:
                layer.forward = torch.compile(layer.forward, dynamic=False)
            yield
        finally:
            for layer, before in zip(layers, own, strict=True):
                vars(layer).pop("forward", None)
                if before is not None:
                    layer.forward = before


def forward_backward(
    model: Any, batch: Batch, fused: bool = False, scale: float = 1.0
) -> torch.Tensor:
    """Return the weighted sum of a micro-batch's losses.

    Its gradients, times `scale`, are added to those of the parameters.
    """
    if trains_output_layer(model):
        loss = weighted_loss(model, batch)
    else:
        losses = token_losses(model, batch, fused)
        loss = (losses * batch.weights.to(losses.device)).sum()
    (loss * scale).backward()
    return loss.detach()


class Graph:
    """A micro-batch of one fixed shape, recorded once as a CUDA graph and then replayed.

    Thousands of kernels then take a single launch. Make it with a batch of the shape on the device,
    which it keeps, and call it with others. `add` returns a batch's loss and adds its gradients;
    `drop` drops those of the runs before the recording. On a processor nothing is recorded.
    """

    def __init__(
        self, add: Callable[[Batch], torch.Tensor], example: Batch, drop: Callable[[], None]
    ) -> None:
        # a replay reads input and constants at their recorded addresses, so both are kept
        self.add, self.batch = add, example
        self.graph: torch.cuda.CUDAGraph | None = None
        if not example.input_ids.is_cuda:
            return
        self.graph = torch.cuda.CUDAGraph()
        with _constants_on(example.input_ids.device) as self.constants:
            # two runs before: they compile, tune and allocate, which cannot be recorded
            with _side_stream():
                for _ in range(2):
                    add(self.batch)
                    drop()
            with torch.cuda.graph(self.graph):
                self.loss = add(self.batch)
        drop()

    def __call__(self, batch: Batch) -> torch.Tensor:
        self.batch.copy_from(batch)
        if self.graph is None:
            return self.add(self.batch)
        self.graph.replay()
        return self.loss.clone()


@contextlib.contextmanager
def _side_stream() -> Iterator[None]:
    """Run the block on a stream of its own, as torch asks for what precedes a recording."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


@contextlib.contextmanager
def _constants_on(device: torch.device) -> Iterator[dict[float, torch.Tensor]]:
    """Let torch.tensor(number) return a tensor on the device; yield the tensors returned.

    Gemma 3n's forward would make one on the CPU and copy it, but a copy from pageable memory cannot
    be recorded.
    """
    make = torch.tensor
    kept: dict[float, torch.Tensor] = {}

    def tensor(value: Any, *args: Any, **options: Any) -> torch.Tensor:
        if args or options or type(value) is not float:
            return make(value, *args, **options)
        if value not in kept:
            kept[value] = make(value, device=device)
        return kept[value]

    torch.tensor = tensor
    try:
        yield kept
    finally:
        torch.tensor = make


# --------------------------------------------------------------------------------------------------
# the update of the weights as one launch


class Update:
    """Clipping, AdamW and publishing, launched without reading a number back.

    A GPU replays them as one CUDA graph, another device runs the same operations. The guard judges
    the step there, so a step that has diverged, and those launched before its loss was read, leave
    weights, moments and step count as they are, to the bit.
    """

    def __init__(self, masters: Masters, guard: Guard, max_norm: float) -> None:
        self.masters, self.guard, self.max_norm = masters, guard, max_norm
        self.total = torch.zeros(1 + len(STOPS), device=masters.flat.device)
        self.result = torch.zeros(2 + len(self.total), device=masters.flat.device)
        self.graph: torch.cuda.CUDAGraph | None = None
        # where this is 1, AdamW's fused kernel writes nothing: torch.amp.GradScaler skips steps so
        masters.optimizer.found_inf = guard.refused
        # The first step makes moments of zero. It must not be recorded, since a replay would make
        # them zero again; and it must not count.
        guard.refused.fill_(1)
        with _side_stream() if masters.flat.is_cuda else contextlib.nullcontext():
            self._run()
        if masters.flat.is_cuda:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self._run()
        guard.refused.zero_()

    def _run(self) -> None:
        norm = measure_norm(self.masters.flat.grad)
        self.guard.judge(self.total[0], norm)
        self.masters.move(norm, self.max_norm)
        self.result.copy_(torch.cat([self.total, torch.stack([norm, self.guard.refused])]))

    def __call__(self, total: torch.Tensor) -> Callable[[], list[float]]:
        """Launch the update after a step of this loss and these votes.

        Return a function that waits for it, and returns loss, votes, norm and whether the step was
        refused.
        """
        self.total.copy_(total)
        if self.graph is None:
            self._run()
            return self.result.clone().tolist
        self.graph.replay()
        host = torch.empty(self.result.shape, pin_memory=True)
        host.copy_(self.result, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()

        def read() -> list[float]:
            arrived.synchronize()
            return host.tolist()

        return read
