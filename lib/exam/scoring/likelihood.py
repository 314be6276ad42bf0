"""The log-likelihood of continuations, by a transformers model and by llama.cpp alike.

    scores = likelihood.score_by_model(net, [tree, ...], tick)    # per tree: nats per continuation

All that is asked about an item is one tree of tokens (`token_tree.py`): the prompt is computed
once, and its options behind it. Log-probabilities refer to the whole vocabulary.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lib.exam.scoring import llama_trees
from lib.exam.scoring.token_tree import TokenTree, ancestor_mask, scored_nodes
from lib.training import loss

# with padding; a CPU takes a tenth longer with 4,096, because they no longer fit its caches
TOKENS_AT_ONCE = {"cpu": 1024, "cuda": 16384}
STATES_AT_ONCE = 192
# words of the output layer at a time: the logits of 192 states then stay in a processor's caches,
# which takes 85 ms instead of 206 ms for all 262,144 words at once (2 cores of an Intel Xeon)
WORDS_AT_ONCE = {"cpu": 8192, "cuda": 65536}

Tick = Callable[[int], Any]  # called with the number of further tokens or answers that are done
Score = Callable[[list[TokenTree], Tick], list[list[float]]]


def score_by_model(net: Any, trees: list[TokenTree], tick: Tick) -> list[list[float]]:
    """Score with a model in transformers, with or without an adapter.

    Trees of similar size are computed together, the largest first; padding sees nothing but itself.
    The output layer is computed only where something is asked.
    """
    body, weight, softcap = loss.split_model(net)
    tokens_at_once = TOKENS_AT_ONCE[net.device.type]
    remaining = sorted(range(len(trees)), key=lambda n: -len(trees[n].ids))
    scores: dict[int, list[float]] = {}
    while remaining:
        width = len(trees[remaining[0]].ids)
        batch = remaining[: max(1, tokens_at_once // width)]
        try:
            with torch.inference_mode():
                rows = _score_batch(body, weight, softcap, [trees[n] for n in batch])
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            tokens_at_once = len(batch) // 2 * width
            torch.cuda.empty_cache()
            continue
        for n, row in zip(batch, rows, strict=True):
            scores[n] = row
            tick(len(trees[n].ids))
        remaining = remaining[len(batch) :]
    return [scores[n] for n in range(len(trees))]


def _score_batch(
    body: Any, weight: torch.Tensor, softcap: float | None, trees: list[TokenTree]
) -> list[list[float]]:
    states = _hidden_states(body, weight.dtype, trees)
    nodes = [scored_nodes(tree) for tree in trees]
    where = [(row, node) for row, found in enumerate(nodes) for node in found]
    rows, places = torch.tensor(where, device=states.device).T
    scored = states[rows, places].to(weight)
    number = {pair: n for n, pair in enumerate(where)}
    pairs = [
        (number[row, node], token)
        for row, tree in enumerate(trees)
        for asked in tree.asked
        for node, token in asked
    ]
    values = iter(_log_probabilities(scored, weight, softcap, pairs).tolist())
    return [[sum(next(values) for _ in asked) for asked in tree.asked] for tree in trees]


def _hidden_states(body: Any, dtype: torch.dtype, trees: list[TokenTree]) -> torch.Tensor:
    """Return the hidden states (trees, nodes of the largest, hidden size)."""
    width = max(len(tree.ids) for tree in trees)
    device = body.get_input_embeddings().weight.device
    padded = [(tree, width - len(tree.ids)) for tree in trees]
    ids = torch.tensor([tree.ids + [0] * more for tree, more in padded], device=device)
    depths = torch.tensor([tree.depths + [0] * more for tree, more in padded], device=device)
    config = body.config.get_text_config()
    window = getattr(config, "sliding_window", None) or 0
    full = _mask(trees, width, 0, dtype).to(device)
    masks: Any = full
    if kinds := set(getattr(config, "layer_types", None) or ()):
        # a prompt within the window needs no mask of its own
        is_narrow = 0 < window <= int(depths.max())
        sliding = _mask(trees, width, window, dtype).to(device) if is_narrow else full
        masks = {kind: sliding if kind == "sliding_attention" else full for kind in kinds}
    return body(
        input_ids=ids, position_ids=depths, attention_mask=masks, use_cache=False
    ).last_hidden_state


def _mask(trees: list[TokenTree], width: int, window: int, dtype: torch.dtype) -> torch.Tensor:
    """Return what is added to attention scores, (trees, 1, width, width): 0 or the lowest number.

    Padding sees itself only, because a softmax over nothing is no number.
    """
    seen = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)
    for row, tree in enumerate(trees):
        count = len(tree.ids)
        seen[row, :count, :count] = torch.from_numpy(ancestor_mask(tree, window))
    return torch.where(seen, 0.0, torch.finfo(dtype).min).to(dtype)[:, None]


def _log_probabilities(
    states: torch.Tensor,
    weight: torch.Tensor,
    softcap: float | None,
    pairs: list[tuple[int, int]],
) -> torch.Tensor:
    """Return the log-probability of each (number of a state, token) over the whole vocabulary."""
    totals = torch.cat(
        [_log_totals(part, weight, softcap) for part in states.split(STATES_AT_ONCE)]
    )
    numbers, tokens = torch.tensor(pairs, device=states.device).T
    # computed again in float32, since the logits of two letters would often tie in 16 bits
    logits = (states[numbers].float() * weight[tokens].float()).sum(1)
    return loss.cap_logits(logits, softcap) - totals[numbers]


def _log_totals(states: torch.Tensor, weight: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """Return the log of the sum of all words' exponentiated logits, for each state."""
    parts = []
    for words in weight.split(WORDS_AT_ONCE[weight.device.type]):
        logits = loss.cap_logits((states @ words.T).float(), softcap)
        parts.append(torch.logsumexp(logits, 1))
    return torch.logsumexp(torch.stack(parts, 1), 1)


def score_by_gguf(path: Path, trees: list[TokenTree], tick: Tick) -> list[list[float]]:
    """Score with llama.cpp from the same token ids, one tree after another."""
    scores = []
    with llama_trees.load_scorer(path, trees) as score:
        for tree in trees:
            scores.append(score(tree))
            tick(len(tree.ids))
    return scores
