"""How many devices a job trains on; in tests/training/test_launch.py, ranks exchange values.

python -m pytest tests/model/test_ranks.py
"""

import pytest
import torch

from lib.common.errors import UserError
from lib.model import ranks


@pytest.mark.parametrize(
    ("there", "wanted", "accumulation", "expected"),
    [(0, "auto", 4, 1), (2, "auto", 4, 2), (2, "auto", 1, 1), (4, "auto", 6, 3), (2, 1, 4, 1)],
)
def test_how_many_devices(monkeypatch, there, wanted, accumulation, expected):
    """As many as can share a step's micro-batches evenly."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    assert ranks.count_gpus(wanted, accumulation) == expected


def test_more_devices_than_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="num_gpus is 2, but torch sees 1"):
        ranks.count_gpus(2, 4)
