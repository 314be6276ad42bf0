"""Which packages a job's training needs that are not installed; nothing is imported for it."""

import importlib.util
from collections.abc import Iterator

from lib.params.schema import Params


def is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # it is loaded, but not from a file
        return True


def list_missing(job: Params) -> Iterator[str]:
    """Yield a message for each package that a job's training needs and that is not installed."""
    if job.backend == "unsloth" and not is_installed("unsloth"):
        yield (
            "backend: unsloth needs the package unsloth, which is not installed. Set backend: "
            "auto, or install requirements.txt on a machine with a GPU."
        )
    if (job.load_in_4bit or job.optim == "adamw_8bit") and not is_installed("bitsandbytes"):
        yield (
            "load_in_4bit and optim: adamw_8bit need the package bitsandbytes, which is not "
            "installed. Install requirements.txt, or set load_in_4bit: false and optim: "
            "adamw_torch."
        )
    if job.report_to != "none" and not is_installed(job.report_to):
        yield (
            f"report_to is {job.report_to}, which is not installed here. Install it with `pip "
            f"install -r requirements-trackers.txt` (or `pip install {job.report_to}` alone), or "
            f"set report_to: none."
        )
