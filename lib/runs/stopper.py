"""Ctrl-C, SIGTERM and SIGHUP while a notebook runs: passed to its kernel, which may save its work.

A notebook's kernel has a process group of its own, so the terminal's Ctrl-C never reaches it. The
first signal interrupts the kernel: the training loop saves its checkpoint and ends, within
GRACE_SECONDS. A second signal does not wait. Without a kernel, the first one ends the run.
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

GRACE_SECONDS = 60  # an interrupted kernel may take this long to save, then it is killed
LOST_REPLY_SECONDS = (
    3  # a kernel that is idle this long in what we take for a cell has lost its reply
)


class State(enum.Enum):
    RUNNING = "no signal has come"
    STOPPING = "the kernel has been interrupted and may save its work"
    ENDING = "SystemExit has been raised"


class Stopper:
    """The signal handlers of one command, and what they know: the kernel, the signal, the state.

    The engine (lib/runs/engine.py) sets `kernel` and `in_cell`.
    """

    def __init__(self) -> None:
        self.kernel: Any = None  # the kernel's process, while there is one
        self.in_cell = False  # whether we wait for a cell's reply
        self.signal: int | None = None  # the first that came
        self.state = State.RUNNING
        self._heard = False  # whether the kernel listened when it was interrupted
        self._waited = 0  # seconds since then
        self._idle = 0  # seconds in which the kernel ignored signals although we wait for a cell

    def install(self) -> None:
        """Handle this process's signals from now on."""
        sys.unraisablehook = self._handle_unraisable
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup asked for that
                signal.signal(number, self.handle)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The handler: of the user's signals, and of the alarm that comes each second after one."""
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
        # not print: we may be in the middle of one, and Python refuses to enter its buffer twice
        text = f"\n{self.name()}: stopping at the next safe point (once more stops at once)\n"
        os.write(2, text.encode())

    def _look_again(self) -> None:
        """Repeat an interrupt that the kernel ignored; end where it will never answer.

        Between two cells ipykernel ignores SIGINT. One that meets ipykernel's own code loses the
        cell's reply: the kernel then waits for the next cell, and we for the reply.
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
        # raised once: another alarm would meet the code that writes down how it ended
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.state = State.ENDING
        assert self.signal is not None
        raise SystemExit(128 + self.signal)

    def _handle_unraisable(self, unraisable: Any) -> None:
        """Raise our SystemExit a moment later, where Python printed it and went on.

        That happens when the signal meets a weak reference's callback.
        """
        if self.state is State.ENDING and isinstance(unraisable.exc_value, SystemExit):
            signal.setitimer(signal.ITIMER_REAL, 0.01)
        else:
            sys.__unraisablehook__(unraisable)

    def _is_ignored(self) -> bool:
        """Whether the kernel ignores SIGINT now, as it does while no cell runs.

        False where the system does not say.
        """
        with contextlib.suppress(OSError):
            status = pathlib.Path(f"/proc/{self.kernel.pid}/status").read_text()
            mask = re.search(r"^SigIgn:\s*(\w+)$", status, re.MULTILINE)
            return mask is not None and bool(int(mask[1], 16) >> (signal.SIGINT - 1) & 1)
        return False

    def note_interrupted_kernel(self) -> None:
        """Somebody interrupted the kernel alone: that counts as SIGINT to the run."""
        if self.signal is None:
            self.signal = signal.SIGINT
            self.state = State.STOPPING

    def forget_kernel(self) -> None:
        """The kernel is gone: no alarm need look after it any more."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.kernel = None

    def name(self) -> str:
        """The name of the signal that came; empty without one."""
        return signal.Signals(self.signal).name if self.signal is not None else ""
