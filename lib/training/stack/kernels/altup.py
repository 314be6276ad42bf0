"""Kernels of AltUp: four streams are predicted before a layer, and corrected after it.

One program computes one token. Streams are (4, M, H): M tokens, H numbers, a power of two. Tuples
of four are a token's numbers, one for each stream or for each of the router's four modalities.

The modalities are tanh(logits). For the way back, ENTRY and EXIT keep eight float32 numbers a
token: the logits in 0-3, and 1 / rms of what is normed. The rest is computed again.

    ENTRY   4 the router's input h0    5 the layer's input p0    6 the part of the layer before
    EXIT    4 the router's input y     5 the MLP's output
"""

import triton
import triton.language as tl

from lib.training.stack.kernels.basics import add2, add4, add5, add17, load, norm_back, store, tanh


@triton.jit
def load4(place, offset, step):
    """Read four numbers, or four streams' numbers, that are `step` apart."""
    return (
        load(place, offset),
        load(place, offset + step),
        load(place, offset + 2 * step),
        load(place, offset + 3 * step),
    )


@triton.jit
def store4(place, offset, step, x):
    """Write what load4 reads."""
    for i in tl.static_range(4):
        store(place, offset + i * step, x[i])


@triton.jit
def times4(x, y):
    return x * y[0], x * y[1], x * y[2], x * y[3]


@triton.jit
def tanh4(x):
    return tanh(x[0]), tanh(x[1]), tanh(x[2]), tanh(x[3])


@triton.jit
def dot4(x, y):
    return x[0] * y[0] + x[1] * y[1] + x[2] * y[2] + x[3] * y[3]


@triton.jit
def logits_back(grads, weights, m, N: tl.constexpr):
    """Return the gradients of four logits from those of N coefficients, weights (N, 4) @ m."""
    e0, e1, e2, e3 = times4(grads[0], load4(weights, 0, 1))
    for n in tl.static_range(1, N):
        w0, w1, w2, w3 = load4(weights, 4 * n, 1)
        e0 += grads[n] * w0
        e1 += grads[n] * w1
        e2 += grads[n] * w2
        e3 += grads[n] * w3
    m0, m1, m2, m3 = m
    return e0 * (1 - m0 * m0), e1 * (1 - m1 * m1), e2 * (1 - m2 * m2), e3 * (1 - m3 * m3)


@triton.jit
def route(x, c, w, eps, H: tl.constexpr):
    """Return 1 / rms of x, and its modalities' logits."""
    u = times4(x * load(w.router_norm, c), load4(w.router, c, H))
    total, d0, d1, d2, d3 = tl.reduce((x * x, u[0], u[1], u[2], u[3]), 0, add5)
    r = tl.rsqrt(total / H + eps)
    return r, times4(r / H, (d0, d1, d2, d3))


@triton.jit
def route_back(x, c, w, r, logits, e, H: tl.constexpr):
    """Return the gradient of x from those of the logits, e.

    A norm's gradient needs sum(g * x). It is e . logits / r, so nothing is summed here.
    """
    g = dot4(e, load4(w.router, c, H)) * load(w.router_norm, c) * (1.0 / H)
    return r * g - x * (r * r * (dot4(e, logits) / H))


@triton.jit
def correct(p, y, part, shares):
    """Return a layer's streams: predictions p, each with its share of the innovation y - p0.

    The last three also get the per-layer input's part.
    """
    new = times4(y - p[0], shares)
    return p[0] + new[0], p[1] + new[1] + part, p[2] + new[2] + part, p[3] + new[3] + part


# --------------------------------------------------------------------------------------------------
# into a layer


@triton.jit
def enter_kernel(
    SRC, Y, SHARES, PART, OUT, X, ENTRY, w, before, M, XS: tl.constexpr, eps, PLACE: tl.constexpr,
    H: tl.constexpr,
):  # fmt: skip
    """Correct the streams of the layer before, predict those of this one, and norm its input.

    SRC (4, M, H) is what enters the first layer at PLACE 0, otherwise the predictions of the layer
    before, with its output Y (M, H), its SHARES (M, 4) of the innovation and its PART (M, H) before
    the norm. OUT (4, M, H) gets the predictions, X (M, XS) the normed input in its first H columns.
    At PLACE 2, behind the last layer, OUT gets the corrected streams, and there is no X.
    """
    t, c = tl.program_id(0), tl.arange(0, H)
    o, n, entry = t * H + c, M * H, ENTRY + t * 8
    h = load4(SRC, o, n)
    if PLACE > 0:
        part = load(PART, o)
        r = tl.rsqrt(tl.sum(part * part, 0) / H + eps)
        tl.store(entry + 6, r)
        part = part * r * load(before.part_norm, c)
        h = correct(h, load(Y, o), part, load4(SHARES, t * 4, 1))
    if PLACE == 2:
        store4(OUT, o, n, h)
    else:
        r, logits = route(h[0], c, w, eps, H)
        store4(entry, 0, 1, logits)
        tl.store(entry + 4, r)
        m = tanh4(logits)
        for to in tl.static_range(4):
            p = h[to]
            for source in tl.static_range(4):
                p += dot4(m, load4(w.predictor, 16 * to + 4 * source, 1)) * h[source]
            store(OUT, o + to * n, p)
            if to == 0:
                r = tl.rsqrt(tl.sum(p * p, 0) / H + eps)
                tl.store(entry + 5, r)
                store(X, t * XS + c, p * r * load(w.input_norm, c))


