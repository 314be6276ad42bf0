"""The record of a run: what is refused, corrected, skipped; notebooks run by hand share it with the runner.

.venv/bin/python -m pytest tests/test_record.py
"""

import json
import os
import subprocess
import sys

import pytest

from helpers import standin
from lib import params
from lib.common import errors, files, machine
from lib.common.errors import UserError
from lib.params import Params
from lib.record import notebook, opening, run_folder, run_record
from lib.record.executed import mark_failed
from lib.record.run_record import STAGES

NOBODY = 2**22 + 1  # above the largest process id of Linux


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A run's folder, not yet made; locks taken on it are given back."""
    monkeypatch.setenv("MEDRESCUE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(run_record, "hardware", dict)  # asks the GPU's tool each time
    yield tmp_path / "runs" / "job"
    files.unlock_folder(tmp_path / "runs" / "job")


def by_hand(stage, **values):
    return notebook.begin_stage(stage, {"run_name": "job", **values})


def finish(run, stage, output="a result"):
    (run.folder / stage).mkdir(exist_ok=True)
    (run.folder / stage / "file").write_text(output)
    notebook.finish_stage(run, stage, {"value": output}, [stage], output)


def finished(folder, **values):
    """All three stages, as their notebooks do by hand."""
    for stage in STAGES:
        finish(by_hand(stage, **values)[1], stage)
    return json.loads((folder / "run.json").read_text())


def statuses(folder):
    return [json.loads((folder / "run.json").read_text())["stages"][s]["status"] for s in STAGES]


@pytest.mark.parametrize(
    "name",
    ["../x", "/tmp/x", "a/b", ".", "..", ".hidden", "-rf", " ", "a b", "a\nb", "x" * 101, "a\n"],
)
def test_a_run_name_is_one_plain_path_component(name):
    with pytest.raises(UserError, match="cannot name a run"):
        run_folder.choose_folder(Params(), "params/t4.yaml", name)


def test_a_run_without_a_name_is_named_by_its_file_and_parameters(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDRESCUE_RUNS", str(tmp_path))
    plain = run_folder.choose_folder(Params(), "params/my job!.yaml")
    assert plain == tmp_path / f"my-job-{params.fingerprint(Params())}"
    assert run_folder.choose_folder(Params(gguf_types=["f16"]), "params/my job!.yaml") == plain
    assert run_folder.choose_folder(Params(learning_rate=0.5), "params/my job!.yaml") != plain
    monkeypatch.setenv(
        "MEDRESCUE_RUNS", "elsewhere"
    )  # not the shell's folder: the kernel has another one
    monkeypatch.chdir(tmp_path)
    assert run_folder.runs_folder() == errors.ROOT / "elsewhere"


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
    assert "export: was made from another result of train" in capsys.readouterr().out


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


def test_results_of_what_is_started_over_do_not_stay(folder):
    finished(folder)
    run = opening.open_run(folder, Params())
    for section in ("exam", "exams", "safety"):
        run.write_results(section, {"items": 1})
    run.begin_attempt("train", "make", force=True)
    assert set(files.read_json(folder / "results.json", "results")) == {"prepare", "export"}, (
        "what was examined was another adapter"
    )


def test_a_damaged_results_file_is_set_aside_and_does_not_stop_a_stage(folder, capsys):
    finished(folder)
    run = opening.open_run(folder, Params())
    (folder / "results.json").write_text((folder / "results.json").read_text().replace("}", "", 1))
    run.write_results("train", {"steps": 4})
    assert files.read_json(folder / "results.json", "results") == {"train": {"steps": 4}}
    assert (folder / "results.damaged.json").exists()
    assert "made again by its stages, with FORCE=1" in capsys.readouterr().out


def test_a_damaged_copy_of_a_killed_notebook_does_not_lock_the_run(folder):
    run = opening.open_run(folder, Params())
    run.begin_attempt("prepare", "make")
    files.unlock_folder(folder)
    (folder / "prepare.ipynb").write_text('{"cells": [')
    assert opening.open_run(folder, Params()).stage("prepare")["status"] == "interrupted"


def executed(*states):
    """An executed copy as papermill leaves it: text, then a code cell for each state."""
    made = [
        {
            "cell_type": "markdown" if n == 0 else "code",
            "source": "",
            "outputs": [],
            "metadata": {"papermill": {"status": s, "exception": None}},
        }
        for n, s in enumerate(states)
    ]
    return {
        "cells": made,
        "metadata": {"papermill": {"exception": None}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


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


def test_a_copy_that_papermill_gave_its_banners_is_read_too():
    notebook = executed("completed", "failed", "pending")
    notebook["cells"].insert(
        0,
        {
            "cell_type": "markdown",
            "source": "An Exception was encountered",
            "metadata": {"tags": []},
        },
    )
    assert mark_failed(notebook, "Interrupted", "killed") == 3


def test_the_interrupt_that_shuts_a_kernel_down_is_not_taken_for_the_cause():
    notebook = executed("completed", "running", "pending")
    notebook["cells"][1]["outputs"] = [
        {"output_type": "stream"},
        {"output_type": "error", "ename": "KeyboardInterrupt"},
    ]
    assert mark_failed(notebook, "TimedOut", "too slow") == 2
    assert [o.get("ename") for o in notebook["cells"][1]["outputs"]] == [None, "TimedOut"]


def test_what_a_killed_write_left_is_swept(folder):
    opening.open_run(folder, Params())
    (folder / ".train.ipynb.77.tmp").touch()
    (folder / ".adapter.tmp").mkdir()  # a folder in the making is its maker's business
    opening.open_run(folder, Params())
    assert sorted(os.listdir(folder)) == [".adapter.tmp", "params.yaml", "run.json"]


def test_what_a_killed_conversion_left_is_no_part_of_the_export(folder):
    """A killed export's scratch folder lies in gguf/, of which every file is recorded and pushed."""
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
    with pytest.raises(UserError, match="is not whole"):
        opening.open_run(folder, Params())
    assert str(folder) not in files._locks


def test_the_holder_is_named_and_a_dead_one_is_waited_for(folder, monkeypatch):
    run = opening.open_run(folder, Params())
    run.begin_attempt("prepare", "make")
    monkeypatch.setattr(files, "lock_folder", lambda _: None)  # as another process sees it
    monkeypatch.setattr(run_folder, "ORPHAN_SECONDS", 0.3)
    last = run.stage("prepare")["attempts"][-1]
    with pytest.raises(UserError) as caught:
        run_folder.lock_run(folder)
    assert (
        f"in use by process {os.getpid()} on {last['host']} (prepare, since {last['start']}).\n"
        in str(caught.value)
    )
    last.update(pid=NOBODY, kernel=77)
    run.save()
    with pytest.raises(
        UserError, match="that process is gone, but process 77, which it had started, still runs"
    ):
        run_folder.lock_run(folder)
    last["host"] = "another-machine"  # whose processes we cannot see
    run.save()
    assert run_folder._describe_holder(folder) == (
        f"by process {NOBODY} on another-machine (prepare, since {last['start']})",
        False,
    )
    run.end_attempt("prepare", "finished", "ok")
    with pytest.raises(UserError, match="in use by a command that has just begun"):
        run_folder.lock_run(folder)


def test_the_stand_in_notebooks_name_real_parameters():
    for line in standin.KEYS.values():
        assert line.split(":")[0] in params.FIELDS


# ---------------------------------------------------------------------------------------------------------------------
# the checkout a run came from


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with one commit that the records take for the pipeline's own."""
    top = tmp_path / "checkout"
    top.mkdir()
    (top / "code.py").write_text("a = 1\n")
    for words in (
        ["init", "-q"],
        ["add", "code.py"],
        ["-c", "user.name=n", "-c", "user.email=e@x", "commit", "-qm", "one"],
    ):
        subprocess.run(["git", *words], cwd=top, check=True)
    monkeypatch.setattr(machine, "ROOT", top)
    return top


def test_a_dirty_checkout_leaves_its_difference_in_the_run_and_git_takes_it_back(folder, checkout):
    (checkout / "code.py").write_text("a = 2\n")
    (checkout / "untracked.txt").write_text("password = 12345678")
    run = opening.open_run(folder, Params())
    run.begin_attempt("prepare", "make")
    last = run.stage("prepare")["attempts"][-1]
    assert last["dirty"] is True
    patch = (folder / last["patch"]).read_text()
    assert "+a = 2" in patch
    assert "password" not in patch, "only what git tracks"
    subprocess.run(["git", "checkout", "-q", "code.py"], cwd=checkout, check=True)
    subprocess.run(["git", "apply", str(folder / last["patch"])], cwd=checkout, check=True)
    assert (checkout / "code.py").read_text() == "a = 2\n"


def test_a_clean_one_an_untracked_file_and_too_large_a_difference_leave_none(
    folder, checkout, monkeypatch
):
    run = opening.open_run(folder, Params())
    run.begin_attempt("prepare", "make")
    assert "patch" not in run.stage("prepare")["attempts"][-1]
    (checkout / "untracked.txt").write_text("x")
    run.begin_attempt("prepare", "make")
    assert run.stage("prepare")["attempts"][-1]["dirty"] is True
    assert "patch" not in run.stage("prepare")["attempts"][-1]
    (checkout / "code.py").write_text("a = 2\n" * 100)
    monkeypatch.setattr(run_record, "PATCH_BYTES", 100)
    run.begin_attempt("prepare", "make")
    assert "patch" not in run.stage("prepare")["attempts"][-1]
    assert not list(folder.glob("*.patch"))


def test_a_secret_in_a_tracked_file_is_masked(folder, checkout, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-secret-of-mine")
    (checkout / "code.py").write_text(f"login('a-secret-of-mine')\nother = 'hf_{'Ab1' * 11}'\n")
    run = opening.open_run(folder, Params())
    run.begin_attempt("prepare", "make")
    patch = (folder / run.stage("prepare")["attempts"][-1]["patch"]).read_text()
    assert "login('(HF_TOKEN)')" in patch
    assert "other = '(a token)'" in patch
    assert "a-secret" not in "".join(p.read_text() for p in folder.iterdir() if p.is_file())
