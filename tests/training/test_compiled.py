"""Compiled layers, a micro-batch as one CUDA graph, and AltUp's prediction, against the plain ones.

python -m pytest tests/training/test_compiled.py
"""

import copy
import functools
import weakref

import pytest
import torch
from transformers import AttentionInterface

from helpers.packed_rows import (
    adapted,
    draw,
    gemma3n,
    losses_and_gradients,
    make_rows,
    relative,
    trained,
    weighted,
)
from lib.training import batches, loss, packed
from lib.training import compiled as fused
from lib.training.plan import Shape

pytestmark = pytest.mark.usefixtures("two_threads")


ROWS = make_rows([25, 4, 14])
BATCH = weighted(batches.pack_rows(ROWS, Shape(64, 4, 64)), sum(trained(ROWS)))


def test_altup_is_transformers_own_outside_of_training():
    """And the same up to rounding in training, clipped coefficients included."""
    net = gemma3n()
    plain = next(m for m in net.modules() if type(m) is fused.Gemma3nTextAltUp)
    with torch.no_grad():
        plain.prediction_coefs.weight.mul_(500 / plain.prediction_coefs.weight.abs().max())
    plain.config.altup_coef_clip = 120.0
    ours, streams = (
        copy.deepcopy(plain),
        draw(plain.config.altup_num_inputs, 2, 7, plain.config.hidden_size),
    )
    ours.__class__ = fused.FusedAltUp
    assert torch.equal(ours.eval().predict(streams), plain.eval().predict(streams))
    found = ours.train().predict(streams)
    assert relative(found, plain.train().predict(streams)) < 1e-5, "plain clips its weight in place"
    assert relative(found, ours.eval().predict(streams)) > 0.1, "there must be something to clip"


def test_forward_backward_fused_equals_plain(monkeypatch):
    """A packed micro-batch of Gemma 3n, entries of weight 0 and all: the weighted sum and every gradient."""
    compiled = []
    monkeypatch.setattr(
        torch, "compile", lambda function, **_: compiled.append(function) or function
    )
    net, found = adapted(gemma3n()), []
    for kind in (True, False):
        net.zero_grad(set_to_none=True)
        with packed.attend_within_rows(net):
            total = fused.forward_backward(net, BATCH, fused=kind)
        assert compiled == [loss._fused], "one of the two must be the other code"
        found.append((total, {n: p.grad for n, p in net.named_parameters() if p.requires_grad}))
    (ours, ours_gradients), (theirs, theirs_gradients) = found
    losses, _ = losses_and_gradients(net, BATCH)
    torch.testing.assert_close(theirs, (losses * BATCH.weights).sum())
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not ours.requires_grad
    assert max(relative(ours_gradients[n], g) for n, g in theirs_gradients.items()) < 1e-4


def test_the_scale_is_in_the_gradients_alone():
    net, found = adapted(gemma3n()), []
    for scale in (1.0, 1024.0):
        net.zero_grad(set_to_none=True)
        with packed.attend_within_rows(net):
            total = fused.forward_backward(net, BATCH, scale=scale)
        found.append(
            (total, {n: p.grad / scale for n, p in net.named_parameters() if p.requires_grad})
        )
    assert torch.equal(found[0][0], found[1][0])
    assert max(relative(found[1][1][n], g) for n, g in found[0][1].items()) < 1e-5


# --------------------------------------------------------------------------------------------------
# compiled layers


@pytest.fixture
def graphs(monkeypatch):
    """Return the list of graphs that torch.compile compiles from here on, which run as traced."""
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return graph.forward

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    yield seen
    torch._dynamo.reset()


@pytest.mark.slow
def test_layers_of_one_kind_share_their_code(graphs):
    """Gemma 3n's 35 layers are eight kinds: sliding or full; sparse, plain, plain whose K/V are kept, and those that share them.

    The first layer is one more: what goes into it needs no gradient. Result and gradients stay, also after new weights.
    """
    net = adapted(
        gemma3n(
            35,
            sparse=10,
            shared=15,
            layer_types=(["sliding_attention"] * 4 + ["full_attention"]) * 7,
        )
    )
    assert fused.fuse(net) == 20 * 7 + 15 * 5
    seen = []
    for _ in range(2):
        plain, plain_gradients = losses_and_gradients(net, BATCH)
        with fused.compile_layers(net):
            losses, gradients = losses_and_gradients(net, BATCH)
        torch.testing.assert_close(losses, plain, rtol=1e-4, atol=1e-4)
        assert max(relative(gradients[n], g) for n, g in plain_gradients.items()) < 1e-3
        seen.append((losses, len(graphs)))
        with torch.no_grad():
            for n, p in net.named_parameters():
                if "lora_" in n:
                    p.mul_(1.3)
    assert not torch._dynamo.utils.counters["graph_break"]
    assert 8 <= seen[0][1] <= 8 + 1
    assert seen[0][1] == seen[1][1], "new weights must compile nothing"
    assert relative(seen[1][0], seen[0][0]) > 1e-3


@torch._dynamo.config.patch(recompile_limit=7)
def test_compiled_puts_everything_back(graphs):
    """The layers' forward and torch's limit, after the block and after an exception in it."""
    net = adapted(gemma3n())
    layers = net.get_base_model().model.layers
    before = [layer.forward for layer in layers], torch._dynamo.config.recompile_limit
    with fused.compile_layers(net):
        assert all("forward" in vars(layer) for layer in layers)
        assert torch._dynamo.config.recompile_limit >= 64
    assert ([layer.forward for layer in layers], torch._dynamo.config.recompile_limit) == before
    with pytest.raises(KeyboardInterrupt), fused.compile_layers(net):
        raise KeyboardInterrupt
    assert ([layer.forward for layer in layers], torch._dynamo.config.recompile_limit) == before
    assert not any("forward" in vars(layer) for layer in layers)
    losses_and_gradients(net, BATCH)
    assert graphs == []


