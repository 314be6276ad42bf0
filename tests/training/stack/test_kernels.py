"""Each kernel against plain float32 code and its automatic gradients.

python -m pytest tests/training/stack/test_kernels.py            # in Triton's interpreter
python -m pytest -m cuda tests/training/stack                    # on a card
"""

import pytest
import torch
from torch.nn.functional import gelu

pytest.importorskip("triton")

from lib.training.stack import weights
from lib.training.stack.kernels import altup, heads, mlp
from lib.training.stack.places import Places

M, H = 5, 32  # tokens, an odd number; width
EPS = 1e-6
PLACES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]

pytestmark = pytest.mark.parametrize("place", PLACES)


class Draw:
    """Random numbers on a device, new ones with each call."""

    def __init__(self, place):
        self.place, self.generator = place, torch.Generator().manual_seed(0)

    def __call__(self, *shape, size=1.0, leaf=True):
        drawn = size * torch.randn(shape, generator=self.generator)
        return drawn.to(self.place).requires_grad_(leaf)


@pytest.fixture
def draw(place):
    return Draw(place)


def poison(place, *shape):
    """Return a tensor of NaN, which stays in whatever a kernel leaves out."""
    return torch.full(shape, float("nan"), device=place)


def constants(draw, size=16):
    """Return random constants of a layer, away from the zeros and ones that hide mistakes."""
    shapes = {"predictor": (16, 4), "corrector": (4, 4), "router": (4, H)}
    shapes |= {"q_norm": (size,), "k_norm": (size,)}
    drawn = {name: draw(*shapes.get(name, (H,)), leaf=False) for name in weights.Constants._fields}
    return weights.Constants(**drawn)


def close(found, wanted):
    """Tell that all is written, and right; a column that must stay untouched is NaN in both."""
    torch.testing.assert_close(found, wanted.detach(), rtol=2e-5, atol=2e-5, equal_nan=True)


def norm(x, weight=1.0):
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight


def modalities(x, w):
    return torch.tanh(norm(x, w.router_norm) @ w.router.T / H)


def predict(h, w):
    """Return each stream's prediction, from `source` to `to`."""
    coefficients = (modalities(h[0], w) @ w.predictor.T).view(-1, 4, 4)
    return h + torch.einsum("mts,smh->tmh", coefficients, h)


def correct(p, y, shares, part):
    return (
        p
        + shares.T[:, :, None] * (y - p[0])
        + part * torch.tensor([0.0, 1, 1, 1]).to(p)[:, None, None]
    )


# --------------------------------------------------------------------------------------------------
# AltUp


@pytest.fixture
def entered(draw):
    """Return what enters a layer that is not the first: predictions, output, shares and part of the one before, and both layers' constants."""
    made = [draw(*shape, leaf=False) for shape in ((4, M, H), (M, H), (M, 4), (M, H))]
    return made, constants(draw), constants(draw)


def enter(place, sources, w, before, where):
    """Run the kernel; return predictions, normed input in a wider tensor, and what it keeps."""
    out, x, entry = poison(place, 4, M, H), poison(place, M, H + 8), poison(place, M, 8)
    altup.enter_kernel[(M,)](*sources, out, x, entry, w, before, M, H + 8, EPS, PLACE=where, H=H)
    return out, x, entry


def widened(x, columns):
    """Return x with untouched columns beside it."""
    return torch.cat([x, poison(x.device, len(x), columns)], 1)


def test_the_first_layers_entry(place, draw):
    h, w = draw(4, M, H, leaf=False), constants(draw)
    out, x, _ = enter(place, [h] * 4, w, w, 0)
    close(out, predict(h, w))
    close(x, widened(norm(predict(h, w)[0], w.input_norm), 8))


def test_the_entry_behind_another_layer(place, entered):
    (p, y, shares, part), w, before = entered
    out, x, _ = enter(place, (p, y, shares, part), w, before, 1)
    wanted = predict(correct(p, y, shares, norm(part, before.part_norm)), w)
    close(out, wanted)
    close(x, widened(norm(wanted[0], w.input_norm), 8))


def test_the_streams_behind_the_last_layer(place, entered):
    (p, y, shares, part), w, before = entered
    out, _, _ = enter(place, (p, y, shares, part), w, before, 2)
    close(out, correct(p, y, shares, norm(part, before.part_norm)))


