"""The loss at trained positions compared with the cross entropy of all logits, and its gradients.

python -m pytest tests/training/test_loss.py
"""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from helpers.packed_rows import draw
from lib.data.label_mask import IGNORED
from lib.model import adapter
from lib.params import Params
from lib.training import batches, loss

JOB = Params(load_in_4bit=False, optim="adamw_torch")


@pytest.fixture(autouse=True)
def _threads_and_fresh_buffers():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    loss._workspace.clear()
    yield
    loss._workspace.clear()
    torch.set_num_threads(before)


def with_adapter(folder, dtype):
    """Return the base with an adapter whose B is not zero, so that every LoRA weight has a gradient."""
    net = adapter.add(
        AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).requires_grad_(False), JOB
    ).train()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in adapter.trainable(net).items():
            if "lora_B" in name:
                p.copy_(0.02 * torch.randn(p.shape, generator=generator))
    return net


@pytest.fixture(scope="module")
def tiny_float32(tiny_gemma3n):
    return with_adapter(tiny_gemma3n, torch.float32)


def batch(lengths, prompt=3, vocabulary=2000, seed=0):
    """Return right-padded ids and labels; the first `prompt` tokens of a row and its padding are not trained."""
    ids = torch.randint(
        5, vocabulary, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed)
    )
    labels = ids.clone()
    labels[:, :prompt] = IGNORED
    for row, length in enumerate(lengths):
        ids[row, length:], labels[row, length:] = 0, IGNORED
    return ids, labels


def token_losses(net, ids, labels):
    """Return the losses of a padded batch, and the row of each."""
    padded = batches.batch_from_labels(ids, labels)
    return loss.token_losses(net, padded), padded.where // ids.shape[1]


def whole_logits_losses(net, ids, labels, mask=None):
    """Compute the loss the plain way: logits everywhere, cross entropy in float32 at trained positions."""
    logits = net(input_ids=ids, attention_mask=mask).logits.float()
    return cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]),
        labels[:, 1:].reshape(-1),
        reduction="none",
        ignore_index=IGNORED,
    )[(labels[:, 1:] != IGNORED).reshape(-1)]


def gradients(net, losses, weights):
    """Return the LoRA gradients of a weighted sum of the losses: a plain mean would hide mixed-up tokens."""
    net.zero_grad(set_to_none=True)
    (losses * weights).sum().backward()
    found = {n: p.grad.clone() for n, p in adapter.trainable(net).items()}
    net.zero_grad(set_to_none=True)
    return found


def relative(a, b):
    return float((a - b).norm() / b.norm())


def test_values_and_gradients_equal_whole_logits_in_float32(tiny_float32, monkeypatch):
    """Rows of very different length without a mask, and more trained positions than a chunk holds."""
    monkeypatch.setitem(loss.CHUNK, "cpu", 192)
    ids, labels = batch([150, 6, 120])
    mask = (ids != 0).long()
    losses, rows = token_losses(tiny_float32, ids, labels)
    assert len(losses) == 147 + 3 + 117 > loss.CHUNK["cpu"]
    assert rows.tolist() == [0] * 147 + [1] * 3 + [2] * 117
    weights = torch.linspace(0.1, 2.0, len(losses)) / len(losses)
    ours = gradients(tiny_float32, losses, weights)

    plain = whole_logits_losses(tiny_float32, ids, labels, mask)
    theirs = gradients(tiny_float32, plain, weights)
    torch.testing.assert_close(losses, plain, rtol=1e-5, atol=1e-5)
    assert all(g.norm() > 0 for g in theirs.values())
    assert max(relative(ours[n], theirs[n]) for n in theirs) < 1e-4


