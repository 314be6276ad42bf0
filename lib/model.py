"""Load a base model and put LoRA on its language layers."""

import os
import pathlib
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers import AutoModelForCausalLM, AutoTokenizer

from lib import files
from lib.params import Params, UserError

transformers.utils.logging.disable_progress_bar()
# transformers before 5.6 trained Gemma 3n with wrong key/value sharing (PR #45489)
OLDEST_TRANSFORMERS = "5.6"
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
# 4-bit altup coefficients are uint8, and training dies where Gemma 3n clamps them; towers and embedders are not trained
KEEP_16_BIT = [".*altup.*", ".*per_layer_model_projection", ".*vision_tower.*", ".*audio_tower.*", ".*embed_vision.*",
               ".*embed_audio.*", "lm_head"]


def load_tokenizer(folder: pathlib.Path) -> Any:
    """The folder's fast tokenizer; UserError without a chat template."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.chat_template:
        raise UserError(f"the tokenizer of `{files.shown(folder)}` has no chat template; use an instruction-tuned base, or add one.")
    return tokenizer


def precision() -> tuple[torch.dtype, str]:
    """The type to compute in, and why."""
    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "the card has bfloat16"
        return torch.float32, "the card has no bfloat16, and Gemma 3n overflows in float16"
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.bfloat16, "this processor multiplies bfloat16 about twice as fast as float32"
    return torch.float32, "this processor has no fast bfloat16"


def load_model(folder: pathlib.Path, job: Params) -> Any:
    """The base in 4 bit or in `precision()`, frozen, on the GPU where there is one."""
    if Version(transformers.__version__) < Version(OLDEST_TRANSFORMERS):
        raise UserError(f"transformers {transformers.__version__} trains Gemma 3n wrongly; expected {OLDEST_TRANSFORMERS} or newer. "
                        f"Run `make setup`.")
    torch.manual_seed(job.seed)
    dtype, _ = precision()
    cuda = torch.cuda.is_available()
    if job.load_in_4bit and not cuda:
        raise UserError("load_in_4bit needs an NVIDIA GPU, and torch sees none here. Use params/cpu.yaml, or set load_in_4bit: false.")
    quantization = None
    if job.load_in_4bit:
        quantization = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                                       bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=KEEP_16_BIT)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map={"": 0} if cuda else None, quantization_config=quantization)
    model.config.use_cache = False
    return model.requires_grad_(False)


def load_merged(folder: pathlib.Path) -> Any:
    """A merged 16-bit folder, to answer beside its GGUF."""
    threads()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=precision()[0], device_map={"": 0} if torch.cuda.is_available() else None)
    return model.requires_grad_(False).eval()


def lora_targets(job: Params) -> str:
    """PEFT target regex: the chosen projections of the language layers; never the vision or audio tower."""
    names = [f"self_attn\\.{n}" for n in ATTENTION if job.finetune_attention_modules] + [f"mlp\\.{n}" for n in MLP if job.finetune_mlp_modules]
    if not names:
        raise UserError("finetune_attention_modules and finetune_mlp_modules are both false: nothing would be trained. Set one to true.")
    return rf"(?:.*\.)?(?:language_model|model)\.layers\.\d+\.(?:{'|'.join(names)})"


def add_lora(model: Any, job: Params) -> Any:
    """Wrap with a fresh adapter, seeded, in the model's own precision (the trainer keeps float32 masters)."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(job.seed)
    config = LoraConfig(r=job.lora_r, lora_alpha=job.lora_alpha, lora_dropout=job.lora_dropout, bias=job.bias,
                        target_modules=lora_targets(job), task_type="CAUSAL_LM")
    return get_peft_model(model, config, autocast_adapter_dtype=False)  # in bfloat16, without casts in every layer


def trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def count(model: Any) -> tuple[int, int]:
    """Trainable and total parameters; a 4-bit tensor counts as the numbers it stands for."""
    def size(p: torch.nn.Parameter) -> int:
        state = getattr(p, "quant_state", None)
        return state.shape.numel() if state is not None else p.numel()
    return sum(p.numel() for p in trainable(model).values()), sum(size(p) for p in model.parameters())


def check_cache(model: Any, tokenizer: Any, tolerance: float = 0.05) -> float:
    """Largest relative difference between logits computed at once and token by token through the key/value cache.

    UserError above the tolerance: the sign of broken key/value sharing, seen in older releases of Gemma 3n.
    """
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "How do I stop a nosebleed?"}], add_generation_prompt=True,
                                        return_tensors="pt", return_dict=True)["input_ids"].to(model.device)
    with torch.inference_mode():
        whole = model(input_ids=ids, use_cache=False).logits[0, -1].float()
        past = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
        step = model(input_ids=ids[:, -1:], past_key_values=past, use_cache=True).logits[0, -1].float()
    difference = float((whole - step).norm() / whole.norm())
    if not difference <= tolerance:  # NaN fails too
        raise UserError(f"logits with and without the key/value cache differ by {difference:.1%} (expected under {tolerance:.0%}): "
                        f"this base and transformers {transformers.__version__} do not fit together. Nothing was trained.")
    return difference


def threads() -> int:
    """Cores for torch: what this process may use, not what the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(cores)
    return cores
