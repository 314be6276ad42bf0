"""Load models and tokenizers: a base to train, a base alone, or a merged folder.

    net = load_for_training(folder, job)

Transformers or Unsloth reads the base (`options.choose_backend`). The folder is checked first,
because both would replace a missing weight by random numbers.
"""

import contextlib
import os
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from lib.common import files, limits
from lib.common.chat_template import read_chat_template
from lib.model import adapter, base, device, placement, shards, trained
from lib.model.end_token import end_row
from lib.model.layers import lean
from lib.model.model_folder import check_folder, refuse_missing, unreadable_folder
from lib.model.options import check_options, choose_backend
from lib.params import Params

transformers.utils.logging.disable_progress_bar()
# Modules that a 4-bit base keeps in 16 bits. Gemma 3n clamps its altup coefficients in training,
# which fails on 4-bit weights, stored as uint8. Towers and embedders are not trained.
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
    "UNSLOTH_DISABLE_STATISTICS": "1",  # it would count its users over the network
    "UNSLOTH_COMPILE_LOCATION": str(base.CACHE / "unsloth"),  # its default is the working folder
    # with its compiler, no step finished in 430 s on rows of changing length (H100, torch 2.11);
    # without it, the first step took 4 s
    "UNSLOTH_COMPILE_DISABLE": "1",
    "UNSLOTH_BLOCK_COMPILE": "0",
    # its generate fails on a card without bfloat16, where keys are float32 and values float16, but
    # its cache has one type for both
    "UNSLOTH_DISABLE_FAST_GENERATION": "1",
}
# {pattern: replacement} that turns a multimodal folder's tensor names into the text class's
TEXT_NAMES = {r"^(?:model\.)?language_model\.(?:model\.)?": "model."}


def load_tokenizer(folder: pathlib.Path) -> Any:
    """Read the folder's fast tokenizer; raise UserError when the folder has no chat template."""
    read_chat_template(folder)
    return AutoTokenizer.from_pretrained(folder)


# --------------------------------------------------------------------------------------------------
# a base to train


def load_for_training(folder: pathlib.Path, job: Params) -> Any:
    """Return the base with a new adapter, or for full fine-tuning the base with trainable weights.

    The end token's row is added if it is to be trained; `auto` is decided later, by
    lib/model/end_token/decision.py.

    Raise UserError for settings that exclude each other, for an incomplete folder, for too little
    memory, and when what is trained is not exactly what the architecture implies.
    """
    check_options(job)
    trained.require_room(folder, job)
    backend, _ = choose_backend(job)
    load = _load_by_unsloth if backend == "unsloth" else _load_by_transformers
    with _explain_out_of_memory(folder):
        model = load(folder, job)
    if job.train_end_token is True:
        end_row.add(model, end_row.find_token(folder))
    trained.describe(model, job)
    return model


def _explain_out_of_memory(folder: pathlib.Path) -> contextlib.AbstractContextManager[None]:
    gb = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e9
    return device.explain_out_of_memory(
        f"the base, {gb:.1f} GB on disk",
        "set load_in_4bit: true and offload_embedding: true, or choose a smaller base",
    )


def _load_by_transformers(folder: pathlib.Path, job: Params) -> Any:
    model = load_base(folder, job)
    model = trained.unfreeze(model, folder) if job.full_finetuning else adapter.add(model, job)
    if job.gradient_checkpointing:
        # Only dropout draws random numbers inside a layer. Without it the random state need not be
        # saved, which would wait for the GPU and cannot be recorded into a CUDA graph.
        model.gradient_checkpointing_enable(
            {"use_reentrant": False, "preserve_rng_state": job.lora_dropout > 0}
        )
    if _must_shard(folder, job):
        placement.shard(model)
    if model.device.type == "cpu" and not (job.torch_compile or job.full_finetuning):
        lean.lighten(model)
    dtype, _ = device.choose_precision(job.precision, job.load_in_4bit)
    if dtype == torch.float16:  # only here: Unsloth has a float32 path of its own
        _widen_around_4_bit(model)
    return model


def load_base(folder: pathlib.Path, job: Params) -> Any:
    """Return the frozen language model in 4 bits or in the job's precision, on any GPU.

    Only the language model of a multimodal Gemma 3n is read: its towers, 2 GiB, are not trained and
    get no input.
    """
    check_options(job)
    torch.manual_seed(job.seed)
    sharded = _must_shard(folder, job)
    too_large = placement.exceeds_card(folder, job.precision, job.load_in_4bit)
    dtype, _ = device.choose_precision(job.precision, job.load_in_4bit)
    model = _read_language_model(
        folder,
        dtype=dtype,
        device_map=placement.choose_device_map(too_large, sharded, job.torch_compile),
        quantization_config=quantization_config(job.load_in_4bit, job.precision),
    )
    model.config.use_cache = False
    # full fine-tuning trains that table too
    offload = job.offload_embedding and not job.full_finetuning
    if offload and torch.cuda.is_available() and not sharded:
        placement.offload_embedding(model)
    return model.requires_grad_(False)


