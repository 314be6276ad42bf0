"""Load a base model, by transformers or Unsloth, and put LoRA on its language layers."""

import contextlib
import importlib.util
import math
import os
import pathlib
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import transformers
from packaging.version import Version
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lib.common import files
from lib.export import merge
from lib.model import adapter, base, device, placement
from lib.params import Params, UserError

transformers.utils.logging.disable_progress_bar()
# transformers before 5.6 trained Gemma 3n with wrong key/value sharing (PR #45489)
OLDEST_TRANSFORMERS = "5.6"
# 4-bit altup coefficients are uint8, and training dies where Gemma 3n clamps them; towers and embedders are not trained
KEEP_16_BIT = [".*altup.*", ".*per_layer_model_projection", ".*vision_tower.*", ".*audio_tower.*", ".*embed_vision.*",
               ".*embed_audio.*", "lm_head"]
SMALL_CARD = 40  # GB: below it Unsloth's memory savings count, from there on our compiled path is the faster one
UNSLOTH = {"UNSLOTH_DISABLE_STATISTICS": "1",  # it counts its users over the network
           "UNSLOTH_COMPILE_LOCATION": str(base.CACHE / "unsloth"),  # else in the working folder
           # not one step in 430 s on rows of changing length (H100, torch 2.11); without its compiler the first took 4 s
           "UNSLOTH_COMPILE_DISABLE": "1", "UNSLOTH_BLOCK_COMPILE": "0",
           # its generate fails where a card has no bfloat16: keys are float32 there, values float16, and its cache has one type for both
           "UNSLOTH_DISABLE_FAST_GENERATION": "1"}


