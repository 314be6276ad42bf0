"""Packed rows against the same rows padded, the mask against a loop and transformers' own, the call of torch's kernel against plain attention.

python -m pytest tests/training/test_packed.py
"""

import inspect
import types

import pytest
import torch
from torch.nn.attention.varlen import varlen_attn
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.models.gemma3n.modeling_gemma3n import eager_attention_forward

from helpers.packed_rows import (
    LENGTHS,
    ROOMY,
    WINDOW,
    adapted,
    gemma3,
    gemma3n,
    losses_and_gradients,
    make_rows,
    relative,
    token_losses,
    trained,
    weighted,
)
from lib.training import batches, packed
from lib.training.plan import Shape


@pytest.fixture(autouse=True)
def _two_threads(two_threads):
    pass


@pytest.fixture(scope="module", params=[gemma3n, gemma3])
def net(request):
    return adapted(request.param())


# --------------------------------------------------------------------------------------------------
# whole models


@pytest.mark.parametrize(
    "shape",
    [
        ROOMY,
        ROOMY._replace(longest=max(LENGTHS)),
        Shape(sum(LENGTHS), len(LENGTHS), 64),
        Shape(sum(LENGTHS), len(LENGTHS), 64, max(LENGTHS)),
    ],
    ids=["roomy", "roomy-longest", "full", "full-longest"],
)
def test_packed_rows_equal_padded_rows(net, shape):
    """Losses and every LoRA gradient, in float32."""
    rows = make_rows(LENGTHS)
    count = sum(trained(rows))
    side, end = (
        weighted(batches.pad_rows(rows), count),
        weighted(batches.pack_rows(rows, shape), count),
    )
    theirs, theirs_gradients = losses_and_gradients(net, side)
    ours, ours_gradients = losses_and_gradients(net, end)
    assert len(theirs) == count < len(ours) == shape.trained
    torch.testing.assert_close(ours[:count], theirs, rtol=1e-5, atol=1e-5)
    assert all(g.norm() > 0 for g in theirs_gradients.values())
    assert max(relative(ours_gradients[n], g) for n, g in theirs_gradients.items()) < 1e-4


def test_packed_rows_equal_each_row_alone(net):
    """The rows one by one, so that nothing rests on padding."""
    rows = make_rows(LENGTHS)
    together = token_losses(net, batches.pack_rows(rows, ROOMY)).split(
        [*trained(rows), ROOMY.trained - sum(trained(rows))]
    )
    for row, losses in zip(rows, together, strict=False):
        torch.testing.assert_close(
            losses, token_losses(net, batches.pad_rows([row])), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("changed", range(len(LENGTHS)))
def test_a_row_is_blind_to_the_others(net, changed):
    rows, others = make_rows(LENGTHS), make_rows(LENGTHS, seed=9)
    counts = trained(rows)
    before = token_losses(net, batches.pack_rows(rows, ROOMY)).split(
        [*counts, ROOMY.trained - sum(counts)]
    )
    rows[changed] = others[changed]
    after = token_losses(net, batches.pack_rows(rows, ROOMY)).split(
        [*counts, ROOMY.trained - sum(counts)]
    )
    for n in range(len(rows)):
        if n != changed:
            torch.testing.assert_close(after[n], before[n], rtol=1e-6, atol=1e-6)
        elif counts[n]:
            assert relative(after[n], before[n]) > 1e-3


def test_positions_start_anew_in_each_row(net):
    """Rotary embeddings are relative, so no loss would show it; but positions far out are rounded more, or not there at all."""
    seen, batch = [], batches.pack_rows(make_rows(LENGTHS), ROOMY)
    hook = net.get_base_model().model.rotary_emb.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[1])
    )
    token_losses(net, batch)
    hook.remove()
    assert seen
    assert all(torch.equal(positions, batch.position_ids) for positions in seen)


