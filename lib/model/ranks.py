"""Let the processes ("ranks") of one training exchange values; there is one process per GPU.

In a single process, each function here returns at once and changes nothing.
"""

from typing import Literal, TypeVar

import torch
import torch.distributed as dist

from lib.common.errors import UserError

Value = TypeVar("Value")


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0; rank 0 writes the files and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def sum_in_place(*tensors: torch.Tensor) -> None:
    """Replace each tensor, on every rank, by its sum over the ranks."""
    if world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def from_first(value: Value) -> Value:
    """Return rank 0's value on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def copy_from_first(tensor: torch.Tensor) -> None:
    """Overwrite the tensor of every rank with rank 0's values."""
    if world_size() > 1:
        dist.broadcast(tensor, src=0)


def count_gpus(num_gpus: int | Literal["auto"], gradient_accumulation_steps: int) -> int:
    """Return the number of devices of this machine that the job trains on; 1 without a GPU.

    Raise UserError when the job asks for more devices than the machine has.
    """
    present = max(1, torch.cuda.device_count())
    if num_gpus == "auto":
        # each rank must get the same number of a step's micro-batches
        used = next(n for n in range(present, 0, -1) if gradient_accumulation_steps % n == 0)
        if used < present:
            print(
                f"{used} of {present} GPUs are used: gradient_accumulation_steps="
                f"{gradient_accumulation_steps} cannot be shared out evenly among more",
                flush=True,
            )
        return used
    if num_gpus > present:
        raise UserError(
            f"num_gpus is {num_gpus}, but torch sees {torch.cuda.device_count()} here. "
            "Set num_gpus: auto, or check CUDA_VISIBLE_DEVICES."
        )
    return num_gpus
