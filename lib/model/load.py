"""Load a base model, by transformers or Unsloth, and put LoRA on its language layers."""

import contextlib
import os
import pathlib
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lib.common import files, machine
from lib.common.chat_template import read_chat_template
from lib.common.errors import UserError
from lib.model import adapter, base, device, placement, shards
from lib.model.options import backend, check_options
from lib.params import Params

transformers.utils.logging.disable_progress_bar()
# 4-bit altup coefficients are uint8, and training dies where Gemma 3n clamps them; towers and embedders are not trained
KEEP_16_BIT = [
    ".*altup.*",
    ".*per_layer_model_projection",
    ".*vision_tower.*",
    ".*audio_tower.*",
    ".*embed_vision.*",
    ".*embed_audio.*",
    "lm_head",
]
UNSLOTH = {
    "UNSLOTH_DISABLE_STATISTICS": "1",  # it counts its users over the network
    "UNSLOTH_COMPILE_LOCATION": str(base.CACHE / "unsloth"),  # else in the working folder
    # not one step in 430 s on rows of changing length (H100, torch 2.11); without its compiler the first took 4 s
    "UNSLOTH_COMPILE_DISABLE": "1",
    "UNSLOTH_BLOCK_COMPILE": "0",
    # its generate fails where a card has no bfloat16: keys are float32 there, values float16, and its cache has one type for both
    "UNSLOTH_DISABLE_FAST_GENERATION": "1",
}


def load_tokenizer(folder: pathlib.Path) -> Any:
    """Read the folder's fast tokenizer; UserError when the folder has no chat template."""
    read_chat_template(folder)
    return AutoTokenizer.from_pretrained(folder)


# ---------------------------------------------------------------------------------------------------------------------
# loading


def load(folder: pathlib.Path, job: Params) -> Any:
    """The base with a fresh adapter, ready to train; UserError when the adapter is not exactly what the architecture asks for."""
    check_options(job)
    with _memory_for_base(folder):
        model = (
            _unsloth(folder, job) if backend(job)[0] == "unsloth" else _transformers(folder, job)
        )
    adapter.check(model, job)
    return model


def _transformers(folder: pathlib.Path, job: Params) -> Any:
    model = adapter.add(load_model(folder, job), job)
    if job.gradient_checkpointing:
        # saving the random state waits for the GPU, and cannot be recorded into a CUDA graph; only dropout draws inside a layer
        model.gradient_checkpointing_enable(
            {"use_reentrant": False, "preserve_rng_state": job.lora_dropout > 0}
        )
    if placement.sharded(folder, job):
        placement.shard(model)
    if (
        device.precision(job)[0] == torch.float16
    ):  # Unsloth keeps float32 of its own around a Gemma 3n on such a card
        _float32_around_4_bit(model)
    return model


def _memory_for_base(folder: pathlib.Path) -> contextlib.AbstractContextManager:
    size = sum(p.stat().st_size for p in folder.glob("*.safetensors")) / 1e9
    return device.memory_for(
        f"the base, {size:.1f} GB on disk",
        "set load_in_4bit: true and offload_embedding: true, or take a smaller base",
    )


def load_model(folder: pathlib.Path, job: Params) -> Any:
    """The language model in 4 bit or in `precision()`, frozen, on the GPU where there is one.

    Of a multimodal Gemma 3n only the language model is read: its towers, 2 GiB, are not trained and see no input.
    """
    check_options(job)
    torch.manual_seed(job.seed)
    model = _read(
        folder,
        dtype=device.precision(job)[0],
        device_map=placement.device_map(folder, job),
        quantization_config=quantization(job),
    )
    model.config.use_cache = False
    if job.offload_embedding and torch.cuda.is_available() and not placement.sharded(folder, job):
        placement.offload_embedding(model)
    return model.requires_grad_(False)


def quantization(job: Params) -> Any:
    """How a 4-bit base is quantised while it loads; None for a 16-bit one."""
    if not job.load_in_4bit:
        return None
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=device.precision(job)[0],
        llm_int8_skip_modules=KEEP_16_BIT,
    )