def test_the_way_back_through_the_entry(place, draw, entered):
    (p, y, shares, part), w, before = entered
    out, _, entry = enter(place, (p, y, shares, part), w, before, 1)
    grad, gx, gpast = draw(4, M, H, leaf=False), draw(M, H + 8, leaf=False), draw(M, H, leaf=False)

    corrected = correct(p, y, shares, 0 * part).requires_grad_()
    leaf = part.clone().requires_grad_()
    h = correct(corrected, corrected[0], shares, norm(leaf, before.part_norm))
    predicted = predict(h, w)
    x = norm(predicted[0], w.input_norm)
    total = (predicted * grad).sum() + (x * (gx[:, :H] + gpast)).sum()
    wanted = torch.autograd.grad(total, (corrected, leaf))

    gpart = poison(place, M, H)
    altup.enter_back_kernel[(M,)](
        *(grad, gx, gpast, out, p, y, shares, part, entry, gpart, w, before, M, H + 8), H=H
    )
    close(grad, wanted[0])
    close(gpart, wanted[1])


def test_the_way_back_from_behind_the_last_layer(place, draw):
    grad, part, w = draw(4, M, H, leaf=False), draw(M, H), constants(draw)
    total = (norm(part, w.part_norm) * grad[1:].sum(0)).sum()
    gpart, before = poison(place, M, H), grad.clone()
    altup.leave_back_kernel[(M,)](grad, part.detach(), gpart, w, M, EPS, H=H)
    close(gpart, torch.autograd.grad(total, part)[0])
    assert torch.equal(grad, before)


def test_the_exit_and_the_way_back(place, draw):
    p, half, f, w = draw(4, M, H), draw(M, H), draw(M, H + 8), constants(draw)
    y = half + norm(f[:, :H], w.mlp_out_norm)
    shares = modalities(y, w) @ w.corrector.T + 1
    h = correct(p, y, shares, 0.0)
    first = h[0] * w.first_scale

    found = [poison(place, *shape) for shape in ((M, H), (M, 4), (M, H), (M, 8))]
    plain = f.detach(), half.detach(), p.detach()
    altup.exit_kernel[(M,)](*plain, *found, w, H + 8, EPS, H=H)
    for ours, wanted in zip(found, (y, shares, first), strict=False):
        close(ours, wanted)

    grad, gfirst = draw(4, M, H, leaf=False), draw(M, H, leaf=False)
    total = (h * grad).sum() + (first * gfirst).sum()
    of_p, of_half, of_f = torch.autograd.grad(total, (p, half, f))
    gy, gf = poison(place, M, H), poison(place, M, H + 16)
    altup.exit_back_kernel[(M,)](
        *(grad, gfirst, p.detach(), *found[:2], f.detach(), gy, gf, found[3], w, M, H + 8, H + 16),
        H=H,
    )
    close(grad, of_p)
    close(gy, of_half)
    close(gf, widened(of_f[:, :H], 16))


# --------------------------------------------------------------------------------------------------
# heads


def turned(x, cos, sin):
    """Return heads (M, n, D) with the rotary embedding."""
    left, right = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat([-right, left], -1) * sin[:, None]


