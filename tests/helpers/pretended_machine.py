"""Pretend that torch and lib/model/device.py see other cards and packages."""

import importlib.util

import torch

from lib.model import device

FIND_SPEC = importlib.util.find_spec


T4 = {"name": "Tesla T4", "gb": 15.6, "bf16": False, "capability": (7, 5)}


L4 = {"name": "NVIDIA L4", "gb": 23.6, "capability": (8, 9)}


H100 = {"name": "NVIDIA H100 80GB HBM3", "gb": 85.0, "capability": (9, 0)}


def pretend(
    monkeypatch,
    name="",
    gb=0.0,
    bf16=True,
    capability=(8, 0),
    cards=1,
    installed=("bitsandbytes", "unsloth"),
    cpu_bf16=True,
):
    """Let torch and lib/model see this card and these packages; without a name, there is no GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(name))
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: bf16 or including_emulation,
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: cpu_bf16)
    monkeypatch.setattr(device, "card", lambda: device.Card(name, gb))
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda n, *rest: (
            (n in installed or None) if n in ("bitsandbytes", "unsloth") else FIND_SPEC(n, *rest)
        ),
    )
