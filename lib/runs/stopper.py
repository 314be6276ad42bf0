"""Pass Ctrl-C, SIGTERM and SIGHUP on to a notebook's kernel, so that it can save its work.

A notebook's kernel has a process group of its own, so the terminal's Ctrl-C never reaches it. The
first signal interrupts the kernel: the training loop saves its checkpoint and ends, within
GRACE_SECONDS. A second signal ends the run at once, as does the first one without a kernel.
"""

import contextlib
import enum
import os
import pathlib
import re
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

GRACE_SECONDS = 60  # for an interrupted kernel to save, before it is killed
LOST_REPLY_SECONDS = (
    3  # a kernel that is idle this long in what we take for a cell has lost its reply
)


class State(enum.Enum):
    RUNNING = "no signal has come"
    STOPPING = "the kernel has been interrupted and may save its work"
    ENDING = "SystemExit has been raised"


class Stopper:
    """The signal handlers of one command, with their state.

    The engine (lib/runs/engine.py) sets `kernel` and `in_cell`.
    """

    def __init__(self) -> None:
        self.kernel: Any = None  # the kernel's process, while there is one
        self.in_cell = False  # whether we wait for a cell's reply
        self.signal: int | None = None  # the first that came
        self.state = State.RUNNING
        self._heard = False  # whether the kernel did not ignore the interrupt
        self._waited = 0  # seconds since the interrupt
        self._idle = 0  # seconds in which the kernel ignored signals while we waited for a cell

    def install(self) -> None:
        """Handle this process's signals from now on."""
        sys.unraisablehook = self._handle_unraisable
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup asked for that
                signal.signal(number, self.handle)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal of the user, or the alarm that follows it every second."""
        if self.state is State.RUNNING and self.kernel is not None:
            self._interrupt_kernel(number)
        elif number == signal.SIGALRM and self._may_wait():
            self._look_again()
        else:
            self.signal = self.signal or number
            self._end()

    def _may_wait(self) -> bool:
        return (
            self.state is State.STOPPING
            and self.kernel is not None
            and self._waited < GRACE_SECONDS
        )

    def _interrupt_kernel(self, number: int) -> None:
        self._heard = not self._is_ignored()
        self.signal = number
        self.state = State.STOPPING
        self.kernel.send_signal(signal.SIGINT)
        signal.setitimer(signal.ITIMER_REAL, 1, 1)
        # not print(): the signal may have interrupted one, and Python's buffer is not reentrant
        text = f"\n{self.name()}: stopping at the next safe point (once more stops at once)\n"
        os.write(2, text.encode())

    def _look_again(self) -> None:
        """Repeat an interrupt that the kernel ignored, and end if the kernel will never reply.

        Between two cells, ipykernel ignores SIGINT. If SIGINT hits ipykernel's own code, the cell's
        reply is lost: the kernel then waits for the next cell, and we wait for the reply.
        """
        ignored = self._is_ignored()
        self._waited += 1
        self._idle = self._idle + 1 if ignored and self.in_cell else 0
        if self._idle == LOST_REPLY_SECONDS:
            self._end()
        if not ignored and not self._heard:
            self._heard = True
            self.kernel.send_signal(signal.SIGINT)

    def _end(self) -> NoReturn:
        # raise only once: another alarm would interrupt the code that records the end
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.state = State.ENDING
        assert self.signal is not None
        raise SystemExit(128 + self.signal)

    def _handle_unraisable(self, unraisable: Any) -> None:
        """Raise our SystemExit again a moment later if Python would only print it.

        That happens when the signal arrives in a weak reference's callback.
        """
        if self.state is State.ENDING and isinstance(unraisable.exc_value, SystemExit):
            signal.setitimer(signal.ITIMER_REAL, 0.01)
        else:
            sys.__unraisablehook__(unraisable)

    def _is_ignored(self) -> bool:
        """Tell whether the kernel ignores SIGINT now, as it does while no cell runs.

        Return False if the system does not report it.
        """
        with contextlib.suppress(OSError):
            status = pathlib.Path(f"/proc/{self.kernel.pid}/status").read_text()
            mask = re.search(r"^SigIgn:\s*(\w+)$", status, re.MULTILINE)
            return mask is not None and bool(int(mask[1], 16) >> (signal.SIGINT - 1) & 1)
        return False

    def note_interrupted_kernel(self) -> None:
        """Treat an interrupt that only the kernel received as SIGINT to the run."""
        if self.signal is None:
            self.signal = signal.SIGINT
            self.state = State.STOPPING

    def forget_kernel(self) -> None:
        """Stop the alarm, since the kernel has ended."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.kernel = None

    def name(self) -> str:
        """Return the name of the first signal, or "" if none came."""
        return signal.Signals(self.signal).name if self.signal is not None else ""
