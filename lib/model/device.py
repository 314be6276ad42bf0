"""Describe the device that computes: GPU or processor, memory, peak rate, best precision.

A "card" is an NVIDIA GPU; sizes in GB are 1e9 bytes, sizes in GiB are 2**30 bytes.
"""

import contextlib
import functools
import os
import re
import resource
import sys
from collections.abc import Iterator
from typing import NamedTuple

import torch

from lib.common import machine
from lib.common.errors import UserError

# dense 16-bit operations per second from the vendors' datasheets; longer names come first
PEAK_FLOPS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "T4": 65e12,
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Card(NamedTuple):
    """The GPU in use; without a GPU, the name is empty and `gb` is 0."""

    name: str
    gb: float


@functools.cache
def card() -> Card:
    """Return name and memory of the GPU in use."""
    if not torch.cuda.is_available():
        return Card("", 0.0)
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Card(properties.name, properties.total_memory / 1e9)


def name() -> str:
    """Return the name of the GPU in use, or of the processor."""
    return card().name or machine.hardware()["cpu"]


def choose_precision(
    precision: str = "auto", load_in_4bit: bool = False
) -> tuple[torch.dtype, str]:
    """Return the type to compute in, and why.

    Raise UserError when the machine or the base forbids it.
    """
    if precision == "auto":
        return _precision_of_machine(load_in_4bit)
    cuda = torch.cuda.is_available()
    if precision == "fp16" and not (load_in_4bit and cuda):
        raise UserError(
            "precision: fp16 is for a 4-bit base on a GPU, where only the products with it are "
            "float16. Use bf16 or fp32, or set load_in_4bit: true."
        )
    if precision == "bf16" and cuda and not card_has_bfloat16():
        raise UserError(
            f"precision: bf16 is not supported by {card().name}, which would emulate it slowly. "
            "Set precision: auto."
        )
    return DTYPES[precision], "as set"


def _precision_of_machine(load_in_4bit: bool) -> tuple[torch.dtype, str]:
    if not torch.cuda.is_available():
        if torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return (
                torch.bfloat16,
                "this processor multiplies bfloat16 about twice as fast as float32",
            )
        return torch.float32, "this processor has no fast bfloat16"
    if card_has_bfloat16():
        return torch.bfloat16, "the card has bfloat16"
    if load_in_4bit:
        return torch.float16, (
            "the card has no bfloat16; Gemma 3n overflows in float16, so only products with "
            "4-bit weights are float16"
        )
    return torch.float32, "the card has no bfloat16, and Gemma 3n overflows in float16"


def card_has_bfloat16() -> bool:
    """Tell whether the GPU in use computes in bfloat16 by itself."""
    # by default torch also answers yes for emulation, which is slow
    return torch.cuda.is_bf16_supported(including_emulation=False)


def peak_flops() -> float:
    """Return the GPU's 16-bit operations per second by its datasheet; 0 for an unknown GPU."""
    for model, rate in PEAK_FLOPS.items():
        if re.search(rf"\b{model}\b", card().name):
            return rate
    return 0.0


@contextlib.contextmanager
def explain_out_of_memory(purpose: str, advice: str) -> Iterator[None]:
    """Turn torch's OutOfMemoryError inside the block into a UserError that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        # the first two sentences say how much was requested; a page of statistics follows
        cause = ". ".join(str(error).split(". ")[:2])
        raise out_of_memory_error(f"{purpose}: {cause}", advice) from None


def out_of_memory_error(purpose: str, advice: str) -> UserError:
    """Return a UserError that says what did not fit into memory, and what would help."""
    size = f" ({card().gb:.1f} GB)" if card().name else ""
    return UserError(
        f"{name()}{size} does not have enough memory for {purpose}.\n"
        f"End other programs that use the GPU (`nvidia-smi` lists them), or {advice}."
    )


def peak_memory() -> tuple[float, str]:
    """Return the peak memory so far in GiB, and its kind: "GPU" or "process" (main memory)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30, "GPU"
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, "process"


def set_threads() -> int:
    """Let torch use all cores that this process may use, and return their number.

    A smaller OMP_NUM_THREADS wins: a sweep's trial, or a scheduler's job, sets it to its share.
    """
    cores = machine.cores()
    share = os.environ.get("OMP_NUM_THREADS", "")
    if share.isdigit() and int(share) > 0:
        cores = min(cores, int(share))
    torch.set_num_threads(cores)
    return cores
