"""Paths that users give, and the folder of the cache.

.venv/bin/python -m pytest tests/common/test_locations.py
"""

import os
import pathlib
import subprocess
import sys

import pytest

from lib import params
from lib.common import errors, locations
from lib.common.errors import UserError
from lib.data.reading import sources
from lib.model import base
from lib.params import reading
from lib.record import run_folder


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("~", "{home}"),
        ("~/a/b", "{home}/a/b"),
        ("a/b", "{root}/a/b"),
        ("/a/b", "/a/b"),
        ("a/~/b", "{root}/a/~/b"),
        ("./~x", "{root}/~x"),
    ],
)
def test_a_path_is_absolute_at_home_or_in_the_checkout(home, given, expected):
    wanted = expected.format(home=home, root=errors.ROOT)
    assert locations.local_path(given) == pathlib.Path(wanted)


def test_a_home_that_nobody_has_is_named():
    with pytest.raises(UserError, match="`~nobody-here`, but no user"):
        locations.local_path("~nobody-here/runs")


def test_runs_params_and_data_may_be_at_home(home, monkeypatch):
    """A shell does not expand `~` inside quotes, in a .env file or in SET."""
    monkeypatch.setenv("MEDRESCUE_RUNS", "~/my runs")
    assert run_folder.runs_folder() == (home / "my runs").resolve()
    (home / "p.yaml").write_text("max_rows: 7\n")
    (home / "rows.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    assert reading.load_job("~/p.yaml").max_rows == 7
    assert sources.list_paths(params.Source(dataset="~/rows.jsonl")) == [home / "rows.jsonl"]


@pytest.mark.slow
def test_the_cache_is_where_the_environment_says(home):
    show_base = "from lib.model import base\nprint(base.CACHE)\n"
    show_others = (
        "from lib.model import load\nfrom lib.data import chunk_cache\n"
        "print(chunk_cache.CACHE, load.UNSLOTH['UNSLOTH_COMPILE_LOCATION'], sep='\\n')"
    )

    def places(value, show):
        return subprocess.run(
            [sys.executable, "-c", show],
            cwd=errors.ROOT,
            env={**os.environ, "MEDRESCUE_CACHE": value},
            text=True,
            capture_output=True,
            check=True,
        ).stdout.split()

    top = home / "elsewhere"
    assert places("~/elsewhere", show_base + show_others) == [
        str(top),
        f"{top}/prepare",
        f"{top}/unsloth",
    ]
    assert places("", show_base) == [f"{errors.ROOT}/.cache"]


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"(?s)cannot be written: Not a directory.*MEDRESCUE_CACHE"):
        locations.make_cache(tmp_path / "file" / "cache")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as on a read-only disk
    with pytest.raises(UserError, match="MEDRESCUE_CACHE"):
        locations.make_cache(tmp_path / "cache")


@pytest.mark.parametrize(
    ("given", "reason"),
    [("x" * 300, "file name too long"), ("a/" + "x" * 5000, "5,002 characters"), ("a\0b", "null")],
)
def test_what_cannot_be_a_path_is_the_users_to_know(given, reason):
    with pytest.raises(UserError, match=f"(?s){reason}.*Expected the name of a file"):
        locations.local_path(given)
    with pytest.raises(UserError):
        sources.check_sources(params.check_values({"dataset": given}, "test"))
    with pytest.raises(UserError):
        base.fetch(given)


def test_links_in_a_circle_are_named(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match=r"loop` cannot be a path.*symbolic links"):
        locations.local_path(tmp_path / "loop")