@pytest.mark.parametrize("own", [2, 1, 0])
def test_rotation_and_the_way_back(place, draw, own):
    """A layer with three heads of queries, and two, one or none of keys; eight columns of laurel between them."""
    queries, size, k0 = 3, 16, 3 * 16 + 8
    columns = k0 + 2 * own * size
    z, w = draw(M, columns), constants(draw, size)
    angles = draw(M, size // 2, leaf=False).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()
    q = z[:, : queries * size].unflatten(1, (queries, size))
    k, v = (
        (part.unflatten(1, (-1, size)) for part in z[:, k0:].chunk(2, 1)) if own else (None, None)
    )
    wanted = [turned(norm(q, w.q_norm), cos, sin)]
    if own:
        wanted += [turned(norm(k, w.k_norm), cos, sin), norm(v)]

    sizes = {"ZS": columns, "K0": k0, "NQ": queries, "NK": own, "N": 8, "D": size}
    out = poison(place, M, queries + 2 * own, size)
    heads.rotate_kernel[(M,)](z.detach(), out, cos, sin, w, EPS, **sizes)
    close(out, torch.cat(wanted, 1))

    grads = [draw(*x.shape, leaf=False) for x in wanted]
    total = sum((x * g).sum() for x, g in zip(wanted, grads, strict=True))
    of_z = torch.autograd.grad(total, z)[0]
    of_z[:, queries * size : k0] = float("nan")  # the laurel's columns are another product's
    gz, nothing = poison(place, M, columns), draw(M, 2, size, leaf=False)
    grads += [nothing] * (3 - len(grads))  # gradients of keys that another layer owns
    heads.rotate_back_kernel[(M,)](z.detach(), *grads, gz, cos, sin, w, EPS, **sizes)
    close(gz, of_z)


def test_the_middle_and_the_way_back(place, draw):
    out, x, w = draw(M, H), draw(M, H + 24), constants(draw)
    att, laurel = draw(M, H + 8), draw(M, H)
    half = out + norm(att[:, :H], w.attention_norm) + x[:, :H] + norm(laurel, w.laurel_norm)
    half = half / 2**0.5
    xn = norm(half, w.mlp_in_norm)

    found = [poison(place, M, H), poison(place, M, H + 16), poison(place, M, 4)]
    plain = [t.detach() for t in (out, att, laurel, x)]
    heads.middle_kernel[(M,)](*plain, *found, w, H + 8, H + 24, H + 16, EPS, H=H)
    close(found[0], half)
    close(found[1], widened(xn, 16))

    gxn, gy = draw(M, H + 16, leaf=False), draw(M, H, leaf=False)
    total = (xn * gxn[:, :H]).sum() + (half * gy).sum()
    of_out, of_att, of_laurel, of_x = torch.autograd.grad(total, (out, att, laurel, x))
    grad = draw(M, H, leaf=False)
    wanted = grad + of_out
    gatt, glaurel, gpast = poison(place, M, H + 8), poison(place, M, H), poison(place, M, H)
    heads.middle_back_kernel[(M,)](
        *(gxn, gy, found[0], *plain[1:3], grad, gatt, glaurel, gpast, found[2], w),
        *(H + 16, H + 8, H + 8),
        H=H,
    )
    close(grad, wanted)
    close(gatt, widened(of_att[:, :H], 8))
    close(glaurel, of_laurel)
    close(gpast, of_x[:, :H])


# --------------------------------------------------------------------------------------------------
# the MLP and the per-layer gate


@pytest.mark.parametrize("factor", [None, 0.0, 1.25], ids=["plain", "cut at the mean", "sparse"])
def test_activation_and_the_way_back(place, draw, factor):
    """Three blocks of 16 numbers; gates whose mean is not zero."""
    inner, block = 48, 16
    gates = draw(M, 2 * inner)
    gate, up = (gates + 0.3).chunk(2, 1)
    if factor is not None:
        gate = (
            gate - gate.mean(1, keepdim=True) - factor * gate.std(1, keepdim=True, correction=0)
        ).relu()
    wanted = gelu(gate, approximate="tanh") * up

    plain = (gates + 0.3).detach()
    sizes = {"factor": factor or 0.0, "N": inner, "B": block, "SPARSE": factor is not None}
    out, stats = poison(place, M, inner), poison(place, M, 2)
    mlp.activate_kernel[(M,)](plain, out, stats, **sizes)
    close(out, wanted)

    grad, ggates = draw(M, inner, leaf=False), poison(place, M, 2 * inner)
    mlp.activate_back_kernel[(M,)](plain, grad, ggates, stats, **sizes)
    close(ggates, torch.autograd.grad((wanted * grad).sum(), gates)[0])


def test_a_gate_that_is_not_a_number_stays_so(place):
    """A sparse layer must not cut it to zero, as a card's maximum would: a diverged loss stops the training."""
    gates, out, stats = torch.ones(2, 64, device=place), poison(place, 2, 32), poison(place, 2, 2)
    gates[1, 5] = float("nan")
    mlp.activate_kernel[(2,)](gates, out, stats, factor=1.0, N=32, B=16, SPARSE=True)
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


def test_the_per_layer_gate_and_the_way_back(place, draw):
    """The input of the second of three layers."""
    size = 16
    g, inputs = draw(M, size), draw(M, 3, size, leaf=False)
    own = inputs[:, 1]
    wanted = gelu(g, approximate="tanh") * own
    out, grad, gg = poison(place, M, size), draw(M, size, leaf=False), poison(place, M, size)
    mlp.gate_kernel[(M,)](g.detach(), own, out, IS=own.stride(0), Q=size)
    close(out, wanted)
    mlp.gate_back_kernel[(M,)](grad, g.detach(), own, gg, IS=own.stride(0), Q=size)
    close(gg, torch.autograd.grad((wanted * grad).sum(), g)[0])


# --------------------------------------------------------------------------------------------------
# places


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_numbers_go_to_their_places_and_back(place, draw, dtype):
    """Rows, columns and a transposed tensor, one longer than a block and none a multiple of it; their neighbours stay."""
    storage = poison(place, 70, 40).to(dtype)
    tensors = [storage[:64, 3:36], storage[64:69, 1:14].T, storage[69:, 20:]]
    flat = draw(sum(t.numel() for t in tensors), leaf=False)
    if place == "cpu":
        flat = flat.to(dtype).float()  # a card rounds, but the interpreter cuts off
    places, parts = Places(tensors), flat.split([t.numel() for t in tensors])
    places.write(flat)
    for tensor, part in zip(tensors, parts, strict=True):
        assert torch.equal(tensor, part.view(tensor.shape).to(dtype))
    assert int(storage.isfinite().sum()) == len(flat)

    sums = draw(len(flat), leaf=False)
    wanted = sums + torch.cat([t.float().flatten() for t in tensors])
    places.add_to(sums)
    assert torch.equal(sums, wanted)