def load_tokenizer(folder: pathlib.Path) -> Any:
    """The folder's fast tokenizer; UserError without a chat template."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.chat_template:
        raise UserError(f"the tokenizer of `{files.shown(folder)}` has no chat template; use an instruction-tuned base, or add one.")
    return tokenizer


def backend(job: Params) -> tuple[str, str]:
    """Who loads and patches the model, and why; UserError where the choice cannot work here."""
    there = importlib.util.find_spec("unsloth") is not None
    if job.backend == "unsloth":
        if not there or not torch.cuda.is_available():
            lacking = "a CUDA card, and torch sees none" if there else "the package unsloth, which is not installed"
            raise UserError(f"backend: unsloth needs {lacking}. Set backend: auto, or install requirements.txt on a machine with a GPU.")
        if job.torch_compile or job.packing:
            raise UserError("backend: unsloth has code of its own for what packing and torch_compile change. Set both to false, or "
                            "backend: transformers.")
        if job.use_dora:
            raise UserError("backend: unsloth computes LoRA by kernels of its own, which know no use_dora. Set use_dora: false, or "
                            "backend: transformers.")
        return "unsloth", "as set"
    if job.backend == "transformers":
        return "transformers", "as set"
    name, size = device.card()
    if not name:
        return "transformers", "there is no GPU"
    if job.torch_compile or job.packing or job.use_dora:
        return "transformers", "packing, torch_compile and use_dora are its"
    if not job.load_in_4bit:
        return "transformers", "the base is 16-bit, and Unsloth's memory savings are for 4 bit"
    if size >= SMALL_CARD:
        return "transformers", f"{name} with {size:.0f} GB needs none of Unsloth's memory savings"
    return ("unsloth", f"4 bit on {name} with {size:.0f} GB, where its savings count") if there else ("transformers", "unsloth is not installed")


def check_options(job: Params) -> None:
    """UserError for settings that do not go together, or not with this machine, before anything is read."""
    cuda = torch.cuda.is_available()
    if Version(transformers.__version__) < Version(OLDEST_TRANSFORMERS):
        raise UserError(f"transformers {transformers.__version__} trains Gemma 3n wrongly; expected {OLDEST_TRANSFORMERS} or newer. "
                        f"Run `make setup`.")
    if job.load_in_4bit and not cuda:
        raise UserError("load_in_4bit needs an NVIDIA GPU, and torch sees none here. Use params/cpu.yaml, or set load_in_4bit: false.")
    if job.optim == "adamw_8bit" and not cuda:
        raise UserError("optim: adamw_8bit needs an NVIDIA GPU, and torch sees none here. Use params/cpu.yaml, or set optim: adamw_torch.")
    if (job.load_in_4bit or job.optim == "adamw_8bit") and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("load_in_4bit and optim: adamw_8bit need the package bitsandbytes, which is not installed. Install requirements.txt, "
                        "or set load_in_4bit: false and optim: adamw_torch.")
    if job.torch_compile and not cuda:
        raise UserError("torch_compile needs an NVIDIA GPU, and torch sees none here. Set torch_compile: false.")
    if job.torch_compile and job.gradient_checkpointing and job.lora_dropout:
        raise UserError("torch_compile with gradient_checkpointing cannot draw a dropout twice alike. Set lora_dropout: 0, or one of them to false.")
    if job.torch_compile and not job.packing:
        raise UserError("torch_compile needs packing: true, which gives every micro-batch one shape. Set both, or neither.")
    if job.torch_compile and (job.load_in_4bit or job.offload_embedding or device.precision(job)[0] != torch.bfloat16):
        raise UserError("torch_compile needs a bfloat16 base on the card: set load_in_4bit: false, offload_embedding: false, precision: bf16.")
    if job.packing and cuda and torch.cuda.get_device_capability() < (8, 0):
        raise UserError(f"packing needs FlashAttention, which {device.name()} cannot run (compute capability 8.0 or more can). Set packing: false.")
    if job.packing and job.neftune_noise_alpha:
        raise UserError("neftune_noise_alpha scales by a row's length, which packing hides. Set packing: false, or neftune_noise_alpha: 0.")
    if job.fsdp == "full_shard" and (job.load_in_4bit or job.torch_compile):
        raise UserError("fsdp: full_shard spreads a 16-bit base, step by step. Set load_in_4bit: false and torch_compile: false, or fsdp: none.")
    if job.max_steps == 0:
        raise UserError("max_steps is 0; expected 1 or more steps, or -1 for num_train_epochs.")
    if job.early_stopping_patience and not job.eval_steps:
        raise UserError("early_stopping_patience counts evals, and eval_steps is 0. Set eval_steps, for example to save_steps.")
    device.precision(job), backend(job), adapter.targets(job)  # each raises what is wrong with its own


# ---------------------------------------------------------------------------------------------------------------------
# loading


def load(folder: pathlib.Path, job: Params) -> Any:
    """The base with a fresh adapter, ready to train; UserError when the adapter is not exactly what the architecture asks for."""
    check_options(job)
    with _memory_for_base(folder):
        model = _unsloth(folder, job) if backend(job)[0] == "unsloth" else _transformers(folder, job)
    adapter.check(model, job)
    return model


def _transformers(folder: pathlib.Path, job: Params) -> Any:
    model = adapter.add(load_model(folder, job), job)
    if job.gradient_checkpointing:
        # saving the random state waits for the GPU, and cannot be recorded into a CUDA graph; only dropout draws inside a layer
        model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": job.lora_dropout > 0})
    if placement.sharded(folder, job):
        placement.shard(model)
    if device.precision(job)[0] == torch.float16:  # Unsloth keeps float32 of its own around a Gemma 3n on such a card
        _float32_around_4_bit(model)
    return model


def _memory_for_base(folder: pathlib.Path) -> contextlib.AbstractContextManager:
    size = sum(p.stat().st_size for p in folder.glob("*.safetensors")) / 1e9
    return device.memory_for(f"the base, {size:.1f} GB on disk", "set load_in_4bit: true and offload_embedding: true, or take a smaller base")


def load_model(folder: pathlib.Path, job: Params) -> Any:
    """The language model in 4 bit or in `precision()`, frozen, on the GPU where there is one.

    Of a multimodal Gemma 3n only the language model is read: its towers, 2 GiB, are not trained and see no input.
    """
    check_options(job)
    torch.manual_seed(job.seed)
    model = _read(folder, dtype=device.precision(job)[0], device_map=placement.device_map(folder, job), quantization_config=quantization(job))
    model.config.use_cache = False
    if job.offload_embedding and torch.cuda.is_available() and not placement.sharded(folder, job):
        placement.offload_embedding(model)
    return model.requires_grad_(False)


def quantization(job: Params) -> Any:
    """How a 4-bit base is quantised while it loads; None for a 16-bit one."""
    if not job.load_in_4bit:
        return None
    return transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                           bnb_4bit_compute_dtype=device.precision(job)[0], llm_int8_skip_modules=KEEP_16_BIT)


def _read(folder: pathlib.Path, **options: Any) -> Any:
    """The folder's language model, and nothing else of a multimodal one; UserError when any of its weights is not there."""
    whole, text = _checked(folder)
    if text is not whole:
        options |= {"config": text, "key_mapping": {r"^(?:model\.)?language_model\.(?:model\.)?": "model."}}
    try:
        with _quiet(text is not whole):
            model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(folder, error) from None
    _refuse(folder, found["missing_keys"])
    model.part_of_multimodal = text is not whole
    return model