def test_the_filler_takes_no_part(net):
    """Other numbers in it, or none of it, change no loss; its own entries weigh nothing."""
    rows = make_rows(LENGTHS)
    batch = batches.pack_rows(rows, ROOMY)
    other = batch.input_ids.clone()
    other[0, sum(LENGTHS) :] = 77
    real = batch.weights > 0
    losses = token_losses(net, batch)[real]
    torch.testing.assert_close(
        token_losses(net, batch._replace(input_ids=other))[real], losses, rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(
        token_losses(net, batches.pack_rows(rows, Shape(sum(LENGTHS), 5, 64)))[real],
        losses,
        rtol=1e-5,
        atol=1e-5,
    )
    assert int(real.sum()) == sum(trained(rows))


@pytest.mark.parametrize("make", [gemma3n, gemma3])
def test_a_padding_token_of_zeros_gives_no_nan(make):
    """A filler that sees only itself would keep Gemma 3n's first stream at zero, where the root of its square has no slope."""
    net = adapted(make())
    with torch.no_grad():
        net.get_input_embeddings().weight[0] = 0
    rows = make_rows(LENGTHS)
    count = sum(trained(rows))
    _, theirs = losses_and_gradients(net, weighted(batches.pad_rows(rows), count))
    _, ours = losses_and_gradients(net, weighted(batches.pack_rows(rows, ROOMY), count))
    assert all(torch.isfinite(g).all() for g in ours.values())
    assert max(relative(ours[n], g) for n, g in theirs.items()) < 1e-4


@pytest.mark.parametrize("make", [gemma3n, gemma3])
def test_recomputed_layers_attend_within_rows_too(make):
    """With gradient checkpointing the backward pass runs the layers again."""
    net = adapted(make())
    rows = make_rows(LENGTHS)
    batch = weighted(batches.pack_rows(rows, ROOMY), sum(trained(rows)))
    losses, kept = losses_and_gradients(net, batch)
    net.gradient_checkpointing_enable({"use_reentrant": False})
    again, recomputed = losses_and_gradients(net, batch)
    assert torch.equal(losses, again)
    assert max(relative(recomputed[n], g) for n, g in kept.items()) < 1e-5


@pytest.mark.parametrize("own", ["sdpa", "eager"])
@pytest.mark.parametrize("make", [gemma3n, gemma3])
def test_one_long_row_equals_the_models_own_attention(make, own):
    """A row nearly four windows long: transformers decides where the window ends."""
    net = make().eval()
    net.set_attn_implementation(own)
    ids = torch.tensor([make_rows([30])[0]["input_ids"]])
    bounds = torch.tensor([0, 30], dtype=torch.int32)
    with torch.no_grad():
        theirs = net(input_ids=ids, use_cache=False).logits
        with packed.attend_within_rows(net):
            ours = net(
                input_ids=ids, use_cache=False, position_ids=torch.arange(30)[None], bounds=bounds
            ).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("own", ["sdpa", "eager"])
def test_the_models_own_attention_comes_back(own):
    """After the block, also when it ends in an exception; and with it the answers of before."""
    net = adapted(gemma3n())
    net.set_attn_implementation(own)
    side = batches.pad_rows(make_rows([20, 9]))
    before = token_losses(net, side)
    with packed.attend_within_rows(net):
        assert {
            m.config._attn_implementation for m in net.modules() if hasattr(m, "self_attn")
        } == {packed.NAME}
    assert net.config.get_text_config()._attn_implementation == own
    with pytest.raises(KeyboardInterrupt), packed.attend_within_rows(net):
        raise KeyboardInterrupt
    assert net.config.get_text_config()._attn_implementation == own
    assert torch.equal(token_losses(net, side), before)


# --------------------------------------------------------------------------------------------------
# the mask, and attention as transformers calls it


@pytest.mark.parametrize("window", [0, 1, 2, 5, 12, 40])
@pytest.mark.parametrize(
    "bounds", [[0, 12], [0, 1, 6, 12], [0, 5, 5, 5, 12], [0, 0, 7, 12, 12]], ids=str
)
def test_the_mask_equals_a_loop(bounds, window):
    """Rows of one token and of none, windows smaller and larger than a row."""
    rows = [
        n
        for n, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False))
        for _ in range(start, end)
    ]
    expected = [
        [rows[q] == rows[k] and k <= q and (not window or q - k < window) for k in range(12)]
        for q in range(12)
    ]
    found = packed.same_row_mask(torch.tensor(bounds, dtype=torch.int32), 12, window)
    assert found.dtype == torch.bool
    assert found.tolist() == expected


