"""What the kernels share: loads and stores, norms, GELU, and sums of several numbers at once.

All arithmetic is in float32, whatever is read or written.
"""

import triton
import triton.language as tl


@triton.jit
def load(place, offset):
    """Read numbers of any precision as float32."""
    return tl.load(place + offset).to(tl.float32)


@triton.jit
def store(place, offset, value):
    """Write numbers, rounded to the precision of their place."""
    tl.store(place + offset, value.to(place.dtype.element_ty))


@triton.jit
def norm_back(x, grad, r, along, H: tl.constexpr):
    """Return the gradient of x where y = x * r, r = 1 / rms(x); `along` is sum(grad * x)."""
    return r * grad - x * (r * r * r * (along / H))


@triton.jit
def tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


# GELU's tanh form 0.5 x (1 + tanh(u)), with u = sqrt(2 / pi) (x + 0.044715 x^3), is x sigmoid(2 u)
@triton.jit
def gelu(x):
    return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit
def gelu_slope(x):
    s = tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    return s + x * s * (1 - s) * (1.5957691216057308 * (1 + 0.134145 * x * x))


# --------------------------------------------------------------------------------------------------
# Combine functions of tl.reduce. Each reduction makes all warps of a program wait for each other,
# so sums that are needed at the same time are reduced as one tuple.


@triton.jit
def add2(a0, a1, b0, b1):
    return a0 + b0, a1 + b1


@triton.jit
def add4(a0, a1, a2, a3, b0, b1, b2, b3):
    return a0 + b0, a1 + b1, a2 + b2, a3 + b3


@triton.jit
def add5(a0, a1, a2, a3, a4, b0, b1, b2, b3, b4):
    return a0 + b0, a1 + b1, a2 + b2, a3 + b3, a4 + b4


# fmt: off
@triton.jit
def add17(a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15, a16,
          b0, b1, b2, b3, b4, b5, b6, b7, b8, b9, b10, b11, b12, b13, b14, b15, b16):
    return (a0 + b0, a1 + b1, a2 + b2, a3 + b3, a4 + b4, a5 + b5, a6 + b6, a7 + b7, a8 + b8,
            a9 + b9, a10 + b10, a11 + b11, a12 + b12, a13 + b13, a14 + b14, a15 + b15, a16 + b16)
# fmt: on