@contextlib.contextmanager
def _quiet(multimodal: bool) -> Iterator[None]:
    """transformers lists the towers' tensors, which are not read, as a warning of a page."""
    level = transformers.utils.logging.get_verbosity()
    if multimodal:
        transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(level)


def _checked(folder: pathlib.Path) -> tuple[Any, Any]:
    """The folder's configuration and the one of its language model; UserError unless every weight of that is in its shards, whole
    and of the shape it must have. Only headers are read: Unsloth, and transformers by a warning, would go on with random numbers."""
    reading = "config.json"
    try:
        whole = AutoConfig.from_pretrained(folder)
        text = whole.get_text_config()
        with torch.device("meta"):
            net = AutoModelForCausalLM.from_config(text)
        shapes, reading = {}, "model.safetensors"
        for shard in sorted(set(merge.shard_of(folder).values())):
            reading = shard.name
            with safe_open(shard, "pt") as file:
                shapes |= {merge.canonical(n): tuple(file.get_slice(n).get_shape()) for n in file.keys()}  # noqa: SIM118
    except UserError:
        raise
    except Exception as error:  # what is in a stranger's config.json decides which
        raise _unreadable(folder, error, reading) from None
    if getattr(whole, "quantization_config", None) or getattr(text, "quantization_config", None):
        raise UserError(f"the model folder `{files.shown(folder)}` is quantised already, and an adapter is merged into 16-bit weights. "
                        f"Set base_model to the 16-bit repository it was made from; load_in_4bit: true quantises that while loading.")
    _refuse(folder, [n for n, p in net.named_parameters() if shapes.get(merge.canonical(n)) != tuple(p.shape)])
    return whole, text


def _refuse(folder: pathlib.Path, missing: Iterable[str]) -> None:
    if missing := sorted(missing):
        raise UserError(f"the model folder `{files.shown(folder)}` lacks {len(missing)} weights, or has them in another shape than its config.json "
                        f"says: {', '.join(missing[:3])}{' ...' if missing[3:] else ''}. They would be random numbers.\n"
                        f"Expected a complete Hugging Face folder: fetch or build it again.")


def _unreadable(folder: pathlib.Path, error: Exception, name: str = "") -> UserError:
    because = " ".join(str(error).split())[:300] or type(error).__name__
    return UserError(f"the model folder `{files.shown(folder)}` cannot be read{name and f' ({name})'}: {because}\n"
                     f"Expected a complete Hugging Face folder with safetensors: fetch or build it again.")


def _float32_around_4_bit(model: Any) -> None:
    """What is not 4-bit computes in float32, except the tables: embeddings, and with them the output layer, stay 16-bit."""
    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding | placement.Offloaded):
            module.register_forward_hook(lambda module, inputs, output: output.float())
            continue
        if module is head:
            module.register_forward_pre_hook(lambda module, inputs: (inputs[0].to(module.weight.dtype),))
            continue
        for p in module.parameters(recurse=False):
            if p.dtype == torch.float16:
                p.data = p.data.float()
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.dtype == torch.float16:
                setattr(module, name, buffer.float())


