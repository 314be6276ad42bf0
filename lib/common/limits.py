"""Tell how much memory and how many cores this process may take, inside a container too.

A container or a scheduler's job (a cgroup of Linux) often has less than the machine shows.
"""

import contextlib
import pathlib
from collections.abc import Iterator

import psutil

from lib.common.errors import UserError

GROUPS = pathlib.Path("/sys/fs/cgroup")
OWN_GROUP = pathlib.Path("/proc/self/cgroup")
# names of the files in version 2, then in version 1: limit, use, and what of that can be freed
MEMORY_FILES = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def require_memory(needed: int, what: str) -> None:
    """Raise UserError unless `needed` bytes of main memory are free.

    The system kills a process that takes more, without a message.
    """
    free = free_memory()
    if free < needed:
        raise UserError(
            f"Not enough memory for {what}: it needs about {needed / 2**30:.1f} GiB, but "
            f"{free / 2**30:.1f} GiB are free.\n"
            f"Close other programs, use a machine with more memory or with a GPU, or choose a "
            f"smaller base_model."
        )


def require_card_memory(needed: int, card_bytes: float, what: str) -> None:
    """Raise UserError unless a card has `needed` bytes for full fine-tuning."""
    if needed > card_bytes:
        raise UserError(
            f"Not enough memory on the card for {what}: it needs about {needed / 2**30:.1f} GiB on "
            f"each card, and activations besides, but the card has {card_bytes / 2**30:.1f} GiB.\n"
            f"Set optim: adamw_8bit if it is not set, or full_finetuning: false, or choose a "
            f"smaller base_model."
        )


def free_memory() -> int:
    """Return the bytes of main memory that this process can still take."""
    return min([psutil.virtual_memory().available, *_memory_left()])


def group_memory() -> int | None:
    """Return the bytes that this process's cgroup may take in all; None without a limit."""
    total = psutil.virtual_memory().total
    limits = [limit for limit, _ in _memory_limits() if limit < total]
    return min(limits) if limits else None


def group_cores() -> float | None:
    """Return the cores' time that this process's cgroup may take; None without a limit."""
    quotas = []
    for folder in _folders(""):
        words = _read(folder / "cpu.max").split()
        if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
            quotas.append(int(words[0]) / int(words[1]))
    for folder in _folders("cpu"):
        quota, period = (_read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if quota.isdigit() and period.isdigit() and int(period):
            quotas.append(int(quota) / int(period))
    return min(quotas) if quotas else None


def _memory_left() -> Iterator[int]:
    """Yield what each cgroup around this process still leaves it."""
    for limit, used in _memory_limits():
        yield max(0, limit - used)


def _memory_limits() -> Iterator[tuple[int, int]]:
    """Yield (limit, use) of each cgroup around this process that has a limit, in bytes."""
    for controller, limit_file, use_file, freeable in MEMORY_FILES:
        for folder in _folders(controller):
            limit, used = _read(folder / limit_file), _read(folder / use_file)
            if limit.isdigit() and used.isdigit():
                lines = dict(
                    line.split(" ", 1)
                    for line in _read(folder / "memory.stat").splitlines()
                    if " " in line
                )
                cached = lines.get(freeable, "0")
                yield int(limit), int(used) - (int(cached) if cached.isdigit() else 0)


def _folders(controller: str) -> Iterator[pathlib.Path]:
    """Yield this process's cgroup and those around it, up to the top.

    "" is version 2, a controller's name is version 1. Inside a container the path may be that of
    the machine, which does not exist there; its own top does.
    """
    for line in _read(OWN_GROUP).splitlines():
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if controller not in controllers.split(","):
            continue
        own = pathlib.PurePosixPath("/" + path.lstrip("/")).relative_to("/")
        for part in (own, *own.parents):
            yield GROUPS / controller / part
        return


def _read(path: pathlib.Path) -> str:
    """Return a file's text without its end of line; "" if it cannot be read."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text().strip()
    return ""
