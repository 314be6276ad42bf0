"""Ask a question of `make doctor` so that its failure becomes a line."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator

from lib.common.errors import UserError
from lib.runs.doctor.screen import Line

Question = Callable[[], Iterable[Line]]


def ask(what: str, state: str, question: Question) -> list[Line]:
    """Return a question's lines; an error becomes a line of the given state, not a traceback."""
    lines: list[Line] = []
    try:
        with _silence():
            for line in question():
                lines.append(line)
    except UserError as error:
        lines.append(Line("missing", what, str(error)))
    except (Exception, SystemExit) as error:  # a broken package can raise anything
        lines.append(Line(state, what, f"cannot be told: {type(error).__name__}: {error}"))
    return lines


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep what packages print and log from the screen."""
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
