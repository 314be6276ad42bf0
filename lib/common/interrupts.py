"""Signals that arrive where an exception would be lost, or would do harm."""

import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

MOMENT_SECONDS = 0.01
STOPPERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def keep_interrupts() -> None:
    """Let a KeyboardInterrupt that Python would only print, with a traceback, come again.

    Python prints it, and goes on, when the signal arrives in a weak reference's callback or in a
    `__del__`; torch has many of both.
    """
    sys.unraisablehook = _handle_unraisable


def _handle_unraisable(unraisable: Any) -> None:
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        # a true signal, since nothing else ends a wait in a system call
        main = threading.main_thread().ident
        threading.Timer(MOMENT_SECONDS, signal.pthread_kill, (main, signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(unraisable)


def end_at_once(says: str = "") -> None:
    """Let Ctrl-C, SIGTERM and SIGHUP end this process from now on, without any cleaning up.

    For a command that has nothing left to save. llama.cpp, stopped by an exception in the wrong
    moment, hangs or crashes; this process simply ends. Without `says`, the system ends it, even
    while it loads a file; with it, the text is printed first, when Python gets to it.
    """
    for number in STOPPERS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup asked for that
            signal.signal(number, functools.partial(_say_and_end, says) if says else signal.SIG_DFL)


def _say_and_end(says: str, number: int, frame: FrameType | None) -> None:
    # not print(): the signal may have interrupted one, and Python's buffer is not reentrant
    os.write(2, f"\n{says}\n".encode())
    os._exit(128 + number)


@contextlib.contextmanager
def delayed() -> Iterator[None]:
    """Let signals that Python handles wait until the block has ended.

    A handler only ever runs in the main thread, so a block in another one changes nothing.
    """
    came: list[int] = []
    handled = []
    if threading.current_thread() is threading.main_thread():
        handled = [number for number in STOPPERS if callable(signal.getsignal(number))]
    before = {
        number: signal.signal(number, lambda number, frame: came.append(number))
        for number in handled
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for arrived in dict.fromkeys(came):
            signal.raise_signal(arrived)