def test_the_mask_of_one_row_is_that_of_transformers():
    config = gemma3n().config
    options = {
        "config": config,
        "inputs_embeds": torch.zeros(1, 30, 32),
        "attention_mask": torch.ones(1, 30, dtype=torch.long),
        "past_key_values": None,
        "position_ids": torch.arange(30)[None],
        "and_mask_function": lambda batch, head, query, key: query >= 0,
    }
    bounds = torch.tensor([0, 30], dtype=torch.int32)
    assert torch.equal(
        packed.same_row_mask(bounds, 30, WINDOW), create_sliding_window_causal_mask(**options)[0, 0]
    )
    assert torch.equal(packed.same_row_mask(bounds, 30, 0), create_causal_mask(**options)[0, 0])


def heads(query, key, tokens, size, dtype=torch.float32, seed=0, device="cpu"):
    """Return random queries, keys and values of (1, heads, tokens, size), and a gradient for the output."""
    draw = torch.Generator().manual_seed(seed)
    q, k, v, grad = (
        torch.randn(shape, generator=draw).to(device, dtype)
        for shape in (
            (1, query, tokens, size),
            (1, key, tokens, size),
            (1, key, tokens, size),
            (1, tokens, query, size),
        )
    )
    return [t.requires_grad_() for t in (q, k, v)], grad


@pytest.mark.parametrize("scaling", [None, 1.0])
def test_attention_of_one_row_is_transformers_eager_attention(scaling):
    """Layout, scale and shared K/V heads; without a given scale it is that of the head size."""
    module = types.SimpleNamespace(head_dim=16, num_key_value_groups=4, training=False)
    (q, k, v), _ = heads(8, 2, 20, 16)
    ours, weights = packed.attention(
        module,
        q,
        k,
        v,
        None,
        scaling=scaling,
        bounds=torch.tensor([0, 20], dtype=torch.int32),
        dropout=0.0,
    )
    lower = torch.full((20, 20), -torch.inf).triu(1)
    theirs, _ = eager_attention_forward(module, q, k, v, lower, scaling=scaling)
    assert weights is None
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


# --------------------------------------------------------------------------------------------------
# the path of the card


def plain_varlen(query, key, value, starts, _, longest, __, *, scale, window_size, enable_gqa):
    """Compute what torch's varlen_attn computes on (tokens, heads, size), by its definition."""
    assert enable_gqa
    assert longest >= starts.diff().max(), "what is beyond it would not be computed"
    left, right = window_size
    assert right == 0, "nobody looks ahead"
    q, k, v = (
        t.repeat_interleave(query.shape[1] // t.shape[1], 1).transpose(0, 1)
        for t in (query, key, value)
    )
    position = torch.arange(len(query))
    row = torch.searchsorted(starts, position, right=True)
    back = position[:, None] - position[None]
    seen = (row[:, None] == row[None]) & (back >= 0) & ((back <= left) | (left < 0))
    scores = (q @ k.transpose(1, 2) * scale).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).contiguous()


BOUNDS = [0, 7, 7, 8, 20, 24, 24]


