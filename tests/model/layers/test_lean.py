"""The layers with fewer passes compared with transformers' and PEFT's own, in float32 and bfloat16.

python -m pytest tests/model/layers/test_lean.py
"""

import copy

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from lib.model import adapter
from lib.model.layers import lean
from lib.params import Params
from lib.training import batches, loss

JOB = Params(load_in_4bit=False, optim="adamw_torch", lora_r=8, lora_alpha=4)
KINDS = {"LeanLinear": 7 * 4, "LeanNorm": 6 * 4 + 1, "LeanAttention": 4}


def make(key_heads=1, job=JOB):
    """Return a tiny Gemma 3 in float32 with an adapter whose B is not zero."""
    torch.manual_seed(1)
    config = Gemma3TextConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=key_heads,
        head_dim=32,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )
    net = adapter.add(Gemma3ForCausalLM(config).requires_grad_(False), job).train()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "lora_B" in name or "norm" in name:
                p.copy_(0.1 * torch.randn(p.shape))
    return net


def losses_and_gradients(net, width=12):
    ids = torch.randint(5, 300, (3, width), generator=torch.Generator().manual_seed(2))
    labels = ids.clone()
    labels[:, :3] = -100
    losses = loss.token_losses(net, batches.batch_from_labels(ids, labels))
    (losses * torch.linspace(1, 2, len(losses))).sum().backward()
    gradients = torch.cat([p.grad.flatten().float() for p in adapter.trainable(net).values()])
    net.zero_grad(set_to_none=True)
    return losses.detach(), gradients


def lightened(net):
    net = copy.deepcopy(net)
    lean.lighten(net)
    return net


def apart(one, other):
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("key_heads", [1, 2])
@pytest.mark.parametrize("width", [12, 24])  # within the sliding window, and beyond it
def test_losses_and_gradients_are_the_same_in_float32(key_heads, width):
    net = make(key_heads)
    for ours, theirs in zip(
        losses_and_gradients(lightened(net), width), losses_and_gradients(net, width), strict=True
    ):
        assert apart(ours, theirs) < 2e-6


def test_in_bfloat16_they_are_as_near_to_float32_as_before():
    exact = make().bfloat16().float()
    net = copy.deepcopy(exact).bfloat16()
    true_losses, true_gradients = losses_and_gradients(exact)
    errors = [
        (apart(losses, true_losses), apart(gradients, true_gradients))
        for losses, gradients in map(losses_and_gradients, (lightened(net), net))
    ]
    assert errors[0][0] < 1.2 * errors[1][0]
    assert errors[0][1] < 1.2 * errors[1][1]


def test_each_kind_is_found_and_keeps_its_weights():
    net = make()
    names = list(net.state_dict())
    assert lean.lighten(net) == sum(KINDS.values())
    for kind, count in KINDS.items():
        assert sum(type(m).__name__ == kind for m in net.modules()) == count
    assert list(net.state_dict()) == names
    assert lean.lighten(net) == 0


@pytest.mark.parametrize("change", [{"lora_dropout": 0.1}, {"use_dora": True}])
def test_layers_that_compute_more_keep_their_own_code(change):
    net = make(job=JOB.model_copy(update=change))
    lean.lighten(net)
    assert not [m for m in net.modules() if type(m) is lean.LeanLinear]


def test_a_trained_norm_keeps_its_own_code():
    net = make()
    norm = next(m for m in net.modules() if type(m).__name__ == "Gemma3RMSNorm")
    norm.weight.requires_grad_(True)
    lean.lighten(net)
    assert type(norm).__name__ == "Gemma3RMSNorm"


def test_answers_and_a_disabled_adapter_are_the_same():
    net = make().eval()
    ours = lightened(net).eval()
    ids = torch.arange(5, 25)[None]
    options = {"max_new_tokens": 6, "do_sample": False, "use_cache": True, "pad_token_id": 0}
    assert torch.equal(
        ours.generate(input_ids=ids, **options), net.generate(input_ids=ids, **options)
    )
    with net.disable_adapter(), ours.disable_adapter():
        assert apart(ours(input_ids=ids).logits, net(input_ids=ids).logits) < 1e-5
