"""What computes: the card in use or the processor, its memory, its peak rate, and the precision that suits it."""

import contextlib
import functools
import os
import re
import resource
import sys
from collections.abc import Iterator

import torch

from lib.common import machine
from lib.common.errors import UserError
from lib.params import Params

# dense 16-bit rates by vendors' datasheets, for the share of them that a run reaches
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


@functools.cache
def card() -> tuple[str, float]:
    """Name and GB of the card in use; ("", 0) without one."""
    if not torch.cuda.is_available():
        return "", 0.0
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return properties.name, properties.total_memory / 1e9


def name() -> str:
    return card()[0] or machine.hardware()["cpu"]


def precision(job: Params | None = None) -> tuple[torch.dtype, str]:
    """The type to compute in, and why."""
    if job and job.precision != "auto":
        if job.precision == "fp16" and not (job.load_in_4bit and torch.cuda.is_available()):
            raise UserError(
                "precision: fp16 is for a 4-bit base on a GPU, where only the products with it are float16. "
                "Use bf16 or fp32, or set load_in_4bit: true."
            )
        if (
            job.precision == "bf16"
            and torch.cuda.is_available()
            and not torch.cuda.is_bf16_supported(including_emulation=False)
        ):
            raise UserError(
                f"precision: bf16 is not in {card()[0]}, which would emulate it slowly. Set precision: auto."
            )
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[
            job.precision
        ], "as set"
    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "the card has bfloat16"
        if job and job.load_in_4bit:
            return (
                torch.float16,
                "the card has no bfloat16; Gemma 3n overflows in float16, so only products with 4-bit weights are float16",
            )
        return torch.float32, "the card has no bfloat16, and Gemma 3n overflows in float16"
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.bfloat16, "this processor multiplies bfloat16 about twice as fast as float32"
    return torch.float32, "this processor has no fast bfloat16"


def peak_flops() -> float:
    """Operations a second of the card in use in 16 bit, by its datasheet; 0 where it is not known."""
    return next(
        (rate for name, rate in PEAK_FLOPS.items() if re.search(rf"\b{name}\b", card()[0])), 0.0
    )


@contextlib.contextmanager
def memory_for(what: str, advice: str) -> Iterator[None]:
    """Where the card has not enough memory inside the block: a UserError that says for what, and what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise out_of_memory(f"{what}: {'. '.join(str(error).split('. ')[:2])}", advice) from None


def out_of_memory(what: str, advice: str) -> UserError:
    return UserError(
        f"{name()}{card()[0] and f' ({card()[1]:.1f} GB)'} has not enough memory for {what}.\n"
        f"End what else uses the card (`nvidia-smi` lists it), or {advice}."
    )


def memory_gib() -> tuple[float, str]:
    """Peak memory so far and whose it is: the card's allocations, or this process's resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30, "GPU"
    unit = (
        1 if sys.platform == "darwin" else 1024
    )  # ru_maxrss is in bytes on macOS, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, "process"


def threads() -> int:
    """Cores for torch: what this process may use, not what the machine has; fewer where OMP_NUM_THREADS says so."""
    asked = os.environ.get(
        "OMP_NUM_THREADS", ""
    )  # of a sweep's trial, or a scheduler's job, that has a part of the cores
    cores = min(machine.cores(), int(asked)) if asked.isdigit() and int(asked) else machine.cores()
    torch.set_num_threads(cores)
    return cores