def _read(folder: pathlib.Path, **options: Any) -> Any:
    """The folder's language model, and nothing else of a multimodal one; UserError when any of its weights is not there."""
    whole, text = _checked(folder)
    if text is not whole:
        options |= {
            "config": text,
            "key_mapping": {r"^(?:model\.)?language_model\.(?:model\.)?": "model."},
        }
    try:
        with _quiet(text is not whole):
            model, found = AutoModelForCausalLM.from_pretrained(
                folder, output_loading_info=True, **options
            )
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
        for shard in sorted(set(shards.locate_tensors(folder).values())):
            reading = shard.name
            with safe_open(shard, "pt") as file:
                shapes |= {
                    shards.canonical_name(n): tuple(file.get_slice(n).get_shape())
                    for n in file.keys()
                }  # noqa: SIM118
    except UserError:
        raise
    except Exception as error:  # what is in a stranger's config.json decides which
        raise _unreadable(folder, error, reading) from None
    if getattr(whole, "quantization_config", None) or getattr(text, "quantization_config", None):
        raise UserError(
            f"the model folder `{files.shown(folder)}` is quantised already, and an adapter is merged into 16-bit weights. "
            f"Set base_model to the 16-bit repository it was made from; load_in_4bit: true quantises that while loading."
        )
    _refuse(
        folder,
        [
            n
            for n, p in net.named_parameters()
            if shapes.get(shards.canonical_name(n)) != tuple(p.shape)
        ],
    )
    return whole, text


def _refuse(folder: pathlib.Path, missing: Iterable[str]) -> None:
    if missing := sorted(missing):
        raise UserError(
            f"the model folder `{files.shown(folder)}` lacks {len(missing)} weights, or has them in another shape than its config.json "
            f"says: {', '.join(missing[:3])}{' ...' if missing[3:] else ''}. They would be random numbers.\n"
            f"Expected a complete Hugging Face folder: fetch or build it again."
        )


def _unreadable(folder: pathlib.Path, error: Exception, name: str = "") -> UserError:
    because = " ".join(str(error).split())[:300] or type(error).__name__
    return UserError(
        f"the model folder `{files.shown(folder)}` cannot be read{name and f' ({name})'}: {because}\n"
        f"Expected a complete Hugging Face folder with safetensors: fetch or build it again."
    )


def _float32_around_4_bit(model: Any) -> None:
    """What is not 4-bit computes in float32, except the tables: embeddings, and with them the output layer, stay 16-bit."""
    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding | placement.Offloaded):
            module.register_forward_hook(lambda module, inputs, output: output.float())
            continue
        if module is head:
            module.register_forward_pre_hook(
                lambda module, inputs: (inputs[0].to(module.weight.dtype),)
            )
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
            str(folder),
            dtype=device.precision(job)[0],
            max_seq_length=job.max_seq_length,
            load_in_4bit=job.load_in_4bit,
            quantization_config=quantization(job),
            random_state=job.seed,
            use_gradient_checkpointing=checkpointing,
            text_only=True,
            offload_embedding=False,
        )
    model.generation_config.max_length = (
        None  # Unsloth sets it, and each answer would then warn of two limits
    )
    if job.offload_embedding:  # not by Unsloth, which leaves the table on the card under torchrun
        placement.offload_embedding(model)
    model.part_of_multimodal = text is not whole
    return FastModel.get_peft_model(
        model,
        finetune_vision_layers=False,
        finetune_language_layers=True,
        finetune_attention_modules=job.finetune_attention_modules,
        finetune_mlp_modules=job.finetune_mlp_modules,
        r=job.lora_r,
        lora_alpha=job.lora_alpha,
        lora_dropout=job.lora_dropout,
        bias=job.bias,
        use_rslora=job.use_rslora,
        random_state=job.seed,
        use_gradient_checkpointing=checkpointing,
    )


def load_merged(folder: pathlib.Path, dtype: torch.dtype | None = None) -> Any:
    """A merged 16-bit folder, to answer beside its GGUF; computes in `dtype`, or in what suits the machine."""
    device.threads()
    place = {"": torch.cuda.current_device()} if torch.cuda.is_available() else None
    dtype = dtype or device.precision()[0]
    if place is None:
        machine.require_memory(
            shards.weight_bytes(folder) * dtype.itemsize // 2,
            f"{files.shown(folder)} in {str(dtype).removeprefix('torch.')}",
        )
    with _memory_for_base(folder):
        model = _read(folder, dtype=dtype, device_map=place)
    return model.requires_grad_(False).eval()
