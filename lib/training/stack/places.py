"""Where the adapter's numbers are: in the masters' flat tensor, and in the layers' storage."""

from collections.abc import Iterable

import torch
import triton
import triton.language as tl

from lib.training.stack.kernels.places import exchange_kernel

BLOCK = 1024
TYPES = {torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


class Places:
    """Tensors of at most two dimensions, which together are copies of one flat float32 tensor."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self.tensors = list(tensors)  # they must outlive their addresses
        self.kind = TYPES[self.tensors[0].dtype]
        table, start = [], 0
        for t in self.tensors:
            table.append([start, t.numel(), t.data_ptr(), t.shape[1], *t.stride()])
            start += t.numel()
        self.table = torch.tensor(table, device=self.tensors[0].device)
        self.grid = (len(table), triton.cdiv(max(t.numel() for t in self.tensors), BLOCK))

    def write(self, flat: torch.Tensor) -> None:
        """Copy the flat numbers to their places, rounded to the tensors' precision."""
        self._exchange(flat, add=False)

    def add_to(self, flat: torch.Tensor) -> None:
        """Add what is in the places to the flat numbers."""
        self._exchange(flat, add=True)

    def _exchange(self, flat: torch.Tensor, add: bool) -> None:
        exchange_kernel[self.grid](flat, self.table, B=BLOCK, KIND=self.kind, ADD=add, num_warps=4)
