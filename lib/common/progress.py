"""Progress as plain text, so that it shows in terminals and stays in notebooks."""

import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(description: str, iterable: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """Return a tqdm bar that draws on stdout every 2 seconds at most; `options` are tqdm's own."""
    return tqdm(iterable, desc=description, file=sys.stdout, mininterval=2, ncols=100, **options)


class TimeLeft:
    """Prints the share of work done and the seconds left, at most every `interval` seconds."""

    def __init__(self, label: str, interval: float) -> None:
        self.label, self.interval = label, interval
        self.begun = self.printed = time.monotonic()

    def update(self, done: float) -> None:
        """Report that this share of the work, above 0 and up to 1, is done."""
        time_now = time.monotonic()
        if time_now - self.printed <= self.interval:
            return
        self.printed = time_now
        seconds_left = (time_now - self.begun) * (1 / done - 1)
        print(f"{self.label}: {done:.0%}, about {seconds_left:.0f} s left", flush=True)
