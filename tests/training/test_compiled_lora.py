"""LoRA inside the base's own products against peft's forward.

python -m pytest tests/training/test_compiled_lora.py
"""

import copy

import peft
import pytest
import torch
from peft.tuners.lora import Linear
from safetensors.torch import load_file

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
from lib.training import batches
from lib.training import compiled as fused
from lib.training.plan import Shape

pytestmark = pytest.mark.usefixtures("two_threads")


ROWS = make_rows([25, 4, 14])


BATCH = weighted(batches.pack_rows(ROWS, Shape(64, 4, 64)), sum(trained(ROWS)))


SHAPES = {"widening": (16, 40), "square": (24, 24), "narrowing": (40, 16)}  # in, out


class Block(torch.nn.Module):
    """One linear layer, as peft wants it: inside a model."""

    def __init__(self, size, bias=False):
        super().__init__()
        self.layer = torch.nn.Linear(*size, bias=bias)

    def forward(self, x):
        return self.layer(x)


def with_lora(size, bias=False, dtype=torch.float32, cast=False, **options):
    """Return a layer with an adapter of scale 3 and a B that is not zero."""
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
    """Return peft's layer, and its copy with joined storage."""
    plain = with_lora(size)
    joined = copy.deepcopy(plain)
    assert fused.fuse(joined) == 1
    return plain, joined


def results(net, x):
    """Return the layer's output, and the gradients of A, B and the input."""
    _, a, b = parts(net)
    leaf = x.clone().requires_grad_()
    out = net(leaf)
    return out, *torch.autograd.grad(out, (a, b, leaf), draw(*out.shape, seed=5))


def assert_equal_results(ours, theirs):
    for mine, peft_s in zip(ours, theirs, strict=True):
        assert (mine.shape, mine.dtype) == (peft_s.shape, peft_s.dtype)
        assert relative(mine, peft_s) < 1e-5


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


def test_every_layer_of_gemma3n_is_joined():
    """Seven projections in each layer that owns its K/V, five in one that shares them; losses and gradients stay."""
    net = adapted(gemma3n())
    losses, gradients = losses_and_gradients(net, BATCH)
    assert fused.fuse(net) == 2 * 7 + 2 * 5
    again, found = losses_and_gradients(net, BATCH)
    torch.testing.assert_close(again, losses, rtol=1e-5, atol=1e-5)
    assert max(relative(found[n], g) for n, g in gradients.items()) < 1e-4
