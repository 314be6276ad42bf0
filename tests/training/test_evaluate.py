"""The held-out response loss and the greedy answers, against one row at a time.

python -m pytest tests/training/test_evaluate.py
"""

import json
import weakref

import datasets
import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.held_out_loss import measure_loss
from helpers.small_training import small_model
from lib.common.errors import UserError
from lib.data.label_mask import IGNORED
from lib.model import adapter
from lib.params import Params
from lib.training import evaluate

PROMPTS = (
    "Press.",
    "My friend cut her hand and the blood will not stop. What should we do now, and who do we call?",
    "Is it safe to move the patient?",
)


pytestmark = pytest.mark.usefixtures("two_threads")


JOB = Params(load_in_4bit=False, optim="adamw_torch", lora_dropout=0.5)


def move_adapter(net):
    with torch.no_grad():
        for name, p in adapter.trainable(net).items():
            if "lora_B" in name:
                p.copy_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    return net


@pytest.fixture(scope="module")
def tiny(tiny_gemma3n):
    """Return (float32 model with an adapter and dropout, tokenizer), which can write answers."""
    base = AutoModelForCausalLM.from_pretrained(tiny_gemma3n, dtype=torch.float32)
    net = move_adapter(adapter.add(base.requires_grad_(False), JOB))
    return net, AutoTokenizer.from_pretrained(tiny_gemma3n)


@pytest.fixture(scope="module")
def small():
    """Return a far smaller model of the same kind, for losses: it has no tokenizer."""
    return move_adapter(small_model(JOB))


@pytest.fixture(scope="module")
def rows():
    draw, found = np.random.default_rng(0), []
    for length in (40, 7, 22, 90, 13, 31, 8):
        ids = [2, *draw.integers(3, 96, length - 1).tolist()]
        start = length // 2
        found.append(
            {"input_ids": ids, "labels": [IGNORED] * start + ids[start:], "length": length}
        )
    return datasets.Dataset.from_list(found)


