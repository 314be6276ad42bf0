"""A trial of a sweep: the ordinary runner, which also stops when its sweep is gone.

    python -m lib.runs.sweep.trial train --params FILE --run NAME --set "k=v k=v"

Started by sweep_ray.py, which holds its stdin. When that process ends, the run is saved and
recorded as interrupted.
"""

import os
import signal
import sys
import threading
import time

from lib.common import files
from lib.record import run_folder
from lib.runs import run_job

# how long an earlier trial on this folder may take to save: more than the runner waits for a kernel
SAVING_SECONDS = 150


def main(argv: list[str]) -> int:
    # Ray blocks SIGINT in its workers; a kernel that inherits that cannot be interrupted
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    threading.Thread(target=_follow_parent, daemon=True).start()
    _wait_for_earlier_trial(argv[argv.index("--run") + 1])
    return run_job.main(argv)


def _follow_parent() -> None:
    """Stop this process when the one at the other end of stdin has ended, however it did."""
    while os.read(0, 1024):
        pass
    # as a user's SIGTERM: the kernel saves, the record says interrupted
    os.kill(os.getpid(), signal.SIGTERM)


def _wait_for_earlier_trial(name: str) -> None:
    """Wait until the trial that was killed a moment ago has saved.

    After SAVING_SECONDS the runner says who holds the folder.
    """
    folder = run_folder.runs_folder() / name
    end = time.monotonic() + SAVING_SECONDS
    while folder.exists() and files.lock_folder(folder) is None and time.monotonic() < end:
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
