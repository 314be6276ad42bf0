"""Small runs in a row in one process, all three notebooks each: memory, open files and threads of the runner stay flat."""

import json
import os
import statistics
import subprocess
import sys

import tiny  # noqa: F401

from helpers.standin import Tree

TRIALS = 50
FIRST = 10  # runs until caches are full
MEBIBYTES = 8  # what the median of the last runs may be above that of those after FIRST
LOOP = """
import contextlib, io, json, sys, psutil
from lib.runs import run_job as runs
me = psutil.Process()
for n in range(int(sys.argv[1])):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        code = runs.main(["run", "--params", "params/job.yaml", "--run", f"r{n}"])
    if code:
        sys.exit(said.getvalue())
    print(json.dumps([me.memory_info().rss / 2**20, me.num_fds(), me.num_threads(), len(me.children())]), flush=True)
"""


def drill(folder, trials):
    tree = Tree.make(folder / "tree")
    done = subprocess.run(
        [sys.executable, "-c", LOOP, str(trials)],
        cwd=tree.root,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tree.root), "MEDRESCUE_RUNS": ""},
    )
    if done.returncode:
        return trials, [done.stderr[-500:]]
    seen = [json.loads(line) for line in done.stdout.splitlines()]
    settled, last = (
        (seen[FIRST : FIRST + 10], seen[-10:]) if trials >= FIRST + 20 else (seen[:1], seen[-1:])
    )
    lost = []
    for n, (what, most) in enumerate(
        (("resident MiB", MEBIBYTES), ("open files", 0), ("threads", 0), ("children", 0))
    ):
        early, late = (statistics.median(row[n] for row in part) for part in (settled, last))
        print(f"  {what}: first {seen[0][n]:.0f}, settled {early:.0f}, at the end {late:.0f}")
        if trials >= FIRST + 20 and late > early + most:
            lost.append(f"{what} grew from {early:.1f} to {late:.1f}")
    return len(seen), lost
