"""The card in use, its rate, and the precision that suits it.

python -m pytest tests/model/test_device.py
"""

import types

import pytest
import torch

from helpers.pretended_machine import H100, T4
from helpers.tiny_models import a_job
from lib.common.errors import UserError
from lib.model import device, options


@pytest.mark.parametrize(
    ("there", "changes", "dtype", "why"),
    [
        ({}, {}, torch.bfloat16, "processor multiplies bfloat16"),
        ({"cpu_bf16": False}, {}, torch.float32, "no fast bfloat16"),
        (H100, {"load_in_4bit": True}, torch.bfloat16, "the card has bfloat16"),
        (H100, {}, torch.bfloat16, "the card has bfloat16"),
        (T4, {"load_in_4bit": True}, torch.float16, "only products with 4-bit weights are float16"),
        (T4, {}, torch.float32, "overflows in float16"),
        (H100, {"precision": "fp32"}, torch.float32, "as set"),
        (H100, {"precision": "fp16", "load_in_4bit": True}, torch.float16, "as set"),
        ({"cpu_bf16": False}, {"precision": "bf16"}, torch.bfloat16, "as set"),
    ],
)
def test_precision(machine, there, changes, dtype, why):
    machine(**there)
    found, because = device.choose_precision(**changes)
    assert found == dtype
    assert why in because


@pytest.mark.parametrize(
    ("there", "changes"), [({}, {}), (H100, {}), (T4, {}), ({}, {"load_in_4bit": True})]
)
def test_float16_without_a_4_bit_base_is_refused(machine, there, changes):
    machine(**there)
    with pytest.raises(UserError, match=r"precision: fp16 is for a 4-bit base.*Use bf16 or fp32"):
        device.choose_precision("fp16", **changes)
    with pytest.raises(
        UserError,
        match=r"precision: fp16 is for a 4-bit base.*Use bf16 or fp32|load_in_4bit needs an NVIDIA GPU",
    ):
        options.check_options(a_job(precision="fp16", **changes))


def test_the_card_and_its_peak_rate(monkeypatch):
    """The rate is the datasheet's for exactly this card: an L40 is no L4, an unknown card has none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda n: types.SimpleNamespace(
            name=f"NVIDIA A100-SXM4-80GB #{n}", total_memory=85_100_000_000
        ),
    )
    device.card.cache_clear()
    try:
        assert device.card() == ("NVIDIA A100-SXM4-80GB #1", 85.1)
        assert device.name() == "NVIDIA A100-SXM4-80GB #1"
        assert device.peak_flops() == 312e12
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert device.card().name, "asked once"
        device.card.cache_clear()
        assert device.card() == ("", 0.0)
        assert device.name()
    finally:
        device.card.cache_clear()
    for name, rate in (
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 0),
        ("Tesla T4", 65),
        ("NVIDIA A10G", 70),
        ("NVIDIA GeForce RTX 3060", 0),
        ("", 0),
    ):
        monkeypatch.setattr(device, "card", lambda name=name: device.Card(name, 1.0))
        assert device.peak_flops() == rate * 1e12, name