def _unsloth(folder: pathlib.Path, job: Params) -> Any:
    whole, text = _checked(folder)
    for name, value in UNSLOTH.items():  # read at its import and later
        os.environ.setdefault(name, value)
    # what it patches, it patches now as well; not in a catch_warnings, which would take back the filters that its import adds
    warnings.filterwarnings("ignore", "WARNING: Unsloth should be imported before")
    from unsloth import FastModel

    checkpointing = "unsloth" if job.gradient_checkpointing else False
    with _quiet(text is not whole):
        model, _ = FastModel.from_pretrained(
            str(folder), dtype=device.precision(job)[0], max_seq_length=job.max_seq_length, load_in_4bit=job.load_in_4bit,
            quantization_config=quantization(job), random_state=job.seed, use_gradient_checkpointing=checkpointing, text_only=True,
            offload_embedding=False)
    model.generation_config.max_length = None  # Unsloth sets it, and each answer would then warn of two limits
    if job.offload_embedding:  # not by Unsloth, which leaves the table on the card under torchrun
        placement.offload_embedding(model)
    model.part_of_multimodal = text is not whole
    return FastModel.get_peft_model(
        model, finetune_vision_layers=False, finetune_language_layers=True, finetune_attention_modules=job.finetune_attention_modules,
        finetune_mlp_modules=job.finetune_mlp_modules, r=job.lora_r, lora_alpha=job.lora_alpha, lora_dropout=job.lora_dropout, bias=job.bias,
        use_rslora=job.use_rslora, random_state=job.seed, use_gradient_checkpointing=checkpointing)


def load_merged(folder: pathlib.Path, dtype: torch.dtype | None = None) -> Any:
    """A merged 16-bit folder, to answer beside its GGUF; computes in `dtype`, or in what suits the machine."""
    device.threads()
    place = {"": torch.cuda.current_device()} if torch.cuda.is_available() else None
    dtype = dtype or device.precision()[0]
    if place is None:
        files.require_memory(merge.bytes_of(folder) * dtype.itemsize // 2, f"{files.shown(folder)} in {str(dtype).removeprefix('torch.')}")
    with _memory_for_base(folder):
        model = _read(folder, dtype=dtype, device_map=place)
    return model.requires_grad_(False).eval()


def flops(model: Any) -> dict[str, float]:
    """What model FLOPs utilisation is computed from: operations a token in the layers, and a trained token in the output layer.

    4 a weight: 2 forward and 2 for the gradient of its input; frozen weights have none of their own. Attention scores, the
    adapter and what checkpointing computes again are left out. `peak_flops` is the card's 16-bit datasheet rate; 0 if not known.
    """
    layers = sum(adapter.numbers(m.weight) for n, m in model.named_modules() if hasattr(m, "in_features") and ".layers." in n and "lora_" not in n
                 and "tower" not in n and not hasattr(m, "base_layer") and isinstance(getattr(m, "weight", None), torch.nn.Parameter))
    return {"flops_per_token": 4.0 * layers, "flops_per_trained_token": 4.0 * adapter.numbers(model.get_output_embeddings().weight),
            "peak_flops": device.peak_flops()}


@contextlib.contextmanager
def neftune(model: Any, alpha: float) -> Iterator[None]:
    """Uniform noise on the embeddings while training, alpha / sqrt(tokens x width) at most (Jain et al., 2023, arXiv:2310.05914)."""
    def noise(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        most = alpha / math.sqrt(output.shape[1] * output.shape[2])
        return output + torch.zeros_like(output).uniform_(-most, most) if model.training else output

    hook = model.get_input_embeddings().register_forward_hook(noise) if alpha else None
    try:
        yield
    finally:
        if hook:
            hook.remove()


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
