"""Download all packages into a folder, for a machine without network.

    make wheels DIR=/media/stick [FOR=cpu|cuda] [FOR_PYTHON=3.12] [FOR_PLATFORM=aarch64]

pip decides what is needed and where it comes from, by its own configuration. Each file is compared
with the sha256 that the index names, and only then gets its name in the folder. The same command
continues an interrupted download.

Exit codes: 0, 2 for what the user can mend, 130 when interrupted.
"""

import argparse
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from lib.common import files, locations
from lib.common.errors import ROOT, UserError
from lib.common.redact import redacted_terminal
from lib.runs.offline import closure, folder, target
from lib.runs.offline.target import Target

PARTIAL = ".partial"  # pip's own files, and downloads that are not checked yet
# files that one call of pip downloads together: a call takes a second
GROUP_FILES, GROUP_BYTES = 20, 64 * 10**6
CLOSED_AFTER = 5  # rounds of asking pip for what it left out
AGAIN = "The same command goes on from there."


class Wheel(NamedTuple):
    """A file that pip chose."""

    requirement: str  # torch===2.13.0, which 2.13.0+cpu does not meet, while it meets ==2.13.0
    name: str  # of the file
    url: str
    sha256: str
    size: int | None  # bytes; None when the index does not say


def main(argv: list[str] | None = None) -> int:
    """Download; return the exit code."""
    parser = argparse.ArgumentParser(prog="make wheels", description=__doc__)
    parser.add_argument("folder", help="DIR: where the packages go")
    parser.add_argument("--for", dest="set", choices=folder.REQUIREMENTS, default="cpu")
    parser.add_argument("--python", default="", help="3.12 (default: this Python)")
    parser.add_argument("--platform", default="", help="aarch64 (default: this machine)")
    options = parser.parse_args(argv)
    try:
        chosen = target.make_target(options.python, options.platform)
        download(options.folder, options.set, chosen, ROOT / folder.REQUIREMENTS[options.set])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped. {AGAIN}", file=sys.stderr)
        return 130
    return 0


def download(name: str, set_name: str, chosen: Target, requirements: pathlib.Path) -> None:
    """Fill the folder `name` with every wheel that the requirements need on the target.

    Raise UserError when the folder cannot be written, the disk is too small, pip finds no wheel for
    something, or the network fails.
    """
    place = _make_folder(name)
    try:
        _fill(place, set_name, chosen, requirements)
    finally:
        shutil.rmtree(place / PARTIAL, ignore_errors=True)
    print(
        f"All is in {place}. Carry it and a clone of this project over; there:\n"
        f"    make setup WHEELS=/path/to/{place.name}"
    )


def _fill(place: pathlib.Path, set_name: str, chosen: Target, requirements: pathlib.Path) -> None:
    """Fetch what is missing, remove what an older list had, and write the list."""
    print(
        f"Asking pip for the packages of {folder.NAMES[set_name]}, for Python {chosen.python} on "
        f"{chosen.platform} ...",
        flush=True,
    )
    report = resolve(set_name, chosen, requirements, place / PARTIAL)
    wheels = list_wheels(report)
    hashes = {wheel.name: wheel.sha256 for wheel in wheels}
    missing = [wheel for wheel in wheels if not _is_there(place / wheel.name, wheel.sha256)]
    _announce(place, wheels, missing)
    _require_space(place, missing)
    stale = _listed_names(place) - {*hashes, folder.ABOUT}
    # without its list, a folder counts as incomplete until all is here
    (place / folder.LIST).unlink(missing_ok=True)
    for name in stale:
        (place / name).unlink(missing_ok=True)
    _fetch(place, missing, target.pip_options(chosen))
    about: folder.About = {
        "set": set_name,
        "python": chosen.python,
        "platform": chosen.platform,
    }
    folder.write_list(place, about, hashes)


# --------------------------------------------------------------------------------------------------
# what is needed


