"""The machine for which packages are downloaded: its Python and its platform."""

import dataclasses
import platform
import re
import sys
import sysconfig

from packaging.markers import default_environment

from lib.common.errors import UserError
from lib.runs.offline.folder import GLIBC


@dataclasses.dataclass(frozen=True)
class Target:
    """A Python version (3.11) and a pip platform tag (manylinux_2_28_x86_64)."""

    python: str
    platform: str


def make_target(python: str = "", machine: str = "") -> Target:
    """Return the target: this Python and machine, unless named otherwise.

    `machine` is a processor under Linux, x86_64 or aarch64. Raise UserError for anything else: from
    Linux, pip cannot choose for macOS.
    """
    python = python or f"{sys.version_info.major}.{sys.version_info.minor}"
    if not re.fullmatch(r"3\.\d{1,2}", python) or int(python[2:]) < 11:
        raise UserError(f"FOR_PYTHON=`{python}`: expected a version from 3.11 on, as in 3.12.")
    if not machine:
        own = re.sub(r"[-.]", "_", sysconfig.get_platform())
        if own.startswith("macosx_"):
            return Target(python, own)
        machine = platform.machine()
    if machine not in ("x86_64", "aarch64"):
        raise UserError(
            f"FOR_PLATFORM=`{machine}`: expected x86_64 or aarch64 (Linux on such a processor). "
            f"For a Mac, run this on a Mac."
        )
    return Target(python, f"manylinux_2_{GLIBC}_{machine}")


def pip_options(target: Target) -> list[str]:
    """Return pip's options that choose wheels for the target.

    pip takes a manylinux tag literally, so the tags of older systems, which run there as well, are
    named too.
    """
    tags = [target.platform]
    if target.platform.startswith("manylinux"):
        machine = processor(target)
        tags = [f"manylinux_2_{minor}_{machine}" for minor in range(GLIBC, 4, -1)]
        tags += [f"manylinux{year}_{machine}" for year in ("2014", "2010", "1")]
        tags += [f"linux_{machine}"]
    options = [f"--platform={tag}" for tag in tags]
    return [*options, f"--python-version={target.python}", "--only-binary=:all:"]


def processor(target: Target) -> str:
    """Return the processor of a target's tag, as `platform.machine()` says it there."""
    found = re.fullmatch(r"[a-z]+_\d+_\d+_(\w+)", target.platform)
    return found[1] if found else ""


def marker_environment(target: Target) -> dict[str, str]:
    """Return the values that the markers of requirements have on the target.

    pip takes those of the machine it runs on, whatever the target.
    """
    here = {key: str(value) for key, value in default_environment().items()}
    if here["python_version"] != target.python:
        here |= {"python_version": target.python, "python_full_version": f"{target.python}.0"}
    linux = target.platform.startswith("manylinux")
    return here | {
        "os_name": "posix",
        "sys_platform": "linux" if linux else "darwin",
        "platform_system": "Linux" if linux else "Darwin",
        "platform_machine": processor(target),
    }
