"""Find what a user names by a path, and the folders of the runs and of the cache."""

import os
import pathlib

from lib.common.errors import ROOT, UserError
from lib.common.text import shorten


def local_path(text: str | pathlib.Path) -> pathlib.Path:
    """Return the path that a user gave: absolute, under `~`, or relative to the repository.

    A shell expands `~` only at the start of a word, so in SET="dataset=~/x" it is still there.
    """
    path = pathlib.Path(text)
    if str(text).startswith("~"):  # not ./~x, from which a Path drops the dot
        try:
            path = path.expanduser()
        except RuntimeError:
            raise UserError(
                f"`{text}` begins with `{path.parts[0]}`, but no user of this machine has that "
                f"home folder. Give the whole path."
            ) from None
    path = ROOT / path
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # that is for whoever reads or makes it
    except (OSError, ValueError) as error:  # a name too long, a circle of links, a NUL
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"`{shorten(str(text))}` cannot be a path on this machine: {reason.lower()}. Expected "
            f"the name of a file, a folder or a run."
        ) from None
    return path


def runs_folder() -> pathlib.Path:
    """Return the folder of all runs: MEDRESCUE_RUNS, or runs/ of the checkout.

    Raise UserError if a file is in its place.
    """
    named = os.environ.get("MEDRESCUE_RUNS", "").strip()
    folder = local_path(named or "runs").resolve()
    if folder.exists() and not folder.is_dir():
        raise UserError(
            f"`{folder}` is a file; expected the folder of all runs. Set MEDRESCUE_RUNS to a "
            f"folder, or move the file away."
        )
    return folder


def cache_folder() -> pathlib.Path:
    """Return the folder of what can be made again: MEDRESCUE_CACHE, or .cache/ of the checkout."""
    return local_path(os.environ.get("MEDRESCUE_CACHE", "").strip() or ".cache")


def make_cache(folder: pathlib.Path) -> None:
    """Make a folder of the cache if it is missing; raise UserError if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
        reason = "no permission to write there"
    except OSError as error:
        writable, reason = False, error.strerror or str(error)
    if not writable:
        raise UserError(
            f"the cache `{folder}` cannot be written: {reason}.\n"
            f"Set MEDRESCUE_CACHE to a folder that you can write to; it takes a few GB. A checkout "
            f"that cannot be written also needs MEDRESCUE_RUNS, for the runs."
        )


def existing_parent(folder: pathlib.Path) -> pathlib.Path:
    """Return the folder, or its nearest parent that exists."""
    return folder if folder.exists() else existing_parent(folder.parent)
