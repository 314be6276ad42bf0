"""A sweep of six small runs on the tiny Gemma 3n, of which a trial, a node, the driver are killed. Nothing may be lost.

    .venv/bin/pip install -r requirements-sweep.txt && .venv/bin/python tests/drills/sweep_drill.py [trial] [node] [driver]

After each: six runs finished with whole artefacts, each attempt on record, the same held-out losses in all drills, the planted
token in no file. Two trials at a time; a node is one of two worker nodes of Ray's own cluster utility, on this machine.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import tiny_gemma3n  # noqa: E402

from lib import files, ledger  # noqa: E402

TOKEN = "hf_" + "planted" * 5
LIMIT_SECONDS = 7200


def job(folder):
    """The tiny base, 24 short rows, a params file and a sweep file of six trials; returns the sweep file."""
    tiny_gemma3n.build(folder / "base")
    rows = [json.loads(line) for line in (ROOT / "lib/assets/first_aid.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = sorted(rows, key=lambda row: len(row["question"] + row["answer"]))[:24]
    (folder / "rows.jsonl").write_text("".join(json.dumps({k: row[k] for k in ("id", "question", "answer")}) + "\n" for row in rows), encoding="utf-8")
    (folder / "tiny.yaml").write_text(
        f"base_model: {folder / 'base'}\ndataset: {folder / 'rows.jsonl'}\nload_in_4bit: false\noptim: adamw_torch\nmax_seq_length: 512\n"
        "validation_size: 0.2\nmax_steps: 4\neval_steps: 2\nwarmup_steps: 0\nsave_steps: 1\nsample_tokens: 1\nper_device_train_batch_size: 2\n"
        "gradient_accumulation_steps: 1\ngradient_checkpointing: false\n")
    (folder / "six.yaml").write_text(f"base: {folder / 'tiny.yaml'}\ngrid: {{learning_rate: [1.0e-3, 3.0e-3, 1.0e-2], lora_r: [2, 4]}}\n"
                                     "metric: eval_loss_after\ndirection: min\nearly_stop: false\n")
    return folder / "six.yaml"


def start(sweep_file, folder, **env):
    log = open(folder / "sweep.log", "a")  # noqa: SIM115
    return subprocess.Popen([sys.executable, "-m", "lib.sweep", "--params", str(sweep_file)], cwd=ROOT, stdout=log, stderr=log,
                            env={**os.environ, "MEDRESCUE_RUNS": str(folder / "runs"), "HF_TOKEN": TOKEN, "TMPDIR": str(folder / "tmp"), **env})


def train(run):
    return json.loads((run / "run.json").read_text())["stages"]["train"] if (run / "run.json").exists() else {"status": "pending", "attempts": []}


def training(folder, more=1):
    """Wait until so many runs are between their first step and their last; returns them."""
    end = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < end:
        found = [run for run in sorted((folder / "runs").glob("*")) if train(run)["status"] == "running"
                 and ledger.steps(ledger.read(run / "metrics.jsonl"))]
        if len(found) >= more:
            return found
        time.sleep(0.1)
    raise SystemExit("no run got as far as its first step")


def kill_trials(sweep_file, folder):
    """kill -9 of a kernel, of a runner, and of a Ray worker."""
    driver, killed = start(sweep_file, folder), []
    for what in ("kernel", "runner", "worker"):
        run = next(r for r in iter(lambda: [r for r in training(folder) if r not in killed], None) if r)[0]
        attempt = train(run)["attempts"][-1]
        runner = attempt["pid"]
        parent = int(pathlib.Path(f"/proc/{runner}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill({"kernel": attempt["kernel"], "runner": runner, "worker": parent}[what], signal.SIGKILL)
        killed.append(run)
    return driver.wait(LIMIT_SECONDS), len(killed)


def kill_driver(sweep_file, folder):
    """kill -9 of the driver while two trials train; then the same command."""
    driver = start(sweep_file, folder)
    training(folder, 2)
    driver.kill()
    driver.wait()
    return start(sweep_file, folder).wait(LIMIT_SECONDS), 1


def kill_node(sweep_file, folder):
    """One of two worker nodes goes, with its workers, while a trial trains on each."""
    from ray.cluster_utils import Cluster

    os.environ.update({"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "TMPDIR": str(folder / "tmp")})
    memory = {"object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **memory})
    try:
        nodes = [cluster.add_node(num_cpus=1, **memory) for _ in range(2)]
        driver = start(sweep_file, folder, RAY_ADDRESS=cluster.address)
        training(folder, 2)
        cluster.remove_node(nodes[0], allow_graceful=False)
        return driver.wait(LIMIT_SECONDS), 1
    finally:
        cluster.shutdown()


def main(names):
    drills = {"trial": kill_trials, "node": kill_node, "driver": kill_driver}
    lost, losses = 0, {}
    # a short path: Ray's sockets lie under it, and a socket's path has 107 characters at most
    with tempfile.TemporaryDirectory(prefix="d", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        sweep_file = job(pathlib.Path(temporary))
        for name in names or drills:
            folder = pathlib.Path(temporary) / name[0]
            (folder / "tmp").mkdir(parents=True)
            begun = time.monotonic()
            code, killed = drills[name](sweep_file, folder)
            runs = sorted((folder / "runs").glob("six-*"))
            whole = [r for r in runs if train(r)["status"] == "finished" and not files.damaged(r, train(r)["artifacts"])]
            cut = [a["exit"] for r in runs for a in train(r)["attempts"] if a["exit"] != "ok"]
            repeated = sum(json.loads((r / "results.json").read_text())["train"]["steps_repeated"] for r in whole)
            for run in whole:
                losses.setdefault(run.name, set()).add(json.loads((run / "results.json").read_text())["train"]["eval_loss_after"])
            leaks = subprocess.run(["grep", "-rlaF", TOKEN, str(folder)], capture_output=True, text=True).stdout.split()
            bad = 6 - len(whole) + bool(code) + len(leaks)
            lost += bad
            print(f"{name}: {killed} killed, {len(whole)} of 6 runs finished, exit code {code}, {len(cut)} attempts on record as cut off, "
                  f"{repeated} steps repeated, {len(leaks)} files with the token, {time.monotonic() - begun:.0f} s: {'NOT ' if not bad else ''}LOST", flush=True)
            for text in cut:
                print(f"    {text.splitlines()[0][:140]}")
            if bad:
                print((folder / "sweep.log").read_text()[-6000:])
    apart = sum(len(values) > 1 for values in losses.values())
    print(f"held-out losses that differ between drills: {apart} of {len(losses)}")
    return bool(lost or apart)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
