"""UserError, for mistakes that the user can fix, and the checkout's root folder."""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Plain:
    """Makes an error's text all that a notebook's cell shows of it: no traceback."""

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows in a notebook cell instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class UserError(Plain, Exception):
    """A mistake that the user can fix: shown as one screen of text, never as a traceback."""
