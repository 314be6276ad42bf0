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
    """Use one thread: sums have the same order in every test, and no operation of a tiny model waits for a busy core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def machine(monkeypatch):
    """Return machine(name, gb, ...), which sets what torch and lib/model/device.py see; without arguments, no GPU."""
    return functools.partial(pretended_machine.pretend, monkeypatch)


@pytest.fixture
def heard():
    """Return the list of what transformers logs as a warning or worse."""
    records, handler = [], logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger("transformers").addHandler(handler)
    yield records
    logging.getLogger("transformers").removeHandler(handler)


@pytest.fixture(scope="session")
def small_base(tmp_path_factory):
    """Return the folder of a Gemma 3n with 4 layers, 240 kB: copy before changing."""
    folder = tmp_path_factory.mktemp("small") / "base"
    small_model(a_job(), torch.bfloat16).unload().save_pretrained(folder)
    return folder
