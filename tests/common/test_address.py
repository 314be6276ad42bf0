"""The repository's address: one line counts, one command writes it into every other place.

python -m pytest tests/common/test_address.py
"""

import json
import shutil
import subprocess
import sys

import pytest

from lib.common import address
from lib.common.errors import ROOT, UserError

SKIPPED = {".git", ".venv", ".cache", "runs", ".ruff_cache", ".mypy_cache", ".hypothesis"}


@pytest.fixture
def fork(tmp_path, monkeypatch):
    """A copy of the files with the address; returns a function that changes the one line."""
    for name in (address.SOURCE, *address.PAGES):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr(address, "ROOT", tmp_path)
    monkeypatch.setattr(address.find_outdated, "__defaults__", (tmp_path,))
    monkeypatch.setattr(address.read_address, "__defaults__", (tmp_path,))

    def change(line):
        path = tmp_path / address.SOURCE
        ours = f"repository-code: {address.read_address()}"
        path.write_text(path.read_text().replace(ours, line))
        return tmp_path

    return change


def texts(folder):
    return {page: (folder / page).read_text() for page in address.PAGES}


def test_every_place_has_the_address_of_the_citation():
    assert address.find_outdated() == {}


def test_no_other_file_has_it():
    """Otherwise `make address` would leave it behind in a fork."""
    ours = address.read_address().removeprefix("https://").encode()
    name = b"github/" + ours.split(b"/", 1)[1] + b"/"
    found = set()
    for top in ROOT.iterdir():
        if top.name in SKIPPED:
            continue
        for path in [top] if top.is_file() else top.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                data = path.read_bytes()
                if ours in data or name in data:
                    found.add(path.relative_to(ROOT).as_posix())
    assert found == {address.SOURCE, *address.PAGES}


def test_a_fork_changes_one_line(fork, capsys):
    folder = fork("repository-code: https://github.com/Harbour-Clinic/first.aid_tuning")
    before = texts(folder)
    assert address.main([]) == 1, "the check names what differs, and changes nothing"
    shown = capsys.readouterr()
    assert [page in shown.out for page in address.PAGES] == [True] * 4
    assert "make address" in shown.err
    assert texts(folder) == before

    assert address.main(["--write"]) == 0
    after = texts(folder)
    old = "/".join(address.read_address(ROOT).split("/")[-2:])
    for page, text in after.items():
        assert old not in text, page
        assert text == before[page].replace(old, "Harbour-Clinic/first.aid_tuning"), "nothing else"
    for page in address.PAGES[1:]:
        cell = "".join(json.loads(after[page])["cells"][1]["source"])
        assert '", "https://github.com/Harbour-Clinic/first.aid_tuning"\n' in cell
        assert "/github/Harbour-Clinic/first.aid_tuning/blob/main/" in after[page]
    assert address.main([]) == 0
    assert address.main(["--write"]) == 0
    assert texts(folder) == after


@pytest.mark.parametrize(
    "line",
    [
        "repository-code: https://github.com/a/b",
        'repository-code: "https://github.com/a/b"',
        "repository-code:   'https://github.com/a/b.git'   # moved in May",
        "repository-code: https://github.com/a/b/",
    ],
)
def test_the_line_may_be_written_as_yaml_allows(fork, line):
    fork(line)
    assert address.read_address() == "https://github.com/a/b"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("repository-code: git@github.com:a/b.git", "`git@github.com:a/b.git`"),
        ("repository-code: https://github.com/a", "`https://github.com/a`"),
        ("repository-code: https://user:secret@github.com/a/b", "OWNER/NAME"),
        ('repository-code: https://github.com/a/b"; import os', "OWNER/NAME"),
        ("repository-code:", "``"),
        ("repository: https://github.com/a/b", "none"),
        (
            "repository-code: https://github.com/a/b\nrepository-code: https://github.com/c/d",
            "`https://github.com/a/b` and `https://github.com/c/d`",
        ),
    ],
)
def test_what_is_no_address_is_refused_and_nothing_is_written(fork, capsys, line, shown):
    folder = fork(line)
    before = texts(folder)
    assert address.main(["--write"]) == 2
    error = capsys.readouterr().err
    assert shown in error
    assert "Expected: https://github.com/OWNER/NAME" in error
    assert texts(folder) == before


def test_elsewhere_than_github_a_badge_cannot_stay(fork):
    folder = fork("repository-code: https://git.clinic.example/group/sub/tuning")
    with pytest.raises(UserError, match="Colab, which opens notebooks from github.com only"):
        address.find_outdated()
    for page in address.PAGES:
        path = folder / page
        path.write_text(address.COLAB_LINK.sub("", path.read_text()))
    assert set(address.find_outdated()) == set(address.PAGES[1:]), "what the notebooks clone"


def test_it_runs_before_anything_is_installed():
    done = subprocess.run(
        [sys.executable, "-S", "-m", "lib.common.address"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