def test_response_loss_equals_one_row_at_a_time(small, rows):
    small.eval()
    total, tokens = 0.0, 0
    with torch.no_grad():
        for row in rows:
            logits = small(input_ids=torch.tensor([row["input_ids"]])).logits[0]
            for position, label in enumerate(row["labels"][1:]):
                if label != IGNORED:
                    total, tokens = (
                        total + cross_entropy(logits[position], torch.tensor(label)).item(),
                        tokens + 1,
                    )
    loss, counted = measure_loss(small, rows)
    assert counted == tokens == sum(len(r["input_ids"]) - len(r["input_ids"]) // 2 for r in rows)
    assert loss == pytest.approx(total / tokens, rel=1e-5)


def test_response_loss_does_not_depend_on_the_batch(small, rows):
    expected, tokens = measure_loss(small, rows, rows_at_once=1)
    for size in (2, 3, 100):
        assert measure_loss(small, rows, rows_at_once=size) == (
            pytest.approx(expected, rel=1e-5),
            tokens,
        )


def test_row_losses_are_those_of_each_row_alone_in_the_order_of_the_rows(small, rows):
    alone = [measure_loss(small.train(), rows.select([n])) for n in range(len(rows))]
    for size in (1, 3, 100):
        found = evaluate.measure_row_losses(small, rows, size)
        assert small.training
        assert found[:, 1].tolist() == [tokens for _, tokens in alone]
        assert (found[:, 0] / found[:, 1]).tolist() == pytest.approx(
            [loss for loss, _ in alone], rel=1e-5
        )


@pytest.mark.parametrize("training", [True, False])
def test_training_mode_is_off_while_measuring_and_restored(tiny, rows, training):
    """A dropout of 0.5 would be noticed."""
    net, tokenizer = tiny
    net.train(training)
    rows = rows.select(range(3))
    first = measure_loss(net, rows)
    assert measure_loss(net, rows) == first
    evaluate.answer_prompts(net, tokenizer, 2, PROMPTS[:1])
    assert {m.training for m in net.modules()} == {training}
    assert all(p.requires_grad == ("lora_" in n) for n, p in net.named_parameters())


def test_an_empty_split_has_no_loss(small, rows):
    assert measure_loss(small, rows.select([])) == (None, 0)


def test_rows_that_do_not_fit_at_once_are_halved(small, rows, monkeypatch, capsys):
    """The loss is the same, and one row that does not fit is an error."""
    wanted, tokens = measure_loss(small.eval(), rows)
    real = evaluate.token_losses

    def limited(net, batch, most=2):
        if len(batch.input_ids) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(net, batch)

    monkeypatch.setattr(evaluate, "token_losses", limited)
    assert measure_loss(small.train(), rows) == (pytest.approx(wanted, rel=1e-5), tokens)
    assert small.training
    assert capsys.readouterr().out.count("rows at once do not fit") == 2
    monkeypatch.setattr(evaluate, "token_losses", lambda net, batch: limited(net, batch, 0))
    with pytest.raises(
        UserError,
        match=r"not have enough memory for the held-out loss, 1 rows at once(.|\n)*nvidia-smi",
    ):
        measure_loss(small, rows)


def test_a_failed_attempt_at_the_held_out_loss_gives_its_memory_back(small, rows, monkeypatch):
    """This happens before the next attempt: the tensors must not stay alive in a traceback."""
    alive, real = [], evaluate.token_losses

    def limited(net, batch):
        assert not [kept for kept in (r() for r in alive) if kept is not None]
        taken = torch.zeros(8)
        alive.append(weakref.ref(taken))
        if len(batch.input_ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(net, batch)

    monkeypatch.setattr(evaluate, "token_losses", limited)
    measure_loss(small.eval(), rows)
    assert len(alive) > 3


def test_batches_have_every_row_once_longest_first():
    lengths = [5, 9, 1, 9, 3]
    assert evaluate.group_by_length(lengths, 2) == [[1, 3], [0, 4], [2]]


def test_the_output_layer_never_gets_a_slice_with_gaps(tiny):
    """torch's CPU product would copy its weights once a prompt."""
    net, tokenizer = tiny
    seen = []
    hook = net.get_output_embeddings().register_forward_hook(
        lambda module, inputs, out: seen.append(inputs[0].is_contiguous())
    )
    try:
        evaluate.answer_prompts(net, tokenizer, 3, PROMPTS)
    finally:
        hook.remove()
    assert len(seen) == 3
    assert all(seen)
    assert not net.get_output_embeddings()._forward_pre_hooks


def test_answers_of_a_batch_equal_single_ones(tiny):
    """Padded on the left, under a mask, greedy: the same tokens as alone, for prompts of very different length."""
    net, tokenizer = tiny
    together = evaluate.answer_prompts(net, tokenizer, 8, PROMPTS)
    assert together == [evaluate.answer_prompts(net, tokenizer, 8, (p,))[0] for p in PROMPTS]
    assert len(set(together)) == 3
    assert together == evaluate.answer_prompts(net, tokenizer, 8, PROMPTS), "greedy"


def test_answers_equal_a_plain_greedy_loop_without_a_cache(tiny):
    net, tokenizer = tiny
    net.eval()
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPTS[1]}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1
    new = []
    with torch.no_grad():
        for _ in range(8):
            new.append(int(net(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax()))
    assert (
        evaluate.answer_prompts(net, tokenizer, 8, PROMPTS)[1]
        == tokenizer.decode(new, skip_special_tokens=True).strip()
    )


def test_prompts_begin_with_one_bos_after_padding_on_the_left(tiny, monkeypatch):
    net, tokenizer = tiny
    given = {}

    def generate(**kwargs):
        given.update(kwargs)
        return kwargs["input_ids"]

    monkeypatch.setattr(net, "generate", generate)
    assert evaluate.answer_prompts(net, tokenizer, 5, PROMPTS) == [""] * 3
    for ids, mask, prompt in zip(
        given["input_ids"].tolist(), given["attention_mask"].tolist(), PROMPTS, strict=True
    ):
        text = [{"role": "user", "content": prompt}]
        wanted = tokenizer.apply_chat_template(text, add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
        assert wanted.count(tokenizer.bos_token_id) == 1
        assert ids == [tokenizer.pad_token_id] * (len(ids) - len(wanted)) + wanted
        assert mask == [0] * (len(ids) - len(wanted)) + [1] * len(wanted)


@pytest.mark.parametrize("stop", ["<end_of_turn>", "<eos>"])
def test_answers_end_at_the_turn(tiny, monkeypatch, stop):
    """The first row ends after three words of its own; the other goes on to the limit."""
    net, tokenizer = tiny
    say, word = (
        tokenizer.convert_tokens_to_ids(stop),
        tokenizer.encode("blood", add_special_tokens=False)[0],
    )
    seen = []
    causal = net.get_base_model()
    forward = causal.forward

    def scripted(*args, **kwargs):
        out = forward(*args, **kwargs)
        seen.append(1)
        out.logits = torch.full_like(out.logits, -30.0)
        out.logits[:, -1, word] = 30.0
        if len(seen) == 4:
            out.logits[0, -1, say] = 60.0
        return out

    monkeypatch.setattr(causal, "forward", scripted)
    (first, ended), (second, unended) = evaluate.generate_answers(net, tokenizer, 9, PROMPTS[:2])
    assert (ended, unended) == (True, False)
    assert first == tokenizer.decode([word] * 3).strip()
    assert second == tokenizer.decode([word] * 9).strip()
    seen.clear()
    evaluate.answer_prompts(net, tokenizer, 9, PROMPTS[:1])
    assert len(seen) == 4, "nothing is computed after the turn's end"


def test_samples_file(tmp_path):
    evaluate.save_samples(
        tmp_path / "samples.json", {"base model": ["a"] * 4, "tuned": ["b"] * 4}, 7
    )
    found = json.loads((tmp_path / "samples.json").read_text())
    assert found == {
        "prompts": list(evaluate.PROMPTS),
        "answers": {"base model": ["a"] * 4, "tuned": ["b"] * 4},
        "tokens": 7,
    }
