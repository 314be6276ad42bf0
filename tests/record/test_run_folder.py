"""A run's folder: its name, its lock, and who holds it.

.venv/bin/python -m pytest tests/record/test_run_folder.py
"""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.runs_by_hand import NOBODY
from lib import params
from lib.common import errors, files
from lib.common.errors import UserError
from lib.params import Params
from lib.record import opening, run_folder
from lib.runs.listing import find_runs


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


NAMES = st.text(max_size=400) | st.text("./~ab\0\n'\"$\\\udcff", max_size=12)


@settings(max_examples=150, deadline=None)
@given(NAMES)
def test_any_text_names_a_run_or_is_refused_in_one_short_message(name):
    said = ""
    try:
        folder = run_folder.choose_folder(Params(), "", name)
    except UserError as error:
        said = str(error)
    assert len(said) < 700
    assert said or folder.parent == run_folder.runs_folder() or run_folder.is_run(folder)


@pytest.mark.parametrize("name", ["x" * 300, "x" * 5000, "a\0b", "a/" * 3000])
def test_a_name_that_cannot_be_a_path_is_no_run(name):
    with pytest.raises(UserError):
        run_folder.choose_folder(Params(), "", name)
    with pytest.raises(UserError):
        find_runs(name)


def test_a_file_in_the_place_of_the_runs_is_named(tmp_path, monkeypatch):
    (tmp_path / "runs").write_text("x")
    monkeypatch.setenv("MEDRESCUE_RUNS", str(tmp_path / "runs"))
    with pytest.raises(UserError, match="runs` is a file; expected the folder of all runs"):
        find_runs("")
    monkeypatch.setenv("MEDRESCUE_RUNS", " ")
    assert run_folder.runs_folder() == errors.ROOT / "runs"


def test_a_message_names_the_newest_runs_and_how_many_more_there_are(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDRESCUE_RUNS", str(tmp_path))
    assert run_folder.list_names() == "none"
    for number in range(12):
        (tmp_path / f"run{number:02}").mkdir()
        (record := tmp_path / f"run{number:02}/run.json").touch()
        os.utime(record, (number, number))
    named = ", ".join(f"run{number:02}" for number in range(2, 12))
    assert run_folder.list_names() == f"{named}, and 2 more (`make runs` lists them)"
