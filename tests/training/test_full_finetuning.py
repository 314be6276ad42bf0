"""Full fine-tuning: gradients as plain transformers has them, resume to the bit, what it begins from.

python -m pytest tests/training/test_full_finetuning.py
"""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from helpers import full_training, small_training
from helpers.full_training import a_job, session, whole_run, write_base
from helpers.small_training import ROWS, numbers
from lib.common.errors import UserError
from lib.data.label_mask import IGNORED
from lib.record import ledger
from lib.training import batches, compiled, loop, loss, packed, plan
from lib.training.masters import Masters, measure_norm
from lib.training.stops import Interrupted

FAMILIES = {
    "gemma3n": {},
    "gemma3": {"family": "gemma3"},
    "an output layer of its own": {"family": "gemma3", "tie_word_embeddings": False},
    "a soft cap": {"family": "gemma3", "final_logit_softcapping": 3.0},
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread_and_small_chunks():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    loss.free_buffers()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "CHUNK", {"cpu": 7})  # several chunks for these few rows
        yield
    loss.free_buffers()
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("full") / "base")


@pytest.fixture(scope="module")
def uninterrupted(base, tmp_path_factory):
    return whole_run(base, tmp_path_factory.mktemp("whole") / "run")


def plain_gradients(net, rows):
    """Return loss and gradients by transformers' own forward pass and torch's cross entropy."""
    pad = small_training.pad
    ids = pad(rows["input_ids"], 0)
    labels = pad(rows["labels"], IGNORED)
    mask = pad([[1] * len(row) for row in rows["input_ids"]], 0)
    net.train()
    logits = net(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].flatten(0, 1)
    total = cross_entropy(logits.float(), labels[:, 1:].flatten(), ignore_index=IGNORED)
    total.backward()
    gradients = {name: p.grad for name, p in net.named_parameters()}
    net.zero_grad()
    return total.detach(), gradients


