"""Run training sessions that are killed at chosen moments, in processes of their own."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import traceback

import torch

from helpers.small_training import a_job, session
from lib.common.errors import ROOT
from lib.training import checkpoint, loop

NAMES = """
import os, pathlib, sys
import torch
from helpers.killed import *
from helpers.small_training import *
torch.set_num_threads(1)
"""


def run_python(code, *words):
    """Run code in a process of its own, with the names of this file and of helpers/small_training.py."""
    return subprocess.run(
        [sys.executable, "-c", f"{NAMES}{code}", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
            "OMP_NUM_THREADS": "1",
        },
    )


MANY_KILLS = {"max_steps": 24, "save_steps": 2, "eval_steps": 4}


def killed_at(folder, everywhere, saving):
    """Run a session that is killed at the given call of a Python or C function, counted in all of `train` or in save_checkpoint only (0: never)."""
    counts, inside = [0, 0], []

    def count(frame, event, _):
        if frame.f_code is checkpoint.save_checkpoint.__code__ and event in ("call", "return"):
            inside[:] = [True] if event == "call" else []
        if event in ("call", "c_call"):
            counts[0] += 1
            counts[1] += bool(inside)
            if counts[0] == everywhere or inside and counts[1] == saving:
                os.kill(os.getpid(), signal.SIGKILL)

    def counted(*args):
        sys.setprofile(count)
        try:
            return real(*args)
        finally:
            sys.setprofile(None)

    real, loop.train = loop.train, counted
    session(folder, a_job(**MANY_KILLS))
    return counts


def killed_ten_times(folder, seed):
    """Run sessions in forked processes, so that torch is imported once: ten are killed, and the last may finish. Print what each kill left."""

    def forked(action):
        sys.stdout.flush()
        if not (child := os.fork()):
            # again: threads that both find torch's pool left behind by the fork trip over each other
            torch.set_num_threads(1)
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    action()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def count_a_whole_session():
        (folder / "counts.json").write_text(json.dumps(killed_at(folder / "counted", 0, 0)))

    codes, left = [forked(count_a_whole_session)], []
    calls, of_saving = json.loads((folder / "counts.json").read_text())
    draw = random.Random(seed)
    saves = MANY_KILLS["max_steps"] // MANY_KILLS["save_steps"]
    moments = [(draw.randrange(1, calls // 3), 0) for _ in range(6)] + [
        (0, draw.randrange(1, of_saving // saves)) for _ in range(4)
    ]
    draw.shuffle(moments)
    for moment in moments:
        codes.append(forked(lambda moment=moment: killed_at(folder / "run", *moment)))
        left.append(
            sorted(
                str(p.relative_to(folder / "run" / "checkpoints"))
                for p in (folder / "run").glob("checkpoints/*")
            )
        )
    codes.append(forked(lambda: session(folder / "run", a_job(**MANY_KILLS))))
    print(json.dumps({"codes": codes, "left": left, "moments": moments}))
