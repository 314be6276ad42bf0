"""UserError, for mistakes that the user can fix, and the checkout's root folder."""

import errno
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Plain:
    """Makes an error's text all that a notebook's cell shows of it: no traceback."""

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows in a notebook cell instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class UserError(Plain, Exception):
    """A mistake that the user can fix: shown as one screen of text, never as a traceback."""


# what a disk or its owner refuses; another OSError may be a mistake in the code
REFUSALS = {
    errno.EACCES: "Give this account the permission, or name another place.",
    errno.EPERM: "Give this account the permission, or name another place.",
    errno.EROFS: "This disk cannot be written: set MEDRESCUE_RUNS and MEDRESCUE_CACHE elsewhere.",
    errno.ENOSPC: "Free some space; the same command then continues.",
    errno.EDQUOT: "Free some space; the same command then continues.",
    errno.EIO: "The disk reports a fault: look at its health, or use another one.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ELOOP: "Links lead in a circle there: remove one.",
    errno.EMFILE: "Raise the limit of open files (`ulimit -n`).",
    errno.ENFILE: "Too many files are open on this machine: close some programs.",
}


def describe_refusal(error: OSError) -> str:
    """Say what a disk refused and what to do; return "" for an error that needs a traceback."""
    advice = REFUSALS.get(error.errno or 0)
    if not advice:
        return ""
    where = f" `{error.filename}`" if error.filename else " a file"
    return f"cannot read or write{where}: {(error.strerror or '').lower()}. {advice}"
