"""A run's folder: its name, its lock, and who holds it.

.venv/bin/python -m pytest tests/record/test_run_folder.py
"""

import os

import pytest

from helpers.runs_by_hand import NOBODY
from lib import params
from lib.common import errors, files
from lib.common.errors import UserError
from lib.params import Params
from lib.record import opening, run_folder


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
        UserError, match="that process is gone, but process 77, which it started, still runs"
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


def test_a_run_that_an_open_notebook_holds_says_how_to_release_it(folder, monkeypatch):
    run = opening.open_run(folder, Params())
    run.begin_attempt("train", "notebook")
    monkeypatch.setattr(files, "lock_folder", lambda _: None)  # as another process sees it
    with pytest.raises(
        UserError, match="the kernel of an open train.ipynb: .* or shut that kernel"
    ):
        run_folder.lock_run(folder)
