"""Place the weights of a base.

They go on one card, are spread over all visible cards, or are sharded over the ranks of a training
(FSDP); one table may stay in main memory.
"""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import torch

from lib.common.errors import UserError
from lib.model import device, ranks


def exceeds_card(folder: pathlib.Path, precision: str, load_in_4bit: bool) -> bool:
    """Tell whether the base's weights alone leave no room to train on one card.

    The files have 16-bit weights; in float32 they are twice as large.
    """
    if load_in_4bit:
        return False
    dtype, _ = device.choose_precision(precision, load_in_4bit)
    gb_on_disk = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e9
    gb = gb_on_disk * dtype.itemsize / 2
    return device.card().gb > 0 and gb > 0.9 * device.card().gb


def must_shard(fsdp: str, too_large: bool, load_in_4bit: bool, torch_compile: bool) -> bool:
    """Tell whether each rank must hold only a part of the base (FSDP).

    `too_large` says that the base exceeds one card. Raise UserError when the base must be sharded,
    but cannot be.
    """
    if ranks.world_size() == 1 or fsdp == "none":
        return False
    if fsdp == "auto" and not too_large:
        return False
    if load_in_4bit or torch_compile:
        raise UserError(
            "fsdp works with a 16-bit base only, and without compiled steps: set load_in_4bit: "
            "false and torch_compile: false, or fsdp: none."
        )
    return True


def choose_device_map(
    too_large: bool, sharded: bool, torch_compile: bool
) -> dict[str, int] | str | None:
    """Return transformers' device_map for the base.

    It names the current card, or spreads the base over all visible cards ("balanced") when one is
    too small. None means main memory, for a machine without a card and for a base that is sharded
    after loading.
    """
    if not torch.cuda.is_available() or sharded:
        return None
    # the other cards belong to the other ranks
    alone = ranks.world_size() == 1 and torch.cuda.device_count() > 1
    if not too_large or not alone:
        return {"": torch.cuda.current_device()}
    if torch_compile:
        raise UserError(
            f"torch_compile needs the whole base on one card, but {device.name()} "
            f"({device.card().gb:.0f} GB) is too small for it. Set torch_compile: false."
        )
    return "balanced"


def is_sharded(model: Any) -> bool:
    """Tell whether this rank holds only a part of the weights."""
    return any(hasattr(p, "to_local") for p in model.parameters())


def is_spread(model: Any) -> bool:
    """Tell whether the weights are spread over several cards."""
    return len({p.device for p in model.parameters() if p.is_cuda}) > 1


def shard(model: Any) -> None:
    """Shard the frozen base over the ranks, layer by layer (FSDP2).

    Each rank keeps all of the adapter, word embedding and output layer. The trainer sums the
    adapter's gradients, as without sharding, so FSDP only gathers weights.
    """
    # not at the top, since a build of torch without torch.distributed can train all else
    from torch.distributed.fsdp import fully_shard

    body = model.get_base_model().model
    kept_whole = {
        *(p for p in model.parameters() if p.requires_grad),
        model.get_output_embeddings().weight,
        model.get_input_embeddings().weight,
    }
    for layer in body.layers:
        fully_shard(layer, ignored_params=kept_whole)
    fully_shard(body, ignored_params=kept_whole)

    device_of_rank = torch.device("cpu")
    if torch.cuda.is_available():
        device_of_rank = torch.device("cuda", torch.cuda.current_device())
    for p in kept_whole:
        p.data = p.data.to(device_of_rank)
    local = sum(_local_part(p).numel() for p in model.parameters())
    total = sum(p.numel() for p in model.parameters())
    print(f"rank {ranks.rank()} holds {local:,} of {total:,} parameters", flush=True)


def _local_part(parameter: Any) -> torch.Tensor:
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


@contextlib.contextmanager
def in_main_memory(model: Any) -> Iterator[None]:
    """Move the weights to main memory inside the block, then each back to its own card.

    `model.to()` would move a model that is spread over cards to the first one.
    """
    tensors = [*model.parameters(), *model.buffers()]
    devices = [tensor.device for tensor in tensors]
    for tensor in tensors:
        tensor.data = tensor.data.to("cpu")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        yield
    finally:
        for tensor, place in zip(tensors, devices, strict=True):
            tensor.data = tensor.data.to(place)


class Offloaded(torch.nn.Module):
    """An embedding table in main memory, of which only the rows looked up go to the card."""

    def __init__(self, embedding: Any) -> None:
        super().__init__()
        weight = embedding.weight
        self.device = weight.device
        self.scale = float(embedding.embed_scale)
        table = weight.data
        if weight.is_cuda:
            table = table.to("cpu").pin_memory()
        # bypass torch's __setattr__: a parameter or buffer would move with the model
        self.__dict__["table"] = table

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        rows = torch.nn.functional.embedding(input_ids.to("cpu"), self.table)
        return rows.to(self.device, non_blocking=True) * torch.tensor(self.scale, dtype=rows.dtype)


def offload_embedding(model: Any) -> None:
    """Keep Gemma 3n's per-layer embedding off the card, which saves 4.4 GiB on E4B.

    A row of 137 tokens needs 2.5 MB of it.
    """
    for module in model.modules():
        if hasattr(module, "embed_tokens_per_layer"):
            module.embed_tokens_per_layer = Offloaded(module.embed_tokens_per_layer)
