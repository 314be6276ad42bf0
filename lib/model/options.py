"""Who loads the model, and which settings do not go together, or not with this machine."""

import importlib.util

import torch
import transformers
from packaging.version import Version

from lib.common.errors import UserError
from lib.model import adapter, device
from lib.params import Params

# transformers before 5.6 trained Gemma 3n with wrong key/value sharing (PR #45489)
OLDEST_TRANSFORMERS = "5.6"
SMALL_CARD = 40  # GB: below it Unsloth's memory savings count, from there on our compiled path is the faster one


def backend(job: Params) -> tuple[str, str]:
    """Who loads and patches the model, and why; UserError where the choice cannot work here."""
    there = importlib.util.find_spec("unsloth") is not None
    if job.backend == "unsloth":
        if not there or not torch.cuda.is_available():
            lacking = (
                "a CUDA card, and torch sees none"
                if there
                else "the package unsloth, which is not installed"
            )
            raise UserError(
                f"backend: unsloth needs {lacking}. Set backend: auto, or install requirements.txt on a machine with a GPU."
            )
        if job.torch_compile or job.packing:
            raise UserError(
                "backend: unsloth has code of its own for what packing and torch_compile change. Set both to false, or "
                "backend: transformers."
            )
        if job.use_dora:
            raise UserError(
                "backend: unsloth computes LoRA by kernels of its own, which know no use_dora. Set use_dora: false, or "
                "backend: transformers."
            )
        return "unsloth", "as set"
    if job.backend == "transformers":
        return "transformers", "as set"
    name, size = device.card()
    if not name:
        return "transformers", "there is no GPU"
    if job.torch_compile or job.packing or job.use_dora:
        return "transformers", "packing, torch_compile and use_dora are its"
    if not job.load_in_4bit:
        return "transformers", "the base is 16-bit, and Unsloth's memory savings are for 4 bit"
    if size >= SMALL_CARD:
        return "transformers", f"{name} with {size:.0f} GB needs none of Unsloth's memory savings"
    return (
        ("unsloth", f"4 bit on {name} with {size:.0f} GB, where its savings count")
        if there
        else ("transformers", "unsloth is not installed")
    )


def check_options(job: Params) -> None:
    """UserError for settings that do not go together, or not with this machine, before anything is read."""
    cuda = torch.cuda.is_available()
    if Version(transformers.__version__) < Version(OLDEST_TRANSFORMERS):
        raise UserError(
            f"transformers {transformers.__version__} trains Gemma 3n wrongly; expected {OLDEST_TRANSFORMERS} or newer. "
            f"Run `make setup`."
        )
    if job.load_in_4bit and not cuda:
        raise UserError(
            "load_in_4bit needs an NVIDIA GPU, and torch sees none here. Use params/cpu.yaml, or set load_in_4bit: false."
        )
    if job.optim == "adamw_8bit" and not cuda:
        raise UserError(
            "optim: adamw_8bit needs an NVIDIA GPU, and torch sees none here. Use params/cpu.yaml, or set optim: adamw_torch."
        )
    if (job.load_in_4bit or job.optim == "adamw_8bit") and importlib.util.find_spec(
        "bitsandbytes"
    ) is None:
        raise UserError(
            "load_in_4bit and optim: adamw_8bit need the package bitsandbytes, which is not installed. Install requirements.txt, "
            "or set load_in_4bit: false and optim: adamw_torch."
        )
    if job.torch_compile and not cuda:
        raise UserError(
            "torch_compile needs an NVIDIA GPU, and torch sees none here. Set torch_compile: false."
        )
    if job.torch_compile and job.gradient_checkpointing and job.lora_dropout:
        raise UserError(
            "torch_compile with gradient_checkpointing cannot draw a dropout twice alike. Set lora_dropout: 0, or one of them to false."
        )
    if job.torch_compile and not job.packing:
        raise UserError(
            "torch_compile needs packing: true, which gives every micro-batch one shape. Set both, or neither."
        )
    if job.torch_compile and (
        job.load_in_4bit or job.offload_embedding or device.precision(job)[0] != torch.bfloat16
    ):
        raise UserError(
            "torch_compile needs a bfloat16 base on the card: set load_in_4bit: false, offload_embedding: false, precision: bf16."
        )
    if job.packing and cuda and torch.cuda.get_device_capability() < (8, 0):
        raise UserError(
            f"packing needs FlashAttention, which {device.name()} cannot run (compute capability 8.0 or more can). Set packing: false."
        )
    if job.packing and job.neftune_noise_alpha:
        raise UserError(
            "neftune_noise_alpha scales by a row's length, which packing hides. Set packing: false, or neftune_noise_alpha: 0."
        )
    if job.fsdp == "full_shard" and (job.load_in_4bit or job.torch_compile):
        raise UserError(
            "fsdp: full_shard spreads a 16-bit base, step by step. Set load_in_4bit: false and torch_compile: false, or fsdp: none."
        )
    if job.max_steps == 0:
        raise UserError("max_steps is 0; expected 1 or more steps, or -1 for num_train_epochs.")
    if job.early_stopping_patience and not job.eval_steps:
        raise UserError(
            "early_stopping_patience counts evals, and eval_steps is 0. Set eval_steps, for example to save_steps."
        )
    (
        device.precision(job),
        backend(job),
        adapter.targets(job),
    )  # each raises what is wrong with its own
