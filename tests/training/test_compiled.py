"""LoRA inside the base's own products against peft's forward, compiled layers and the fused loss against the plain ones.

python -m pytest tests/training/test_compiled.py
"""

import copy
import functools
import weakref

import peft
import pytest
import torch
from peft.tuners.lora import Linear
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AttentionInterface

from helpers.packed_rows import (
    adapted,
    gemma3n,
    losses_and_gradients,
    make_rows,
    needs_cuda,
    relative,
    trained,
    weighted,
)
from lib.training import batches, loss, packed
from lib.training import compiled as fused
from lib.training.plan import Shape

SHAPES = {"widening": (16, 40), "square": (24, 24), "narrowing": (40, 16)}  # in, out


@pytest.fixture(autouse=True)
def _two_threads(two_threads):
    pass


class Block(torch.nn.Module):
    """One linear layer, as peft wants it: inside a model."""

    def __init__(self, size, bias=False):
        super().__init__()
        self.layer = torch.nn.Linear(*size, bias=bias)

    def forward(self, x):
        return self.layer(x)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_lora(size, bias=False, dtype=torch.float32, cast=False, **options):
    """A layer with an adapter of scale 3 and a B that is not zero."""
    torch.manual_seed(0)
    options = {
        "r": 8,
        "lora_alpha": 3 * options.get("r", 8),
        "target_modules": ["layer"],
        **options,
    }
    net = peft.get_peft_model(
        Block(size, bias).to(dtype).requires_grad_(False),
        peft.LoraConfig(**options),
        autocast_adapter_dtype=cast,
    )
    with torch.no_grad():
        net.base_model.model.layer.lora_B["default"].weight.copy_(
            draw(size[1], options["r"], seed=1)
        )
    return net


def parts(net):
    layer = net.base_model.model.layer
    return layer, layer.lora_A["default"].weight, layer.lora_B["default"].weight


def both(size):
    """peft's layer, and its copy with joined storage."""
    plain = with_lora(size)
    joined = copy.deepcopy(plain)
    assert fused.fuse(joined) == 1
    return plain, joined


def results(net, x):
    """What the layer gives, and the gradients of A, B and the input."""
    _, a, b = parts(net)
    leaf = x.clone().requires_grad_()
    out = net(leaf)
    return out, *torch.autograd.grad(out, (a, b, leaf), draw(*out.shape, seed=5))


def assert_equal_results(ours, theirs):
    for mine, peft_s in zip(ours, theirs, strict=True):
        assert (mine.shape, mine.dtype) == (peft_s.shape, peft_s.dtype)
        assert relative(mine, peft_s) < 1e-5


# ---------------------------------------------------------------------------------------------------------------------
# joined storage


