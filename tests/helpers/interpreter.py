"""Triton's interpreter, in which kernels run where the tests see no card: ten times faster than as it comes."""


def hasten():
    """Replace what takes the interpreter most of its time; call it before a kernel runs."""
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
    assert (reduction.axis, reduction.keep_dims) == (0, False)
    parts = [t.handle.data for t in tensors]
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
