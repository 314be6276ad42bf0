"""Small Gemmas with adapters, rows for them, and their losses and gradients, padded or packed."""

import contextlib

import peft
import torch
from transformers import Gemma3ForCausalLM, Gemma3nForCausalLM, Gemma3nTextConfig, Gemma3TextConfig

from lib.data.label_mask import IGNORED
from lib.training import loss, packed
from lib.training.plan import Shape

WINDOW = 8
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LENGTHS = [
    30,
    3,
    1,
    17,
    2,
]  # of rows: far beyond the window, below it, and too short to have a trained token
ROOMY = Shape(96, 7, 64)  # two rows fewer than it holds, and a filler longer than the window


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_rows(lengths, seed=0):
    """Make rows of input_ids and labels; the first third of each is not trained."""
    draw = torch.Generator().manual_seed(seed)
    every = [torch.randint(3, 96, (n,), generator=draw).tolist() for n in lengths]
    return [
        {"input_ids": ids, "labels": [IGNORED] * (len(ids) // 3) + ids[len(ids) // 3 :]}
        for ids in every
    ]


def adapted(net, dtype=torch.float32, **options):
    """Return the net with an adapter and random numbers in every vector and B, whose usual start, zeros and ones, would hide mistakes."""
    draw = torch.Generator().manual_seed(1)
    net = peft.get_peft_model(
        net.to(dtype).requires_grad_(False),
        peft.LoraConfig(r=8, lora_alpha=16, target_modules=PROJECTIONS, **options),
        autocast_adapter_dtype=False,
    )
    net.config.use_cache = False
    with torch.no_grad():
        for name, p in net.named_parameters():
            noise = torch.randn(p.shape, generator=draw)
            if "lora_B" in name:
                p.copy_(0.1 * noise)
            elif p.dim() == 1:
                p.copy_(1 + 0.1 * noise)
            elif "embed_tokens" in name:
                p[0] = noise[0].mul(p[1].std())  # the padding's row is zeros only in a fresh model
    return net.train()


def gemma3n(layers=4, sparse=1, shared=2, **changes):
    """Make a small Gemma 3n with all its parts: sliding and full attention, shared K/V, sparse MLP, altup, laurel, soft cap."""
    torch.manual_seed(0)
    return Gemma3nForCausalLM(
        Gemma3nTextConfig(
            **{
                "vocab_size": 96,
                "vocab_size_per_layer_input": 96,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": layers,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "head_dim": 16,
                "hidden_size_per_layer_input": 8,
                "laurel_rank": 4,
                "altup_num_inputs": 2,
                "num_kv_shared_layers": shared,
                "activation_sparsity_pattern": [0.5] * sparse + [0.0] * (layers - sparse),
                "layer_types": (["sliding_attention", "full_attention"] * layers)[:layers],
                "sliding_window": WINDOW,
                "max_position_embeddings": 128,
                "pad_token_id": 0,
                "eos_token_id": 1,
                "bos_token_id": 2,
                **changes,
            }
        )
    )


def gemma3():
    """Make a small Gemma 3 whose scale follows neither from its head size nor from its width."""
    torch.manual_seed(0)
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=96,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            layer_types=["sliding_attention", "full_attention"] * 2,
            sliding_window=WINDOW,
            query_pre_attn_scalar=5,
            max_position_embeddings=128,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=2,
        )
    )


def attending(net, batch):
    return packed.attend_within_rows(net) if batch.bounds is not None else contextlib.nullcontext()


def token_losses(net, batch):
    with torch.no_grad(), attending(net, batch):
        return loss.token_losses(net, batch)


def losses_and_gradients(net, batch):
    """Return every trained token's loss, and the LoRA gradients of their weighted sum."""
    net.zero_grad(set_to_none=True)
    with attending(net, batch):
        losses = loss.token_losses(net, batch)
        (losses * batch.weights).sum().backward()
    gradients = {n: p.grad for n, p in net.named_parameters() if p.requires_grad}
    net.zero_grad(set_to_none=True)
    return losses.detach(), gradients


def weighted(batch, count):
    """Give each trained token another weight, since equal ones would hide mixed-up tokens."""
    weights = torch.zeros_like(batch.weights)
    weights[:count] = torch.linspace(0.2, 2.0, count) / count
    return batch._replace(weights=weights)


def relative(a, b):
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


def trained(rows):
    return [sum(label != IGNORED for label in r["labels"][1:]) for r in rows]