# --------------------------------------------------------------------------------------------------
# the whole micro-batch as one launch


def test_float_constants_are_on_the_device_and_kept():
    make = torch.tensor
    with fused._constants_on(torch.device("meta")):
        first, other = torch.tensor(1e-5), torch.tensor(2.0)
        assert torch.tensor(1e-5) is first is not other
        assert (first.device.type, first.dtype, first.shape) == ("meta", torch.float32, ())
        for untouched in (
            torch.tensor(3),
            torch.tensor(True),
            torch.tensor([1.5]),
            torch.tensor(1.5, dtype=torch.float64),
            torch.tensor(1.5, device="cpu"),
            torch.tensor(1.5, requires_grad=True),
        ):
            assert untouched.device.type == "cpu"
        assert torch.tensor(1.5, dtype=torch.float64).dtype == torch.float64
        assert torch.tensor(1.5, requires_grad=True).requires_grad
        assert torch.tensor([1, 2]).tolist() == [1, 2]
        assert torch.tensor(1.5, device="cpu") is not torch.tensor(1.5, device="cpu")
    assert torch.tensor is make
    with pytest.raises(KeyboardInterrupt), fused._constants_on(torch.device("meta")):
        raise KeyboardInterrupt
    assert torch.tensor is make


def test_the_constants_of_gemma3n_are_all_caught(monkeypatch):
    """What its forward makes with torch.tensor outside the layers, whose own the compiler folds, is a plain float."""
    made, make = [], torch.tensor
    net = adapted(gemma3n(sparse=0))
    monkeypatch.setattr(
        torch,
        "tensor",
        lambda value, *args, **options: (
            made.append((value, args, options)) or make(value, *args, **options)
        ),
    )
    plain, _ = losses_and_gradients(net, BATCH)
    assert made
    assert all(type(value) is float and not args and not options for value, args, options in made)
    with fused._constants_on(torch.device("cpu")):
        losses, _ = losses_and_gradients(net, BATCH)
    assert torch.equal(losses, plain)


def test_constants_outlive_the_recording():
    """A graph reads them by address: whoever holds what the block gives keeps them alive."""
    with fused._constants_on(torch.device("cpu")) as kept:
        reference = weakref.ref(torch.tensor(0.5))
    assert reference() is kept[0.5]


CARD = "cuda"


@pytest.fixture
def flash_in_bfloat16():
    """FlashAttention, which knows no float32, inside a float32 model: all else is then exact enough for a narrow tolerance."""

    def attention(module, query, key, value, *args, **options):
        if not query.is_cuda:
            return packed.attention(module, query, key, value, *args, **options)
        out, _ = packed.attention(
            module, query.bfloat16(), key.bfloat16(), value.bfloat16(), *args, **options
        )
        return out.to(query.dtype), None

    AttentionInterface.register(packed.NAME, attention)
    yield
    AttentionInterface.register(packed.NAME, packed.attention)


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("dtype", "loss_within"), [(torch.float32, 2e-3), (torch.bfloat16, 2e-2)], ids=str
)
def test_a_graph_is_as_exact_as_the_eager_micro_batch(flash_in_bfloat16, dtype, loss_within):
    """Both against float64: several batches through one recording, their gradients added up; then new weights, which the replay must see."""
    net = adapted(gemma3n(), dtype)
    exact = copy.deepcopy(net).double()
    net = net.to(CARD)
    assert fused.fuse(net) == 2 * 7 + 2 * 5
    live, known = ({n: p for n, p in m.named_parameters() if p.requires_grad} for m in (net, exact))
    taken = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in live.items()}

    def forget(parameters):
        for p in parameters.values():
            p.grad = None

    def take():
        torch._foreach_add_(list(taken.values()), [p.grad for p in live.values()])
        forget(live)

    def drop():
        forget(live)
        torch._foreach_zero_(list(taken.values()))

    def flat(tensors):
        return torch.cat([t.double().flatten().cpu() for t in tensors])

    several = []
    for seed, lengths in enumerate(([25, 4, 14], [3, 50], [9, 9, 9, 9], [64])):
        rows = make_rows(lengths, seed)
        several.append(weighted(batches.pack_rows(rows, Shape(64, 4, 64)), sum(trained(rows))))
    with packed.attend_within_rows(net), fused.compile_layers(net):
        graph = fused.Graph(net, several[0], take, drop)
    assert not flat(taken.values()).any(), "recording must leave no gradient"
    assert all(p.grad is None for p in live.values())

    wanted = []
    for _ in range(2):
        for batch in several:
            total = float(graph(batch))
            ours = flat(taken.values())
            graph(batch)
            assert relative(flat(taken.values()), 2 * ours) < 0.02
            drop()
            with packed.attend_within_rows(net):
                fused.forward_backward(net, batch.to(CARD))
            theirs = flat(p.grad for p in live.values())
            drop()
            with packed.attend_within_rows(exact):
                truth = float(fused.forward_backward(exact, batch))
            wanted.append(flat(p.grad for p in known.values()))
            forget(known)
            assert total == pytest.approx(truth, rel=loss_within)
            mistaken = relative(theirs, wanted[-1])
            assert relative(ours, wanted[-1]) < 1.5 * mistaken, f"eager is {mistaken:.2%} off"
        with torch.no_grad():
            for parameters in (live, known):
                torch._foreach_copy_(
                    list(parameters.values()), [2 * p for p in parameters.values()]
                )
    apart = min(relative(a, b) for n, a in enumerate(wanted) for b in wanted[n + 1 :])
    assert apart > 2 * mistaken, "batches and weights are told apart"
