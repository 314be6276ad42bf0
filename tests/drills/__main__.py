"""Reliability drills: each states what must hold, breaks things many times, counts what was lost.

    make drills                                  # all of them, about two hours on 2 cores
    .venv/bin/python tests/drills kill stop      # some
    .venv/bin/python tests/drills kill --trials 10

Exit code 1 where something was lost. `sweep` needs requirements-sweep.txt, `disk` root and, for its clock, Debian's faketime.
"""

import argparse
import importlib
import pathlib
import signal
import sys
import tempfile
import time

NAMES = ("params", "damage", "secrets", "hostile", "soak", "disk", "kill", "stop", "sweep")


def main():
    parser = argparse.ArgumentParser(prog="tests/drills", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--trials", type=int, default=0, help="instead of each drill's own number")
    options = parser.parse_args()
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background job ignores it, and so would all that it starts
    lines, lost_at_all = [], 0
    for name in options.names:
        drill = importlib.import_module(f"drill_{name}")
        print(f"\n{name}: {' '.join(drill.__doc__.split())}", flush=True)
        begun = time.monotonic()
        # a short path: Ray's sockets lie under it, and a socket's path has 107 characters at most
        with tempfile.TemporaryDirectory(
            prefix="d", dir="/tmp", ignore_cleanup_errors=True
        ) as temporary:
            trials, lost = drill.drill(pathlib.Path(temporary), options.trials or drill.TRIALS)
        for text in lost[:20]:
            print(f"  LOST {text}")
        lost_at_all += len(lost) or not trials  # what was not tried proves nothing
        lines.append(
            f"{name:8} {trials:5} trials, {len(lost)} lost, {time.monotonic() - begun:6.0f} s"
        )
        print(lines[-1], flush=True)
    print("\n" + "\n".join(lines))
    return bool(lost_at_all)


if __name__ == "__main__":
    sys.exit(main())
