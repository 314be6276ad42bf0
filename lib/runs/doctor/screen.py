"""Lines of `make doctor`, and how they fit on one screen."""

import contextlib
import getpass
import os
import pathlib
import re
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 100, 30
INDENT = 18  # characters before a line's text
# rows that a line of each state may take, the most generous first
ROWS = tuple(
    {"missing": missing, "note": note, "ok": ok}
    for missing, note, ok in ((4, 3, 2), (4, 2, 1), (3, 1, 1), (2, 1, 1), (1, 1, 1))
)


class Line(NamedTuple):
    """What was found out about one thing."""

    state: str  # ok, missing: something needed is not there, note: good to know
    what: str
    text: str


def render(lines: Sequence[Line]) -> str:
    """Return the lines and a last one that sums up, in at most HEIGHT rows of WIDTH characters.

    Where that is not enough, long texts are cut, then lines are left out: those that are ok first.
    """
    for limits in ROWS:
        rows = _wrap_all(lines, limits)
        if len(rows) < HEIGHT:
            return "\n".join([*rows, sum_up(lines)])
    kept = list(lines)
    while len(kept) > HEIGHT - 2:
        state = next(s for s in ("ok", "note", "missing") if any(x.state == s for x in kept))
        kept.pop(max(n for n, line in enumerate(kept) if line.state == state))
    left_out = f"{'':{INDENT}}{len(lines) - len(kept)} more did not fit on this screen"
    return "\n".join([*_wrap_all(kept, ROWS[-1]), left_out, sum_up(lines)])


def sum_up(lines: Sequence[Line]) -> str:
    """Return the last line: whether something is missing."""
    count = sum(line.state == "missing" for line in lines)
    if not count:
        return "Nothing is missing."
    return f"{count} missing: what to do is in the lines that begin with `missing`."


def _wrap_all(lines: Sequence[Line], limits: dict[str, int]) -> list[str]:
    return [row for line in lines for row in _wrap(line, limits[line.state])]


def _wrap(line: Line, limit: int) -> list[str]:
    # a control character in a file's name or a variable must not move the terminal's cursor
    printable = "".join(c if c.isprintable() else " " for c in hide_user(line.text))
    rows = textwrap.wrap(printable, WIDTH - INDENT, max_lines=limit, placeholder=" ...")
    first = f"{line.state:<8}{line.what:<10}"
    return [f"{first if n == 0 else '':{INDENT}}{row}" for n, row in enumerate(rows or [""])]


def hide_user(text: str) -> str:
    """Return the text with the home folder as ~, without the user's name in other paths.

    What an address has before its @, a name and perhaps a password, is hidden too.
    """
    text = re.sub(r"(?<=://)[^/\s@]+@", "(hidden)@", text)
    home = os.path.expanduser("~")
    homes = {home, os.path.realpath(home)} if pathlib.PurePath(home).parts[1:] else set()
    for folder in sorted(homes, key=len, reverse=True):
        text = re.sub(rf"{re.escape(folder)}(?![\w.-])", "~", text)
    for name in _user_names():
        text = re.sub(rf"(?<=[/~\\]){re.escape(name)}(?![\w.-])", "(user)", text)
    return text


def _user_names() -> set[str]:
    names = {os.environ.get(variable, "") for variable in ("USER", "LOGNAME", "SUDO_USER")}
    # a container's user may have no name
    with contextlib.suppress(OSError, KeyError, ImportError):
        names.add(getpass.getuser())
    return {name for name in names if name not in ("", "root")}
