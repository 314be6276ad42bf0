"""Helpers for a tiny Gemma 3n as base of an adapter: jobs, a multimodal folder, losses and gradients."""

import json
import shutil

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from helpers.tiny_gemma3n import OWNING, SHARING
from lib.model import adapter
from lib.params import Params
from lib.training import batches, loss


def a_job(**changes):
    return Params(
        **{"load_in_4bit": False, "optim": "adamw_torch", "train_end_token": False, **changes}
    )


IDS = torch.cat(
    [
        torch.full((2, 1), 2),
        torch.randint(10, 2000, (2, 39), generator=torch.Generator().manual_seed(0)),
    ],
    1,
)


TOWERS = {
    "vision_tower.timm_model.conv_stem.conv.weight": (8, 3, 3, 3),
    "vision_tower.timm_model.blocks.3.5.attn.query.proj.weight": (16, 16, 1, 1),
    "audio_tower.conformer.0.attention.attn.q_proj.weight": (16, 16),
    "embed_vision.embedding.weight": (128, 64),
    "embed_vision.embedding_projection.weight": (256, 64),
    "embed_audio.embedding.weight": (128, 64),
}


def write_shards(folder, tensors, shards=1):
    """Write the tensors as one file, or as several with an index."""
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    (folder / "model.safetensors").unlink(missing_ok=True)
    names, places = sorted(tensors), {}
    for n in range(shards):
        file = f"model-{n + 1:05}-of-{shards:05}.safetensors"
        save_file(
            {k: tensors[k] for k in names[n::shards]}, folder / file, metadata={"format": "pt"}
        )
        places |= dict.fromkeys(names[n::shards], file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": places})
    )


def make_multimodal(text, folder, older=False, shards=1):
    """Write the text model as the language part of a Gemma 3n with towers, named and configured like the published models.

    Like them, it has key and value weights for layers that share another's, which transformers does not read.
    """
    shutil.copytree(text, folder)
    tensors = load_file(text / "model.safetensors")
    for layer in range(OWNING, OWNING + SHARING):
        tensors |= {
            f"model.layers.{layer}.self_attn.{p}.weight": torch.ones(128, 256).bfloat16()
            for p in ("k_proj", "v_proj")
        }
        tensors[f"model.layers.{layer}.self_attn.k_norm.weight"] = torch.ones(64).bfloat16()
    prefix, top = ("language_model.model.", "") if older else ("model.language_model.", "model.")
    tensors = {n.replace("model.", prefix, 1): t for n, t in tensors.items()}
    write_shards(
        folder,
        tensors | {top + n: torch.randn(size).bfloat16() for n, size in TOWERS.items()},
        shards,
    )
    vision = {
        "architecture": "mobilenetv5_300m_enc",
        "do_pooling": False,
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "label_names": ["LABEL_0", "LABEL_1"],
        "model_args": None,
        "model_type": "gemma3n_vision",
        "num_classes": 2,
        "rms_norm_eps": 1e-06,
        "vocab_offset": 262144,
        "vocab_size": 128,
    }
    (folder / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["Gemma3nForConditionalGeneration"],
                "model_type": "gemma3n",
                "dtype": "bfloat16",
                "eos_token_id": [1, 106],
                "audio_soft_tokens_per_image": 188,
                "vision_soft_tokens_per_image": 256,
                "vision_config": vision,
                "text_config": json.loads((text / "config.json").read_text()),
                "audio_config": {"model_type": "gemma3n_audio"},
            }
        )
    )
    return folder


def full_class(folder):
    """Return transformers' own multimodal class on the meta device, without timm: its picture tower is a stand-in."""
    from transformers.models.gemma3n import modeling_gemma3n

    full_config, real = AutoConfig.from_pretrained(folder), modeling_gemma3n.AutoModel.from_config
    full_config.audio_config.conf_num_hidden_layers = 1
    tower = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.Linear(64, 64)])})
    modeling_gemma3n.AutoModel.from_config = lambda config: (
        tower if config.model_type == "gemma3n_vision" else real(config)
    )
    try:
        with torch.device("meta"):
            return transformers.Gemma3nForConditionalGeneration(full_config)
    finally:
        modeling_gemma3n.AutoModel.from_config = real


def adapted(net):
    return {
        n.removeprefix("base_model.model.") for n, m in net.named_modules() if hasattr(m, "lora_A")
    }


def shaken(net):
    """Fill the adapter with numbers other than zero, the same each time."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in adapter.trainable(net).values():
            p.copy_(0.02 * torch.randn(p.shape, generator=generator))
    return net


def loss_and_gradients(net):
    """Return the summed loss of a batch, and the adapter's gradients, by the trainer's own path."""
    labels = IDS.clone()
    labels[:, :5] = -100
    net.train()
    total = loss.token_losses(net, batches.batch_from_labels(IDS, labels).to(net.device)).sum()
    total.backward()
    gradients = {n: p.grad for n, p in adapter.trainable(net).items()}
    for p in adapter.trainable(net).values():
        p.grad = None
    net.eval()
    return total.detach(), gradients


def assert_same(first, second):
    assert torch.equal(first[0], second[0])
    assert first[1].keys() == second[1].keys()
    assert all(torch.equal(first[1][n], second[1][n]) for n in first[1])
    assert all(g.abs().max() > 0 for g in first[1].values()), "every module learns"
