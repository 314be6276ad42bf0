"""What `make doctor` says of the GPUs, and of the precision that training would choose."""

import warnings
from collections.abc import Iterator

import torch

from lib.common import machine
from lib.common.errors import UserError
from lib.model import device
from lib.runs.doctor.screen import Line

FP8 = (8, 9)  # the compute capability from which tensor cores multiply 8-bit floats


def describe_cards() -> Iterator[Line]:
    """Yield the GPUs as nvidia-smi and torch see them."""
    seen = machine.gpus()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if usable:
        yield from _describe_usable()
        return
    if not seen:
        yield Line(
            "note",
            "card",
            "none: nvidia-smi finds no NVIDIA GPU; training is for params/cpu.yaml",
        )
        return
    yield Line("missing", "card", f"{'; '.join(seen)}: torch cannot use it. {_explain(said)}")


def _explain(said: list[warnings.WarningMessage]) -> str:
    """Say why torch does not see a GPU that nvidia-smi sees, and what to do."""
    driver = machine.driver() or "unknown"
    if torch.version.cuda is None:
        return (
            f"torch {torch.__version__} is a build without CUDA: `rm -r .venv`, then `make setup "
            f"FOR=cuda`."
        )
    reason = f" torch says: {str(said[0].message).splitlines()[0]}" if said else ""
    return (
        f"Driver {driver}, torch built for CUDA {torch.version.cuda}: a newer driver may be "
        f"needed, or CUDA_VISIBLE_DEVICES hides the GPU.{reason}"
    )


def _describe_usable() -> Iterator[Line]:
    cards: dict[tuple[str, str], int] = {}
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        capability = torch.cuda.get_device_capability(number)
        text = f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB"
        key = (text, ".".join(map(str, capability)))
        cards[key] = cards.get(key, 0) + 1
    listed = [
        f"{f'{count} x ' if count > 1 else ''}{text}, compute capability {capability}"
        for (text, capability), count in cards.items()
    ]
    driver = machine.driver() or "unknown"
    rest = f"driver {driver}, torch for CUDA {torch.version.cuda}"
    yield Line("ok", "card", f"{'; '.join(listed)}; {rest}")
    oldest = min(
        (int(name[3:]) for name in torch.cuda.get_arch_list() if name[3:].isdigit()), default=0
    )
    major, minor = torch.cuda.get_device_capability()
    if 10 * major + minor < oldest:
        yield Line(
            "missing",
            "card",
            f"this build of torch has no program for compute capability {major}.{minor}, only from "
            f"{oldest / 10:.1f}. Use a newer card, or train without it: CUDA_VISIBLE_DEVICES= ",
        )


def describe_precision(precision: str = "auto", load_in_4bit: bool = False) -> Iterator[Line]:
    """Yield what the device computes in, and what a job with these parameters would."""
    can = ""
    if torch.cuda.is_available():
        has_fp8 = torch.cuda.get_device_capability() >= FP8
        can = (
            f"the card has fp16, {'bf16' if device.card_has_bfloat16() else 'no bf16'} and "
            f"{'fp8' if has_fp8 else 'no fp8'} (fp8 is not used here); "
        )
    try:
        dtype, why = device.choose_precision(precision, load_in_4bit)
    except UserError as error:
        yield Line("missing", "precision", f"{can}{error}")
        return
    base = "4-bit" if load_in_4bit else "16-bit"
    chosen = str(dtype).removeprefix("torch.")
    yield Line("ok", "precision", f"{can}{base} base in {chosen}: {why}")
