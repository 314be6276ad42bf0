"""Triton's interpreter on a processor, as kernels' tests need it: on, and ten times faster than as it comes."""

import os


def turn_on():
    """Let kernels that are defined from here on be interpreted; a card must not be in sight."""
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.runtime import interpreter

    interpreter._patch_lang = Patched(interpreter._patch_lang)
    interpreter.InterpretedFunction.__call__ = call_in_kernel
    interpreter.ReduceOps.generic_reduce = reduce_by_halves


class Patched:
    """Replace triton.language's functions once for a kernel: Triton does so again at each call of a helper in it, 0.3 ms each."""

    def __init__(self, patch):
        self.patch, self.modules, self.scopes = patch, set(), []

    def __call__(self, fn):
        place = id(fn.__globals__)  # each module's own names are replaced
        if place not in self.modules:
            self.modules.add(place)
            self.scopes.append(self.patch(fn))
        return self

    def restore(self):
        while self.scopes:
            self.scopes.pop().restore()
        self.modules.clear()


def call_in_kernel(helper, *args, **kwargs):
    from triton.runtime import interpreter

    interpreter._patch_lang(helper.fn)
    return helper.rewrite()(*args, **kwargs)


def reduce_by_halves(reduction, tensors):
    """Combine half of the numbers with the other half until one is left: Triton's own goes through them one by one."""
    import numpy as np

    assert reduction.axis is not None and not reduction.keep_dims
    parts = [np.moveaxis(t.handle.data, reduction.axis, 0) for t in tensors]
    while len(parts[0]) > 1:
        middle = len(parts[0]) // 2
        assert len(parts[0]) == 2 * middle, "lengths are powers of two"
        halves = (
            [reduction.to_tensor(p[half], t.dtype) for p, t in zip(parts, tensors, strict=True)]
            for half in (slice(middle), slice(middle, None))
        )
        parts = [
            out.handle.data for out in reduction.combine_fn.fn(*(t for h in halves for t in h))
        ]
    return [reduction.to_tensor(p[0], t.dtype) for p, t in zip(parts, tensors, strict=True)]