def _must_shard(folder: pathlib.Path, job: Params) -> bool:
    too_large = placement.exceeds_card(folder, job.precision, job.load_in_4bit)
    return placement.must_shard(job.fsdp, too_large, job.load_in_4bit, job.torch_compile)


def quantization_config(
    load_in_4bit: bool, precision: str
) -> transformers.BitsAndBytesConfig | None:
    """Return how to quantise a 4-bit base while it loads; None for a 16-bit one."""
    if not load_in_4bit:
        return None
    compute_dtype, _ = device.choose_precision(precision, load_in_4bit)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=KEEP_16_BIT,
    )


def _widen_around_4_bit(model: Any) -> None:
    """Let everything but the 4-bit products compute in float32.

    The embedding tables, and with them the output layer, stay in 16 bits: the tables' results are
    widened, and the output layer's input is narrowed.
    """
    output_layer = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding | placement.Offloaded):
            module.register_forward_hook(_widen_output)
        elif module is output_layer:
            module.register_forward_pre_hook(_narrow_input)
        else:
            _widen_tensors(module)


def _widen_output(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output.float()


def _narrow_input(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
    return (inputs[0].to(module.weight.dtype),)


def _widen_tensors(module: torch.nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        if parameter.dtype == torch.float16:
            parameter.data = parameter.data.float()
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.dtype == torch.float16:
            setattr(module, name, buffer.float())


def _load_by_unsloth(folder: pathlib.Path, job: Params) -> Any:
    folder_config, text_config = check_folder(folder)
    multimodal = text_config is not folder_config
    for name, value in UNSLOTH.items():  # Unsloth reads them at its import and later
        os.environ.setdefault(name, value)
    # Unsloth's patches work even after transformers is imported. catch_warnings would undo the
    # filters that its import adds.
    warnings.filterwarnings("ignore", "WARNING: Unsloth should be imported before")
    from unsloth import FastModel  # optional, and it patches transformers

    checkpointing = "unsloth" if job.gradient_checkpointing else False
    dtype, _ = device.choose_precision(job.precision, job.load_in_4bit)
    with _without_warnings(multimodal):
        model, _ = FastModel.from_pretrained(
            str(folder),
            dtype=dtype,
            max_seq_length=job.max_seq_length,
            load_in_4bit=job.load_in_4bit,
            quantization_config=quantization_config(job.load_in_4bit, job.precision),
            random_state=job.seed,
            use_gradient_checkpointing=checkpointing,
            text_only=True,
            offload_embedding=False,
        )
    # Unsloth sets it, and each answer would then warn about two limits
    model.generation_config.max_length = None
    if job.offload_embedding:  # Unsloth's own option leaves the table on the card under torchrun
        placement.offload_embedding(model)
    model.part_of_multimodal = multimodal
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


# --------------------------------------------------------------------------------------------------
# a merged model


def load_merged(folder: pathlib.Path, dtype: torch.dtype | None = None) -> Any:
    """Return the model of a merged 16-bit folder, to compare its GGUF with.

    It computes in `dtype`, by default the type that suits the machine. Raise UserError when there
    is not enough memory.
    """
    device.set_threads()
    if dtype is None:
        dtype, _ = device.choose_precision()
    device_map = None
    if torch.cuda.is_available():
        device_map = {"": torch.cuda.current_device()}
    else:
        needed = shards.count_numbers(folder) * dtype.itemsize
        type_name = str(dtype).removeprefix("torch.")
        limits.require_memory(needed, f"{files.format_path(folder)} in {type_name}")
    with _explain_out_of_memory(folder):
        model = _read_language_model(folder, dtype=dtype, device_map=device_map)
    return model.requires_grad_(False).eval()


# --------------------------------------------------------------------------------------------------
# reading a folder


def _read_language_model(folder: pathlib.Path, **options: Any) -> Any:
    """Return the folder's language model, without the towers of a multimodal model.

    Raise UserError when any of its weights is missing.
    """
    folder_config, text_config = check_folder(folder)
    multimodal = text_config is not folder_config
    if multimodal:
        options |= {"config": text_config, "key_mapping": TEXT_NAMES}
    try:
        with _without_warnings(multimodal):
            model, report = AutoModelForCausalLM.from_pretrained(
                folder, output_loading_info=True, **options
            )
    except (OSError, ValueError, KeyError) as error:
        raise unreadable_folder(folder, error) from None
    refuse_missing(folder, report["missing_keys"])
    model.part_of_multimodal = multimodal
    return model


@contextlib.contextmanager
def _without_warnings(multimodal: bool) -> Iterator[None]:
    """Silence transformers for a multimodal folder: it would list the unread towers on a page."""
    level = transformers.utils.logging.get_verbosity()
    if multimodal:
        transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(level)
