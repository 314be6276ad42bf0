"""Fixtures that several tests of lib/model share."""

import functools
import logging

import pytest
import torch

from helpers import pretended_machine
from helpers.small_training import small_model
from helpers.tiny_models import a_job


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The same sums in the same order for every test, and no waiting for a busy core at each of a tiny model's operations."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def machine(monkeypatch):
    """machine(name, gb, ...): what torch and lib/model/device.py see; without arguments no GPU."""
    return functools.partial(pretended_machine.pretend, monkeypatch)


@pytest.fixture
def heard():
    """What transformers logs as a warning or worse."""
    records, handler = [], logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger("transformers").addHandler(handler)
    yield records
    logging.getLogger("transformers").removeHandler(handler)


@pytest.fixture(scope="session")
def small_base(tmp_path_factory):
    """Folder of a Gemma 3n of 4 layers, 240 kB: copy before changing."""
    folder = tmp_path_factory.mktemp("small") / "base"
    small_model(a_job(), torch.bfloat16).unload().save_pretrained(folder)
    return folder