def test_the_soft_cap_takes_part(tiny_float32, monkeypatch):
    """With a cap of 2 the logits are far inside its bend; values and gradients still agree, and differ from no cap."""
    ids, labels = batch([40, 30])
    base = tiny_float32.get_base_model()
    assert base.config.final_logit_softcapping == 30
    uncapped = token_losses(tiny_float32, ids, labels)[0].detach()
    monkeypatch.setattr(base.config, "final_logit_softcapping", 2.0)
    losses, _ = token_losses(tiny_float32, ids, labels)
    weights = torch.ones_like(losses)
    ours = gradients(tiny_float32, losses, weights)
    plain = whole_logits_losses(tiny_float32, ids, labels)
    theirs = gradients(tiny_float32, plain, weights)
    torch.testing.assert_close(losses, plain, rtol=1e-5, atol=1e-5)
    assert max(relative(ours[n], theirs[n]) for n in theirs) < 1e-4
    assert relative(losses.detach(), uncapped) > 1e-2


def test_in_bfloat16_within_its_rounding(tiny_gemma3n, tiny_float32):
    """No further from the float32 truth than whole logits in bfloat16 are."""
    net = with_adapter(tiny_gemma3n, torch.bfloat16)
    ids, labels = batch([60, 20])
    weights = torch.full([57 + 17], 1 / 97)  # not a power of two
    losses, _ = token_losses(net, ids, labels)
    assert losses.dtype == torch.float32
    plain = whole_logits_losses(net, ids, labels)
    torch.testing.assert_close(losses, plain, rtol=0.02, atol=0.05)
    ours, theirs = (
        gradients(net, losses, weights),
        gradients(net, whole_logits_losses(net, ids, labels), weights),
    )
    truth = gradients(tiny_float32, whole_logits_losses(tiny_float32, ids, labels), weights)
    off = {
        n: (relative(ours[n].float(), truth[n]), relative(theirs[n].float(), truth[n]))
        for n in truth
    }
    ours_off, theirs_off = (sum(o[k] for o in off.values()) / len(off) for k in (0, 1))
    assert ours_off < 1.2 * theirs_off


