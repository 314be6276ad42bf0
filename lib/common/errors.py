"""The error that the user can mend, and where the checkout lies."""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]


class UserError(Exception):
    """A mistake the user can mend: shown as one screen of text, never as a traceback."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in a notebook cell instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]
