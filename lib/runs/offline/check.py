"""Check a folder of wheels on the machine where it is installed, before pip reads it.

    make setup WHEELS=/media/stick     # checks, then installs from this folder alone

It needs the standard library alone. Exit codes: 0, 2 for what the user can mend.
"""

import argparse
import pathlib
import platform
import re
import sys
from collections.abc import Iterable

from lib.common import locations
from lib.common.errors import ROOT, UserError
from lib.runs.offline import folder
from lib.runs.offline.folder import About

SHOWN = 10  # names in a message


def main(argv: list[str] | None = None) -> int:
    """Check; return the exit code."""
    parser = argparse.ArgumentParser(prog="make setup", description=__doc__)
    parser.add_argument("folder", help="WHEELS: the folder that was carried over")
    parser.add_argument("--for", dest="set", choices=folder.REQUIREMENTS, default="cpu")
    parser.add_argument("--chosen", action="store_true", help="FOR was given, not found out")
    options = parser.parse_args(argv)
    try:
        check(options.folder, options.set, options.chosen)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def check(name: str, set_name: str, chosen: bool) -> None:
    """Raise UserError unless a folder is whole, and made for this machine, Python and project.

    `chosen` tells that the user named the set; otherwise it follows from whether there is a GPU.
    """
    place = locations.local_path(name)
    if not place.is_dir():
        raise UserError(f"WHEELS=`{name}` is not a folder. Expected the DIR of `make wheels`.")
    hashes = folder.read_list(place)
    if not hashes:
        raise UserError(
            f"`{place}` has no {folder.LIST}, which `make wheels` writes last: the download was "
            f"not finished, or this is another folder.\n"
            f"Run `make wheels DIR=...` again where there is a network; it goes on."
        )
    about = folder.read_about(place)
    _check_machine(place, about)
    _check_set(place, about, set_name, chosen)
    _check_pins(place, hashes, set_name, about)
    print(f"Checking the {len(hashes)} files of {place} ...", flush=True)
    _check_files(place, hashes)


def _check_machine(place: pathlib.Path, about: About) -> None:
    """Raise UserError unless Python, system and processor are those of the folder."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if about["python"] != here:
        raise UserError(
            f"`{place}` is for Python {about['python']}, but this is Python {here}.\n"
            f"If this machine has the other one: `make setup PYTHON=python{about['python']} "
            f"WHEELS=...`. Otherwise make the folder again with FOR_PYTHON={here}."
        )
    made_with = _environment_python()
    if made_with not in ("", here):
        raise UserError(
            f"`.venv` was made with Python {made_with}, and this is Python {here}.\n"
            f"Remove it with `rm -rf .venv`, then give the same command again."
        )
    linux = platform.system() == "Linux"
    if about["platform"].startswith("macosx") is linux or not about["platform"].endswith(
        f"_{platform.machine()}"
    ):
        raise UserError(
            f"`{place}` is for {about['platform']}, but this machine is {platform.system()} on "
            f"{platform.machine()}.\n"
            f"Make the folder again{f', with FOR_PLATFORM={platform.machine()}' if linux else ''}."
        )
    system, version = platform.libc_ver()
    if linux and (system != "glibc" or _numbers(version) < (2, folder.GLIBC)):
        raise UserError(
            f"the packages need glibc 2.{folder.GLIBC} or newer, this machine has "
            f"{version if system == 'glibc' else 'another C library'}.\nUse a newer Linux."
        )


def _environment_python() -> str:
    """Return the Python version of the checkout's .venv, as in 3.11; "" without one."""
    settings = ROOT / ".venv" / "pyvenv.cfg"
    text = settings.read_text(encoding="utf-8") if settings.is_file() else ""
    version = re.search(r"^version(?:_info)? *= *(\d+\.\d+)", text, re.MULTILINE)
    return version[1] if version else ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _check_set(place: pathlib.Path, about: About, wanted: str, chosen: bool) -> None:
    """Raise UserError if the folder does not have the wanted set, or more than was found out."""
    if about["set"] == "cpu" and wanted == "cuda":
        raise UserError(
            f"`{place}` has the CPU set, but {'FOR=cuda' if chosen else 'the NVIDIA GPU here'} "
            f"needs the CUDA set.\nMake the folder again with FOR=cuda. To work without the GPU: "
            f"`make setup WHEELS=... FOR=cpu`."
        )
    if about["set"] == "cuda" and wanted == "cpu" and not chosen:
        raise UserError(
            f"`{place}` has the CUDA set, but nvidia-smi finds no GPU on this machine.\n"
            f"If it has one, install NVIDIA's driver first. Otherwise `make setup WHEELS=... "
            f"FOR=cpu` installs from this folder what a processor needs, and FOR=cuda all of it."
        )


def _check_pins(place: pathlib.Path, names: dict[str, str], set_name: str, about: About) -> None:
    """Raise UserError if a pin of this checkout is not in the folder."""
    there: dict[str, str] = {}
    for name in names:
        if name.endswith(".whl"):
            package, version = folder.wheel_version(name)
            there[package] = version
    wrong = []
    for pin in folder.read_pins(ROOT / folder.REQUIREMENTS[set_name]):
        package, version = pin.split("==")
        found = there.get(folder.normalise(package), "none")
        if found.split("+")[0] != version:
            wrong.append(f"{pin} (there: {found})")
    if wrong:
        raise UserError(
            f"`{place}` lacks {_enumerate(wrong)}: it was made from another state of the "
            f"project.\nCarry over the clone with which it was made, or run `make wheels DIR=... "
            f"FOR={about['set']} FOR_PYTHON={about['python']}` again with this one."
        )


def _check_files(place: pathlib.Path, hashes: dict[str, str]) -> None:
    """Raise UserError for files that are missing, damaged, or not listed."""
    damaged = folder.find_damaged(place, hashes)
    if damaged:
        raise UserError(
            f"of {len(hashes)} files in `{place}`, {len(damaged)} cannot be used: "
            f"{_enumerate(f'{name} ({why})' for name, why in damaged.items())}.\n"
            f"Copy them again, or run `make wheels DIR=...` again where there is a network; it "
            f"downloads only these."
        )
    # ._x.whl: what macOS leaves on a stick, which pip does not take for a wheel
    others = [p.name for p in place.glob("[!.]*.whl") if p.name not in hashes]
    if others:
        raise UserError(
            f"`{place}` also has {_enumerate(sorted(others))}, which `make wheels` did not put "
            f"there; pip might install what nobody checked.\nMove them out of the folder."
        )


def _enumerate(names: Iterable[str]) -> str:
    listed = list(names)
    more = len(listed) - SHOWN
    return ", ".join(listed[:SHOWN]) + (f" and {more} more" if more > 0 else "")


if __name__ == "__main__":
    sys.exit(main())
