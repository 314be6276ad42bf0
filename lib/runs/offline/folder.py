"""The folder of wheels that is carried over: what is in it, and for which machine it was made.

about.json    which set, for which Python and platform
SHA256SUMS    every other file of ours, as `sha256sum --check` reads it; written last
*.whl         the packages
"""

import json
import pathlib
import re
import time
from collections.abc import Iterator
from typing import TypedDict

from lib.common import files
from lib.common.errors import UserError

LIST = "SHA256SUMS"
ABOUT = "about.json"
REQUIREMENTS = {"cpu": "requirements-cpu.txt", "cuda": "requirements.txt"}
GLIBC = 28  # 2.28: torch's wheels for Linux need it, so an older one would not help
NAMES = {"cpu": "the CPU set", "cuda": "the CUDA set"}


class About(TypedDict):
    """For which machine a folder was made."""

    set: str  # cpu or cuda
    python: str  # 3.11
    platform: str  # a pip platform tag: manylinux_2_28_x86_64


def read_list(folder: pathlib.Path) -> dict[str, str]:
    """Return {file name: sha256} of the folder's list; {} without one.

    Raise UserError for a line that is none of its kind.
    """
    path = folder / LIST
    if not path.is_file():
        return {}
    hashes = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        match = re.fullmatch(r"([0-9a-f]{64})  ([^/\\]+)", line)
        if not match:
            raise UserError(
                f"`{path}` is damaged: `{line[:80]}` is not a sha256 and a file name.\n"
                f"Copy the folder again, or run `make wheels DIR=...` again where there is a "
                f"network; it downloads only what is missing or damaged."
            )
        hashes[match[2]] = match[1]
    return hashes


def write_list(folder: pathlib.Path, about: About, hashes: dict[str, str]) -> None:
    """Write about.json and then the list, with which a folder is complete."""
    files.write_json(folder / ABOUT, about)
    hashes = {**hashes, ABOUT: files.sha256(folder / ABOUT)}
    lines = [f"{hashes[name]}  {name}\n" for name in sorted(hashes)]
    files.atomic_write(folder / LIST, "".join(lines))


def read_about(folder: pathlib.Path) -> About:
    """Return about.json; raise UserError when it is not readable."""
    try:
        about: About = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if about["set"] in REQUIREMENTS and about["python"] and about["platform"]:
            return about
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(f"`{folder / ABOUT}` is damaged. Copy the folder again.")


def find_damaged(folder: pathlib.Path, hashes: dict[str, str]) -> dict[str, str]:
    """Return {file name: `missing` or `damaged or cut off`} of the listed files; print progress."""
    sizes = {name: _size(folder / name) for name in hashes}
    total, done, printed = sum(sizes.values()), 0, time.monotonic()
    damaged = {}
    for name, expected in hashes.items():
        if not (folder / name).is_file():
            damaged[name] = "missing"
        elif _sha256(folder / name) != expected:
            damaged[name] = "damaged or cut off"
        done += sizes[name]
        if time.monotonic() - printed > 5:
            printed = time.monotonic()
            print(f"checked {done / 1e9:.1f} of {total / 1e9:.1f} GB", flush=True)
    return damaged


def wheel_version(name: str) -> tuple[str, str]:
    """Return (package, version) of a wheel's file name, the package as pip compares names."""
    package, version = name.split("-")[:2]
    return normalise(package), version


def normalise(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def read_pins(path: pathlib.Path) -> Iterator[str]:
    """Yield the pins of a requirements file, and of those that it names with -r."""
    for line in path.read_text(encoding="utf-8").splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("-r "):
            yield from read_pins(path.parent / line.removeprefix("-r ").strip())
        elif line:
            yield line


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _sha256(path: pathlib.Path) -> str:
    """Return a file's sha256; "" where the disk cannot read it."""
    try:
        return files.sha256(path)
    except OSError:
        return ""
