"""What `make doctor` says of main memory, and of a container's limits."""

from collections.abc import Iterator

import psutil

from lib.common import limits
from lib.runs.doctor.screen import Line

GIB = 2**30


def describe_memory() -> Iterator[Line]:
    """Yield how much main memory there is and how much of it is free for this process."""
    total = psutil.virtual_memory().total
    text = f"{limits.free_memory() / GIB:.1f} GiB free of {total / GIB:.1f}"
    memory, cores = limits.group_memory(), limits.group_cores()
    if memory is not None:
        text += f"; this container or job may take {memory / GIB:.1f} GiB in all"
    if cores is not None:
        text += f"; it may use the time of {cores:g} cores"
    yield Line("ok", "memory", text)
