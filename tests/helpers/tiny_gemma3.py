"""A tiny random Gemma 3, and models of other families, as bases of a run."""

import pathlib

import torch
import transformers
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GenerationConfig

from helpers import tiny_gemma3n

SMALL = {
    "vocab_size": tiny_gemma3n.VOCAB,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}


def build(folder, dtype="bfloat16", tied=True, vocabulary=tiny_gemma3n.VOCAB):
    """Write a Gemma 3 of 2 layers and its tokenizer as a Hugging Face folder, and return it."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    tiny_gemma3n.build_tokenizer(folder)
    config = Gemma3TextConfig(
        **{**SMALL, "vocab_size": vocabulary},
        sliding_window=512,
        layer_types=["sliding_attention"] * 2,  # as in llama.cpp, which has every sixth full
        query_pre_attn_scalar=64,
        tie_word_embeddings=tied,
        dtype=dtype,
    )
    net = Gemma3ForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in net.parameters():
            draw = torch.randn(weight.shape, generator=generator)
            # small branches keep a random model smooth, so that rounding moves its answers little
            weight.copy_(0.1 * draw if weight.dim() == 1 else draw / weight.shape[1] ** 0.5)
        net.model.embed_tokens.weight.mul_(0.3)  # else a tied model repeats its last token
    net.generation_config = GenerationConfig(
        bos_token_id=2, eos_token_id=[1, 6], pad_token_id=0, do_sample=False
    )
    net.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def build_other(folder, family):
    """Write a folder of another family (Gemma2, Llama, Qwen2, Qwen3) with the tiny tokenizer."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    tiny_gemma3n.build_tokenizer(folder)
    config = getattr(transformers, f"{family}Config")(**SMALL)
    net = getattr(transformers, f"{family}ForCausalLM")(config)
    net.to(torch.bfloat16).save_pretrained(folder)
    return folder
