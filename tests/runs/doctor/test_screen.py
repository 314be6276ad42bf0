"""Whatever is found, it fits on one screen and names nobody.

.venv/bin/python -m pytest tests/runs/doctor/test_screen.py
"""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.runs.doctor import screen
from lib.runs.doctor.screen import Line

LINES = st.lists(
    st.builds(
        Line, st.sampled_from(["ok", "note", "missing"]), st.just("what"), st.text(max_size=600)
    ),
    max_size=60,
)


@given(LINES)
def test_it_is_never_more_than_one_screen_and_every_missing_thing_counts(lines):
    rows = screen.render(lines).split("\n")
    assert len(rows) <= 30
    assert all(len(row) <= 100 and row.isprintable() for row in rows)
    missing = [line for line in lines if line.state == "missing"]
    shown = [row for row in rows[:-1] if row.startswith("missing")]
    assert len(shown) == min(len(missing), 28)
    assert rows[-1].startswith(f"{len(missing)} missing" if missing else "Nothing is missing")


def test_lines_that_are_ok_make_room_for_those_that_are_missing():
    lines = [Line("ok", "x", "word " * 50)] * 20 + [Line("missing", "y", "word " * 50)] * 4
    rows = screen.render(lines).split("\n")
    assert sum(row.startswith("ok") for row in rows) == 20
    assert len(rows) == 20 + 2 * 4 + 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/maria/x: free", "~/x: free"),
        ("/home/maria", "~"),
        ("in /data/maria/models and /mnt/maria", "in /data/(user)/models and /mnt/(user)"),
        (
            "HF_ENDPOINT=https://maria:pw@hub.example/x",
            "HF_ENDPOINT=https://(hidden)@hub.example/x",
        ),
        ("MEDRESCUE_RUNS=~maria/x", "MEDRESCUE_RUNS=~(user)/x"),
        ("/home/maria2/x, /srv/maria-x, maria/model", "/home/maria2/x, /srv/maria-x, maria/model"),
    ],
)
def test_no_home_folder_and_no_user_name_is_shown(monkeypatch, text, shown):
    monkeypatch.setenv("HOME", "/home/maria")
    monkeypatch.setenv("USER", "maria")
    assert screen.hide_user(text) == shown


def test_a_user_without_a_name_or_home_is_no_error(monkeypatch):
    for name in ("USER", "LOGNAME", "LNAME", "USERNAME", "SUDO_USER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/")
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    assert screen.hide_user("/x/y") == "/x/y"
