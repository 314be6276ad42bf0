"""Interrupts that arrive where Python only prints what is raised."""

import signal
import sys
import threading
from typing import Any

MOMENT_SECONDS = 0.01


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
