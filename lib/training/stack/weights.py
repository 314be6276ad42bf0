"""The joined storage of a layer's weights, which the model's own parameters become views of.

Weights that multiply the same input are rows of one tensor, and the adapter's narrower factors are
spare columns or rows of it, so that one product computes all. Nothing is held twice: the model goes
on working in every other way, and new weights written to its parameters are seen here. Letters are
those of layers.py.

    qkv      (rows, H + low)   q | laurel's first half | k | v; in the spare columns B of q, k and
                               v, each in rows and columns of its own, with zeros elsewhere
    o        (H + r, A)        o, and below it its A
    gate_up  (2 N, H + 2 r)    gate | up; in the spare columns their B, as above
    down     (H + r, N)        down, and below it its A
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

# rows of a joined weight begin at multiples of so many numbers: 128 bytes in 16 bits
ALIGNED = 64


class Constants(NamedTuple):
    """What the kernels read of a frozen layer: AltUp's small matrices, and the norms' weights."""

    predictor: torch.Tensor  # (16, 4): for each stream that is predicted, a row for each source
    corrector: torch.Tensor  # (4, 4)
    router: torch.Tensor  # (4, H)
    router_norm: torch.Tensor
    first_scale: torch.Tensor
    input_norm: torch.Tensor
    laurel_norm: torch.Tensor
    attention_norm: torch.Tensor
    mlp_in_norm: torch.Tensor
    mlp_out_norm: torch.Tensor
    part_norm: torch.Tensor
    q_norm: torch.Tensor  # (D,)
    k_norm: torch.Tensor  # q_norm again if the layer shares another's keys


class Gradients(NamedTuple):
    """The gradients of a layer's adapter, in the model's precision.

    B is transposed: cuBLAS's kernel for products with 8 columns has a tenth of the speed.
    """

    a_qkv: torch.Tensor  # (low, H)
    b_qkv: torch.Tensor  # (low, rows); only the blocks of q, k and v mean something
    a_o: torch.Tensor  # (r, A)
    b_o: torch.Tensor  # (r, H)
    a_gate_up: torch.Tensor  # (2 r, H)
    b_gate_up: torch.Tensor  # (2, r, N)
    a_down: torch.Tensor  # (r, N)
    b_down: torch.Tensor  # (r, H)


class Layer:
    """A decoder layer's weights in joined storage, and the numbers that its kernels need."""

    def __init__(self, layer: Any, number: int, config: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.owns_keys = not attention.is_kv_shared_layer
        self.keys_of = number if self.owns_keys else attention.kv_shared_layer_index
        self.kind = attention.layer_type
        self.window = config.sliding_window if attention.is_sliding else 0
        self.factor = _cut_factor(mlp)
        self.constants = _read_constants(layer, config)
        self.laurel = layer.laurel.linear_right.weight.data
        self.gate = layer.per_layer_input_gate.weight.data
        self.part = layer.per_layer_projection.weight.data

        heads = [attention.q_proj]
        if self.owns_keys:
            heads += [attention.k_proj, attention.v_proj]
        self.adapted = [*heads, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]
        width = config.hidden_size
        self.rank = len(_a(mlp.down_proj).weight)
        self.low = self.rank * len(heads)  # the joined low products of q, k and v
        q, *kv = (head.base_layer for head in heads)
        self.qkv = _join([q, layer.laurel.linear_left, *kv], width + self.low)
        self.a_qkv = _join([_a(head) for head in heads])
        self.gate_up = _join(
            [mlp.gate_proj.base_layer, mlp.up_proj.base_layer], width + 2 * self.rank
        )
        self.a_gate_up = _join([_a(mlp.gate_proj), _a(mlp.up_proj)])
        self.o = _join([attention.o_proj.base_layer, _a(attention.o_proj)])
        self.down = _join([mlp.down_proj.base_layer, _a(mlp.down_proj)])
        self.inner = self.down.shape[1]
        self.b_o, self.b_down = (self.o.new_empty(self.rank, width) for _ in range(2))

        # the rows of q, k and v in the joined product; k and v come after the laurel's
        rows = [len(head.base_layer.weight) for head in heads]
        self.k_start = rows[0] + len(layer.laurel.linear_left.weight)
        starts = [0, self.k_start, self.k_start + rows[-1]]
        self.spans = [slice(s, s + n) for s, n in zip(starts, rows, strict=False)]
        spare_qkv, spare_gate_up = self.qkv[:, width:], self.gate_up[:, width:]
        places = [spare_qkv[span, low] for span, low in zip(self.spans, self._lows(), strict=True)]
        places += [self.b_o.T]
        places += [spare_gate_up[: self.inner, : self.rank]]
        places += [spare_gate_up[self.inner :, self.rank : 2 * self.rank]]
        places += [self.b_down.T]
        for module, place in zip(self.adapted, places, strict=True):
            _adopt(module.lora_B["default"].weight, place)

    def _lows(self) -> list[slice]:
        """Return the columns of q's, k's and v's low products among the joined ones."""
        return [slice(n, n + self.rank) for n in range(0, self.low, self.rank)]

    def new_gradients(self) -> Gradients:
        """Return room for the adapter's gradients."""
        shapes = (
            self.a_qkv.shape,
            (self.low, len(self.qkv)),
            (self.rank, self.o.shape[1]),
            self.b_o.shape,
            self.a_gate_up.shape,
            (2, self.rank, self.inner),
            (self.rank, self.inner),
            self.b_down.shape,
        )
        return Gradients(*(self.qkv.new_zeros(shape) for shape in shapes))

    def name_gradients(self, g: Gradients) -> Iterator[tuple[torch.nn.Parameter, torch.Tensor]]:
        """Yield each of the adapter's parameters with its gradient, in the parameter's shape."""
        r = self.rank
        pairs = [
            (g.a_qkv[low], g.b_qkv[low, span].T)
            for low, span in zip(self._lows(), self.spans, strict=True)
        ]
        pairs += [(g.a_o, g.b_o.T)]
        pairs += [(g.a_gate_up[:r], g.b_gate_up[0].T), (g.a_gate_up[r:], g.b_gate_up[1].T)]
        pairs += [(g.a_down, g.b_down.T)]
        for module, (a, b) in zip(self.adapted, pairs, strict=True):
            yield _a(module).weight, a
            yield module.lora_B["default"].weight, b


def _a(module: Any) -> Any:
    return module.lora_A["default"]


def _adopt(parameter: torch.nn.Parameter, place: torch.Tensor) -> None:
    """Move a parameter's numbers to a place, and make it a view of that."""
    place.copy_(parameter.data)
    parameter.data = place


def _join(modules: list[Any], columns: int = 0) -> torch.Tensor:
    """Put the weights of modules below each other, with zeros in the columns beyond theirs.

    The modules' weights become views of the result.
    """
    weights = [module.weight for module in modules]
    own = weights[0].shape[1]
    columns = math.ceil(columns / ALIGNED) * ALIGNED if columns else own
    joined = weights[0].data.new_zeros(sum(map(len, weights)), columns)
    for weight, rows in zip(weights, joined.split([len(w) for w in weights]), strict=True):
        _adopt(weight, rows[:, :own])
    return joined


def _read_constants(layer: Any, config: Any) -> Constants:
    altup, attention = layer.altup, layer.self_attn
    clip = config.altup_coef_clip or math.inf
    k_norm = attention.q_norm if attention.is_kv_shared_layer else attention.k_norm
    return Constants(
        altup.prediction_coefs.weight.data.clamp(-clip, clip),
        altup.correction_coefs.weight.data.clamp(-clip, clip),
        altup.modality_router.weight.data,
        altup.router_norm.weight.data,
        altup.correct_output_scale.data,
        layer.input_layernorm.weight.data,
        layer.laurel.post_laurel_norm.weight.data,
        layer.post_attention_layernorm.weight.data,
        layer.pre_feedforward_layernorm.weight.data,
        layer.post_feedforward_layernorm.weight.data,
        layer.post_per_layer_input_norm.weight.data,
        attention.q_norm.weight.data,
        k_norm.weight.data,
    )


def _cut_factor(mlp: Any) -> float | None:
    """Return how many deviations above the mean a sparse layer cuts its gates; None for no cut."""
    if not mlp.activation_sparsity:
        return None
    share = torch.tensor(mlp.activation_sparsity, dtype=torch.float32)
    # rounded to the model's precision, as transformers does
    factor = torch.distributions.Normal(0, 1).icdf(share)
    return float(factor.to(mlp.down_proj.base_layer.weight.dtype))
