"""The likelihood of continuations, against the whole model one sequence at a time, in float32.

python -m pytest tests/exam/scoring/test_likelihood.py
"""

import functools

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers import tiny_gemma3
from lib.exam.scoring import likelihood, token_tree
from lib.model import adapter
from lib.params import Params

WINDOW = 12  # shorter than the prompts, so that a sliding layer does not see their beginnings


def load(folder):
    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False)
    net.config.sliding_window = WINDOW
    return net.eval()


@pytest.fixture(scope="module")
def gemma3n(tiny_gemma3n):
    """Return a Gemma 3n in float32 with an adapter that changes it."""
    net = adapter.add(load(tiny_gemma3n), Params(load_in_4bit=False, optim="adamw_torch"))
    with torch.no_grad():
        for name, weight in adapter.trainable(net).items():
            if "lora_B" in name:
                draw = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
                weight.copy_(0.02 * draw)
    return net.eval()


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory):
    return load(tiny_gemma3.build(tmp_path_factory.mktemp("tiny") / "gemma3"))


def draw(count, seed):
    return torch.randint(10, 2000, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def item(seed):
    """Return an item's continuations: options of several lengths, and another prompt's letters."""
    prompt = [2, *draw(16 + seed, seed)]
    first = draw(5, seed + 100)
    other = [*prompt[:9], *draw(8, seed + 200)]
    return [
        (prompt, first),
        (prompt, [*first[:2], *draw(9, seed + 300)]),
        (prompt, draw(1, seed + 400)),
        *((other, [letter]) for letter in draw(4, seed + 500)),
    ]


ITEMS = [item(seed) for seed in (3, 9)]
TREES = [token_tree.build_tree(continuations) for continuations in ITEMS]


@torch.no_grad()
def whole(net):
    """Return the same scores from the logits of the whole model, one sequence at a time."""
    scores = []
    for continuations in ITEMS:
        row = []
        for prompt, answer in continuations:
            logits = net(input_ids=torch.tensor([prompt + answer])).logits[0].float()
            after = torch.log_softmax(logits, 1)[len(prompt) - 1 : -1]
            row.append(sum(after[n, token].item() for n, token in enumerate(answer)))
        scores.append(row)
    return scores


@pytest.mark.parametrize("family", ["gemma3", "gemma3n"])
def test_a_tree_gives_what_the_whole_model_gives_to_each_sequence_alone(family, request):
    """Sliding windows, shared keys and values, soft cap and adapter included."""
    net = request.getfixturevalue(family)
    seen = []
    scores = likelihood.score_by_model(net, TREES, seen.append)
    for found, expected in zip(scores, whole(net), strict=True):
        assert found == pytest.approx(expected, abs=2e-4)
    assert sum(seen) == sum(len(tree.ids) for tree in TREES)


def test_an_adapter_counts(gemma3n):
    with gemma3n.disable_adapter():
        without = likelihood.score_by_model(gemma3n, TREES, lambda _: None)
    found = likelihood.score_by_model(gemma3n, TREES, lambda _: None)
    assert found[0] != pytest.approx(without[0], abs=1e-2)


def test_scores_depend_neither_on_what_is_computed_together_nor_on_memory(gemma3, monkeypatch):
    body, weight, softcap = likelihood.loss.split_model(gemma3)
    sizes = []

    def limited(most, input_ids, **more):
        sizes.append(len(input_ids))
        if len(input_ids) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return body(input_ids=input_ids, **more)

    def score(most, at_once):
        monkeypatch.setitem(likelihood.TOKENS_AT_ONCE, "cpu", at_once)
        limit = functools.partial(limited, most)
        limit.config, limit.get_input_embeddings = body.config, body.get_input_embeddings
        monkeypatch.setattr(likelihood.loss, "split_model", lambda net: (limit, weight, softcap))
        return likelihood.score_by_model(gemma3, TREES, lambda _: None)

    together = score(9, 10**6)
    for other in (score(9, 1), score(1, 10**6)):
        for one, two in zip(other, together, strict=True):
            assert one == pytest.approx(two, abs=1e-4)
    assert sizes == [2, 1, 1, 2, 1, 1]
    with pytest.raises(torch.OutOfMemoryError):
        score(0, 10**6)


def test_parts_of_the_vocabulary_add_up_to_the_whole(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    states, weight = (3 * torch.randn(n, 8, generator=generator) for n in (5, 33))
    monkeypatch.setitem(likelihood.WORDS_AT_ONCE, "cpu", 10)
    monkeypatch.setattr(likelihood, "STATES_AT_ONCE", 2)
    for softcap in (None, 5.0):
        logits = states @ weight.T
        if softcap:
            logits = softcap * torch.tanh(logits / softcap)
        pairs = [(state, token) for state in (4, 0, 4, 2) for token in (0, 9, 10, 32)]
        found = likelihood._log_probabilities(states, weight, softcap, pairs)
        expected = torch.stack([torch.log_softmax(logits, 1)[pair] for pair in pairs])
        assert torch.allclose(found, expected, atol=1e-5)
