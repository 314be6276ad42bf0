"""What the processes of one training say to each other, one process a GPU; on one device each call does nothing."""

from typing import Any

import torch
import torch.distributed as dist

from lib.common.errors import UserError
from lib.params import Params


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def add(*tensors: torch.Tensor) -> None:
    """Sum each tensor over the ranks, in place."""
    if world() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def agree(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def copy_from_first(tensor: torch.Tensor) -> None:
    """Rank 0's values into the tensor of every rank."""
    if world() > 1:
        dist.broadcast(tensor, src=0)


def gpus(job: Params) -> int:
    """How many devices of this machine the job trains on; 1 without a GPU. UserError when it asks for more than there are."""
    there = max(1, torch.cuda.device_count())
    if job.num_gpus == "auto":  # a step's micro-batches must share out evenly
        used = next(n for n in range(there, 0, -1) if job.gradient_accumulation_steps % n == 0)
        if used < there:
            print(
                f"{used} of {there} GPUs: gradient_accumulation_steps={job.gradient_accumulation_steps} does not share out among more",
                flush=True,
            )
        return used
    if job.num_gpus > there:
        raise UserError(
            f"num_gpus is {job.num_gpus}, and torch sees {torch.cuda.device_count()} here. "
            f"Set num_gpus: auto, or check CUDA_VISIBLE_DEVICES."
        )
    return job.num_gpus
