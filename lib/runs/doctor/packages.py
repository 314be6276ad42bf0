"""What `make doctor` says of installed packages: their versions, and whether they load.

This module imports no package, so that it works before `make setup`.
"""

import functools
import importlib.metadata
import importlib.util
import pathlib
import subprocess
import sys
from collections.abc import Iterator

from lib.common import machine
from lib.common.errors import ROOT
from lib.runs.doctor.screen import Line
from lib.runs.offline import folder

SECONDS = 180  # for a package to load; torch takes minutes from a cold network disk
# packages with programs inside that may not fit the machine, and what they are for
LOADED = {
    "torch": "computes",
    "xllamacpp": "llama.cpp, which compares and asks GGUF files",
    "ipykernel": "the notebooks' kernel",
}


def choose_requirements() -> str:
    """Return the name of the requirements file that this environment was made from, or needs."""
    for name in folder.REQUIREMENTS.values():
        if (pathlib.Path(sys.prefix) / f".ready-{name}").is_file():
            return name
    return folder.REQUIREMENTS["cuda" if machine.gpus() else "cpu"]


def describe_packages() -> Iterator[Line]:
    """Yield how the installed packages differ from the pins."""
    name = choose_requirements()
    pins = [pin.partition("==")[::2] for pin in folder.read_pins(ROOT / name)]
    absent, others = [], []
    for package, version in pins:
        found = _find_version(package)
        if found is None:
            absent.append(f"{package} {version}")
        elif found.split("+")[0] != version:
            others.append(f"{package} {found}, pinned {version}")
    if absent:
        shown = ", ".join(absent[:6]) + (" ..." if len(absent) > 6 else "")
        yield Line(
            "missing",
            "packages",
            f"{len(absent)} of {len(pins)} in {name} not installed; {name_step()} installs them: "
            f"{shown}",
        )
    if others:
        yield Line(
            "note",
            "versions",
            f"{len(others)} of {len(pins)} differ from {name}, and nothing was tried with them: "
            + "; ".join(others),
        )
    if not absent and not others:
        yield Line("ok", "packages", f"{len(pins)} as pinned in {name}")


def name_step(again: str = "") -> str:
    """Return the command that installs the packages; `again` is an option of pip."""
    own = ROOT / ".venv"
    if pathlib.Path(sys.prefix).resolve() == own.resolve():
        return f"`.venv/bin/python -m pip install {again}-r {choose_requirements()}`"
    if own.is_dir():  # its Python is gone, or this is another one
        return "`rm -r .venv`, then `make setup`,"
    return "`make setup`"


def _find_version(package: str) -> str | None:
    """Return the version of an installed package; None if it, or its version, is missing."""
    try:
        return importlib.metadata.version(package) or None
    except Exception:  # a half-removed package can raise anything
        return None


def describe_loading() -> Iterator[Line]:
    """Yield for each of LOADED whether it loads, tried in a process that it may crash."""
    for package, purpose in LOADED.items():
        reason = explain_failure(package)
        if reason:
            yield Line(
                "missing",
                package,
                f"{purpose}; it does not load: {reason}. To install it again: "
                f"{name_step('--force-reinstall ')}",
            )
    if all(explain_failure(package) == "" for package in LOADED):
        yield Line("ok", "loading", f"{', '.join(LOADED)} load")


@functools.cache
def explain_failure(package: str) -> str:
    """Return why a package does not load; "" if it does."""
    try:
        if importlib.util.find_spec(package) is None:
            return "it is not installed"
        done = subprocess.run(
            [sys.executable, "-c", f"import {package}"],
            cwd=ROOT,
            capture_output=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {SECONDS} s"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if done.returncode == 0:
        return ""
    said = done.stderr.decode(errors="replace").strip().splitlines()
    crash = f"killed by signal {-done.returncode}" if done.returncode < 0 else ""
    return crash or (said[-1] if said else f"exit status {done.returncode}")
