"""A sweep of six small runs, of which a trial, a worker node, the driver are killed: six runs finish with whole artefacts, each attempt is
on record, the held-out losses are the same in all, a planted token is in no file. Two trials at a time; a node is one of two worker nodes
of Ray's own cluster utility, on this machine."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import tiny

from lib.common import files
from lib.record import ledger

TRIALS = 3
TOKEN = "hf_" + "planted" * 5
LIMIT_SECONDS = 7200


def six(folder):
    """Write a sweep file of six trials on the tiny job."""
    job = tiny.job(folder / "job")
    job.write_text(job.read_text() + "eval_steps: 2\n")
    (folder / "six.yaml").write_text(
        f"base: {job}\ngrid: {{learning_rate: [1.0e-3, 3.0e-3, 1.0e-2], lora_r: [2, 4]}}\n"
        "metric: eval_loss_after\ndirection: min\nearly_stop: false\n"
    )
    return folder / "six.yaml"


def start(sweep_file, folder, **env):
    log = open(folder / "sweep.log", "a")  # noqa: SIM115
    return subprocess.Popen(
        [sys.executable, "-m", "lib.runs.sweep", "--params", str(sweep_file)],
        cwd=tiny.ROOT,
        stdout=log,
        stderr=log,
        env={
            **os.environ,
            "MEDRESCUE_RUNS": str(folder / "runs"),
            "HF_TOKEN": TOKEN,
            "TMPDIR": str(folder / "tmp"),
            **env,
        },
    )


def train(run):
    return (
        json.loads((run / "run.json").read_text())["stages"]["train"]
        if (run / "run.json").exists()
        else {"status": "pending", "attempts": []}
    )


def training(folder, more=1):
    """Wait until so many runs are between their first step and their last; returns them."""
    end = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < end:
        found = [
            run
            for run in sorted((folder / "runs").glob("*"))
            if train(run)["status"] == "running"
            and ledger.valid_steps(ledger.read_ledger(run / "metrics.jsonl"))
        ]
        if len(found) >= more:
            return found
        time.sleep(0.1)
    raise SystemExit("no run got as far as its first step")


def kill_trials(sweep_file, folder):
    """Kill -9 a kernel, a runner and a Ray worker."""
    driver, killed = start(sweep_file, folder), []
    for what in ("kernel", "runner", "worker"):
        run = next(
            r for r in iter(lambda: [r for r in training(folder) if r not in killed], None) if r
        )[0]
        attempt = train(run)["attempts"][-1]
        runner = attempt["pid"]
        parent = int(pathlib.Path(f"/proc/{runner}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(
            {"kernel": attempt["kernel"], "runner": runner, "worker": parent}[what], signal.SIGKILL
        )
        killed.append(run)
    return driver.wait(LIMIT_SECONDS), len(killed)


def kill_driver(sweep_file, folder):
    """Kill -9 the driver while two trials train, then repeat the command."""
    driver = start(sweep_file, folder)
    training(folder, 2)
    driver.kill()
    driver.wait()
    return start(sweep_file, folder).wait(LIMIT_SECONDS), 1


def kill_node(sweep_file, folder):
    """Kill one of two worker nodes, with its workers, while a trial trains on each."""
    from ray.cluster_utils import Cluster

    os.environ.update(
        {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "TMPDIR": str(folder / "tmp")}
    )
    memory = {"object_store_memory": 80 * 2**20}
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **memory}
    )
    try:
        nodes = [cluster.add_node(num_cpus=1, **memory) for _ in range(2)]
        driver = start(sweep_file, folder, RAY_ADDRESS=cluster.address)
        training(folder, 2)
        cluster.remove_node(nodes[0], allow_graceful=False)
        return driver.wait(LIMIT_SECONDS), 1
    finally:
        cluster.shutdown()


def drill(folder, trials):
    import importlib.util

    if not importlib.util.find_spec("ray"):
        print("  NOT RUN: requirements-sweep.txt is not installed")
        return 0, []
    lost, losses, sweep_file = [], {}, six(folder)
    drills = {"trial": kill_trials, "node": kill_node, "driver": kill_driver}
    for name in list(drills)[:trials]:
        place = folder / name[0]
        (place / "tmp").mkdir(parents=True)
        begun = time.monotonic()
        code, killed = drills[name](sweep_file, place)
        runs = sorted((place / "runs").glob("six-*"))
        whole = [
            r
            for r in runs
            if train(r)["status"] == "finished" and not files.find_damage(r, train(r)["artifacts"])
        ]
        cut = [a["exit"] for r in runs for a in train(r)["attempts"] if a["exit"] != "ok"]
        for run in whole:
            losses.setdefault(run.name, set()).add(
                json.loads((run / "results.json").read_text())["train"]["eval_loss_after"]
            )
        leaks = subprocess.run(
            ["grep", "-rlaF", TOKEN, str(place)], capture_output=True, text=True
        ).stdout.split()
        print(
            f"  {name}: {killed} killed, {len(whole)} of 6 runs finished, exit code {code}, {len(cut)} attempts on record as cut off, "
            f"{len(leaks)} files with the token, {time.monotonic() - begun:.0f} s",
            flush=True,
        )
        if len(whole) < 6 or code or leaks:
            lost.append(f"{name}: {(place / 'sweep.log').read_text()[-3000:]}")
    return len(drills), lost + [
        f"{name}: {values}" for name, values in losses.items() if len(values) > 1
    ]
