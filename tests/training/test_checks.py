"""Operations per token, NEFTune's noise, and the check of the key/value cache.

python -m pytest tests/training/test_checks.py
"""

import copy
import math
import types

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3nForCausalLM, Gemma3nTextConfig

from helpers.tiny_models import IDS, a_job, full_class, loss_and_gradients
from lib.common.errors import UserError
from lib.model import adapter, device, load, placement
from lib.training import checks

pytestmark = pytest.mark.usefixtures("one_thread")


TINY_LAYERS = (
    25
    * (
        2 * 256 * 256 + 3 * 256 * 512 + 2 * 256 * 64 + 2 * 256 * 256 + 4 * 4 + 4 * 16 + 256 * 4
    )  # q o, MLP, laurel, per-layer, altup
    + 20 * 2 * 256 * 128
)  # k v


def test_arithmetic_a_token_agrees_with_a_count_by_hand(plain_tiny, adapted_tiny):
    """4 operations per weight of the layers' matrices; those of the adapter and of towers are not counted."""
    plain = copy.deepcopy(plain_tiny)
    expected = {
        "flops_per_token": 4.0 * TINY_LAYERS,
        "flops_per_trained_token": 4.0 * 2048 * 256,
        "peak_flops": 0.0,
    }
    assert checks.count_flops(plain) == expected
    assert checks.count_flops(adapted_tiny[0]) == expected
    placement.offload_embedding(plain)
    assert checks.count_flops(plain) == expected


def test_the_peak_rate_is_the_cards(adapted_tiny, monkeypatch):
    monkeypatch.setattr(device, "card", lambda: device.Card("NVIDIA A100-SXM4-80GB", 85.1))
    assert checks.count_flops(adapted_tiny[0])["peak_flops"] == 312e12


def test_arithmetic_of_the_multimodal_class_leaves_its_towers_out(multimodal_tiny):
    full = full_class(multimodal_tiny).requires_grad_(False)
    assert any(
        "tower" in n and ".layers." in n and hasattr(m, "in_features")
        for n, m in full.named_modules()
    )
    assert checks.count_flops(full)["flops_per_token"] == 4.0 * TINY_LAYERS


def test_arithmetic_of_the_full_size_e4b():
    """3,904,924,400 weights in the layers: 15.6 GFLOP a token; the output layer adds 2.1 a trained token."""
    with torch.device("meta"):
        net = Gemma3nForCausalLM(Gemma3nTextConfig(num_kv_shared_layers=15)).requires_grad_(False)
    layer = (
        2 * 2048 * 2048
        + 3 * 2048 * 16384
        + 2 * 2048 * 64
        + 2 * 2048 * 256
        + 4 * 4
        + 4 * 16
        + 2048 * 4
    )
    assert 35 * layer + 20 * 2 * 2048 * 512 == 3_904_924_400
    for model_or_wrapped in (net, adapter.add(net, a_job(use_dora=True))):
        found = checks.count_flops(model_or_wrapped)
        assert (found["flops_per_token"], found["flops_per_trained_token"]) == (
            4.0 * 3_904_924_400,
            4.0 * 262_400 * 2048,
        )


def test_a_4_bit_weight_costs_the_arithmetic_of_what_it_stands_for(tiny_gemma3n):
    with torch.device("meta"):
        net = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(tiny_gemma3n)
        ).requires_grad_(False)
    before = checks.count_flops(net)
    for name, module in net.named_modules():
        if name.endswith(("_proj", "linear_left")) and ".layers." in name:
            size = module.weight.shape
            module.weight = torch.nn.Parameter(
                torch.zeros(size.numel() // 2, 1, dtype=torch.uint8, device="meta"),
                requires_grad=False,
            )
            module.weight.quant_state = types.SimpleNamespace(shape=size)
    assert checks.count_flops(net) == before


@pytest.fixture(scope="module")
def embedder(tiny_gemma3n):
    """Return a model of which only the embeddings are used."""
    return load.load_base(tiny_gemma3n, a_job(precision="fp32"))


def embedded(net):
    return net.get_input_embeddings()(IDS)


def test_neftune_adds_bounded_seeded_noise_in_training_only(embedder):
    """Uniform up to alpha / sqrt(tokens x width) on each number, other noise each time, the same after the same seed, the same through PEFT."""
    plain, most = embedded(embedder), 5 / math.sqrt(40 * 256)
    with checks.add_neftune_noise(embedder, 5.0):
        embedder.eval()
        assert torch.equal(embedded(embedder), plain)
        embedder.train()
        torch.manual_seed(1)
        first, second = embedded(embedder) - plain, embedded(embedder) - plain
        torch.manual_seed(1)
        again = embedded(embedder) - plain
    assert 0.999 * most < first.abs().max() <= most * (1 + 1e-4)
    assert float(first.std()) == pytest.approx(most / math.sqrt(3), rel=0.02)
    assert abs(float(first.mean())) < 0.02 * most
    assert not torch.equal(first, second)
    assert torch.equal(first, again)
    assert torch.equal(embedded(embedder), plain), "gone with the block"


def test_neftune_reaches_the_loss_of_an_adapted_model(float32_tiny):
    net, (plain, _) = float32_tiny
    torch.manual_seed(0)
    with checks.add_neftune_noise(net, 20.0):
        noisy, _ = loss_and_gradients(net)
    assert not torch.equal(noisy, plain)
    assert torch.equal(loss_and_gradients(net)[0], plain)


def test_neftune_goes_after_an_exception_and_is_not_there_at_zero(embedder):
    embedder.train()
    plain = embedded(embedder)

    def stop():
        with checks.add_neftune_noise(embedder, 5.0):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert torch.equal(embedded(embedder), plain)
    with checks.add_neftune_noise(embedder, 0.0):
        assert not embedder.get_input_embeddings()._forward_hooks
        assert torch.equal(embedded(embedder), plain)


def test_cached_and_uncached_logits_agree(adapted_tiny):
    assert 0 <= checks.check_cache(*adapted_tiny) < 0.05


def test_a_broken_cache_is_found(adapted_tiny, monkeypatch):
    """What is read back of the second owned layer on is lost, as when shared layers look at the wrong keys."""
    net, tokenizer = adapted_tiny
    causal = net.get_base_model()
    forward = causal.forward

    def forgetful(*args, past_key_values=None, **kwargs):
        if past_key_values is not None:
            for layer in past_key_values.layers[1:]:
                layer.values.zero_()
        return forward(*args, past_key_values=past_key_values, **kwargs)

    monkeypatch.setattr(causal, "forward", forgetful)
    with pytest.raises(
        UserError, match=r"with and without the key/value cache differ by \d+.*Nothing was trained"
    ):
        checks.check_cache(net, tokenizer)


def test_logits_that_are_no_numbers_fail_the_check(adapted_tiny, monkeypatch):
    net, tokenizer = adapted_tiny
    causal = net.get_base_model()
    forward = causal.forward

    def spoiled(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = out.logits * float("nan")
        return out

    monkeypatch.setattr(causal, "forward", spoiled)
    with pytest.raises(UserError, match="differ by nan"):
        checks.check_cache(net, tokenizer)
