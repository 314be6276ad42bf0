"""Training in several processes on a CPU (gloo) compared with one process: same steps, same weights, one ledger.

python -m pytest tests/training/test_launch.py
"""

import fcntl
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from helpers import full_training
from helpers.small_training import HELD_OUT, ROWS, a_job, small_model
from helpers.standin import wait_for
from lib import params
from lib.common.errors import ROOT, UserError
from lib.model import adapter, base, load, ranks
from lib.record import ledger
from lib.record.run_record import STAGES
from lib.training import checkpoint, launch, loop


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a run folder as prepare leaves it, for a job whose base is a tiny Gemma 3n on disk."""
    top = tmp_path_factory.mktemp("parallel")
    torch.manual_seed(0)
    small_model(a_job()).get_base_model().save_pretrained(top / "unused")
    net = small_model(a_job(finetune_mlp_modules=False)).unload()
    net.save_pretrained(top / "base")
    shutil.rmtree(top / "unused")
    run = top / "run"
    for name, rows in (("train", ROWS), ("validation", HELD_OUT)):
        rows.save_to_disk(str(run / "data" / name))
    stages = {
        s: {"status": "pending", "attempts": [], "artifacts": [], "inputs": {}} for s in STAGES
    }
    (run / "run.json").write_text(
        json.dumps(
            {"run": "run", "created": "", "fingerprints": {"data": "data-1"}, "stages": stages}
        )
    )
    return run


def job_of(folder, **changes):
    """Return a job with dropout: the ranks must draw the same numbers as a single process."""
    return a_job(
        base_model=str(folder.parent / "base"), precision="fp32", num_train_epochs=1.0, **changes
    )


def copy(folder, to, job):
    shutil.copytree(folder, to)
    (to / "params.yaml").write_text(params.to_yaml(job))
    return to


def one_process(folder, job):
    place = base.fetch(job.base_model, job.base_revision)
    net = load.load_for_training(place, job)
    return loop.train(
        net,
        ROWS,
        HELD_OUT,
        job,
        folder,
        checkpoint.describe_identity(
            job, "data-1", base.fingerprint(place), adapter.count_parameters(net)[0]
        ),
    )


def weights(run):
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    names = ("adapter.safetensors", "weights.safetensors")
    return load_file(next(newest / name for name in names if (newest / name).exists()))


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    """Run in one process; return its folder."""
    job = job_of(folder)
    run = copy(folder, tmp_path_factory.mktemp("alone") / "run", job)
    one_process(run, job)
    return run


def same_training(run, alone):
    """Check that losses and weights agree to rounding, with one line per step, whoever computed it."""
    ours, theirs = (
        ledger.valid_steps(ledger.read_ledger(r / "metrics.jsonl")) for r in (run, alone)
    )
    assert [e["step"] for e in ours] == [e["step"] for e in theirs]
    assert [e["tokens"] for e in ours] == [e["tokens"] for e in theirs]
    assert [e["loss"] for e in ours] == pytest.approx([e["loss"] for e in theirs], rel=1e-5)
    assert [e["grad_norm"] for e in ours] == pytest.approx(
        [e["grad_norm"] for e in theirs], rel=1e-3
    )
    found, wanted = weights(run), weights(alone)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-3, atol=1e-4)
    measured = [
        [e["eval_loss"] for e in ledger.read_ledger(r / "metrics.jsonl") if e["event"] == "eval"]
        for r in (run, alone)
    ]
    assert measured[0] == pytest.approx(measured[1], rel=1e-4)


@pytest.mark.slow
def test_two_processes_train_what_one_does(folder, alone, tmp_path, capfd):
    job = job_of(folder)
    run = copy(folder, tmp_path / "run", job)
    launch.run_ranks(run, job, 2)
    same_training(run, alone)
    session = next(e for e in ledger.read_ledger(run / "metrics.jsonl") if e["event"] == "session")
    assert session["devices"] == 2
    assert [p.name for p in run.glob(".*")] == [launch.TRAINED], (
        "else what the processes told each other is gone"
    )
    trained, last = load_file(run / launch.TRAINED), weights(run)
    assert all(torch.equal(trained[n], last[n]) for n in last)
    assert "\rtraining" in capfd.readouterr().out, (
        "a progress bar is written over, not down the notebook"
    )


@pytest.mark.slow
def test_two_processes_train_all_weights_as_one_does(folder, tmp_path):
    base_folder = full_training.write_base(tmp_path / "base", torch.float32)
    job = full_training.a_job(
        base_model=str(base_folder), precision="fp32", learning_rate=1e-4, num_train_epochs=1.0
    )
    first = copy(folder, tmp_path / "alone", job)
    one_process(first, job)
    second = copy(folder, tmp_path / "run", job)
    launch.run_ranks(second, job, 2)
    same_training(second, first)
    trained, last = load_file(second / launch.TRAINED), weights(second)
    assert trained.keys() == last.keys()
    assert all(torch.equal(trained[name], last[name]) for name in last)


@pytest.mark.slow
def test_a_sharded_base_trains_the_same(folder, alone, tmp_path, capfd):
    """Each rank holds about half of the frozen weights, and short steps and splits let no rank wait."""
    job = job_of(folder, fsdp="full_shard")
    run = copy(folder, tmp_path / "run", job)
    launch.run_ranks(run, job, 2)
    same_training(run, alone)
    held, total = (
        int(n.replace(",", ""))
        for n in re.search(
            r"rank 0 holds ([\d,]+) of ([\d,]+) parameters", capfd.readouterr().out
        ).groups()
    )
    assert held < 0.7 * total


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.slow
def test_two_nodes(folder, alone, tmp_path):
    """The documented command, started on each of two "machines" that share the folder."""
    run = copy(folder, tmp_path / "run", job_of(folder))
    port = free_port()
    nodes = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--nnodes=2",
                f"--node_rank={n}",
                "--nproc_per_node=1",
                "--master_addr=127.0.0.1",
                f"--master_port={port}",
                "-m",
                "lib.training.launch",
                str(run),
            ],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for n in range(2)
    ]
    said = [node.communicate(timeout=240)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    same_training(run, alone)


def test_ranks_started_by_hand_wait_for_no_one_who_has_the_run(
    folder, tmp_path, monkeypatch, capsys
):
    run = copy(folder, tmp_path / "run", job_of(folder))
    monkeypatch.setattr(sys, "argv", ["parallel", str(run)])
    monkeypatch.setattr(ranks.dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(launch, "load_for_training", lambda *_: pytest.fail("the run is another's"))
    fd = os.open(run, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(SystemExit) as ended:
        launch.main()
    os.close(fd)
    assert ended.value.code == 1
    assert "run `run` is in use" in capsys.readouterr().out
    assert not (run / "metrics.jsonl").exists()


@pytest.mark.slow
def test_an_interrupted_pair_is_continued_by_one(folder, alone, tmp_path):
    """SIGINT to the process that started the ranks: they save, it says KeyboardInterrupt, and one process finishes the job."""
    job = job_of(folder)
    run = copy(folder, tmp_path / "run", job)
    code = (
        f"import sys, pathlib; sys.path[:0] = [{str(ROOT)!r}]\nfrom lib import params\nfrom lib.training import launch\n"
        f"run = pathlib.Path({str(run)!r})\nlaunch.run_ranks(run, params.load_job(run / 'params.yaml'), 2)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    wait_for(
        lambda: [e for e in ledger.read_ledger(run / "metrics.jsonl") if e["event"] == "step"],
        "a first step",
        120,
    )
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    done = ledger.valid_steps(ledger.read_ledger(run / "metrics.jsonl"))[-1]["step"]
    if done < 6:
        assert f"KeyboardInterrupt: stopped after step {done} of 6" in out
    one_process(run, job)
    same_training(run, alone)


@pytest.mark.slow
def test_the_notebooks_model_has_what_the_ranks_trained(folder, alone, tmp_path, monkeypatch):
    """With early stopping, these are the best weights and not the last."""
    job = job_of(folder, eval_steps=2, early_stopping_patience=9)
    run = copy(folder, tmp_path / "run", job)
    monkeypatch.setattr(ranks, "count_gpus", lambda *_: 2)
    place = base.fetch(job.base_model, job.base_revision)
    net = load.load_for_training(place, job)
    masters = launch.train(
        net,
        ROWS,
        HELD_OUT,
        job,
        run,
        checkpoint.describe_identity(
            job, "data-1", base.fingerprint(place), adapter.count_parameters(net)[0]
        ),
    )
    during = {
        e["step"]: e["eval_loss"]
        for e in ledger.read_ledger(run / "metrics.jsonl")
        if e["event"] == "eval" and e["when"] == "during"
    }
    best = min(during, key=during.get)
    wanted = load_file(run / "checkpoints" / "best" / f"step-{best:06d}" / "adapter.safetensors")
    assert all(torch.equal(masters.weights[n], w) for n, w in wanted.items())
    assert all(torch.equal(p, masters.weights[n]) for n, p in adapter.trainable(net).items())
    assert any(w.any() for n, w in wanted.items() if "lora_B" in n)
    assert not (run / launch.TRAINED).exists()


@pytest.mark.slow
def test_ranks_end_when_their_launcher_is_killed(folder, tmp_path):
    """Otherwise they would keep the cards, and write into a run that is no longer locked."""
    job = job_of(folder, max_steps=100_000, logging_steps=1)
    run = copy(folder, tmp_path / "run", job)
    code = (
        f"import sys, pathlib; sys.path[:0] = [{str(ROOT)!r}]\nfrom lib import params\nfrom lib.training import launch\n"
        f"run = pathlib.Path({str(run)!r})\nlaunch.run_ranks(run, params.load_job(run / 'params.yaml'), 2)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def ranks():
        return [
            p
            for p in pathlib.Path("/proc").glob("[0-9]*")
            if str(run).encode() in _read(p / "cmdline")
            and b"lib.training.launch" in _read(p / "cmdline")
        ]

    wait_for(
        lambda: [e for e in ledger.read_ledger(run / "metrics.jsonl") if e["event"] == "step"],
        "a first step",
        120,
    )
    assert len(ranks()) == 3, "torchrun and two ranks"
    process.kill()
    process.wait()
    wait_for(lambda: not ranks(), "all of them gone", 60)


def _read(path):
    try:
        return path.read_bytes()
    except OSError:  # gone meanwhile
        return b""


@pytest.mark.slow
def test_what_ends_the_ranks_is_raised_and_nothing_else_shown(folder, alone, tmp_path, capfd):
    run = tmp_path / "run"
    shutil.copytree(alone, run)
    with pytest.raises(UserError, match="max_steps: checkpoint -1, now 3"):
        launch.run_ranks(run, job_of(folder, max_steps=3), 2)
    shown = capfd.readouterr()
    assert "Traceback" not in shown.out + shown.err
