"""The decoder layers of Gemma 3n with LoRA: forward and backward, written by hand.

Products are cuBLAS's; what is between them is one kernel each. Letters in shapes: M tokens, H the
hidden width, A all heads' numbers of a query, N the MLP's inner width, r the adapter's rank.
"""

from types import SimpleNamespace
from typing import Any

import torch
import triton

from lib.training.stack.attention import Rows, attend, attend_back
from lib.training.stack.ends import Inputs
from lib.training.stack.kernels import altup, heads, mlp
from lib.training.stack.weights import Gradients, Layer

# numbers of the MLP's inner width at a time, and warps: the fastest on an H200, for a layer that
# reads the gates once, and for a sparse one, which reads them twice
BLOCKS = {False: (4096, 16), True: (2048, 8)}


class Layers:
    """The layers of one model; each micro-batch has a forward and then a backward pass."""

    def __init__(self, layers: list[Layer], config: Any, scale: float) -> None:
        self.layers = layers
        self.scale = scale  # of the adapter, alpha / r
        self.width, self.eps = config.hidden_size, config.rms_norm_eps
        self.queries, self.keys = config.num_attention_heads, config.num_key_value_heads
        self.size = config.head_dim
        self.part_width = config.hidden_size_per_layer_input
        self.gradients: list[Gradients] = [layer.new_gradients() for layer in layers]

    def _new(self, *shape: int) -> torch.Tensor:
        return self.inputs.streams.new_empty(shape)

    def _numbers(self, count: int) -> torch.Tensor:
        """Return room for float32 numbers of each token, for the way back."""
        return self.inputs.streams.new_empty(self.tokens, count, dtype=torch.float32)

    # ----------------------------------------------------------------------------------------------
    # forward

    def forward(self, inputs: Inputs, rows: Rows) -> torch.Tensor:
        """Return the streams (4, M, H) behind the last layer; keep what `backward` needs."""
        self.inputs, self.rows = inputs, rows
        self.tokens = inputs.streams.shape[1]
        assert inputs.streams.numel() < 2**31, "the kernels' offsets have 32 bits"
        self.kept: list[Any] = []
        self.shared: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # keys and values
        for number, layer in enumerate(self.layers):
            kept = SimpleNamespace(x=self._new(self.tokens, layer.qkv.shape[1]))
            self._enter(number, kept)
            self._attend(number, layer, kept)
            self._feed_forward(layer, kept)
            self._exit(number, layer, kept)
            self.kept.append(kept)
        end = SimpleNamespace(x=inputs.streams)
        self._enter(len(self.layers), end)
        return end.out

    def _enter(self, number: int, kept: Any) -> None:
        """Predict the streams of a layer; of the number behind the last, correct the last's."""
        last = len(self.layers) - 1
        kept.out, kept.entry = self._new(4, self.tokens, self.width), self._numbers(8)
        before = self.kept[-1] if number else None
        streams = self.inputs.streams
        sources = (before.out, before.y, before.shares, before.part) if before else (streams,) * 4
        altup.enter_kernel[(self.tokens,)](
            *sources, kept.out, kept.x, kept.entry, self.layers[min(number, last)].constants,
            self.layers[max(number - 1, 0)].constants, self.tokens, kept.x.shape[1], self.eps,
            PLACE=0 if not number else 2 if number > last else 1, H=self.width, num_warps=8,
        )  # fmt: skip

    def _attend(self, number: int, layer: Layer, kept: Any) -> None:
        """Compute attention and laurel, and sum and norm them for the MLP."""
        tokens, width, wide = self.tokens, self.width, self.width + layer.low
        x, low = kept.x[:, :width], kept.x[:, width:wide]
        _multiply(x, layer.a_qkv.T, self.scale, low)
        kept.z = kept.x[:, :wide] @ layer.qkv[:, :wide].T
        kept.laurel = kept.z[:, layer.spans[0].stop : layer.k_start] @ layer.laurel.T

        own = self.keys if layer.owns_keys else 0
        rotated = self._new(tokens, self.queries + 2 * own, self.size)
        heads.rotate_kernel[(tokens,)](
            kept.z, rotated, *self.inputs.turns[layer.kind], layer.constants, self.eps,
            **self._head_sizes(layer, own), num_warps=4,
        )  # fmt: skip
        q, k, v = rotated.split([self.queries, own, own], 1)
        if own:
            self.shared[number] = k, v
        kept.heads = q, *self.shared[layer.keys_of]
        kept.attended, kept.lse = attend(kept.heads, self.rows, layer.window)
        kept.att = kept.attended.flatten(1) @ layer.o.T  # beside it the adapter's low product
        kept.att[:, :width].addmm_(kept.att[:, width:], layer.b_o, alpha=self.scale)

        kept.half, kept.middle = self._new(tokens, width), self._numbers(4)
        kept.xn = self._new(tokens, layer.gate_up.shape[1])
        heads.middle_kernel[(tokens,)](
            kept.out, kept.att, kept.laurel, kept.x, kept.half, kept.xn, kept.middle,
            layer.constants, kept.att.shape[1], kept.x.shape[1], kept.xn.shape[1], self.eps,
            H=width, num_warps=8,
        )  # fmt: skip

    def _head_sizes(self, layer: Layer, own: int) -> dict[str, int]:
        return {
            "ZS": len(layer.qkv),
            "K0": layer.k_start,
            "NQ": self.queries,
            "NK": own,
            "N": triton.next_power_of_2(self.queries + 2 * own),
            "D": self.size,
        }

    def _feed_forward(self, layer: Layer, kept: Any) -> None:
        """Compute the MLP."""
        width, wide = self.width, self.width + 2 * layer.rank
        x, low = kept.xn[:, :width], kept.xn[:, width:wide]
        _multiply(x, layer.a_gate_up.T, self.scale, low)
        kept.gates = kept.xn[:, :wide] @ layer.gate_up[:, :wide].T
        kept.active, kept.stats = self._new(self.tokens, layer.inner), self._numbers(2)
        mlp.activate_kernel[(self.tokens,)](kept.gates, kept.active, kept.stats, **_blocks(layer))
        kept.f = kept.active @ layer.down.T  # beside it the adapter's low product
        kept.f[:, :width].addmm_(kept.f[:, width:], layer.b_down, alpha=self.scale)

    def _exit(self, number: int, layer: Layer, kept: Any) -> None:
        """Add the MLP's output, find AltUp's correction, and compute the per-layer input's part."""
        kept.y, first = (self._new(self.tokens, self.width) for _ in range(2))
        kept.shares, kept.exit = self._numbers(4), self._numbers(8)
        altup.exit_kernel[(self.tokens,)](
            kept.f, kept.half, kept.out, kept.y, kept.shares, first, kept.exit, layer.constants,
            kept.f.shape[1], self.eps, H=self.width, num_warps=8,
        )  # fmt: skip
        kept.gate = first @ layer.gate.T
        gated, own = torch.empty_like(kept.gate), self.inputs.per_layer[:, number]
        mlp.gate_kernel[(self.tokens,)](
            kept.gate, own, gated, IS=own.stride(0), Q=self.part_width, num_warps=1,
        )  # fmt: skip
        kept.part = gated @ layer.part.T

    # ----------------------------------------------------------------------------------------------
    # backward

    def backward(self, grad: torch.Tensor) -> None:
        """Write the adapter's gradients from that of the streams, (4, M, H), which is overwritten.

        What the forward pass kept is given up, layer by layer.
        """
        self.of_shared: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        gpart = self._new(self.tokens, self.width)
        altup.leave_back_kernel[(self.tokens,)](
            grad, self.kept[-1].part, gpart, self.layers[-1].constants, self.tokens, self.eps,
            H=self.width, num_warps=8,
        )  # fmt: skip
        for number in reversed(range(len(self.layers))):
            layer, kept, out = self.layers[number], self.kept.pop(), self.gradients[number]
            gy, gf = self._exit_back(number, layer, kept, grad, gpart)
            gxn = self._feed_forward_back(layer, kept, gf, out)
            gx, gpast = self._attend_back(layer, kept, (grad, gy, gxn), out)
            if number:  # nothing before the first layer is trained
                gx[:, : self.width].addmm_(gx[:, self.width :], layer.a_qkv, alpha=self.scale)
                gpart = self._enter_back(number, kept, (grad, gx, gpast))
        self.shared = self.of_shared = {}
        del self.inputs, self.rows  # else a recorded graph's memory would outlive it

    def _exit_back(
        self, number: int, layer: Layer, kept: Any, grad: torch.Tensor, gpart: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradients of y (M, H) and, in its first H columns, of the MLP's output."""
        ggated = gpart @ layer.part
        ggate, own = torch.empty_like(ggated), self.inputs.per_layer[:, number]
        mlp.gate_back_kernel[(self.tokens,)](
            ggated, kept.gate, own, ggate, IS=own.stride(0), Q=self.part_width, num_warps=1,
        )  # fmt: skip
        gy, gf = self._new(self.tokens, self.width), torch.empty_like(kept.f)
        altup.exit_back_kernel[(self.tokens,)](
            grad, ggate @ layer.gate, kept.out, kept.y, kept.shares, kept.f, gy, gf, kept.exit,
            layer.constants, self.tokens, kept.f.shape[1], gf.shape[1], H=self.width,
            num_warps=8,
        )  # fmt: skip
        return gy, gf

    def _feed_forward_back(
        self, layer: Layer, kept: Any, gf: torch.Tensor, out: Gradients
    ) -> torch.Tensor:
        """Return the gradient of the MLP's normed input, in the first H columns."""
        width, r = self.width, layer.rank
        x, low = kept.xn[:, :width], kept.xn[:, width : width + 2 * r]
        g, glow = gf[:, :width], gf[:, width:]
        _multiply(g, layer.b_down.T, self.scale, glow)
        _multiply(kept.f[:, width:].T, g, self.scale, out.b_down)
        torch.mm(glow.T, kept.active, out=out.a_down)
        ggates = torch.empty_like(kept.gates)
        mlp.activate_back_kernel[(self.tokens,)](
            kept.gates, gf @ layer.down, ggates, kept.stats, **_blocks(layer),
        )  # fmt: skip
        for n, of_b in enumerate(out.b_gate_up):
            columns = slice(n * layer.inner, (n + 1) * layer.inner)
            torch.mm(low[:, n * r : (n + 1) * r].T, ggates[:, columns], out=of_b)
        gxn = ggates @ layer.gate_up[:, : width + 2 * r]
        _multiply(gxn[:, width:].T, x, self.scale, out.a_gate_up)
        return gxn[:, :width].addmm_(gxn[:, width:], layer.a_gate_up, alpha=self.scale)

    def _attend_back(
        self, layer: Layer, kept: Any, grads: tuple[torch.Tensor, ...], out: Gradients
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradients of the layer's normed input, from its products and past them.

        `grads` are those of the streams, to which one is added, of y, and of the MLP's input.
        """
        grad, gy, gxn = grads
        tokens, width, wide = self.tokens, self.width, self.width + layer.low
        gatt, glaurel, gpast = torch.empty_like(kept.att), *(torch.empty_like(gy) for _ in range(2))
        heads.middle_back_kernel[(tokens,)](
            gxn, gy, kept.half, kept.att, kept.laurel, grad, gatt, glaurel, gpast, kept.middle,
            layer.constants, gxn.stride(0), kept.att.shape[1], gatt.shape[1], H=width,
            num_warps=8,
        )  # fmt: skip
        g, glow = gatt[:, :width], gatt[:, width:]
        _multiply(g, layer.b_o.T, self.scale, glow)
        _multiply(kept.att[:, width:].T, g, self.scale, out.b_o)
        torch.mm(glow.T, kept.attended.flatten(1), out=out.a_o)

        gattended = (gatt @ layer.o).view_as(kept.attended)
        of_heads = attend_back(
            gattended, kept.heads, kept.attended, kept.lse, self.rows, layer.window
        )
        gq, gk, gv = self._sum_shared(layer, *of_heads)
        gz, own = torch.empty_like(kept.z), self.keys if layer.owns_keys else 0
        heads.rotate_back_kernel[(tokens,)](
            kept.z, gq, gk, gv, gz, *self.inputs.turns[layer.kind], layer.constants, self.eps,
            **self._head_sizes(layer, own), num_warps=8,
        )  # fmt: skip
        torch.mm(glaurel, layer.laurel, out=gz[:, layer.spans[0].stop : layer.k_start])
        gx = gz @ layer.qkv[:, :wide]
        _multiply(gx[:, width:].T, kept.x[:, :width], self.scale, out.a_qkv)
        torch.mm(kept.x[:, width:wide].T, gz, out=out.b_qkv)
        return gx, gpast

    def _sum_shared(
        self, layer: Layer, gq: torch.Tensor, gk: torch.Tensor, gv: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Add the gradients of keys and values from all layers that share them."""
        if layer.keys_of in self.of_shared:
            k, v = self.of_shared[layer.keys_of]
            gk, gv = k.add_(gk), v.add_(gv)
        self.of_shared[layer.keys_of] = gk, gv
        return gq, gk, gv

    def _enter_back(self, number: int, kept: Any, grads: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Turn the gradient of the predictions into that of the layer before's streams.

        Return the gradient of the part of the layer before.
        """
        grad, gx, gpast = grads
        before, gpart = self.kept[-1], torch.empty_like(gpast)
        altup.enter_back_kernel[(self.tokens,)](
            grad, gx, gpast, kept.out, before.out, before.y, before.shares, before.part,
            kept.entry, gpart, self.layers[number].constants, self.layers[number - 1].constants,
            self.tokens, gx.stride(0), H=self.width, num_warps=4,
        )  # fmt: skip
        return gpart


def _blocks(layer: Layer) -> dict[str, Any]:
    """Return how the MLP's kernels go through a token."""
    sparse = layer.factor is not None
    most, warps = BLOCKS[sparse]
    block = min(most, layer.inner & -layer.inner)  # the largest power of two that divides it
    return {
        "factor": layer.factor or 0.0,
        "N": layer.inner,
        "B": block,
        "SPARSE": sparse,
        "num_warps": warps,
    }


def _multiply(a: torch.Tensor, b: torch.Tensor, scale: float, out: torch.Tensor) -> None:
    """Write scale * (a @ b) into `out`, which may be columns of a wider tensor."""
    out.addmm_(a, b, beta=0, alpha=scale)
