"""Turn rows into tensors: padded side by side, or packed end to end in one fixed shape."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from lib.data.label_mask import IGNORED
from lib.training.plan import Shape

Row = dict[str, list[int]]  # input_ids and labels, of one length


class Batch(NamedTuple):
    """A micro-batch: its tokens, and which positions are trained on which next token.

    input_ids is (rows, width) when padded, (1, tokens) when packed. `where` has the flat positions
    whose next token is trained, `targets` those tokens, and `weights` the share of each loss in the
    step's loss. In a fixed shape, the last entries are fillers of weight 0. Packed batches also
    have positions that start at 0 in each row, in `bounds` the rows' starts and the last row's end,
    in the form for variable-length attention, and in `longest` the most tokens that one may have.
    """

    input_ids: torch.Tensor
    where: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    position_ids: torch.Tensor | None = None
    bounds: torch.Tensor | None = None
    longest: int | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on a device; copies from pinned memory do not wait."""
        return self._of(lambda t: t.to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        """Return the batch in pinned memory, which a card reads directly."""
        return self._of(lambda t: t.pin_memory())

    def copied_to(self, device: torch.device | str) -> "Batch":
        """Return a copy of the batch on a device."""
        return self._of(lambda t: t.to(device, copy=True))

    def copy_from(self, other: "Batch") -> None:
        """Take over the tensors of another batch of the same shape."""
        assert self.longest == other.longest, f"rows of {other.longest} and {self.longest} tokens"
        for ours, theirs in zip(self, other, strict=True):
            if isinstance(ours, torch.Tensor):
                ours.copy_(theirs, non_blocking=True)

    def _of(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        return Batch(*(change(t) if isinstance(t, torch.Tensor) else t for t in self))


def make_batch(
    columns: dict[str, list[list[int]]], shape: Shape | None = None, weight: float = 1.0
) -> Batch:
    """Pack the rows of columns `input_ids` and `labels` into a shape, or pad them without one.

    Each trained token has this weight in the loss.
    """
    rows = [
        {"input_ids": ids, "labels": labels}
        for ids, labels in zip(columns["input_ids"], columns["labels"], strict=True)
    ]
    return pack_rows(rows, shape, weight) if shape else pad_rows(rows, weight)


def pad_rows(rows: list[Row], weight: float = 1.0) -> Batch:
    """Pad rows on the right to the longest.

    This needs no attention mask: under causal attention, no real position sees a later one. So the
    result is exact, and the faster attention kernels without a mask can be used.
    """
    width = max(len(row["input_ids"]) for row in rows)
    ids = [row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows]
    labels = [row["labels"] + [IGNORED] * (width - len(row["labels"])) for row in rows]
    return batch_from_labels(torch.tensor(ids), torch.tensor(labels), weight)


def batch_from_labels(ids: torch.Tensor, labels: torch.Tensor, weight: float = 1.0) -> Batch:
    """Make a padded batch from ids and labels of (rows, width), both padded on the right."""
    nothing = labels.new_full((len(labels), 1), IGNORED)
    following = torch.cat([labels[:, 1:], nothing], 1).flatten()
    where = (following != IGNORED).nonzero()[:, 0]
    return Batch(ids, where, following[where], torch.full((len(where),), weight))


def pack_rows(rows: list[Row], shape: Shape, weight: float = 1.0) -> Batch:
    """Put rows end to end and fill them up to `shape`.

    Positions start at 0 in each row, so that its rotary embeddings are those of the row alone.
    """
    lengths = [len(row["input_ids"]) for row in rows]
    longest = shape.longest or shape.tokens
    # attention on a GPU would leave what is beyond it as it was in memory
    assert max(lengths) <= longest, f"a row of {max(lengths)} tokens, the longest is {longest}"
    filler = shape.tokens - sum(lengths)

    # fill with <bos>: the padding token's embedding is zero, and the derivative of the norm at
    # zero is 0 / 0
    tokens = [token for row in rows for token in row["input_ids"]]
    bos = rows[0]["input_ids"][0]
    ids = torch.tensor(tokens + [bos] * filler)[None]
    positions = torch.cat([torch.arange(n) for n in [*lengths, filler]])[None]

    # rows missing in a short batch have no tokens; the filler is one more row at the end, or
    # several if it is longer than a row may be
    ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
    missing = ends[-1:] * (shape.rows - len(rows))
    fillers = [min(ends[-1] + n * longest, shape.tokens) for n in range(1, shape.fillers() + 1)]
    bounds = torch.tensor(ends + missing + fillers, dtype=torch.int32)

    following = [label for row in rows for label in [*row["labels"][1:], IGNORED]]
    labels = torch.tensor(following + [IGNORED] * filler)
    trained = (labels != IGNORED).nonzero()[:, 0]
    where = torch.zeros(shape.trained, dtype=torch.long)
    targets = torch.zeros(shape.trained, dtype=torch.long)
    weights = torch.zeros(shape.trained)
    where[: len(trained)] = trained
    targets[: len(trained)] = labels[trained]
    weights[: len(trained)] = weight
    return Batch(ids, where, targets, weights, positions, bounds, longest)