def test_one_over_the_tokens_is_not_rounded_to_bfloat16():
    """1 / 193 in bfloat16 is 0.15 % off, and would scale a whole step's gradient by that."""
    hidden = torch.randn(7, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight = torch.randn(300, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    sizes = []
    for scale in (1.0, 1 / 193):
        leaf = hidden.clone().requires_grad_()
        (
            loss._FrozenHeadLoss.apply(leaf, weight, torch.arange(7), None, (None, -1)) * scale
        ).sum().backward()
        sizes.append(leaf.grad.float())
    ratio = (sizes[0] / sizes[1])[sizes[0].abs() > 1e-3]
    assert float(ratio.mean()) == pytest.approx(193, rel=4e-4)


def test_padding_changes_nothing_for_real_tokens(tiny_float32):
    """A row alone, beside a row thirty times its length, and with other numbers in the padding."""
    ids, labels = batch([5, 150])
    with torch.no_grad():
        together, rows = token_losses(tiny_float32, ids, labels)
        alone, _ = token_losses(tiny_float32, ids[:1, :5], labels[:1, :5])
        ids[0, 5:] = 77
        other, _ = token_losses(tiny_float32, ids, labels)
    torch.testing.assert_close(together[rows == 0], alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other, together, rtol=1e-6, atol=1e-6)


def test_buffers_made_in_inference_mode_serve_training(tiny_float32):
    """The held-out loss is measured first; its buffers then take part in a backward pass."""
    ids, labels = batch([30, 12])
    with torch.inference_mode():
        measured, _ = token_losses(tiny_float32, ids, labels)
    kept = next(iter(loss._workspace.values()))
    assert not any(b.is_inference() for b in kept)
    losses, _ = token_losses(tiny_float32, ids, labels)
    assert next(iter(loss._workspace.values())) is kept
    assert all(
        g.norm() > 0 for g in gradients(tiny_float32, losses, torch.ones_like(losses)).values()
    )
    assert torch.equal(measured.clone(), losses.detach())


def test_two_graphs_at_once_do_not_share_their_gradient(tiny_float32):
    """The buffers are reused by the second forward before the first goes backward."""
    a, b = batch([20, 9], seed=1), batch([25, 14], seed=2)
    first, _ = token_losses(tiny_float32, *a)
    alone = gradients(tiny_float32, first, torch.ones_like(first))
    first, _ = token_losses(tiny_float32, *a)
    token_losses(tiny_float32, *b)
    late = gradients(tiny_float32, first, torch.ones_like(first))
    assert all(torch.equal(alone[n], late[n]) for n in alone)


def test_a_batch_without_a_trained_token_gives_none(tiny_float32):
    ids, labels = batch([8, 6], prompt=8)
    losses, rows = token_losses(tiny_float32, ids, labels)
    assert losses.shape == rows.shape == (0,)
    losses.sum().backward()


def test_a_hopeless_token_has_a_finite_loss():
    """The target's softmax underflows to zero in float32; its log must not be taken."""
    hidden, weight = torch.eye(4)[:1] * 500, torch.eye(4)
    leaf = hidden.clone().requires_grad_()
    losses = loss._FrozenHeadLoss.apply(leaf, weight, torch.tensor([3]), None, (None, -1))
    assert losses.item() == pytest.approx(500)
    losses.sum().backward()
    torch.testing.assert_close(leaf.grad, torch.tensor([[1.0, 0.0, 0.0, -1.0]]))


def test_the_bundled_base_with_its_262144_words(bundled_base):
    net = AutoModelForCausalLM.from_pretrained(bundled_base, dtype=torch.bfloat16).requires_grad_(
        False
    )
    ids, labels = batch([40, 11], vocabulary=200_000)
    with torch.inference_mode():
        losses, _ = token_losses(net, ids, labels)
        plain = whole_logits_losses(net, ids, labels)
    torch.testing.assert_close(losses, plain, rtol=1e-3, atol=1e-2)


# --------------------------------------------------------------------------------------------------
# the loss in one piece


@pytest.mark.parametrize("softcap", [None, 30.0, 2.0])
@pytest.mark.parametrize("token", [-1, 20], ids=["frozen", "trained row"])
def test_the_fused_loss_equals_the_plain_one(monkeypatch, softcap, token):
    """Values and gradients, also of a trained row, of both functions and of cross entropy itself."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setitem(loss.CHUNK, "cpu", 4)  # several chunks
    loss.free_buffers()
    weight, targets, upstream = draw(50, 16, seed=1), torch.arange(9) * 5, torch.linspace(0.1, 2, 9)
    found = []
    for head in (loss._FusedHeadLoss.apply, loss._FrozenHeadLoss.apply, whole_logits):
        hidden = (3 * draw(9, 16)).requires_grad_()
        row = draw(1, 16, seed=2).requires_grad_() if token >= 0 else None
        losses = head(hidden, weight, targets, row, (softcap, token))
        leaves = [hidden] if row is None else [hidden, row]
        found.append((losses, *torch.autograd.grad(losses, leaves, upstream)))
    loss.free_buffers()
    assert token < 0 or found[0][2].norm() > 0.1
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def whole_logits(hidden, weight, targets, row, constants):
    softcap, token = constants
    if row is not None:
        weight = weight.index_copy(0, torch.tensor([token]), row)
    logits = hidden @ weight.T
    return cross_entropy(
        softcap * torch.tanh(logits / softcap) if softcap else logits, targets, reduction="none"
    )


def test_the_fused_loss_in_bfloat16():
    """Losses in float32, the derivative in the model's precision; a hopeless token's loss is finite."""
    hidden, weight = (500 * torch.eye(4)[:1]).bfloat16(), torch.eye(4).bfloat16()
    losses, slope, _ = loss._fused(hidden, weight, torch.tensor([3]), None)
    assert losses.dtype == torch.float32
    assert losses.item() == pytest.approx(500)
    assert slope.dtype == torch.bfloat16
    assert slope.tolist() == [[1, 0, 0, -1]]
