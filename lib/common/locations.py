"""Find what a user names by a path, and the folders of the runs and of the cache."""

import os
import pathlib

from lib.common.errors import ROOT, UserError


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
    return ROOT / path


def runs_folder() -> pathlib.Path:
    """Return the folder of all runs: MEDRESCUE_RUNS, or runs/ of the checkout."""
    return local_path(os.environ.get("MEDRESCUE_RUNS") or "runs").resolve()


def cache_folder() -> pathlib.Path:
    """Return the folder of what can be made again: MEDRESCUE_CACHE, or .cache/ of the checkout."""
    return local_path(os.environ.get("MEDRESCUE_CACHE") or ".cache")


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
