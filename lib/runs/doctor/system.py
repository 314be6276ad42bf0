"""What `make doctor` says of the checkout, Python, processor, memory, disk, variables.

This module imports no package, so that it works before `make setup`.
"""

import os
import pathlib
import platform
import shutil
import sys
import tomllib
from collections.abc import Iterator

from lib.common import files, locations, machine
from lib.common.errors import ROOT
from lib.runs.doctor.screen import Line

GIB = 2**30
# other programs, and what they are for
PROGRAMS = {
    "git": "to record the commit",
    "chromium": "for tests of the pages",
    "ollama": "to run GGUF files by hand",
    "llama-cli": "to run GGUF files by hand",
}
# Chromium's program has several names
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
# variables that change what torch or the hub's library does
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "HF_DATASETS_OFFLINE",
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
    "TRANSFORMERS_OFFLINE",
)


def describe_project() -> Iterator[Line]:
    """Yield version and commit of this project."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    commit, is_dirty = machine.describe_checkout()
    text = f"MedRescue Tuning {project['version']}, "
    if commit:
        text += f"commit {commit[:12]}{', with uncommitted changes' if is_dirty else ''}"
    else:
        text += "commit unknown: not a git checkout, or git is missing"
    yield Line("ok" if commit else "note", "project", text)


def describe_python() -> Iterator[Line]:
    """Yield version and place of Python, and the operating system."""
    own = pathlib.Path(sys.prefix).resolve() == (ROOT / ".venv").resolve()
    where = ".venv" if own else sys.prefix
    system = platform.platform()
    yield Line("ok", "python", f"{platform.python_version()} in {where}; {system}")


def describe_cores() -> Iterator[Line]:
    """Yield the processor, and its cores that this process may use."""
    hardware = machine.hardware()
    text = f"{hardware['cpu']}, {machine.cores()} of {hardware['cores']} cores usable"
    yield Line("ok", "processor", text)


def describe_disk() -> Iterator[Line]:
    """Yield free space and permission where runs and the cache are."""
    places = {"runs": locations.runs_folder(), "cache": locations.cache_folder()}
    variables = {"runs": "MEDRESCUE_RUNS", "cache": "MEDRESCUE_CACHE"}
    for what, folder in places.items():
        there = locations.existing_parent(folder)
        free = files.free_disk(there)
        if not there.is_dir():
            trouble = f"`{there}` is not a folder"
        elif not os.access(there, os.W_OK | os.X_OK):
            trouble = f"no permission to write in `{there}`"
        elif free < files.STAGE_BYTES:
            trouble = f"only {free / 2**20:.0f} MiB are free"
        else:
            yield Line("ok", what, f"{folder}: writable, {free / GIB:.1f} GiB free")
            continue
        yield Line(
            "missing",
            what,
            f"{folder}: {trouble}. Set {variables[what]} to a folder that you can write to.",
        )


def describe_hub() -> Iterator[Line]:
    """Yield whether a token is set, never its value, and the variables that change something."""
    token = "set" if os.environ.get("HF_TOKEN", "").strip() else "not set"
    yield Line(
        "ok" if token == "set" else "note",
        "HF_TOKEN",
        f"{token}; only private or gated models and data, and push_to, need it",
    )
    ours = sorted(name for name in os.environ if name.startswith("MEDRESCUE_"))
    given = [f"{name}={os.environ[name]}" for name in (*ours, *VARIABLES) if name in os.environ]
    if given:
        yield Line("note", "variables", " ".join(given))


def describe_programs() -> Iterator[Line]:
    """Yield which other programs are there, and what those that are not would be for."""
    absent = [name for name in PROGRAMS if not find_program(name)]
    there = [name for name in PROGRAMS if name not in absent]
    text = f"{', '.join(there) or 'none'} found"
    purposes: dict[str, list[str]] = {}
    for name in absent:
        purposes.setdefault(PROGRAMS[name], []).append(name)
    if absent:
        listed = [f"{' and '.join(names)} {purpose}" for purpose, names in purposes.items()]
        text += f"; optional: {', '.join(listed)}"
    yield Line("note" if absent else "ok", "programs", text)


def find_program(name: str) -> str | None:
    """Return the path of one of PROGRAMS, or None."""
    names = CHROMIUM if name == "chromium" else (name,)
    return next((path for each in names if (path := shutil.which(each))), None)
