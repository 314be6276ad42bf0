"""Where the weights of a base lie: on one card, over all of them, sharded over the ranks, or partly in main memory."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import torch

from lib.common.errors import UserError
from lib.model import device, ranks
from lib.params import Params


def _too_large(folder: pathlib.Path, job: Params) -> bool:
    """Whether the base's 16-bit weights, twice as large in float32, alone leave one card no room to train in."""
    size = (
        sum(p.stat().st_size for p in folder.glob("*.safetensors"))
        / 1e9
        * device.precision(job)[0].itemsize
        / 2
    )
    return not job.load_in_4bit and size > 0.9 * device.card()[1] > 0


def sharded(folder: pathlib.Path, job: Params) -> bool:
    """Whether this rank holds only its part of the base (FSDP)."""
    if (
        ranks.world_size() == 1
        or job.fsdp == "none"
        or job.fsdp == "auto"
        and not _too_large(folder, job)
    ):
        return False
    if job.load_in_4bit or job.torch_compile:
        raise UserError(
            "fsdp shards a 16-bit base, step by step: set load_in_4bit: false and torch_compile: false, or fsdp: none."
        )
    return True


def device_map(folder: pathlib.Path, job: Params) -> Any:
    """transformers' device_map: the card; all visible ones in turn where one is too small; main memory for what is sharded later."""
    if not torch.cuda.is_available() or sharded(folder, job):
        return None
    # a rank's neighbours need their cards themselves
    if ranks.world_size() > 1 or not _too_large(folder, job) or torch.cuda.device_count() == 1:
        return {"": torch.cuda.current_device()}
    if job.torch_compile:
        raise UserError(
            f"torch_compile needs the whole base on one card, and {device.name()} ({device.card()[1]:.0f} GB) is too small for it. "
            f"Set torch_compile: false."
        )
    return "balanced"


def sharded_now(model: Any) -> bool:
    return any(hasattr(p, "to_local") for p in model.parameters())


def spread(model: Any) -> bool:
    """Whether the weights lie on several cards."""
    return len({p.device for p in model.parameters() if p.is_cuda}) > 1


def shard(model: Any) -> None:
    """Spread the frozen base over the ranks, a layer at a time; adapter, word embedding and output layer stay whole on each.

    The adapter's gradients are summed by the trainer, as without sharding, so FSDP only gathers weights.
    """
    from torch.distributed.fsdp import fully_shard

    body = model.get_base_model().model
    whole = {
        *(p for p in model.parameters() if p.requires_grad),
        model.get_output_embeddings().weight,
        model.get_input_embeddings().weight,
    }
    for layer in body.layers:
        fully_shard(layer, ignored_params=whole)
    fully_shard(body, ignored_params=whole)
    here = (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
    for p in whole:
        p.data = p.data.to(here)
    held = sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in model.parameters())
    print(
        f"rank {ranks.rank()} holds {held:,} of {sum(p.numel() for p in model.parameters()):,} parameters",
        flush=True,
    )


@contextlib.contextmanager
def aside(model: Any) -> Iterator[None]:
    """The weights in main memory inside the block, then each on its card again: model.to() would put all of a spread one on the first."""
    tensors = [*model.parameters(), *model.buffers()]
    places = [t.device for t in tensors]
    for t in tensors:
        t.data = t.data.to("cpu")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        yield
    finally:
        for t, place in zip(tensors, places, strict=True):
            t.data = t.data.to(place)


class Offloaded(torch.nn.Module):
    """An embedding table in the processor's memory: only the rows looked up go to the card."""

    def __init__(self, table: Any):
        super().__init__()
        self.device, self.scale = table.weight.device, float(table.embed_scale)
        # not a parameter: nothing may move it with the model
        self.__dict__["table"] = (
            table.weight.data.to("cpu").pin_memory() if table.weight.is_cuda else table.weight.data
        )

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        rows = torch.nn.functional.embedding(input_ids.to("cpu"), self.table)
        return rows.to(self.device, non_blocking=True) * torch.tensor(self.scale, dtype=rows.dtype)


def offload_embedding(model: Any) -> None:
    """Keep Gemma 3n's per-layer embedding, 4.4 GiB on E4B, off the card: a row of 137 tokens needs 2.5 MB of it."""
    for module in model.modules():
        if hasattr(module, "embed_tokens_per_layer"):
            module.embed_tokens_per_layer = Offloaded(module.embed_tokens_per_layer)
