"""Notebooks run by hand share the record with the runner.

.venv/bin/python -m pytest tests/record/test_notebook.py
"""

import json
import subprocess
import sys

import pytest

from helpers import standin
from helpers.runs_by_hand import by_hand, finish, finished, statuses
from lib import params
from lib.common import errors, files
from lib.common.errors import UserError
from lib.record.run_record import STAGES


def test_three_notebooks_by_hand_are_one_run_and_give_it_back(folder):
    data = finished(folder)
    assert statuses(folder) == ["finished"] * 3
    assert [len(data["stages"][s]["attempts"]) for s in STAGES] == [1, 1, 1]
    assert data["stages"]["export"]["inputs"] == {"prepare": "a result", "train": "a result"}
    take = "import pathlib, sys\nfrom lib.common import files\nsys.exit(files.lock_folder(pathlib.Path(sys.argv[1])) is None)"
    taken = subprocess.run([sys.executable, "-c", take, str(folder)], cwd=errors.ROOT, timeout=60)
    assert taken.returncode == 0  # though this process, like an open kernel, lives on


def test_the_last_cell_run_twice_cannot_undo_what_came_after(folder):
    _, run = by_hand("prepare")
    finish(run, "prepare")
    finish(by_hand("train")[1], "train")
    before = (folder / "run.json").read_bytes()
    with pytest.raises(UserError, match="start at the notebook's first cell"):
        finish(run, "prepare")
    assert (folder / "run.json").read_bytes() == before


def test_the_first_cell_run_twice_closes_the_attempt_it_leaves(folder):
    by_hand("prepare")
    finish(by_hand("prepare")[1], "prepare")
    first, second = json.loads((folder / "run.json").read_text())["stages"]["prepare"]["attempts"]
    assert "run again" in first["exit"]
    assert first["end"] is not None
    assert second["exit"] == "ok"


def test_a_stage_by_hand_needs_the_ones_before_it_and_lets_go(folder):
    with pytest.raises(UserError, match="train needs prepare, which is pending"):
        by_hand("train")
    assert str(folder) not in files._locks
    finish(by_hand("prepare")[1], "prepare")
    (folder / "prepare/file").write_text("other")
    with pytest.raises(
        UserError, match="train needs prepare, which has changed: prepare/file has 5 bytes"
    ):
        by_hand("train")
    assert str(folder) not in files._locks


def test_a_stage_made_again_puts_back_only_what_no_longer_fits(folder, capsys):
    finished(folder)
    finish(by_hand("train")[1], "train")  # the same result
    assert statuses(folder) == ["finished"] * 3
    finish(by_hand("train")[1], "train", "another result")
    assert statuses(folder) == ["finished", "finished", "pending"]
    assert "export was made from another result of train" in capsys.readouterr().out


def test_training_starts_over_on_other_data_and_continues_on_the_same(folder):
    finish(by_hand("prepare")[1], "prepare")
    by_hand("train")
    (folder / "checkpoints").mkdir()
    (folder / "metrics.jsonl").write_text("first")
    by_hand("train")  # cut off and begun again
    finish(by_hand("prepare")[1], "prepare")  # made again, the same rows
    by_hand("train")
    assert (folder / "checkpoints").exists()
    assert (folder / "metrics.jsonl").read_text() == "first"
    finish(by_hand("prepare")[1], "prepare", "other rows")
    by_hand("train")
    assert not (folder / "checkpoints").exists()
    assert (folder / "metrics.attempt3.jsonl").read_text() == "first"


def test_what_changes_no_weight_may_change_as_a_run_goes_on(folder):
    finish(by_hand("prepare", validation_size=0.1)[1], "prepare")
    job, run = by_hand("train", max_minutes=5.0, num_gpus=1, save_steps=7)
    assert (job.max_minutes, job.num_gpus, job.save_steps) == (5.0, 1, 7)
    assert run.stage("prepare")["status"] == "finished"
    files.unlock_folder(run.folder)
    assert params.load_job(folder / "params.yaml") == job
    again, _ = by_hand("train", max_minutes=9.0)
    assert again.max_minutes == 9.0


def test_the_stand_in_notebooks_name_real_parameters():
    for line in standin.KEYS.values():
        assert line.split(":")[0] in params.FIELDS


def test_papermills_false_and_true_are_flags_and_other_texts_are_not(folder):
    finish(by_hand("prepare", push_private="false")[1], "prepare")
    assert params.load_job(folder / "params.yaml").push_private is False
    with pytest.raises(UserError, match='`push_private` is "no"; expected true or false'):
        by_hand("prepare", push_private="no")
