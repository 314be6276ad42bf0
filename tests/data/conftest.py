"""Fixtures of the data stage."""

import pytest

from lib.data import chunks


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"