def resolve(
    set_name: str, chosen: Target, requirements: pathlib.Path, scratch: pathlib.Path
) -> list[dict[str, Any]]:
    """Return pip's report of all packages that the requirements need on the target.

    The CPU set takes torch's CPU build if pip can reach one, and the CUDA set never does.
    """
    options = target.pip_options(chosen)
    pin = next((line for line in folder.read_pins(requirements) if line.startswith("torch==")), "")
    constraint = ""
    if pin and set_name == "cuda":
        constraint = pin.replace("==", "!=") + "+cpu"
    elif pin and chosen.platform.startswith("manylinux"):
        constraint = f"{pin}+cpu"
        if _dry_run([*options, "--no-deps", constraint], scratch, quiet=True) is None:
            constraint = ""
            print(
                "no CPU build of torch within reach (see CONTRIBUTING.md): taking the standard "
                "one, with several GB of CUDA libraries"
            )
    (scratch / "constraints.txt").write_text(f"{constraint}\n")
    asked = [f"--constraint={scratch / 'constraints.txt'}", f"--requirement={requirements}"]
    more: list[str] = []
    for _ in range(CLOSED_AFTER):
        report = _dry_run([*options, *asked, *more], scratch)
        assert report is not None
        left_out = closure.find_left_out(report, target.marker_environment(chosen))
        if not left_out:
            return report
        more += left_out
    raise UserError(
        f"pip does not find all that Python {chosen.python} on {chosen.platform} needs: it leaves "
        f"out {', '.join(left_out)}.\nRun this with that Python: `make wheels PYTHON=python"
        f"{chosen.python}`."
    )


def _dry_run(
    arguments: list[str], scratch: pathlib.Path, quiet: bool = False
) -> list[dict[str, Any]] | None:
    """Return what pip would install; None if it fails and `quiet`, otherwise UserError."""
    report = scratch / "report.json"
    # a --target is what makes pip accept another platform; nothing is installed
    install = ["install", "--dry-run", "--ignore-installed", f"--target={scratch / 'none'}"]
    trouble = _run_pip([*install, "--quiet", f"--report={report}", *arguments], scratch)
    if not trouble:
        found: list[dict[str, Any]] = json.loads(report.read_text(encoding="utf-8"))["install"]
        return found
    if quiet:
        return None
    raise UserError(
        f"pip cannot find all packages:\n{trouble}\n"
        f"Check the network and pip's configuration (`pip config list`). If one package has no "
        f"file for the machine you want, change FOR_PYTHON or FOR_PLATFORM."
    )


def list_wheels(report: Iterable[dict[str, Any]]) -> list[Wheel]:
    """Return the files of a report, the largest first, with the sizes that are known."""
    items = list(report)
    urls = [item["download_info"]["url"] for item in items]
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(_ask_size, urls))
    wheels = []
    for item, url, size in zip(items, urls, sizes, strict=True):
        name = urllib.parse.unquote(url.split("#")[0].rsplit("/", 1)[1])
        requirement = f"{item['metadata']['name']}==={item['metadata']['version']}"
        sha256 = item["download_info"]["archive_info"]["hashes"]["sha256"]
        wheels.append(Wheel(requirement, name, url, sha256, size))
    # the largest first: their speed tells the time that is left, and a disk that is too small shows
    return sorted(wheels, key=lambda wheel: (-(wheel.size or 0), wheel.name))


def _ask_size(url: str) -> int | None:
    """Return the bytes of a file of an index, or None if it does not say."""
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.headers["Content-Length"])
    except (OSError, ValueError, TypeError):
        return None


# --------------------------------------------------------------------------------------------------
# the folder


def _make_folder(name: str) -> pathlib.Path:
    """Return the folder with an empty scratch folder in it; raise UserError if that fails."""
    if not name.strip():
        raise UserError(
            "no folder was named. Expected: `make wheels DIR=/media/stick`, a folder that you can "
            "carry over."
        )
    place = locations.local_path(name)
    try:
        place.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(place / PARTIAL, ignore_errors=True)
        (place / PARTIAL).mkdir()
    except OSError as error:
        raise UserError(
            f"DIR=`{name}` cannot be written: {error.strerror}. Name a folder that you can write "
            f"to."
        ) from None
    return place


def _listed_names(place: pathlib.Path) -> set[str]:
    """Return the files of the folder's list; none for a damaged list, which is written again."""
    try:
        return set(folder.read_list(place))
    except UserError:
        return set()


