"""Fixtures that several tests of training share."""

import pytest
import torch

from helpers.small_training import whole_run


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """Return (weights, ledger entries) of an undisturbed run."""
    torch.set_num_threads(1)
    return whole_run(tmp_path_factory.mktemp("uninterrupted"))
