"""Opening a run: what is refused, corrected and swept.

.venv/bin/python -m pytest tests/record/test_opening.py
"""

import json
import os

import pytest

from helpers.runs_by_hand import executed, finished, statuses
from lib.common import files
from lib.common.errors import UserError
from lib.params import Params
from lib.record import opening


def test_changed_parameters_are_refused_shown_and_forced(folder):
    finished(folder)
    (folder / "checkpoints").mkdir()
    before = (folder / "run.json").read_bytes()
    changed = Params(lora_r=16, gguf_types=["f16"])
    with pytest.raises(UserError, match=r"(?s)lora_r: recorded 8, now 16.*make train FORCE=1"):
        opening.open_run(folder, changed)
    with pytest.raises(UserError, match="max_rows: recorded 0, now 5"):
        opening.open_run(
            folder, Params(max_rows=5), "train"
        )  # training anew does not make the rows anew
    assert (folder / "run.json").read_bytes() == before
    assert opening.open_run(folder, changed, "prepare").stage("train")["status"] == "pending"
    files.unlock_folder(folder)
    assert (folder / "checkpoints").exists()  # nothing was begun yet
    run = opening.open_run(folder, changed)
    run.begin_attempt("train", "make")
    assert not (folder / "checkpoints").exists()  # of the old rank
    assert statuses(folder) == ["finished", "running", "pending"]


def test_a_damaged_copy_of_a_killed_notebook_does_not_lock_the_run(folder):
    run = opening.open_run(folder, Params())
    run.begin_attempt("prepare", "make")
    files.unlock_folder(folder)
    (folder / "prepare.ipynb").write_text('{"cells": [')
    assert opening.open_run(folder, Params()).stage("prepare")["status"] == "interrupted"


@pytest.mark.parametrize(
    ("states", "cell"),
    [
        (["completed", "completed", "running", "pending"], 3),
        (["completed", "completed", "pending", "pending"], 3),  # between two cells
        (["running", "pending", "pending"], 2),
        (["completed", "completed"], None),
        (["completed", "failed", "pending"], 2),
    ],
)
def test_a_dead_process_is_corrected_in_record_and_notebook(folder, states, cell):
    run = opening.open_run(folder, Params())
    run.begin_attempt("prepare", "make")
    run.stage("prepare")["attempts"][-1]["pid"] = (
        os.getpid()
    )  # a container gives the same number again and again
    run.save()
    files.write_json(folder / "prepare.ipynb", executed(*states))
    files.unlock_folder(folder)
    entry = opening.open_run(folder, Params()).stage("prepare")
    assert entry["status"] == "interrupted"
    assert entry["attempts"][-1]["cell"] == cell
    assert "killed" in entry["attempts"][-1]["exit"]
    notebook = json.loads((folder / "prepare.ipynb").read_text())
    after = [c["metadata"]["papermill"]["status"] for c in notebook["cells"]]
    assert after == (
        states
        if cell is None
        else ["completed"] * (cell - 1) + ["failed"] + ["pending"] * (len(states) - cell)
    )


def test_what_a_killed_write_left_is_swept(folder):
    opening.open_run(folder, Params())
    (folder / ".train.ipynb.77.tmp").touch()
    (folder / ".adapter.tmp").mkdir()  # a folder in the making is its maker's business
    opening.open_run(folder, Params())
    assert sorted(os.listdir(folder)) == [".adapter.tmp", "params.yaml", "run.json"]


def test_what_a_killed_conversion_left_is_no_part_of_the_export(folder):
    """A killed export leaves a scratch folder in gguf/, whose files are all recorded and pushed."""
    finished(folder)
    (folder / "gguf/.convert-x1/merged").mkdir(parents=True)
    (folder / "gguf/.convert-x1/merged/model.safetensors").write_text("16 GB")
    (folder / "gguf/.job-q8_0.gguf.draft").write_text("half")
    (folder / "gguf/job-q8_0.gguf").write_text("whole")
    opening.open_run(folder, Params())
    assert [p.name for p in (folder / "gguf").iterdir()] == ["job-q8_0.gguf"]


def test_a_kill_between_the_first_two_files_leaves_a_usable_run(folder, monkeypatch):
    real = files.atomic_write

    def killed(path, content):
        if path.name == "params.yaml":
            raise KeyboardInterrupt
        real(path, content)

    monkeypatch.setattr(files, "atomic_write", killed)
    with pytest.raises(KeyboardInterrupt):
        opening.open_run(folder, Params())
    monkeypatch.setattr(files, "atomic_write", real)
    assert opening.open_run(folder, Params()).stage("prepare")["status"] == "pending"


@pytest.mark.parametrize(
    "where", [["stages", "train"], ["stages"], ["fingerprints"], ["stages", "train", "attempts"]]
)
def test_a_record_that_lacks_parts_is_refused(folder, where):
    opening.open_run(folder, Params())
    files.unlock_folder(folder)
    part = data = files.read_json(folder / "run.json", "record")
    for key in where[:-1]:
        part = part[key]
    del part[where[-1]]
    files.write_json(folder / "run.json", data)
    with pytest.raises(UserError, match="is not complete"):
        opening.open_run(folder, Params())
    assert str(folder) not in files._locks