def _is_there(path: pathlib.Path, sha256: str) -> bool:
    return path.is_file() and files.sha256(path) == sha256


def _announce(place: pathlib.Path, wheels: list[Wheel], missing: list[Wheel]) -> None:
    here = len(wheels) - len(missing)
    print(
        f"{len(wheels)} packages, {format_sizes(wheels)}"
        + (f"; {here} are in {place} already, {format_sizes(missing)} to go" if here else ""),
        flush=True,
    )


def format_sizes(wheels: Iterable[Wheel]) -> str:
    """Return the sum of the known sizes, and how many are not known."""
    sizes = [wheel.size for wheel in wheels]
    unknown = sizes.count(None)
    text = f"{sum(size or 0 for size in sizes) / 1e9:.2f} GB"
    return text + (f" and {unknown} of unknown size" if unknown else "")


def _require_space(place: pathlib.Path, missing: list[Wheel]) -> None:
    """Raise UserError unless all missing files fit, and the largest twice while pip moves it."""
    sizes = [wheel.size or 0 for wheel in missing]
    needed = sum(sizes) + max([*sizes, GROUP_BYTES])
    free = files.free_disk(place)
    if missing and free < needed:
        raise UserError(
            f"not enough space for the packages: {needed / 1e9:.2f} GB are needed, but "
            f"{free / 1e9:.2f} GB are free at `{place}`.\nFree some space, or name another DIR."
        )


def _fetch(place: pathlib.Path, missing: list[Wheel], options: list[str]) -> None:
    """Download the missing files group by group, and print how far it is."""
    begun, done, amount = time.monotonic(), 0, 0
    total = sum(wheel.size or 0 for wheel in missing)
    for group in group_wheels(missing):
        left = ""
        if amount:
            minutes = (time.monotonic() - begun) * (total / amount - 1) / 60
            left = (
                f", about {minutes:.0f} min left" if minutes >= 1 else ", less than a minute left"
            )
        print(
            f"{done} of {len(missing)} files, {amount / 1e9:.2f} of {total / 1e9:.2f} GB{left}; "
            f"next: {group[0].name}",
            flush=True,
        )
        _fetch_group(place, group, options)
        done += len(group)
        amount += sum(wheel.size or 0 for wheel in group)


def group_wheels(wheels: Iterable[Wheel]) -> Iterator[list[Wheel]]:
    """Yield the files in groups for one call of pip each; a large file is alone."""
    group: list[Wheel] = []
    for wheel in wheels:
        size = sum(other.size or 0 for other in group) + (wheel.size or 0)
        if group and (len(group) == GROUP_FILES or size > GROUP_BYTES):
            yield group
            group = []
        group.append(wheel)
    if group:
        yield group


def _fetch_group(place: pathlib.Path, group: list[Wheel], options: list[str]) -> None:
    """Download files, check them, and give them their names in the folder."""
    scratch = place / PARTIAL
    lines = [f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n" for wheel in group]
    (scratch / "group.txt").write_text("".join(lines))
    download = ["download", "--no-deps", f"--dest={scratch}", f"--requirement={scratch}/group.txt"]
    quiet = [] if sys.stdout.isatty() else ["--quiet"]  # on a terminal, pip shows a bar
    trouble = _run_pip([*download, *quiet, *options], scratch)
    if trouble:
        raise UserError(f"the download stopped:\n{trouble}\n{AGAIN}")
    for wheel in group:
        if not _is_there(scratch / wheel.name, wheel.sha256):
            raise UserError(f"`{wheel.name}` did not arrive whole at `{place}`. {AGAIN}")
        os.replace(scratch / wheel.name, place / wheel.name)


def _run_pip(arguments: list[str], scratch: pathlib.Path) -> str:
    """Run pip with its temporary files in `scratch`; return its errors, "" if it succeeded."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", *arguments],
        env={**os.environ, "TMPDIR": str(scratch), "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines
    return "\n".join(line[:300] for line in itertools.islice(errors, 6)) or "pip failed"


if __name__ == "__main__":
    with redacted_terminal():
        sys.exit(main())
