"""A run's folder for the tests of its record."""

import pytest

from lib.common import files
from lib.record import run_record


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Yield a run's folder that does not exist yet; release locks on it afterwards."""
    monkeypatch.setenv("MEDRESCUE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(run_record, "hardware", dict)  # asks the GPU's tool each time
    yield tmp_path / "runs" / "job"
    files.unlock_folder(tmp_path / "runs" / "job")
