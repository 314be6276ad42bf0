"""Run a trial of a sweep: the ordinary runner, which also stops when its sweep has ended.

    python -m lib.runs.sweep.trial train --params FILE --run NAME --set "k=v k=v"

sweep_ray.py starts it and holds its stdin. When that process ends, the run is saved and recorded as
interrupted.
"""

import os
import signal
import sys
import threading
import time

from lib.common import files
from lib.record import run_folder
from lib.runs import run_job

# time for an earlier trial on this folder to save: more than the runner waits for a kernel
SAVING_SECONDS = 150


def main(argv: list[str]) -> int:
    # Ray blocks SIGINT in its workers, and a kernel that inherits that could not be interrupted
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    threading.Thread(target=_follow_parent, daemon=True).start()
    _wait_for_earlier_trial(argv[argv.index("--run") + 1])
    return run_job.main(argv)


def _follow_parent() -> None:
    """Stop this process once the one at the other end of stdin has ended for any reason."""
    while os.read(0, 1024):
        pass
    # has the effect of a user's SIGTERM: the kernel saves, and the record says interrupted
    os.kill(os.getpid(), signal.SIGTERM)


def _wait_for_earlier_trial(name: str) -> None:
    """Wait until an earlier trial on this folder, which was just killed, has saved.

    After SAVING_SECONDS, the runner will report the holder of the folder.
    """
    folder = run_folder.runs_folder() / name
    end = time.monotonic() + SAVING_SECONDS
    while folder.exists() and files.lock_folder(folder) is None and time.monotonic() < end:
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