@pytest.mark.parametrize(("longest", "handed_over"), [(None, 24), (12, 12)])
@pytest.mark.parametrize("window", [None, 1, 5])
def test_the_path_of_the_card_equals_the_masked_path(window, longest, handed_over, monkeypatch):
    """Layout, scale, window and longest row handed to torch's kernel; only the kernel itself is another."""
    seen = []

    def kernel(*args, **options):
        seen.append(args[5:7])
        return plain_varlen(*args, **options)

    class OnCard(torch.Tensor):
        is_cuda = True

    monkeypatch.setattr(packed, "varlen_attn", kernel)
    monkeypatch.setattr(packed, "SHARED_HEADS", {"enable_gqa": True})
    module, bounds = types.SimpleNamespace(head_dim=16), torch.tensor(BOUNDS, dtype=torch.int32)
    results = []
    for kind in (OnCard, torch.Tensor):
        leaves, grad = heads(8, 2, 24, 16)
        out, _ = packed.attention(
            module,
            *(t.as_subclass(kind) for t in leaves),
            None,
            sliding_window=window,
            bounds=bounds,
            longest=longest,
        )
        out = out.as_subclass(torch.Tensor)
        results.append((out, *torch.autograd.grad(out, leaves, grad)))
    for ours, theirs in zip(*results, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert seen == [(handed_over, handed_over)]


def test_the_longest_row_reaches_every_layer(net, monkeypatch):
    """Through transformers' own code, which passes on what it does not know."""
    seen = []
    monkeypatch.setattr(
        packed.AttentionInterface,
        "_global_mapping",
        {
            **packed.AttentionInterface._global_mapping,
            packed.NAME: lambda *args, **options: (
                seen.append(options["longest"]) or packed.attention(*args, **options)
            ),
        },
    )
    token_losses(net, batches.pack_rows(make_rows(LENGTHS), ROOMY._replace(longest=30)))
    assert seen == [30] * 4


def test_torch_names_its_arguments_as_they_are_handed_over():
    names = inspect.signature(varlen_attn).parameters
    assert list(names)[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert {"scale", "window_size", *packed.SHARED_HEADS} <= set(names)


def masked_in_float32(module, leaves, grad, bounds, window):
    """Compute attention() by the mask from the same numbers; return the result and the three gradients."""
    q, k, v = wide = [t.detach().float().requires_grad_() for t in leaves]
    out = torch.nn.functional.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=packed.same_row_mask(bounds, q.shape[2], window),
        scale=module.head_dim**-0.5,
        enable_gqa=True,
    ).transpose(1, 2)
    return out, *torch.autograd.grad(out, wide, grad.float())


@pytest.mark.cuda
@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("window", [0, 512, 5])
@pytest.mark.parametrize(
    "bounds",
    [[0, 700, 1600, 1601, 2048], [0, 0, 1300, 1300, 1300, 2011, 2048], [0, 900, 2048, 2048, 2048]],
    ids=str,
)
def test_flash_equals_the_mask_on_the_card(bounds, window, told):
    """Gemma 3n's heads (8 on 2, of 256) in bfloat16, forward and backward, with rows of no tokens; a key too many or too few is 1.2 % or more."""
    longest = max(torch.tensor(bounds).diff().tolist()) if told else None
    module, bounds = (
        types.SimpleNamespace(head_dim=256),
        torch.tensor(bounds, dtype=torch.int32, device="cuda"),
    )
    leaves, grad = heads(8, 2, 2048, 256, torch.bfloat16, device="cuda")
    out, _ = packed.attention(
        module, *leaves, None, sliding_window=window or None, bounds=bounds, longest=longest
    )
    ours = (out, *torch.autograd.grad(out, leaves, grad))
    assert (out.shape, out.dtype) == ((1, 2048, 8, 256), torch.bfloat16)
    for mine, truth in zip(
        ours, masked_in_float32(module, leaves, grad, bounds, window), strict=True
    ):
        assert mine.shape == truth.shape
        assert relative(mine, truth) < 8e-3


@pytest.mark.cuda
@pytest.mark.parametrize("longest", [0, max(LENGTHS)])
def test_a_packed_model_on_the_card_equals_padded_rows_in_float32(longest):
    """bfloat16 through FlashAttention, no further from the float32 truth than the same rows padded are; the filler is longer than the longest row."""
    rows = make_rows(LENGTHS)
    count = sum(trained(rows))
    side, end = (
        weighted(batches.pad_rows(rows), count),
        weighted(batches.pack_rows(rows, ROOMY._replace(longest=longest)), count),
    )
    _, truth = losses_and_gradients(adapted(gemma3n()), side)
    net = adapted(gemma3n(), torch.bfloat16).to("cuda")
    off = []
    for batch in (end, side):
        _, found = losses_and_gradients(net, batch.to("cuda"))
        assert all(g.isfinite().all() for g in found.values())
        off.append(
            relative(
                torch.cat([found[n].flatten().cpu() for n in truth]),
                torch.cat([g.flatten() for g in truth.values()]),
            )
        )
    assert off[0] < 1.3 * off[1] + 0.01
