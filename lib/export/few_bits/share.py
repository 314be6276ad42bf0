"""How much of what training changed is in a GGUF: its share, and the rounding beside it.

    tuning = share.Tuning()
    tuning.add(tensor, numbers_of_the_file, numbers_of_merged, numbers_of_the_base, "BF16")
    tuning.figures()["share_of_tuning"]

The share is the projection of (file - base) on (merged - base): 1 for merged itself, 0 for the
base. Rounding that is no less than the change may leave the share near 1, but hide it under noise;
so its size, as a multiple of the change, is a figure of its own.
"""

import math
from typing import Any

import numpy as np

from lib.common.gguf_types import TENSOR_TYPES
from lib.export.gguf_file import Tensor

LEAST = 0.5  # a smaller share is a caution
LOUD = (
    3.0  # so is rounding of more than this many times the change, under which a share says little
)
# A file of under 6 bits has more of its layers' numbers at the base's than this share only if the
# base itself lies on its grid. Of a random model's (tests/export/few_bits/test_share.py), 1 % do.
ON_GRID = 0.1


class Tuning:
    """Sums over the rows that training changed, piece by piece."""

    def __init__(self) -> None:
        self.dots: dict[str, float] = {}  # (file - base) . (merged - base), by tensor type
        self.squares: dict[str, float] = {}  # of merged - base
        self.rounding = 0.0  # squares of file - merged
        self.numbers = 0
        self.packed = self.as_base = 0  # numbers of packed layers, and those at the base's

    def add(
        self,
        tensor: Tensor,
        file: np.ndarray,
        merged: np.ndarray,
        base: np.ndarray,
        base_type: str,
    ) -> None:
        """Count rows of a tensor, in float32 as file, merged/ and base have them."""
        changed = (merged != base).any(1)
        if not changed.any():
            return
        if not changed.all():
            file, merged, base = file[changed], merged[changed], base[changed]
        change = merged - base
        kind = tensor.kind
        self.dots[kind] = self.dots.get(kind, 0.0) + _dot(file - base, change)
        self.squares[kind] = self.squares.get(kind, 0.0) + _dot(change, change)
        self.rounding += _dot(file - merged, file - merged)
        self.numbers += change.size
        if tensor.name.startswith("blk.") and kind not in ("F32", "F16", "BF16"):
            self.packed += change.size
            self.as_base += int((_round(file, base_type) == base).sum())

    def figures(self) -> dict[str, Any]:
        """Return the figures for results.json; the share is None if training changed nothing."""
        squares = sum(self.squares.values())
        figures: dict[str, Any] = {
            "share_of_tuning": sum(self.dots.values()) / squares if squares else None,
            "tuned_numbers": self.numbers,
        }
        if squares:
            figures["rounding_to_tuning"] = math.sqrt(self.rounding / squares)
            figures["share_by_tensor_type"] = {
                kind: self.dots[kind] / self.squares[kind] for kind in sorted(self.dots)
            }
        if self.packed:
            figures["layers_as_base"] = self.as_base / self.packed
        return figures


def _dot(one: np.ndarray, other: np.ndarray) -> float:
    # in float64: of millions of products of small differences, float32 would lose the last ones
    return float(np.dot(one.ravel().astype(np.float64), other.ravel().astype(np.float64)))


def _round(numbers: np.ndarray, kind: str) -> np.ndarray:
    """Round float32 numbers to the 16-bit type that the base stores."""
    if kind == "F16":
        return numbers.astype(np.float16).astype(np.float32)
    if kind != "BF16":
        return numbers
    bits = np.ascontiguousarray(numbers).view(np.uint32)
    even = bits + 0x7FFF + ((bits >> 16) & 1)
    return (even & np.uint32(0xFFFF0000)).view(np.float32)


def format_share(figures: dict[str, Any]) -> str | None:
    """Return the share for a table; None for a record that did not measure it."""
    if "share_of_tuning" not in figures:
        return None
    found = figures["share_of_tuning"]
    return "nothing was changed" if found is None else f"{found:.1%}"


def caution(figures: dict[str, Any]) -> str:
    """Say that a file keeps less than half of the tuning, or under noise, and why if measured."""
    found = figures.get("share_of_tuning")
    if found is None:
        return ""
    if found >= LEAST:
        noise = figures["rounding_to_tuning"]
        loud = f"the rounding is {noise:.1f} times what training changed, which is hidden under it"
        return loud if noise > LOUD else ""
    text = f"the file keeps {found:.0%} of what training changed; rounding undid the rest"
    as_base = figures.get("layers_as_base", 0.0)
    coarse = {kind for kind in figures["share_by_tensor_type"] if is_coarse(kind)}
    if coarse and as_base > ON_GRID:
        text += (
            f". {as_base:.0%} of its changed layers' weights are the base's to the bit, since the "
            f"base itself lies on a grid of few bits and rounding returns to it"
        )
    return f"{text}. Export a finer type, or train further from the base"


def is_coarse(kind: str) -> bool:
    """Tell whether a tensor type has fewer than 6 bits a weight."""
    return TENSOR_TYPES[kind].block_limit > TENSOR_TYPES["Q6_K"].block_limit
