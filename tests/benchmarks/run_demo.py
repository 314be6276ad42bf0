"""Measure the whole demo job: wall time of each stage and peak resident memory of the runner and all its children.

python tests/benchmarks/run_demo.py            # about 8 minutes on 2 cores; its run folder is removed afterwards
"""

import datetime
import json
import pathlib
import shutil
import subprocess
import sys
import time

import psutil

ROOT = pathlib.Path(__file__).parents[2]
NAME = "benchmark-demo"


def resident(process):
    """Return a process tree's resident bytes; shared pages count in each process, so this is an upper bound."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def main():
    folder = ROOT / "runs" / NAME
    shutil.rmtree(folder, ignore_errors=True)
    begun, peak = time.monotonic(), 0
    run = subprocess.Popen(
        [sys.executable, "-m", "lib.runs", "run", "--params", "params/cpu.yaml", "--run", NAME],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    tree = psutil.Process(run.pid)
    while run.poll() is None:
        peak = max(peak, resident(tree))
        time.sleep(0.25)
    wall = time.monotonic() - begun
    if run.returncode:
        sys.exit(f"the run failed, exit code {run.returncode}")
    record, results = (
        json.loads((folder / "run.json").read_text()),
        json.loads((folder / "results.json").read_text()),
    )
    print(
        f"{record['hardware']['cpu']}, {record['hardware']['cores']} cores; "
        + ", ".join(f"{k} {record['packages'][k]}" for k in ("python", "torch", "transformers"))
    )
    for stage, entry in record["stages"].items():
        start, end = (
            datetime.datetime.fromisoformat(entry["attempts"][-1][k]) for k in ("start", "end")
        )
        print(f"{stage:8} {(end - start).total_seconds():5.0f} s")
    before, after = results["train"]["eval_loss_before"], results["train"]["eval_loss_after"]
    print(f"all      {wall:5.0f} s; peak resident memory {peak / 2**30:.2f} GiB")
    print(
        f"held-out response loss {before:.3f} -> {after:.3f} ({(after - before) / before:+.1%}); {results['train']['samples_per_second']:.2f} samples/s"
    )
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
