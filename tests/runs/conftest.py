"""Copies of the pipeline with stand-in notebooks (tests/helpers/standin.py), as the runner's tests need them."""

import pytest

from helpers import standin
from lib.common import files, locations, machine
from lib.data.reading import sources
from lib.params import reading
from lib.runs import stages


@pytest.fixture(scope="session")
def fresh(tmp_path_factory):
    """Return a tree in which nothing has run; copy it before use."""
    return standin.Tree.make(tmp_path_factory.mktemp("runner") / "tree")


@pytest.fixture(scope="session")
def whole(fresh, tmp_path_factory):
    """Return a tree with a finished run; copy it before use."""
    made = fresh.copy(tmp_path_factory.mktemp("whole") / "tree")
    code, out, err = made.make_run("run")
    assert (code, err) == (0, ""), out + err
    return made


@pytest.fixture
def tree(fresh, tmp_path):
    """Return a tree of the test's own in which nothing has run."""
    yield (tree := fresh.copy(tmp_path / "tree"))
    tree.stop()


@pytest.fixture
def done(whole, tmp_path):
    """Return a tree of the test's own with a finished run."""
    yield (tree := whole.copy(tmp_path / "tree"))
    tree.stop()


@pytest.fixture
def here(fresh, tmp_path, monkeypatch):
    """Let this process be the runner of a tree of its own; no notebook is started."""
    tree = fresh.copy(tmp_path / "tree")
    for module in (stages, locations, reading, files, sources):
        monkeypatch.setattr(module, "ROOT", tree.root)
    monkeypatch.setenv("MEDRESCUE_RUNS", "runs")
    monkeypatch.setattr(
        stages, "execute_notebook", lambda *_: pytest.fail("a notebook was started")
    )
    monkeypatch.setattr(machine, "gpus", list)
    return tree