@pytest.mark.parametrize("size", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("input_shape", [(30,), (1, 30), (2, 5, 3)], ids=str)
def test_joined_products_equal_pefts(size, input_shape):
    """Outputs and gradients of A, B and the input, with a scale of 3, for inputs of two, three and four dimensions."""
    plain, joined = both(size)
    assert parts(plain)[0].scaling["default"] == 3
    x = draw(*input_shape, size[0], seed=2)
    assert_equal_results(results(joined, x), results(plain, x))


@pytest.mark.parametrize("size", SHAPES.values(), ids=SHAPES)
def test_an_input_without_a_gradient(size):
    """The first layer's."""
    plain, joined = both(size)
    found = []
    for net in (joined, plain):
        net(draw(1, 30, size[0], seed=2)).square().sum().backward()
        found.append([p.grad for p in parts(net)[1:]])
    assert_equal_results(*found)


@pytest.mark.parametrize("size", SHAPES.values(), ids=SHAPES)
def test_the_base_is_unchanged_bit_for_bit(size):
    """After joining, and after the adapter beside it in the same storage has been trained."""
    plain, joined = both(size)
    base, a, b = parts(plain)[0].base_layer.weight, *parts(plain)[1:]
    layer, *live = parts(joined)
    assert isinstance(layer, Linear)
    assert torch.equal(layer.base_layer.weight, base)
    assert [torch.equal(*pair) for pair in zip(live, (a, b), strict=True)] == [True, True]
    with torch.no_grad():
        for p in live:
            p.fill_(1e3)
    assert torch.equal(layer.base_layer.weight, base)
    assert [p.requires_grad for p in (layer.base_layer.weight, *live)] == [False, True, True]


@pytest.mark.parametrize("size", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("write", ["copy_", "_foreach_copy_", "adamw"])
def test_the_next_forward_sees_new_weights(size, write):
    """Written one by one, as the masters are published, and by an optimizer."""
    plain, joined = both(size)
    x = draw(1, 30, size[0], seed=2)
    before = joined(x)
    for net in (plain, joined):
        live = list(parts(net)[1:])
        new = [draw(*p.shape, seed=7 + n) for n, p in enumerate(live)]
        if write == "adamw":
            optimizer = torch.optim.AdamW(live, lr=0.1)
            for _ in range(3):
                net(x).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        with torch.no_grad():
            if write == "copy_":
                for p, w in zip(live, new, strict=True):
                    p.copy_(w)
            if write == "_foreach_copy_":
                torch._foreach_copy_(live, new)
    assert relative(before, joined(x)) > 0.1
    assert relative(joined(x), plain(x)) < 1e-4


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((16, 40), {"lora_dropout": 0.1}),
        ((16, 40), {"r": 4}),
        ((40, 16), {"r": 12}),
        ((16, 40), {"bias": True}),
        ((40, 16), {"use_dora": True}),
        ((16, 40), {"dtype": torch.bfloat16, "cast": True}),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else None,
)
def test_other_layers_keep_pefts_code(size, options):
    """Dropout, a rank that is no multiple of 8, a bias, DoRA, an adapter in another precision than the base: not a bit changes."""
    net = with_lora(size, **options).eval()
    layer, a, b = parts(net)
    x = draw(3, size[0], seed=2).to(options.get("dtype", torch.float32))
    before, places = net(x), [p.data_ptr() for p in (layer.base_layer.weight, a, b)]
    assert fused.fuse(net) == 0
    assert type(layer) is Linear
    assert [p.data_ptr() for p in (layer.base_layer.weight, a, b)] == places
    assert torch.equal(net(x), before)


def test_other_kinds_of_layers_are_left_alone():
    """An adapted embedding is no linear layer; joining twice joins nothing more."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.up, self.down = (
                torch.nn.Embedding(20, 16),
                torch.nn.Linear(16, 24, bias=False),
                torch.nn.Linear(24, 16, bias=False),
            )

        def forward(self, ids):
            return self.down(self.up(self.table(ids)))

    torch.manual_seed(0)
    net = peft.get_peft_model(
        Net(), peft.LoraConfig(r=8, target_modules=["table", "up", "down"], init_lora_weights=False)
    )
    ids = torch.arange(20)
    before = net(ids)
    assert fused.fuse(net) == 2
    assert relative(net(ids), before) < 1e-5
    kept = {n: p.data_ptr() for n, p in net.named_parameters()}
    assert fused.fuse(net) == 0
    assert {n: p.data_ptr() for n, p in net.named_parameters()} == kept


@pytest.mark.parametrize("size", SHAPES.values(), ids=SHAPES)
def test_the_adapter_that_peft_saves(size, tmp_path):
    """The values that were trained, and none of the base beside them."""
    plain, joined = both(size)
    saved = {}
    for name, net in (("plain", plain), ("joined", joined)):
        with torch.no_grad():
            for n, p in enumerate(parts(net)[1:]):
                p.copy_(draw(*p.shape, seed=7 + n))
        net.save_pretrained(tmp_path / name)
        saved[name] = load_file(tmp_path / name / "adapter_model.safetensors")
        state = peft.get_peft_model_state_dict(net)
        assert state.keys() == saved[name].keys()
        assert all(torch.equal(state[n], saved[name][n]) for n in state)
    assert saved["plain"].keys() == saved["joined"].keys()
    assert all(torch.equal(saved["joined"][n], w) for n, w in saved["plain"].items())
    assert (tmp_path / "joined" / "adapter_model.safetensors").stat().st_size == (
        tmp_path / "plain" / "adapter_model.safetensors"
    ).stat().st_size


def test_joined_in_bfloat16_within_its_rounding():
    """No further from the float32 truth than peft's own code in bfloat16 is."""
    for size in SHAPES.values():
        x = draw(1, 64, size[0], seed=2)
        truth = results(with_lora(size), x)
        off = []
        for join in (True, False):
            net = with_lora(size).to(torch.bfloat16)
            assert fused.fuse(net) == 1 if join else True
            off.append(
                [relative(r, t) for r, t in zip(results(net, x.bfloat16()), truth, strict=True)]
            )
        assert all(ours < 1.5 * theirs for ours, theirs in zip(*off, strict=True))


ROWS = make_rows([25, 4, 14])
BATCH = weighted(batches.pack_rows(ROWS, Shape(64, 4, 64)), sum(trained(ROWS)))


def test_every_layer_of_gemma3n_is_joined():
    """Seven projections in each layer that owns its K/V, five in one that shares them; losses and gradients stay."""
    net = adapted(gemma3n())
    losses, gradients = losses_and_gradients(net, BATCH)
    assert fused.fuse(net) == 2 * 7 + 2 * 5
    again, found = losses_and_gradients(net, BATCH)
    torch.testing.assert_close(again, losses, rtol=1e-5, atol=1e-5)
    assert max(relative(found[n], g) for n, g in gradients.items()) < 1e-4


# ---------------------------------------------------------------------------------------------------------------------
# the loss in one piece


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


@pytest.mark.parametrize("softcap", [None, 30.0, 2.0])
@pytest.mark.parametrize("uncompiled", [True, False], ids=["expression", "function"])
def test_the_fused_loss_equals_the_plain_one(monkeypatch, softcap, uncompiled):
    """Values and gradients, of the bare expression and of the autograd function around it, and of cross entropy itself."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    weight, targets, upstream = draw(50, 16, seed=1), torch.arange(9) * 5, torch.linspace(0.1, 2, 9)
    found = []
    for head in (
        fused_expression if uncompiled else loss._FusedHeadLoss.apply,
        loss._FrozenHeadLoss.apply,
        whole_logits,
    ):
        hidden = (3 * draw(9, 16)).requires_grad_()
        losses = head(hidden, weight, targets, softcap)
        found.append((losses, *torch.autograd.grad(losses, hidden, upstream)))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def fused_expression(hidden, weight, targets, softcap):
    """loss._fused with its derivative attached to its values."""
    losses, slope = loss._fused(hidden.detach(), weight, targets, softcap)
    attached = (hidden * slope).sum(1)
    return losses + attached - attached.detach()


def whole_logits(hidden, weight, targets, softcap):
    logits = hidden @ weight.T
    return cross_entropy(
        softcap * torch.tanh(logits / softcap) if softcap else logits, targets, reduction="none"
    )


def test_the_fused_loss_in_bfloat16():
    """Losses in float32, the derivative in the model's precision; a hopeless token's loss is finite."""
    hidden, weight = (500 * torch.eye(4)[:1]).bfloat16(), torch.eye(4).bfloat16()
    losses, slope = loss._fused(hidden, weight, torch.tensor([3]), None)
    assert losses.dtype == torch.float32
    assert losses.item() == pytest.approx(500)
    assert slope.dtype == torch.bfloat16
    assert slope.tolist() == [[1, 0, 0, -1]]


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


# ---------------------------------------------------------------------------------------------------------------------
# compiled layers


@pytest.fixture
def graphs(monkeypatch):
    """What torch.compile compiles from here on, run as traced."""
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return graph.forward

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    yield seen
    torch._dynamo.reset()


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


def test_compiled_puts_everything_back(graphs, monkeypatch):
    """The layers' forward and torch's limit, after the block and after an exception in it."""
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 7)
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


# ---------------------------------------------------------------------------------------------------------------------
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


@needs_cuda
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
