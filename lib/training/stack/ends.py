"""What is before and after the decoder layers, as transformers computes it, for one packed row.

These are few operations, once a micro-batch, so on a card the compiler may write their kernels.
"""

from typing import Any, NamedTuple

import torch

# the least mean square that a stream is divided by, as in transformers
LEAST = 1e-5


class Inputs(NamedTuple):
    """What enters the layers.

    `streams` are (4, tokens, H), `per_layer` (tokens, layers, Q), and `turns` a cosine and a sine
    of (tokens, D) for each kind of attention.
    """

    streams: torch.Tensor
    per_layer: torch.Tensor
    turns: dict[str, tuple[torch.Tensor, torch.Tensor]]


def enter(body: Any, ids: torch.Tensor, positions: torch.Tensor) -> Inputs:
    """Embed the ids of a packed micro-batch, (1, tokens) like their positions."""
    embedded = body.embed_tokens(ids)
    per_layer = body.project_per_layer_inputs(embedded, body.get_per_layer_inputs(ids))
    first = embedded[0]
    size = _mean_square(first) ** 0.5
    others = [_resize(projection(first), size) for projection in body.altup_projections]
    turns = {}
    for kind in sorted(set(body.config.layer_types)):
        cos, sin = body.rotary_emb(embedded, positions, kind)
        turns[kind] = cos[0].contiguous(), sin[0].contiguous()
    return Inputs(torch.stack([first, *others]), per_layer[0].contiguous(), turns)


def leave(body: Any, streams: torch.Tensor) -> torch.Tensor:
    """Return the normed mean (tokens, H) of the streams behind the last layer."""
    first, *others = streams.unbind()
    size = _mean_square(first) ** 0.5
    pairs = zip(body.altup_unembed_projections, others, strict=True)
    resized = [_resize(projection(stream), size) for projection, stream in pairs]
    return body.norm(torch.stack([first, *resized]).mean(0))


def _resize(x: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Give each token this root mean square."""
    return x * size / _mean_square(x).clamp(min=LEAST).sqrt()


def _mean_square(x: torch.Tensor) -> torch.Tensor:
    return (x**2).mean(-1, keepdim=True)
