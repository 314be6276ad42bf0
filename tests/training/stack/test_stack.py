"""The hand-written layers in a whole micro-batch, against transformers' own code with peft's adapter.

python -m pytest tests/training/stack/test_stack.py              # in Triton's interpreter, in float32
python -m pytest -m cuda tests/training/stack                    # on a card, in bfloat16
"""

import copy

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("triton")

from helpers.packed_rows import adapted, gemma3n, make_rows, relative, trained, weighted
from helpers.tiny_models import a_job
from lib.training import batches, compiled, packed
from lib.training.masters import Masters
from lib.training.plan import Shape
from lib.training.stack import ends
from lib.training.stack.stack import Stack

SHAPE = Shape(13, 4, 12)  # of rows of 6, 1 and 3 tokens, and a filler in two pieces
WINDOW = 3


def small(layers=4, **changes):
    """Make a Gemma 3n that the kernels fit: windows and full attention, shared keys, a sparse layer, and coefficients that are clipped."""
    options = {
        "altup_num_inputs": 4,
        "altup_coef_clip": 0.3,
        "laurel_rank": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "sliding_window": WINDOW,
        "shared": layers // 2,
        **changes,
    }
    net = adapted(gemma3n(layers, **options))
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "_coefs" in name:
                p.normal_(0, 0.3, generator=torch.Generator().manual_seed(len(name)))
    return net


def a_batch(lengths=(6, 1, 3), shape=SHAPE, seed=0):
    rows = make_rows(lengths, seed)
    return weighted(batches.pack_rows(rows, shape), sum(trained(rows)))


def by_transformers(net, batch):
    """Return loss and gradients by transformers and peft."""
    with packed.attend_within_rows(net):
        loss = compiled.forward_backward(net, batch)
    gradients = {n: p.grad.float() for n, p in net.named_parameters() if p.requires_grad}
    net.zero_grad(set_to_none=True)
    return loss, gradients


def bound(net, longest=SHAPE.tokens):
    """Return the net's layers by hand, and its masters."""
    stack = Stack(net, longest)
    masters = Masters(net, a_job(precision="fp32"))
    stack.bind(masters)
    return stack, masters


@pytest.fixture
def poisoned():
    """Fill new memory with NaN, which shows where it is read before it is written."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def test_loss_and_every_gradient_equal_transformers(poisoned):
    """The gradients are added to what is there."""
    net, batch = small(), a_batch()
    clipped = [p.abs().max() for n, p in net.named_parameters() if "_coefs" in n]
    assert min(clipped) > 0.3
    plain = copy.deepcopy(net)  # its own forward pass clips the weights in place
    stack, masters = bound(net)
    assert masters.live.keys() == {n for n, p in plain.named_parameters() if p.requires_grad}
    masters.flat.grad.fill_(0.25)
    loss = stack(batch)
    wanted, gradients = by_transformers(plain, batch)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)
    for name, gradient in gradients.items():
        assert relative(masters.gradients[name] - 0.25, gradient) < 5e-5, name


def test_micro_batches_add_up_and_new_weights_are_seen():
    """Two of other rows in one layer; then other weights, published in one launch, which the model's own code sees too."""
    net = small(1, shared=0)
    plain, (stack, masters) = copy.deepcopy(net), bound(net)
    bases = {n: p.clone() for n, p in net.named_parameters() if not p.requires_grad}
    shape = Shape(6, 2, 6)
    several = [a_batch(lengths, shape, seed) for seed, lengths in enumerate(((4, 1), (2, 2)))]
    wanted = [by_transformers(plain, batch) for batch in several]
    found = [stack(batch) for batch in several]
    for ours, (theirs, _) in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
    for name, gradient in masters.gradients.items():
        assert relative(gradient, wanted[0][1][name] + wanted[1][1][name]) < 5e-5, name

    masters.flat.mul_(1.5)
    masters.publish()
    live = dict(net.named_parameters())
    assert all(torch.equal(live[name], weight) for name, weight in masters.weights.items())
    assert all(torch.equal(live[name], base) for name, base in bases.items())
    with torch.no_grad():
        for name, weight in masters.weights.items():
            plain.get_parameter(name).copy_(weight)
    after, _ = by_transformers(plain, several[0])
    assert relative(after, wanted[0][0]) > 1e-3
    torch.testing.assert_close(stack(several[0]), after)
    torch.testing.assert_close(by_transformers(net, several[0])[0], after)

    masters.flat.mul_(0.5)
    masters.write = None
    masters.publish()  # by the masters' own code, tensor by tensor
    assert all(torch.equal(live[name], weight) for name, weight in masters.weights.items())


