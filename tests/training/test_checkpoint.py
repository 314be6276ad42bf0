"""Checkpoints: damaged, of another job, half written, on a full disk.

python -m pytest tests/training/test_checkpoint.py
"""

import contextlib
import errno
import json
import os
import pathlib
import re
import shutil

import pytest
import torch
from safetensors import SafetensorError

from helpers.small_training import (
    a_job,
    apart,
    at_call,
    checkpoints,
    crash,
    of_rows,
    same_run,
    session,
    small_model,
    train_step,
    whole_run,
)
from lib.common import machine
from lib.common.errors import UserError
from lib.model import device
from lib.record import ledger
from lib.training import checkpoint
from lib.training import masters as masters_module
from lib.training.masters import Masters

pytestmark = pytest.mark.usefixtures("one_thread")


OTHER = (
    "fp32" if device.choose_precision()[0] == torch.bfloat16 else "bf16"
)  # than this machine computes in


@pytest.fixture(scope="session")
def stopped(tmp_path_factory):
    """A run that crashed in step 5, with checkpoints of steps 2 and 4: copy before use."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(RuntimeError):
        at_call(patch, 9, crash)
        session(folder)
    assert checkpoints(folder) == ["step-000002", "step-000004"]
    return folder


@pytest.fixture
def stopped_copy(stopped, tmp_path):
    return pathlib.Path(shutil.copytree(stopped, tmp_path / "run"))


def flip(path, at=-3):
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


DAMAGE = {
    "truncated adapter": lambda c: os.truncate(c / "adapter.safetensors", 100),
    "empty optimizer": lambda c: (c / "optimizer.safetensors").write_bytes(b""),
    "flipped bit in adapter": lambda c: flip(c / "adapter.safetensors"),
    "flipped bit in optimizer": lambda c: flip(c / "optimizer.safetensors"),
    "flipped bit in the optimizer's numbers": lambda c: flip(c / "optimizer.json", 20),
    "missing optimizer's numbers": lambda c: (c / "optimizer.json").unlink(),
    "missing optimizer": lambda c: (c / "optimizer.safetensors").unlink(),
    "missing checkpoint.json": lambda c: (c / "checkpoint.json").unlink(),
    "torn checkpoint.json": lambda c: os.truncate(c / "checkpoint.json", 90),
    "checkpoint.json not UTF-8": lambda c: (c / "checkpoint.json").write_bytes(b"\xff\xfe"),
    "checkpoint.json of another shape": lambda c: (c / "checkpoint.json").write_text("[1]"),
    "flipped bit in the step": lambda c: (c / "checkpoint.json").write_text(
        (c / "checkpoint.json").read_text().replace('"step": 4', '"step": 5')
    ),
    "flipped bit in an identity": lambda c: (c / "checkpoint.json").write_text(
        (c / "checkpoint.json").read_text().replace('"data-1"', '"data-3"')
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_it_says_so(stopped_copy, capsys, damage):
    DAMAGE[damage](stopped_copy / "checkpoints" / "step-000004")
    path, state = checkpoint.newest_checkpoint(stopped_copy / "checkpoints")
    assert (path.name, state["step"]) == ("step-000002", 2)
    assert "checkpoint step-000004 is damaged (" in capsys.readouterr().out
    assert any(name.startswith("damaged-step-000004") for name in checkpoints(stopped_copy))


def test_training_from_the_checkpoint_before_a_damaged_one(stopped_copy, capsys, uninterrupted):
    flip(stopped_copy / "checkpoints" / "step-000004" / "optimizer.safetensors")
    found = same_run(stopped_copy, session(stopped_copy), uninterrupted)
    assert (found["sessions"], found["steps_repeated"]) == (2, 2)
    assert "continuing after step 2 of" in capsys.readouterr().out
    assert [n for n in checkpoints(stopped_copy) if n.startswith("step")] == [
        "step-000004",
        "step-000006",
    ]


def test_without_a_good_checkpoint_training_starts_over(stopped_copy, uninterrupted):
    for path in (stopped_copy / "checkpoints").glob("step-*"):
        os.truncate(path / "adapter.safetensors", 50)
    found = same_run(stopped_copy, session(stopped_copy), uninterrupted)
    assert found["steps_repeated"] == 4


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"lora_r": 3}, "lora_r: checkpoint 2, now 3"),
        ({"learning_rate": 2e-2}, "learning_rate: checkpoint 0.01, now 0.02"),
        ({"seed": 6}, "seed: checkpoint 5, now 6"),
        ({"gradient_accumulation_steps": 4}, "rows_a_step: checkpoint 4, now 8"),
        ({"per_device_train_batch_size": 3}, "rows_a_step: checkpoint 4, now 6"),
        ({"packing": True}, "packing: checkpoint False, now True"),
        ({"load_in_4bit": True}, "load_in_4bit: checkpoint False, now True"),
        ({"precision": OTHER}, f"computes in: checkpoint {device.choose_precision()[0]}, now"),
        ({"use_rslora": True}, "use_rslora: checkpoint False, now True"),
        ({"neftune_noise_alpha": 1.0}, "neftune_noise_alpha: checkpoint 0.0, now 1.0"),
        ({"base_model": "other/base"}, "base_model: checkpoint some/base, now other/base"),
        ({"max_steps": 2}, "max_steps: checkpoint -1, now 2"),
        ({"finetune_mlp_modules": False}, "finetune_mlp_modules: checkpoint True, now False"),
    ],
)
def test_a_checkpoint_of_another_job_is_refused_with_the_difference(stopped_copy, changes, shown):
    before = (stopped_copy / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=re.escape(shown)):
        session(stopped_copy, a_job(**changes))
    assert checkpoints(stopped_copy) == ["step-000002", "step-000004"]
    assert (stopped_copy / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("what", ["data", "base"])
def test_a_checkpoint_of_other_data_or_another_base_is_refused(stopped_copy, what):
    with pytest.raises(
        UserError,
        match=rf"step-000004 does not belong to this job:\n  {what}: checkpoint {what}-1, now {what}-2\nStart .*FORCE=1",
    ):
        session(stopped_copy, **{what: f"{what}-2"})


def test_the_micro_batch_of_a_packing_job_is_part_of_it():
    """Its plan depends on it: packed micro-batches are filled with rows that sum up well."""
    jobs = [
        a_job(packing=True),
        a_job(packing=True, per_device_train_batch_size=4, gradient_accumulation_steps=1),
    ]
    ours, theirs = (checkpoint.describe_identity(job, "data-1", "base-1", 1) for job in jobs)
    assert {k for k in ours if ours[k] != theirs[k]} == {"micro_batch"}


@pytest.mark.parametrize("package", ["torch", "transformers", "peft"])
def test_a_checkpoint_of_another_library_is_refused_with_the_difference(
    stopped_copy, monkeypatch, package
):
    versions = machine.packages()
    monkeypatch.setattr(machine, "packages", lambda: {**versions, package: "99.1.2"})
    now = ".".join(versions[package].split(".")[:2])
    with pytest.raises(
        UserError,
        match=rf"does not belong to this job:\n  {package} version: checkpoint {re.escape(now)}, now 99\.1\nStart",
    ) as caught:
        session(stopped_copy)
    assert f"To go on instead: pip install '{package}=={now}.*'" in str(caught.value)
    assert checkpoints(stopped_copy) == ["step-000002", "step-000004"]


def test_a_patch_of_a_library_is_no_other_library(stopped_copy, monkeypatch, uninterrupted):
    versions = machine.packages()
    patched = {k: ".".join([*v.split(".")[:2], "99"]) for k, v in versions.items()}
    assert patched["torch"] != versions["torch"]
    monkeypatch.setattr(machine, "packages", lambda: patched)
    same_run(stopped_copy, session(stopped_copy), uninterrupted)


def test_fewer_steps_than_are_done_are_refused(stopped_copy):
    before = (stopped_copy / "metrics.jsonl").read_bytes()
    with pytest.raises(
        UserError,
        match=r"step-000004 does not belong to this job:\n  max_steps: checkpoint -1, now 3\nStart .* RUN=",
    ):
        session(stopped_copy, a_job(max_steps=3))
    assert checkpoints(stopped_copy) == ["step-000002", "step-000004"]
    assert (stopped_copy / "metrics.jsonl").read_bytes() == before


def test_what_changes_no_weight_may_change_between_sessions(stopped_copy, uninterrupted):
    session_job = a_job(
        save_steps=1,
        save_total_limit=3,
        max_minutes=60.0,
        sample_tokens=5,
        dataloader_num_workers=0,
        eval_steps=3,
    )
    same_run(stopped_copy, session(stopped_copy, session_job), uninterrupted)
    assert checkpoints(stopped_copy) == ["step-000004", "step-000005", "step-000006"]


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "accumulation"), [(4, 1), (1, 4)])
def test_the_micro_batch_may_change_between_sessions(tmp_path, monkeypatch, rows, accumulation):
    """The same rows a step in other micro-batches: only the rounding differs, whether from the start or from step 4 on."""
    job, other = (
        a_job(
            lora_dropout=0.0,
            per_device_train_batch_size=r,
            gradient_accumulation_steps=a,
            max_steps=12,
        )
        for r, a in ((2, 2), (rows, accumulation))
    )
    weights, entries = whole_run(tmp_path / "whole", job)
    with monkeypatch.context() as patch:
        at_call(patch, 9, crash)
        with pytest.raises(RuntimeError, match="machine stopped"):
            session(tmp_path / "run", job)
    resumed, resumed_entries = whole_run(tmp_path / "run", other)
    assert ledger.summarise(resumed_entries)["sessions"] == 2
    assert apart(weights, resumed, job) < 1e-3
    for ours, theirs in zip(
        ledger.valid_steps(resumed_entries), ledger.valid_steps(entries), strict=True
    ):
        assert (ours["step"], ours["rows"], ours["tokens"], ours["trained"]) == (
            theirs["step"],
            theirs["rows"],
            theirs["tokens"],
            theirs["trained"],
        )
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    unlike, _ = whole_run(tmp_path / "unlike", job.model_copy(update={"seed": 6}))
    assert apart(weights, unlike, job) > 0.1, "other rows must give other weights"


def test_save_total_limit_of_one(tmp_path):
    session(tmp_path, a_job(save_total_limit=1))
    assert checkpoints(tmp_path) == ["step-000006"]


def test_a_folder_half_written_by_a_kill_is_ignored_and_goes(stopped_copy, uninterrupted):
    for name in (".step-000006.tmp", ".step-000005.tmp"):
        (stopped_copy / "checkpoints" / name).mkdir()
        (stopped_copy / "checkpoints" / name / "adapter.safetensors").write_bytes(b"half")
    same_run(stopped_copy, session(stopped_copy), uninterrupted)
    assert checkpoints(stopped_copy) == ["step-000004", "step-000006"]
    assert not checkpoint.files.find_damage(
        stopped_copy / "checkpoints" / "step-000006",
        checkpoint.newest_checkpoint(stopped_copy / "checkpoints")[1]["files"],
    )


def test_a_checkpoint_appears_under_its_name_only_when_complete(tmp_path, monkeypatch):
    seen = []

    def describe(folder, names):
        seen.append((folder.name, sorted(p.name for p in folder.parent.glob("step-*"))))
        return real(folder, names)

    real = checkpoint.files.describe_files
    monkeypatch.setattr(checkpoint.files, "describe_files", describe)
    session(tmp_path, a_job(max_steps=4))
    assert seen == [(".step-000002.tmp", []), (".step-000004.tmp", ["step-000002"])]


NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("file", "error"),
    [
        ("adapter.safetensors", NO_SPACE),
        ("optimizer.safetensors", NO_SPACE),
        ("optimizer.json", NO_SPACE),
        ("checkpoint.json", NO_SPACE),
        (
            "optimizer.safetensors",
            SafetensorError(
                "Error while serializing: I/O error: No space left on device (os error 28)"
            ),
        ),
    ],
)
def test_a_full_disk_leaves_the_earlier_checkpoints_and_says_so(
    tmp_path, monkeypatch, uninterrupted, file, error
):
    """What was half written goes, for it is what fills the disk; with space again the same command continues."""

    def refuse(path):
        if path.parent.name == ".step-000006.tmp" and path.name == file:
            raise error

    def save(tensors, path):
        path.write_bytes(b"half")
        refuse(path)
        save_file(tensors, path)

    def move(source, target):
        refuse(pathlib.Path(target))
        replace(source, target)

    save_file, replace = masters_module.save_file, os.replace
    with monkeypatch.context() as patch:
        patch.setattr(masters_module, "save_file", save)
        patch.setattr(os, "replace", move)
        with pytest.raises(
            UserError,
            match="checkpoint of step 6 could not be saved: .*No space left on device.* Earlier checkpoints are intact",
        ):
            session(tmp_path)
    assert checkpoints(tmp_path) == ["step-000002", "step-000004"]
    for name in checkpoints(tmp_path):
        state = json.loads((tmp_path / "checkpoints" / name / "checkpoint.json").read_text())
        assert not checkpoint.files.find_damage(tmp_path / "checkpoints" / name, state["files"])
    found = same_run(tmp_path, session(tmp_path), uninterrupted)
    assert (found["sessions"], found["steps_repeated"]) == (2, 2)


def test_no_pickle_anywhere(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("pickled")

    monkeypatch.setattr(torch, "save", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr("pickle.dumps", refuse)
    job = a_job(max_steps=2)
    net = small_model(job)
    masters = Masters(net, job)
    train_step(net.train(), masters, job, of_rows([0]), 1e-3)
    checkpoint.save_checkpoint(tmp_path, 1, masters, {}, 2)
    assert sorted(p.name for p in (tmp_path / "step-000001").iterdir()) == [
        "adapter.safetensors",
        "checkpoint.json",
        "optimizer.json",
        "optimizer.safetensors",
    ]
    again = Masters(small_model(job), job)
    assert checkpoint.resume(tmp_path, again, {}) == 1
    assert torch.equal(again.flat, masters.flat)
    assert all(torch.equal(again.live[n], p) for n, p in masters.live.items())
