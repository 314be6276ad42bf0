"""Copy between one flat float32 tensor and many strided tensors, in one launch.

torch._foreach_copy_ launches a kernel for each tensor where precisions differ: 430 for E4B's
adapter, in which a card works for 1 of 5 ms.
"""

import triton
import triton.language as tl


@triton.jit
def exchange_kernel(FLAT, TABLE, B: tl.constexpr, KIND: tl.constexpr, ADD: tl.constexpr):
    """Copy parts of FLAT to their places, or ADD to the parts what is in their places.

    A row of TABLE (parts, 6) int64: first number in FLAT, count, address of the place, its columns,
    its strides in numbers of KIND. Program (part, n) copies B numbers from n * B on.
    """
    row = TABLE + tl.program_id(0) * 6
    count, columns = tl.load(row + 1).to(tl.int32), tl.load(row + 3).to(tl.int32)
    i = tl.program_id(1) * B + tl.arange(0, B)
    flat = FLAT + tl.load(row) + i
    place = tl.load(row + 2).to(tl.pointer_type(KIND))
    place += (i // columns) * tl.load(row + 4) + (i % columns) * tl.load(row + 5)
    if ADD:
        new = tl.load(place, i < count, 0.0).to(tl.float32)
        tl.store(flat, tl.load(flat, i < count, 0.0) + new, i < count)
    else:
        tl.store(place, tl.load(flat, i < count, 0.0).to(KIND), i < count)