def test_weights_are_held_once_and_saved_as_before(tmp_path):
    """Nothing but the spare columns is added to the memory of the weights."""
    net = small()
    plain = copy.deepcopy(net)

    def count_bytes(model):
        storages = {p.untyped_storage().data_ptr(): p.untyped_storage() for p in model.parameters()}
        return sum(storage.nbytes() for storage in storages.values())

    before = count_bytes(net)
    stack, _ = bound(net)
    joined = [t for layer in stack.layers.layers for t in (layer.qkv, layer.gate_up)]
    spare = sum(4 * len(t) * (t.shape[1] - 32) for t in joined)  # one more width of 32
    assert before < count_bytes(net) < before + spare
    for name, p in plain.named_parameters():
        assert torch.equal(net.get_parameter(name), p), name

    saved = []
    for n, model in enumerate((net, plain)):
        model.save_pretrained(tmp_path / str(n))
        saved.append(load_file(tmp_path / str(n) / "adapter_model.safetensors"))
    assert saved[0].keys() == saved[1].keys()
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])


def test_only_the_adapter_may_be_trained():
    net = small(1, shared=0)
    net.get_base_model().model.norm.weight.requires_grad_()
    with pytest.raises(AssertionError, match="the adapter alone"):
        bound(net)


def test_the_ends_are_one_graph_for_the_compiler():
    """What is compiled on a card is traced without a break, and gives the same."""
    body, batch = small(2, shared=0).get_base_model().model, a_batch()
    enter, leave = (
        torch.compile(end, backend="aot_eager", fullgraph=True, dynamic=False)
        for end in (ends.enter, ends.leave)
    )
    found, wanted = (end(body, batch.input_ids, batch.position_ids) for end in (enter, ends.enter))
    assert torch.equal(found.streams, wanted.streams)
    assert torch.equal(found.per_layer, wanted.per_layer)
    assert found.turns.keys() == {"sliding_attention", "full_attention"}
    streams = wanted.streams.detach().requires_grad_()
    theirs = ends.leave(body, streams)
    torch.testing.assert_close(leave(body, streams), theirs)
    grads = [
        torch.autograd.grad(end(body, streams).square().sum(), streams)[0]
        for end in (leave, ends.leave)
    ]
    torch.testing.assert_close(*grads)


# --------------------------------------------------------------------------------------------------
# on a card


def record(run):
    """Return a CUDA graph of a function that has run twice, and what it returned while recorded."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(), run()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        result = run()
    return graph, result


@pytest.mark.cuda
@pytest.mark.parametrize("layers", [1, 4])
def test_a_recorded_micro_batch_is_no_less_exact_than_transformers(layers):
    """In bfloat16 against float32, through one recording: rows of other lengths, and then other weights; the longest row sets attention's grid."""
    net = small(layers, head_dim=32, hidden_size=64, intermediate_size=128)
    net = net.to(torch.bfloat16)
    exact, plain = copy.deepcopy(net).float(), copy.deepcopy(net).to("cuda")
    shape, longest = Shape(192, 4, 160), 96
    several = [
        a_batch(lengths, shape, seed)
        for seed, lengths in enumerate(([90, 7, 40], [96, 1, 3, 92], [64, 64, 64], [30, 1]))
    ]
    # the filler of the last is in pieces, since no row may be longer than `longest`
    bounds = torch.tensor([0, 30, 31, 96, 160, 192], dtype=torch.int32)
    several[-1] = several[-1]._replace(bounds=bounds)
    net = net.to("cuda")
    stack, masters = bound(net, longest)
    static = several[0].to("cuda")
    graph, loss = record(lambda: stack(static))
    masters.flat.grad.zero_()
    publish, _ = record(masters.publish)

    for factor in (1.0, 2.0):
        masters.flat.mul_(factor)
        publish.replay()
        with torch.no_grad():
            for name, weight in masters.weights.items():
                plain.get_parameter(name).copy_(weight)
                exact.get_parameter(name).copy_(plain.get_parameter(name))
        for batch in several:
            for ours, theirs in zip(static, batch, strict=True):
                if torch.is_tensor(ours):
                    ours.copy_(theirs)
            graph.replay()
            found = {name: gradient.cpu() for name, gradient in masters.gradients.items()}
            found = torch.cat([found[name].flatten() for name in masters.live])
            masters.flat.grad.zero_()
            theirs, truth = (
                by_transformers(*of) for of in ((plain, batch.to("cuda")), (exact, batch))
            )
            assert float(loss) == pytest.approx(float(truth[0]), rel=2e-2)
            flat = [
                torch.cat([g[n].flatten().cpu() for n in masters.live]) for _, g in (theirs, truth)
            ]
            mistaken = relative(*flat)
            assert relative(found, flat[1]) < 1.5 * mistaken, f"transformers is {mistaken:.2%} off"
