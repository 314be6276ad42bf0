"""Wrong usage, and what is refused before anything starts.

.venv/bin/python -m pytest tests/runs/test_run_job.py
"""

import os
import subprocess
import sys

import pytest

from helpers import standin
from lib.runs.run_job import main


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["fly"], "invalid choice"),
        (["run", "--bogus"], "unrecognized arguments"),
        ([], "required"),
        (["run", "--params", "params/none.yaml"], "Available:"),
        (["run", "--set", "lerning_rate=1"], "did you mean `learning_rate`?"),
        (["run", "--run", "../other"], "cannot name a run"),
        (["report", "--run", "nothing"], "not a run"),
        (["run", "--run=-x"], "RUN=`-x` cannot name a run"),
        (["run", "--run=examples"], "a folder of runs: demo"),
        (["prepare", "--set", "dataset=lib/mine"], "`lib/mine` does not exist; folder `lib` has"),
        (["prepare", "--set", "exam=[lib/mine]"], "exam `lib/mine` does not exist; folder `lib`"),
        (["prepare", "--set", "dataset=hf://datasets/a/b"], "write `a/b`"),
    ],
)
def test_wrong_usage_is_one_screen_and_exit_code_2(words, expected, monkeypatch, capsys):
    monkeypatch.chdir(standin.ROOT)
    try:
        code = main(words)
    except SystemExit as ended:  # argparse's own
        code = ended.code
    said = capsys.readouterr().err
    assert code == 2
    assert expected in said
    assert "Traceback" not in said
    assert len(said.splitlines()) < 15


def test_wrong_usage_ends_the_command_so_too():
    done = subprocess.run(
        [sys.executable, "-m", "lib.runs", "run", "--params", "params/none.yaml"],
        cwd=standin.ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "Available:" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "text", [None, "", '{"run": "job", "stag', "{}", "[]", '{"stages": {"prepare": {}}}']
)
def test_a_half_written_run_folder_is_refused_and_left_as_it_is(here, text, capsys):
    (here.run / "data").mkdir(parents=True)
    (here.run / "data/rows").write_text("precious")
    if text is not None:
        (here.run / "run.json").write_text(text)
    before = {p: p.is_file() and p.read_bytes() for p in here.run.rglob("*")}
    assert "RUN=" in standin.refused(capsys, "run", "--params", "params/job.yaml")
    assert {p: p.is_file() and p.read_bytes() for p in here.run.rglob("*")} == before


def test_a_runs_folder_that_cannot_be_written(here, monkeypatch, capsys):
    monkeypatch.setenv("MEDRESCUE_RUNS", "rows.jsonl/runs")
    assert "MEDRESCUE_RUNS" in standin.refused(capsys, "run", "--params", "params/job.yaml")
    monkeypatch.setenv("MEDRESCUE_RUNS", "runs")
    monkeypatch.setattr(
        os, "replace", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system"))
    )
    assert "cannot write `runs/job/run.json`: Read-only file system" in standin.refused(
        capsys, "run", "--params", "params/job.yaml"
    )