@triton.jit
def enter_back_kernel(
    GRAD, GX, GPAST, OUT, SRC, Y, SHARES, PART, ENTRY, GPART, w, before, M, GXS: tl.constexpr,
    H: tl.constexpr,
):  # fmt: skip
    """Turn the gradient of a layer's predictions into that of the corrected streams before it.

    GRAD (4, M, H) is replaced. GX (M, GXS) is the gradient of the normed input from the products
    with it, GPAST (M, H) from the sum past them. GPART (M, H) gets the gradient of PART. Other
    names are those of enter_kernel.
    """
    t, c = tl.program_id(0), tl.arange(0, H)
    o, n, entry = t * H + c, M * H, ENTRY + t * 8
    g0, g1, g2, g3 = load4(GRAD, o, n)
    gx = (load(GPAST, o) + load(GX, t * GXS + c)) * load(w.input_norm, c)
    p = load(OUT, o)
    g0 += norm_back(p, gx, tl.load(entry + 5), tl.sum(gx * p, 0), H)
    g = (g0, g1, g2, g3)

    part, norm, r = load(PART, o), load(before.part_norm, c), tl.load(entry + 6)
    h = correct(load4(SRC, o, n), load(Y, o), part * r * norm, load4(SHARES, t * 4, 1))
    logits = load4(entry, 0, 1)
    m = tanh4(logits)
    a0, a1, a2, a3 = g
    for to in tl.static_range(4):
        a0 += dot4(m, load4(w.predictor, 16 * to, 1)) * g[to]
        a1 += dot4(m, load4(w.predictor, 16 * to + 4, 1)) * g[to]
        a2 += dot4(m, load4(w.predictor, 16 * to + 8, 1)) * g[to]
        a3 += dot4(m, load4(w.predictor, 16 * to + 12, 1)) * g[to]
    gpart = (a1 + a2 + a3) * norm
    products = times4(g0, h) + times4(g1, h) + times4(g2, h) + times4(g3, h) + (gpart * part,)
    sums = tl.reduce(products, 0, add17)
    e = logits_back(sums, w.predictor, m, 16)
    a0 += route_back(h[0], c, w, tl.load(entry + 4), logits, e, H)
    store4(GRAD, o, n, (a0, a1, a2, a3))
    store(GPART, o, norm_back(part, gpart, r, sums[16], H))


@triton.jit
def leave_back_kernel(GRAD, PART, GPART, w, M, eps, H: tl.constexpr):
    """Give GPART (M, H) the gradient of the last layer's PART, from that of the streams, GRAD."""
    t, c = tl.program_id(0), tl.arange(0, H)
    o, n = t * H + c, M * H
    part = load(PART, o)
    g = load(GRAD, o + n) + load(GRAD, o + 2 * n) + load(GRAD, o + 3 * n)
    g = g * load(w.part_norm, c)
    total, along = tl.reduce((part * part, g * part), 0, add2)
    store(GPART, o, norm_back(part, g, tl.rsqrt(total / H + eps), along, H))


# --------------------------------------------------------------------------------------------------
# out of a layer


@triton.jit
def exit_kernel(
    F, HALF, OUT, Y, SHARES, FIRST, EXIT, w, FS: tl.constexpr, eps, H: tl.constexpr
):  # fmt: skip
    """Add the normed output of the MLP, F (M, FS), to HALF (M, H), and find the correction.

    Y (M, H) gets the sum, SHARES (M, 4) in float32 each stream's share of the innovation. FIRST
    (M, H) gets the first of the corrected streams, scaled, which enters the per-layer gate.
    """
    t, c = tl.program_id(0), tl.arange(0, H)
    o, leave = t * H + c, EXIT + t * 8
    f = load(F, t * FS + c)
    r = tl.rsqrt(tl.sum(f * f, 0) / H + eps)
    tl.store(leave + 5, r)
    y = load(HALF, o) + f * r * load(w.mlp_out_norm, c)
    store(Y, o, y)
    r, logits = route(y, c, w, eps, H)
    store4(leave, 0, 1, logits)
    tl.store(leave + 4, r)
    m = tanh4(logits)
    for to in tl.static_range(4):
        share = dot4(m, load4(w.corrector, 4 * to, 1)) + 1
        tl.store(SHARES + t * 4 + to, share)
        if to == 0:
            p = load(OUT, o)
            store(FIRST, o, (p + share * (y - p)) * load(w.first_scale, c))


@triton.jit
def exit_back_kernel(
    GRAD, GFIRST, OUT, Y, SHARES, F, GY, GF, EXIT, w, M, FS: tl.constexpr, GFS: tl.constexpr,
    H: tl.constexpr,
):  # fmt: skip
    """Turn the gradient of a layer's streams into that of its predictions, of Y and of F.

    GRAD (4, M, H) is replaced in its first stream; the others keep theirs. GFIRST (M, H) is the
    gradient of FIRST, GY (M, H) gets that of Y, GF (M, GFS) that of F in its first H columns.
    """
    t, c = tl.program_id(0), tl.arange(0, H)
    o, n, leave = t * H + c, M * H, EXIT + t * 8
    g0, g1, g2, g3 = load4(GRAD, o, n)
    g0 += load(GFIRST, o) * load(w.first_scale, c)
    g = (g0, g1, g2, g3)
    y = load(Y, o)
    new = dot4(g, load4(SHARES, t * 4, 1))
    store(GRAD, o, g0 - new)
    sums = tl.reduce(times4(y - load(OUT, o), g), 0, add4)
    logits = load4(leave, 0, 1)
    e = logits_back(sums, w.corrector, tanh4(logits), 4)
    gy = new + route_back(y, c, w, tl.load(leave + 4), logits, e, H)
    store(GY, o, gy)
    f = load(F, t * FS + c)
    gf = gy * load(w.mlp_out_norm, c)
    store(GF, t * GFS + c, norm_back(f, gf, tl.load(leave + 5), tl.sum(gf * f, 0), H))
