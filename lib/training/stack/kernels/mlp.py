"""Kernels of the MLP's activation and of the per-layer gate; one program computes one token.

GU (M, 2 N) holds gate | up. A sparse layer subtracts mean + factor * standard deviation of a
token's gates from each of them, and drops what is below zero. STATS (M, 2) keeps mean and
deviation in float32 for the way back; a layer that is not sparse neither reads nor writes it.
"""

import triton
import triton.language as tl

from lib.training.stack.kernels.basics import add2, gelu, gelu_slope, load, store


@triton.jit
def above(g, cut):
    """Return what of a gate is above the cut; NaN stays, so that a diverged step is seen as one."""
    return tl.maximum(g - cut, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def activate_kernel(GU, OUT, STATS, factor, N: tl.constexpr, B: tl.constexpr, SPARSE: tl.constexpr):
    """Give OUT (M, N) gelu(gate) * up, B numbers at a time; B divides N."""
    t = tl.program_id(0).to(tl.int64)  # 2 N numbers a token exceed 32 bits at 65,536 tokens
    b = tl.arange(0, B)
    gates, cut = GU + t * 2 * N, 0.0
    if SPARSE:
        s1, s2 = tl.zeros([B], tl.float32), tl.zeros([B], tl.float32)
        for q in range(0, N, B):
            g = load(gates, q + b)
            s1 += g
            s2 += g * g
        s1, s2 = tl.reduce((s1, s2), 0, add2)
        mean = s1 / N
        deviation = tl.sqrt(tl.maximum(s2 / N - mean * mean, 0.0))
        cut = mean + factor * deviation
        tl.store(STATS + t * 2, mean)
        tl.store(STATS + t * 2 + 1, deviation)
    for q in range(0, N, B):
        g = load(gates, q + b)
        if SPARSE:
            g = above(g, cut)
        store(OUT, t * N + q + b, gelu(g) * load(gates, N + q + b))


@triton.jit
def gradients(gates, grads, c, cut, N: tl.constexpr, SPARSE: tl.constexpr):
    """Return a gate, its gradient through GELU and cut, and the gradient of its up."""
    g, grad = load(gates, c), load(grads, c)
    z = above(g, cut) if SPARSE else g
    of_gate = grad * load(gates, N + c) * gelu_slope(z)
    if SPARSE:
        of_gate = tl.where(g > cut, of_gate, 0.0)
    return g, of_gate, grad * gelu(z)


@triton.jit
def activate_back_kernel(
    GU, GRAD, OUT, STATS, factor, N: tl.constexpr, B: tl.constexpr, SPARSE: tl.constexpr
):
    """Give OUT (M, 2 N) the gradient of GU from that of the activations, GRAD (M, N)."""
    t = tl.program_id(0).to(tl.int64)
    b = tl.arange(0, B)
    gates, grads, out = GU + t * 2 * N, GRAD + t * N, OUT + t * 2 * N
    cut, mean, each, tilt = 0.0, 0.0, 0.0, 0.0
    if SPARSE:
        # the cut moves with mean and deviation, so its gradient reaches every gate
        mean, deviation = tl.load(STATS + t * 2), tl.load(STATS + t * 2 + 1)
        cut = mean + factor * deviation
        total = tl.zeros([B], tl.float32)
        for q in range(0, N, B):
            _, of_gate, _ = gradients(gates, grads, q + b, cut, N, SPARSE)
            total += of_gate
        each = -tl.sum(total, 0) / N
        tilt = each * factor / tl.maximum(deviation, 1e-20)
    for q in range(0, N, B):
        g, of_gate, of_up = gradients(gates, grads, q + b, cut, N, SPARSE)
        if SPARSE:
            of_gate += each + tilt * (g - mean)
        store(out, q + b, of_gate)
        store(out, N + q + b, of_up)


@triton.jit
def gate_kernel(G, INPUT, OUT, IS: tl.constexpr, Q: tl.constexpr):
    """Give OUT (M, Q) gelu(G) * INPUT, the layer's columns of all layers' inputs (M, IS)."""
    t, c = tl.program_id(0), tl.arange(0, Q)
    store(OUT, t * Q + c, gelu(load(G, t * Q + c)) * load(INPUT, t * IS + c))


@triton.jit
def gate_back_kernel(GRAD, G, INPUT, OUT, IS: tl.constexpr, Q: tl.constexpr):
    """Give OUT (M, Q) the gradient of G from that of the gated input, GRAD (M, Q)."""
    t, c = tl.program_id(0), tl.arange(0, Q)
    slope = gelu_slope(load(G, t * Q + c))
    store(OUT, t * Q + c, load(GRAD, t * Q + c) * load(INPUT, t * IS + c) * slope)
