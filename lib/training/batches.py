"""Rows as tensors: padded side by side, or packed end to end in one fixed shape."""

from typing import Any, NamedTuple

import torch

from lib.data.label_mask import IGNORED
from lib.training.plan import Shape


class Batch(NamedTuple):
    """A micro-batch. Padded: input_ids of (rows, width). Packed: (1, tokens), with each row's own positions and bounds.

    `where` are the flat positions whose next token is trained, `targets` those tokens, `weights` what each loss counts;
    fixed shapes end in fillers of weight 0. `bounds` are the rows' starts and the end, as variable-length attention takes them.
    """

    input_ids: torch.Tensor
    where: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    position_ids: torch.Tensor | None = None
    bounds: torch.Tensor | None = None

    def to(self, device: Any) -> "Batch":
        return Batch(*(t if t is None else t.to(device, non_blocking=True) for t in self))


def of(
    columns: dict[str, list[list[int]]], shape: Shape | None = None, weight: float = 1.0
) -> Batch:
    """Rows read as columns `input_ids` and `labels`: packed into a shape, or padded without one. Each trained token counts `weight`."""
    rows = [
        {"input_ids": i, "labels": k}
        for i, k in zip(columns["input_ids"], columns["labels"], strict=True)
    ]
    return packed(rows, shape, weight) if shape else padded(rows, weight)


def padded(rows: list[dict[str, Any]], weight: float = 1.0) -> Batch:
    """Rows of input_ids and labels, padded on the right to the longest.

    No attention mask is needed: under causal attention no real position sees a later one, so the result is exact, and the
    faster mask-free attention kernels apply.
    """
    width = max(len(r["input_ids"]) for r in rows)
    ids = torch.tensor([r["input_ids"] + [0] * (width - len(r["input_ids"])) for r in rows])
    labels = torch.tensor([r["labels"] + [IGNORED] * (width - len(r["labels"])) for r in rows])
    return from_labels(ids, labels, weight)


def from_labels(ids: torch.Tensor, labels: torch.Tensor, weight: float = 1.0) -> Batch:
    """A padded batch from right-padded ids and labels of (rows, width)."""
    following = torch.cat([labels[:, 1:], labels.new_full((len(labels), 1), IGNORED)], 1).flatten()
    where = (following != IGNORED).nonzero()[:, 0]
    return Batch(ids, where, following[where], torch.full((len(where),), weight))


def packed(rows: list[dict[str, Any]], shape: Shape, weight: float = 1.0) -> Batch:
    """Rows end to end, filled up to `shape`; positions start anew at each row, so that rotary embeddings are those of the row alone."""
    lengths = [len(r["input_ids"]) for r in rows]
    rest = shape.tokens - sum(lengths)
    # filled with <bos>: the padding token's embedding is zero, and so then is a norm whose derivative is 0 / 0
    ids = torch.tensor(
        [t for r in rows for t in r["input_ids"]] + [rows[0]["input_ids"][0]] * rest
    )[None]
    positions = torch.cat([torch.arange(n) for n in [*lengths, rest]])[None]
    ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
    # rows that are not there have no tokens; the filler is the last row
    bounds = torch.tensor(
        ends + ends[-1:] * (shape.rows - len(rows)) + [shape.tokens], dtype=torch.int32
    )
    labels = torch.tensor([t for r in rows for t in [*r["labels"][1:], IGNORED]] + [IGNORED] * rest)
    found = (labels != IGNORED).nonzero()[:, 0]
    where, targets, weights = (
        torch.zeros(shape.trained, dtype=torch.long),
        torch.zeros(shape.trained, dtype=torch.long),
        torch.zeros(shape.trained),
    )
    where[: len(found)], targets[: len(found)], weights[: len(found)] = found, labels[found], weight
    return Batch(ids, where, targets, weights, positions, bounds)
