"""Where the weights are placed: one card, several, main memory.

python -m pytest tests/model/test_placement.py
"""

import copy

import pytest
import torch

from helpers.pretended_machine import H100, L4
from helpers.tiny_models import IDS, a_job, assert_same, loss_and_gradients, shaken
from lib.common.errors import UserError
from lib.model import adapter, device, load, placement, ranks
from lib.model.layers import lean
from lib.training import batches, compiled
from lib.training.masters import Masters


@pytest.mark.parametrize(
    ("there", "changes", "processes", "where"),
    [
        ({}, {}, 1, None),
        (H100 | {"cards": 4}, {}, 1, {"": 0}),
        (L4 | {"cards": 2}, {}, 1, {"": 0}),
        (L4 | {"cards": 2, "gb": 22.0}, {}, 1, "balanced"),
        (L4 | {"gb": 22.0}, {}, 1, {"": 0}),
        (L4 | {"cards": 2, "gb": 22.0}, {"load_in_4bit": True}, 1, {"": 0}),
        (L4 | {"cards": 2, "gb": 40.0}, {}, 1, {"": 0}),
        (L4 | {"cards": 2, "gb": 40.0}, {"precision": "fp32"}, 1, "balanced"),
        ({}, {}, 2, None),
        (H100 | {"cards": 2}, {}, 2, {"": 0}),
        (H100 | {"cards": 2}, {"fsdp": "full_shard"}, 1, {"": 0}),
        (H100 | {"cards": 2}, {"fsdp": "full_shard"}, 2, None),
        (L4 | {"cards": 2, "gb": 22.0}, {}, 2, None),
        (L4 | {"cards": 2, "gb": 40.0}, {"precision": "fp32"}, 2, None),
        (L4 | {"cards": 2, "gb": 22.0}, {"fsdp": "none"}, 2, {"": 0}),
    ],
)
def test_where_the_weights_go(machine, tmp_path, monkeypatch, there, changes, processes, where):
    """20 GB of weights go on one card, or over all cards if one is too small; one of several ranks takes its own card, or main memory before sharding."""
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.truncate(20_000_000_000)  # sparse
    machine(**there)
    monkeypatch.setattr(ranks, "world_size", lambda: processes)
    job = a_job(**changes)
    too_large = placement.exceeds_card(tmp_path, job.precision, job.load_in_4bit)
    sharded = placement.must_shard(job.fsdp, too_large, job.load_in_4bit, job.torch_compile)
    assert placement.choose_device_map(too_large, sharded, job.torch_compile) == where


@pytest.mark.cuda
def test_weights_put_aside_return_to_where_each_lay(tiny_gemma3n):
    """A model spread over cards; here over a card and main memory."""
    net = load.load_for_training(tiny_gemma3n, a_job())
    net.get_base_model().model.layers[1].to("cpu")
    before = {n: (p, p.device, p.detach().clone()) for n, p in net.named_parameters()}
    assert len({place for _, place, _ in before.values()}) == 2
    with placement.in_main_memory(net):
        assert {p.device.type for p in (*net.parameters(), *net.buffers())} == {"cpu"}
    for name, p in net.named_parameters():
        same, place, values = before[name]
        assert p is same
        assert (p.device, torch.equal(p, values)) == (place, True)


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_base_over_two_cards_trains_as_on_one(tiny_gemma3n, monkeypatch):
    """Loss, gradients taken into the masters, weights published, answers to the held-out rows."""
    job, row = (
        a_job(precision="fp32", num_gpus=1),
        [{"input_ids": IDS[0].tolist(), "labels": [-100] * 5 + IDS[0].tolist()[5:]}],
    )

    def trained():
        net = load.load_for_training(tiny_gemma3n, job)
        masters = Masters(net, job)
        for _ in range(2):
            loss_now = compiled.forward_backward(net.train(), batches.pad_rows(row).to(net.device))
            masters.take_gradients()
            masters.step(masters.norm(), 1e-3, 1.0)
        return net, loss_now, {n: w.cpu() for n, w in masters.weights.items()}

    one, loss_one, weights = trained()
    assert not placement.is_spread(one)
    monkeypatch.setattr(placement, "exceeds_card", lambda *_: True)
    two, loss_two, found = trained()
    assert placement.is_spread(two)
    assert float(loss_two) == pytest.approx(float(loss_one), rel=1e-5)
    assert all(torch.allclose(found[n], w, atol=1e-5) for n, w in weights.items())
    with placement.in_main_memory(two):
        pass
    again = Masters(two, job)  # as after ranks have trained
    assert all(torch.allclose(again.weights[n].cpu(), w, atol=1e-5) for n, w in weights.items())


@pytest.mark.parametrize(
    "changes",
    [
        {"load_in_4bit": True, "torch_compile": False},
        {"load_in_4bit": False, "torch_compile": True},
    ],
)
def test_what_cannot_be_sharded_is_refused(machine, monkeypatch, changes):
    machine(**H100)
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    with pytest.raises(
        UserError,
        match="fsdp works with a 16-bit base.*load_in_4bit: false and torch_compile: false, or fsdp: none",
    ):
        placement.must_shard("full_shard", False, **changes)


def test_the_per_layer_table_off_the_card_changes_no_bit(tiny_gemma3n, plain_tiny, float32_tiny):
    """Logits in bfloat16; loss and gradients of LoRA with recomputed layers. It is no parameter then, and still counted."""
    net = copy.deepcopy(plain_tiny)
    ids = IDS.to(net.device)
    with torch.no_grad():
        before, (_, everything) = net(input_ids=ids).logits, adapter.count_parameters(net)
        placement.offload_embedding(net)
        assert torch.equal(net(input_ids=ids).logits, before)
    assert not [
        n
        for n in [*net.state_dict(), *dict(net.named_parameters()), *dict(net.named_buffers())]
        if "per_layer." in n and "embed" in n
    ]
    assert adapter.count_parameters(net) == (0, everything)
    assert everything - sum(p.numel() for p in net.parameters()) == 2048 * 25 * 256

    job = a_job(precision="fp32")
    net = load.load_base(tiny_gemma3n, job)
    placement.offload_embedding(net)
    net = shaken(adapter.add(net, job))
    net.gradient_checkpointing_enable({"use_reentrant": False})
    lean.lighten(net)  # as in `float32_tiny`
    assert net.get_base_model().is_gradient_checkpointing
    assert adapter.check_size(net, job) == 165
    assert_same(loss_and_gradients(net), float32_tiny[1])


@pytest.mark.parametrize(
    ("cuda", "wanted", "moved"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_the_table_moves_only_where_there_is_a_card_and_the_job_wants_it(
    tiny_gemma3n, plain_tiny, monkeypatch, cuda, wanted, moved
):
    job, seen = a_job(offload_embedding=wanted), []
    monkeypatch.setattr(load, "_read_language_model", lambda *args, **kwargs: plain_tiny)
    monkeypatch.setattr(placement, "choose_device_map", lambda *args: None)
    monkeypatch.setattr(placement, "offload_embedding", seen.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(device, "card", lambda: device.Card("NVIDIA L4", 23.6))
    load.load_base(tiny_gemma3n, job)
    assert seen == ([plain_tiny] if moved else [])
