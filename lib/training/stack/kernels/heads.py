"""Kernels around attention: the heads' norms and rotary embedding, and what follows attention.

One program computes one token. The joined product Z (M, ZS) holds q | laurel's first half | k | v
of a token; the laurel's end at column K0. A layer that shares another's keys has no k and v, NK 0.
"""

import triton
import triton.language as tl

from lib.training.stack.kernels.basics import add2, load, norm_back, store


@triton.jit
def read_norms(w, n, c, NQ: tl.constexpr, NK: tl.constexpr):
    """Return the norms' weights of head n at c: those of q, of k, and ones for v."""
    of_k = tl.where(n < NQ + NK, load(w.k_norm, c), 1.0)
    return tl.where(n < NQ, load(w.q_norm, c), of_k)


@triton.jit
def read_turn(COS, SIN, n, place, NQ: tl.constexpr, NK: tl.constexpr):
    """Return cosine and sine of head n's rotation; v is not rotated."""
    turned = n < NQ + NK
    return tl.where(turned, load(COS, place), 1.0), tl.where(turned, load(SIN, place), 0.0)


@triton.jit
def rotate_kernel(
    Z, OUT, COS, SIN, w, eps, ZS: tl.constexpr, K0: tl.constexpr, NQ: tl.constexpr,
    NK: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Norm q, k and v, and rotate q and k: OUT (M, NQ + 2 NK, D) has them side by side.

    COS and SIN are (M, D), with the same numbers in both halves. Z is kept for the way back.
    """
    t = tl.program_id(0)
    n, c = tl.arange(0, N)[:, None], tl.arange(0, D // 2)[None]
    here = n < NQ + 2 * NK
    source = Z + t * ZS + tl.where(n < NQ, n * D, K0 + (n - NQ) * D) + c
    x1 = tl.load(source, here, 0.0).to(tl.float32)
    x2 = tl.load(source + D // 2, here, 0.0).to(tl.float32)
    r = tl.rsqrt(tl.sum(x1 * x1 + x2 * x2, 1) / D + eps)[:, None]
    x1 = x1 * r * read_norms(w, n, c, NQ, NK)
    x2 = x2 * r * read_norms(w, n, c + D // 2, NQ, NK)
    cos, sin = read_turn(COS, SIN, n, t * D + c, NQ, NK)
    out = OUT + (t * (NQ + 2 * NK) + n) * D + c
    kind = OUT.dtype.element_ty
    tl.store(out, (x1 * cos - x2 * sin).to(kind), here)
    tl.store(out + D // 2, (x2 * cos + x1 * sin).to(kind), here)


@triton.jit
def rotate_back_kernel(
    Z, GQ, GK, GV, GZ, COS, SIN, w, eps, ZS: tl.constexpr, K0: tl.constexpr, NQ: tl.constexpr,
    NK: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Give GZ (M, ZS), but for the laurel's columns, the gradient of Z.

    GQ (M, NQ, D), GK and GV (M, NK, D) are the gradients of the rotated heads.
    """
    t = tl.program_id(0)
    n, c = tl.arange(0, N)[:, None], tl.arange(0, D // 2)[None]
    here, is_q, is_k = n < NQ + 2 * NK, n < NQ, (n >= NQ) & (n < NQ + NK)
    is_v = here & (n >= NQ + NK)
    of_q = GQ + (t * NQ + n) * D + c
    of_k = GK + (t * NK + n - NQ) * D + c
    of_v = GV + (t * NK + n - NQ - NK) * D + c
    # each head is read in one of the three, and zero in the others
    y1 = tl.load(of_q, is_q, 0.0) + tl.load(of_k, is_k, 0.0) + tl.load(of_v, is_v, 0.0)
    half = D // 2
    y2 = tl.load(of_q + half, is_q, 0.0) + tl.load(of_k + half, is_k, 0.0)
    y2 += tl.load(of_v + half, is_v, 0.0)
    y1, y2 = y1.to(tl.float32), y2.to(tl.float32)
    cos, sin = read_turn(COS, SIN, n, t * D + c, NQ, NK)
    g1 = (y1 * cos + y2 * sin) * read_norms(w, n, c, NQ, NK)
    g2 = (y2 * cos - y1 * sin) * read_norms(w, n, c + half, NQ, NK)
    place = t * ZS + tl.where(is_q, n * D, K0 + (n - NQ) * D) + c
    x1 = tl.load(Z + place, here, 0.0).to(tl.float32)
    x2 = tl.load(Z + place + half, here, 0.0).to(tl.float32)
    r = tl.rsqrt(tl.sum(x1 * x1 + x2 * x2, 1) / D + eps)[:, None]
    along = tl.sum(g1 * x1 + g2 * x2, 1)[:, None]
    kind = GZ.dtype.element_ty
    tl.store(GZ + place, norm_back(x1, g1, r, along, D).to(kind), here)
    tl.store(GZ + place + half, norm_back(x2, g2, r, along, D).to(kind), here)


# --------------------------------------------------------------------------------------------------
# attention's output and the laurel's, together


@triton.jit
def middle_kernel(
    OUT, ATT, LAUREL, X, HALF, XN, MIDDLE, w, AS: tl.constexpr, XS: tl.constexpr,
    XNS: tl.constexpr, eps, H: tl.constexpr,
):  # fmt: skip
    """Sum attention's and the laurel's branch to HALF (M, H), and norm it for the MLP.

    OUT (M, H) is the prediction that entered the layer, X (M, XS) its norm, ATT (M, AS) and LAUREL
    (M, H) are the branches before their norms. XN (M, XNS) gets the normed sum in its first H
    columns, MIDDLE (M, 4) float32 1 / rms of laurel, attention and sum.
    """
    t, c = tl.program_id(0), tl.arange(0, H)
    o, middle = t * H + c, MIDDLE + t * 4
    laurel, att = load(LAUREL, o), load(ATT, t * AS + c)
    s0, s1 = tl.reduce((laurel * laurel, att * att), 0, add2)
    r0, r1 = tl.rsqrt(s0 / H + eps), tl.rsqrt(s1 / H + eps)
    attended = load(OUT, o) + att * r1 * load(w.attention_norm, c)
    past = load(X, t * XS + c) + laurel * r0 * load(w.laurel_norm, c)
    half = (attended + past) * 0.7071067811865476
    store(HALF, o, half)
    r2 = tl.rsqrt(tl.sum(half * half, 0) / H + eps)
    store(XN, t * XNS + c, half * r2 * load(w.mlp_in_norm, c))
    tl.store(middle, r0)
    tl.store(middle + 1, r1)
    tl.store(middle + 2, r2)


@triton.jit
def middle_back_kernel(
    GXN, GY, HALF, ATT, LAUREL, GRAD, GATT, GLAUREL, GPAST, MIDDLE, w, GXNS: tl.constexpr,
    AS: tl.constexpr, GAS: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """Give GATT (M, GAS) and GLAUREL (M, H) the gradients of the branches, GPAST that of X.

    GXN (M, GXNS) is the gradient of the MLP's normed input, GY (M, H) of the layer's output, which
    HALF is a part of. The gradient of the prediction is added to GRAD (M, H).
    """
    t, c = tl.program_id(0), tl.arange(0, H)
    o, middle = t * H + c, MIDDLE + t * 4
    half, att, laurel = load(HALF, o), load(ATT, t * AS + c), load(LAUREL, o)
    gn = load(GXN, t * GXNS + c) * load(w.mlp_in_norm, c)
    g = load(GY, o) + norm_back(half, gn, tl.load(middle + 2), tl.sum(gn * half, 0), H)
    g = g * 0.7071067811865476
    ga, gl = g * load(w.attention_norm, c), g * load(w.laurel_norm, c)
    s0, s1 = tl.reduce((gl * laurel, ga * att), 0, add2)
    store(GLAUREL, o, norm_back(laurel, gl, tl.load(middle), s0, H))
    store(GATT, t * GAS + c, norm_back(att, ga, tl.load(middle + 1), s1, H))
    store(GPAST, o, g)
    store(GRAD, o, load(GRAD, o) + g)
