"""Choose the library that loads the model, and refuse settings that cannot work."""

import functools
from collections.abc import Callable, Iterable, Iterator

import torch
import transformers
from packaging.version import Version

from lib import params
from lib.common.errors import UserError
from lib.model import adapter, device
from lib.params import Params, packages
from lib.params.conflicts import NEEDS_BFLOAT16

# transformers before 5.6 trained Gemma 3n with wrong key/value sharing (PR #45489)
OLDEST_TRANSFORMERS = "5.6"
# GB: a smaller card needs Unsloth's memory savings; on a larger one our compiled path is faster
SMALL_CARD = 40


def choose_backend(job: Params) -> tuple[str, str]:
    """Return "unsloth" or "transformers", and why.

    Raise UserError when the job's choice cannot work.
    """
    if job.backend == "unsloth":
        _refuse_first(_conflicts_of_unsloth(job))
        return "unsloth", "as set"
    if job.backend == "transformers":
        return "transformers", "as set"
    card = device.card()
    if not card.name:
        return "transformers", "there is no GPU"
    if job.full_finetuning:
        return "transformers", "only transformers is used for full_finetuning"
    if job.torch_compile or job.packing or job.use_dora:
        return "transformers", "only transformers has packing, torch_compile and use_dora"
    if job.train_end_token is True:
        return "transformers", "train_end_token was not tried with unsloth"
    if not job.load_in_4bit:
        return "transformers", "the base is 16-bit, and Unsloth's memory savings are for 4 bit"
    if card.gb >= SMALL_CARD:
        return (
            "transformers",
            f"{card.name} with {card.gb:.0f} GB needs none of Unsloth's memory savings",
        )
    if not packages.is_installed("unsloth"):
        return "transformers", "unsloth is not installed"
    return "unsloth", f"4 bit on {card.name} with {card.gb:.0f} GB, where its savings count"


def _conflicts_of_unsloth(job: Params) -> Iterator[tuple[bool, str]]:
    """Yield each condition under which Unsloth cannot load the job, and the message for it."""
    for message in packages.list_missing(job):
        yield True, message
    yield (
        not torch.cuda.is_available(),
        "backend: unsloth needs an NVIDIA GPU, but torch sees none. Set backend: auto, or install "
        "requirements.txt on a machine with a GPU.",
    )


def check_options(job: Params) -> None:
    """Raise UserError for settings that exclude each other, or that this machine cannot run.

    It reads no file, so that it can run before a download.
    """
    _refuse_first(_conflicts(job))
    # these three raise their own errors
    device.choose_precision(job.precision, job.load_in_4bit)
    choose_backend(job)
    adapter.target_pattern(job.finetune_attention_modules, job.finetune_mlp_modules)


def list_refusals(job: Params) -> list[str]:
    """Return all messages that `check_options` would raise, one after the other."""
    checks: list[Callable[[], object]] = [
        *(functools.partial(_refuse_first, [conflict]) for conflict in _read_conflicts(job)),
        functools.partial(device.choose_precision, job.precision, job.load_in_4bit),
        functools.partial(choose_backend, job),
        functools.partial(
            adapter.target_pattern, job.finetune_attention_modules, job.finetune_mlp_modules
        ),
    ]
    messages = []
    for check in checks:
        try:
            check()
        except UserError as error:
            messages.append(str(error))
    return list(dict.fromkeys(messages))


def _read_conflicts(job: Params) -> Iterator[tuple[bool, str]]:
    """Yield the job's conflicts as far as they can be told; an error is one of them."""
    try:
        yield from _conflicts(job)
    except UserError as error:
        yield True, str(error)


def _refuse_first(conflicts: Iterable[tuple[bool, str]]) -> None:
    """Raise UserError with the message of the first condition that is true."""
    for applies, message in conflicts:
        if applies:
            raise UserError(message)


def _conflicts(job: Params) -> Iterator[tuple[bool, str]]:
    """Yield each condition that forbids the job, and the message for it.

    It is a generator, so that no condition is evaluated after one that is true.
    """
    cuda = torch.cuda.is_available()
    for message in params.list_conflicts(job):  # what no machine can do, first
        yield True, message
    yield (
        Version(transformers.__version__) < Version(OLDEST_TRANSFORMERS),
        f"transformers {transformers.__version__} trains Gemma 3n wrongly; expected "
        f"{OLDEST_TRANSFORMERS} or newer. Run `make setup`.",
    )
    yield (
        job.load_in_4bit and not cuda,
        "load_in_4bit needs an NVIDIA GPU, but torch sees none here. Use params/cpu.yaml, or set "
        "load_in_4bit: false.",
    )
    yield (
        job.optim == "adamw_8bit" and not cuda,
        "optim: adamw_8bit needs an NVIDIA GPU, but torch sees none here. Use params/cpu.yaml, "
        "or set optim: adamw_torch.",
    )
    for message in packages.list_missing(job):
        yield True, message
    yield (
        job.torch_compile and not cuda,
        "torch_compile needs an NVIDIA GPU, but torch sees none here. Set torch_compile: false.",
    )
    yield job.torch_compile and not _is_bfloat16_on_card(job), NEEDS_BFLOAT16
    yield (
        # without a GPU, packing takes another path
        job.packing and cuda and torch.cuda.get_device_capability() < (8, 0),
        f"packing needs FlashAttention, which {device.card().name} cannot run: it needs compute "
        "capability 8.0 or more. Set packing: false.",
    )


def _is_bfloat16_on_card(job: Params) -> bool:
    if job.load_in_4bit or job.offload_embedding:
        return False
    return device.choose_precision(job.precision, job.load_in_4bit)[0] == torch.bfloat16
