"""run.json and results.json: what is started over, damaged, and the checkout a run came from.

.venv/bin/python -m pytest tests/record/test_run_record.py
"""

import subprocess

import pytest

from helpers.runs_by_hand import finished
from lib.common import files, machine
from lib.common.errors import UserError
from lib.params import Params
from lib.record import opening, run_record


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
    assert "finished stages need FORCE=1" in capsys.readouterr().out


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
    (checkout / "lib").mkdir()
    (checkout / "lib/untracked.py").write_text("x")
    run.begin_attempt("prepare", "make")
    assert run.stage("prepare")["attempts"][-1]["dirty"] is True
    assert "patch" not in run.stage("prepare")["attempts"][-1]
    (checkout / "code.py").write_text("a = 2\n" * 100)
    monkeypatch.setattr(run_record, "PATCH_BYTES", 100)
    run.begin_attempt("prepare", "make")
    assert "patch" not in run.stage("prepare")["attempts"][-1]
    assert not list(folder.glob("*.patch"))


def test_own_data_that_git_does_not_track_are_no_change_of_the_code(checkout):
    (checkout / "my.jsonl").write_text("{}")
    (checkout / "params").mkdir()
    (checkout / "params/mine.yaml").write_text("max_rows: 5\n")
    commit, dirty = machine.describe_checkout()
    assert (len(commit), dirty) == (40, False)
    (checkout / "notebooks").mkdir()
    (checkout / "notebooks/train.ipynb").write_text("{}")
    assert machine.describe_checkout()[1] is True


@pytest.mark.parametrize("hook", [False, True])
def test_inside_the_repository_of_another_project_nothing_of_it_is_recorded(
    folder, checkout, monkeypatch, hook
):
    """Unpacked without .git; a hook of that project also has GIT_DIR in its environment."""
    (checkout / "code.py").write_text("a = 'of nobody else'\n")
    unpacked = checkout / "vendor" / "pipeline"
    (unpacked / "lib").mkdir(parents=True)
    (unpacked / "lib/new.py").write_text("x")
    monkeypatch.setattr(machine, "ROOT", unpacked)
    if hook:
        monkeypatch.setenv("GIT_DIR", str(checkout / ".git"))
    assert machine.describe_checkout() == (None, None)
    assert machine.uncommitted_changes() == ""
    run = opening.open_run(folder, Params())
    run.begin_attempt("prepare", "make")
    assert run.stage("prepare")["attempts"][-1]["commit"] is None
    assert "of nobody else" not in "".join(p.read_text() for p in folder.iterdir() if p.is_file())


def test_a_checkout_under_a_link_is_our_own(checkout, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(checkout)
    monkeypatch.setattr(machine, "ROOT", tmp_path / "link")
    assert machine.describe_checkout()[1] is False


def test_a_secret_in_a_tracked_file_is_masked(folder, checkout, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-secret-of-mine")
    (checkout / "code.py").write_text(f"login('a-secret-of-mine')\nother = 'hf_{'Ab1' * 11}'\n")
    run = opening.open_run(folder, Params())
    run.begin_attempt("prepare", "make")
    patch = (folder / run.stage("prepare")["attempts"][-1]["patch"]).read_text()
    assert "login('(HF_TOKEN)')" in patch
    assert "other = '(a token)'" in patch
    assert "a-secret" not in "".join(p.read_text() for p in folder.iterdir() if p.is_file())


@pytest.mark.parametrize("attempts", [[], [{}], [3], [{"by": "make", "pid": 1}]])
def test_a_running_stage_whose_holder_is_not_recorded_is_not_complete(folder, attempts):
    opening.open_run(folder, Params())
    record = files.read_json(folder / "run.json", "run record")
    record["stages"]["train"].update(status="running", attempts=attempts)
    files.write_json(folder / "run.json", record)
    with pytest.raises(UserError, match="is not complete"):
        run_record.read_record(folder / "run.json")