@pytest.mark.parametrize("family", FAMILIES)
def test_every_gradient_is_that_of_plain_transformers(tmp_path, family):
    base = write_base(tmp_path / "base", torch.float32, **FAMILIES[family])
    net = full_training.load(base)
    expected, theirs = plain_gradients(net, ROWS[:4])
    count = sum(label != IGNORED for row in ROWS[:4]["labels"] for label in row[1:])
    batch = batches.make_batch(ROWS[:4], None, 1 / count)
    total = compiled.forward_backward(net, batch)
    assert float(total) == pytest.approx(float(expected), rel=1e-5)
    ours = dict(net.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        gap = (ours[name].grad - gradient).norm()
        assert gap <= 1e-4 * gradient.norm(), (name, gap)
    learn = [name for name, gradient in theirs.items() if gradient.any()]
    assert len(learn) > 0.9 * len(theirs), "this random model has few weights without effect"


def test_packed_rows_give_the_same_gradients(tmp_path):
    net = full_training.load(write_base(tmp_path / "base", torch.float32))
    _, theirs = plain_gradients(net, ROWS[:2])
    job = a_job(packing=True, per_device_train_batch_size=2)
    shape = plan.fixed_shape(plan.read_sizes(ROWS.select(range(2))), job)
    count = sum(label != IGNORED for row in ROWS[:2]["labels"] for label in row[1:])
    batch = batches.make_batch(ROWS[:2], shape, 1 / count)
    assert batch.bounds is not None
    with packed.attend_within_rows(net):
        compiled.forward_backward(net, batch)
    for name, p in net.named_parameters():
        assert (p.grad - theirs[name]).norm() <= 1e-4 * theirs[name].norm() + 1e-8, name


def test_early_stopping_keeps_the_best_of_all_weights(base, tmp_path):
    job = a_job(eval_steps=1, early_stopping_patience=2, learning_rate=0.1, num_train_epochs=3.0)
    _, masters = session(base, tmp_path, job)
    evals = [entry for entry in small_training.evals(tmp_path) if entry[0] == "during"]
    best = min(evals, key=lambda entry: entry[2])[1]
    assert best < evals[-1][1], "it stopped early"
    saved = load_file(tmp_path / f"checkpoints/best/step-{best:06d}/weights.safetensors")
    assert all(torch.equal(masters.weights[name], weight) for name, weight in saved.items())


def test_a_trained_output_layer_gets_no_silent_zero(tmp_path):
    """The loss for a frozen output layer would leave its gradient out; training must not use it."""
    net = full_training.load(write_base(tmp_path / "base", torch.float32, family="gemma3"))
    batch = batches.make_batch(ROWS[:2], None, 1.0)
    loss.token_losses(net, batch).sum().backward()
    rows = net.model.embed_tokens.weight
    unread = [n for n in range(3, 96) if n not in batch.input_ids]
    assert unread
    assert not rows.grad[unread].any(), "words that were not read have only the output's gradient"
    net.zero_grad()
    compiled.forward_backward(net, batch)
    assert rows.grad[unread].any(1).all()


def test_all_weights_move_and_the_loss_falls(base, uninterrupted):
    weights, entries = uninterrupted
    start = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict()
    assert weights.keys() == {n for n in start if n != "lm_head.weight"}
    assert all(not torch.equal(weight, start[name]) for name, weight in weights.items())
    found = ledger.summarise(entries)
    assert found["eval_loss_after"] < found["eval_loss_before"]
    assert (
        found["trainable_parameters"]
        == found["total_parameters"]
        == sum(weight.numel() for weight in weights.values())
    )


@pytest.mark.parametrize("call", [3, 8])
def test_it_resumes_to_the_bit(base, tmp_path, monkeypatch, uninterrupted, call):
    calls = []
    weighted_loss = compiled.weighted_loss

    def interrupted_once(net, batch):
        calls.append(batch)
        total = weighted_loss(net, batch)
        return small_training.interrupt(total) if len(calls) == call else total

    monkeypatch.setattr(compiled, "weighted_loss", interrupted_once)
    with pytest.raises(Interrupted):
        session(base, tmp_path)
    _, masters = session(base, tmp_path)
    weights, entries = uninterrupted
    assert all(torch.equal(masters.weights[name], w) for name, w in weights.items())
    assert numbers(ledger.read_ledger(tmp_path / "metrics.jsonl")) == numbers(entries)


def test_a_checkpoint_of_several_pieces_resumes_to_the_bit(base, tmp_path, monkeypatch):
    """bitsandbytes counts in 32 bits, so large models are given to it in pieces."""
    monkeypatch.setattr("lib.training.masters.LARGEST_PIECE", 10_000)
    net, job = full_training.load(base), a_job()
    first, second = Masters(net, job), Masters(full_training.load(base), job)
    assert len(first.pieces) > 3
    torch.manual_seed(0)
    draws = [torch.randn_like(first.flat) for _ in range(3)]
    for step, draw in enumerate(draws):
        if step == 2:
            first.save(tmp_path)
            second.load(tmp_path)
        first.flat.grad.copy_(draw)
        first.step(first.norm(), 1e-3, 1.0)
    second.flat.grad.copy_(draws[2])
    second.step(second.norm(), 1e-3, 1.0)
    assert torch.equal(first.flat, second.flat)
    monkeypatch.setattr("lib.training.masters.LARGEST_PIECE", 2**30)
    whole = Masters(full_training.load(base), job)
    for draw in draws:
        whole.flat.grad.copy_(draw)
        whole.step(whole.norm(), 1e-3, 1.0)
    assert torch.equal(first.flat, whole.flat), "pieces change no number"


def test_the_norm_of_very_many_gradients_is_not_too_low():
    """Clipping would else be weaker than set: torch's own norm loses small squares on a processor."""
    generator = torch.Generator().manual_seed(0)
    gradients = torch.rand(2**25 + 3, generator=generator)
    exact = sum(float(part.double().square().sum()) for part in gradients.split(2**20)) ** 0.5
    assert float(measure_norm(gradients)) == pytest.approx(exact, rel=1e-6)


def test_it_begins_with_the_files_numbers_not_with_their_rounding(tmp_path):
    """A float32 base is computed in bfloat16, and its masters keep what that rounds away."""
    base = write_base(tmp_path / "base", torch.float32)
    job = a_job(learning_rate=1e-9, max_steps=2, max_grad_norm=0.0)
    net, masters = session(base, tmp_path / "run", job, torch.bfloat16)
    start = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict()
    for name, weight in masters.weights.items():
        assert (weight - start[name]).abs().max() < 1e-6, name
    name = "model.embed_tokens.weight"
    assert not torch.equal(net.state_dict()[name].float(), start[name])


def test_a_model_that_was_trained_already_is_refused(base, tmp_path):
    net, _ = session(base, tmp_path / "a", a_job(max_steps=2))
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match="has been trained already"):
        loop.train(net, ROWS, ROWS[:0], a_job(), tmp_path / "b", {})


def test_coefficients_that_transformers_clips_are_clipped_in_the_masters_too(base):
    net = full_training.load(base)
    net.config.altup_coef_clip = 0.01
    masters = Masters(net, a_job())
    masters.flat.grad.fill_(-1.0)
    masters.step(masters.norm(), 0.5, 0.0)
    for name, weight in masters.weights.items():
        most = weight.abs().max()
        assert (most <= 0.0101) == ("ion_coefs" in name), name
