"""A trial of a sweep: the ordinary runner, which also stops, saved and recorded, when the process that started it is gone.

python -m lib.runs.sweep.trial train --params FILE --run NAME --set "k=v k=v"      # started by sweep_ray.py, which holds its stdin
"""

import os
import signal
import sys
import threading
import time

from lib.common import files
from lib.record import run_folder
from lib.runs import run_job

SAVING_SECONDS = 150  # how long an earlier trial on this folder may take to save: more than lib.runs waits for its kernel


def _follow_parent() -> None:
    """The pipe on stdin ends with the process at its other end, however that one ended."""
    while os.read(0, 1024):
        pass
    os.kill(
        os.getpid(), signal.SIGTERM
    )  # as a user's SIGTERM: the kernel saves, the record says interrupted


def _wait_for(name: str) -> None:
    """Until the trial that was killed a moment ago has saved; after that the runner says who holds the folder."""
    folder, end = run_folder.runs_folder() / name, time.monotonic() + SAVING_SECONDS
    while folder.exists() and files.lock_folder(folder) is None and time.monotonic() < end:
        time.sleep(0.2)


def main(argv: list[str]) -> int:
    signal.pthread_sigmask(
        signal.SIG_SETMASK, []
    )  # Ray blocks SIGINT in its workers; a kernel that inherits that cannot be interrupted
    threading.Thread(target=_follow_parent, daemon=True).start()
    _wait_for(argv[argv.index("--run") + 1])
    return run_job.main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
