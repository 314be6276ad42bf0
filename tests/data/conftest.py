"""Fixtures of the data stage."""

import pytest

from lib.data import chunk_cache


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(chunk_cache, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"
