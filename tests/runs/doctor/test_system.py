"""A broken machine gets lines, never a traceback.

.venv/bin/python -m pytest tests/runs/doctor/test_system.py
"""

import importlib.metadata
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from lib.common import machine
from lib.common.errors import ROOT
from lib.runs.doctor import command, packages, screen, system
from lib.runs.doctor.asking import ask

VERSION = importlib.metadata.version


@pytest.fixture(autouse=True)
def no_earlier_answer(monkeypatch):
    explain_failure = packages.explain_failure
    explain_failure.cache_clear()
    monkeypatch.setattr(machine, "gpus", list)
    yield
    explain_failure.cache_clear()


def test_versions_are_told_only_where_they_differ_from_the_pins(monkeypatch):
    (line,) = packages.describe_packages()
    assert (line.state, line.what) == ("ok", "packages")

    def version(name):
        if name == "peft":
            raise importlib.metadata.PackageNotFoundError(name)
        return {"torch": "2.13.0+cpu", "numpy": "1.0", "tqdm": None}.get(name, VERSION(name))

    monkeypatch.setattr(importlib.metadata, "version", version)
    absent, others = packages.describe_packages()
    assert absent.state == "missing"
    assert "2 of" in absent.text
    assert "peft 0.21.2" in absent.text
    assert "`.venv/bin/python -m pip install -r requirements-cpu.txt`" in absent.text
    assert others.state == "note"
    assert "numpy 1.0, pinned 2." in others.text
    assert "torch" not in others.text


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise ImportError('libcudart.so.12: cannot open')", "ImportError: libcudart.so.12"),
        ("import os; os.kill(os.getpid(), 4)", "killed by signal 4"),
        ("import sys; sys.exit(3)", "exit status 3"),
        ("x = (", "SyntaxError"),
        ("", ""),
    ],
)
def test_a_package_that_crashes_as_it_loads_is_a_reason(tmp_path, monkeypatch, source, reason):
    (tmp_path / "brittle.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    found = packages.explain_failure("brittle")
    assert reason in found
    assert bool(found) == bool(reason)


def test_a_package_that_is_not_there_is_a_reason():
    assert packages.explain_failure("no_such_package") == "it is not installed"


def test_folders_that_cannot_be_written_are_missing_with_what_to_set(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEDRESCUE_RUNS", str(tmp_path / "file" / "runs"))
    monkeypatch.setenv("MEDRESCUE_CACHE", str(tmp_path / "locked" / "cache"))
    (tmp_path / "locked").mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: "locked" not in str(p) and access(p, mode))
    runs, cache = system.describe_disk()
    assert (runs.state, cache.state) == ("missing", "missing")
    assert "not a folder. Set MEDRESCUE_RUNS" in runs.text
    assert "no permission" in cache.text
    assert "Set MEDRESCUE_CACHE" in cache.text


def test_a_full_disk_is_missing_whatever_the_job(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 3 * 2**20}))
    for line in system.describe_disk():
        assert line.state == "missing"
        assert "only 3 MiB are free. Set MEDRESCUE_" in line.text


def test_a_token_is_told_of_and_never_shown(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "short1")
    monkeypatch.setenv("MEDRESCUE_RUNS", "~/x")
    hub, variables = system.describe_hub()
    assert hub.text.startswith("set;")
    assert "short1" not in hub.text + variables.text
    assert "MEDRESCUE_RUNS=~/x" in variables.text
    monkeypatch.setenv("HF_TOKEN", " \n")
    assert next(iter(system.describe_hub())).text.startswith("not set;")


def test_a_machine_without_proc_is_described(monkeypatch):
    monkeypatch.setattr(machine, "CPU_FILE", pathlib.Path("/nowhere/cpuinfo"))
    (line,) = system.describe_cores()
    assert "cores usable" in line.text


def test_every_question_may_fail_and_each_is_a_line(monkeypatch):
    """Whatever fails, and however: this is the property that a report depends on."""

    failures = [OSError(28, "No space left"), ImportError("x"), SystemExit(1), KeyError("a")]

    def fail(*_, **__):
        raise failures[0]

    for module, name in (
        (system, "describe_project"),
        (system, "describe_python"),
        (system, "describe_cores"),
        (system, "describe_disk"),
        (system, "describe_hub"),
        (system, "describe_programs"),
        (packages, "describe_packages"),
        (packages, "describe_loading"),
        (command, "_describe_memory"),
        (command, "_describe_cards"),
        (command, "_describe_job"),
    ):
        monkeypatch.setattr(module, name, fail)
    monkeypatch.setattr(packages, "explain_failure", lambda _: "")
    while failures:
        lines = command.examine("params/cpu.yaml", "", "")
        assert len(lines) == 11
        assert len(screen.render(lines).split("\n")) <= 30
        assert all("cannot be told" in line.text for line in lines)
        failures.pop(0)


def test_lines_before_an_error_are_kept():
    def question():
        yield screen.Line("ok", "a", "b")
        raise ValueError("c")

    kept, told = ask("a", "note", question)
    assert kept.text == "b"
    assert told == ("note", "a", "cannot be told: ValueError: c")


def test_it_works_with_no_package_installed_at_all(tmp_path):
    """As before `make setup`; -S leaves out site-packages."""
    done = subprocess.run(
        [sys.executable, "-S", "-m", "lib.runs", "doctor", "--params", "params/cpu.yaml"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "torch     computes; it does not load: it is not installed" in done.stdout
    assert "not looked at: it needs torch" in done.stdout
    assert len(done.stdout.splitlines()) <= 30
