"""Settings that contradict each other, whatever the machine: found before anything starts."""

from collections.abc import Iterator

from lib.common.errors import UserError
from lib.params import full_conflicts
from lib.params.kinds import count_translations, language_of
from lib.params.schema import Params

NOTHING_TRAINED = (
    "finetune_attention_modules and finetune_mlp_modules are both false, so nothing would be "
    "trained. Set one to true."
)
NEEDS_BFLOAT16 = (
    "torch_compile needs a bfloat16 base on the card: set load_in_4bit: false, "
    "offload_embedding: false, precision: bf16."
)


def require_consistent(job: Params) -> None:
    """Raise UserError with every contradiction among a job's settings."""
    if found := list_conflicts(job):
        raise UserError("\n".join(found))


def list_conflicts(job: Params) -> list[str]:
    """Return a message for each contradiction among a job's settings."""
    conflicts = [*_of_data(job), *_of_training(job), *_of_speed(job), *_of_unsloth(job)]
    found = [message for applies, message in conflicts if applies]
    return [*full_conflicts.list_conflicts(job), *found]


def _of_data(job: Params) -> Iterator[tuple[bool, str]]:
    own = language_of(job.dataset)
    yield (
        own not in ("", "en") and job.language != own,
        f"the bundled set is in {own}, but language is {job.language!r}. Set language: {own}.",
    )
    yield (
        count_translations(job.dataset) > 1,
        "the bundled first-aid sets are translations of each other, so what is held out in one "
        "language would be trained on in another. Name one of them.",
    )


def _of_training(job: Params) -> Iterator[tuple[bool, str]]:
    yield not (job.finetune_attention_modules or job.finetune_mlp_modules), NOTHING_TRAINED
    yield (
        job.max_steps == 0,
        "max_steps is 0; expected 1 or more steps, or -1 for num_train_epochs.",
    )
    yield (
        job.early_stopping_patience > 0 and not job.eval_steps,
        "early_stopping_patience counts evals, but eval_steps is 0. Set eval_steps, for example "
        "to save_steps.",
    )
    yield (
        job.precision == "fp16" and not job.load_in_4bit,
        "precision: fp16 is for a 4-bit base on a GPU, where only the products with it are "
        "float16. Use bf16 or fp32, or set load_in_4bit: true.",
    )


def _of_speed(job: Params) -> Iterator[tuple[bool, str]]:
    yield (
        job.torch_compile and job.gradient_checkpointing and job.lora_dropout > 0,
        "torch_compile with gradient_checkpointing cannot draw the same dropout twice. Set "
        "lora_dropout: 0, or one of the two to false.",
    )
    yield (
        job.torch_compile and not job.packing,
        "torch_compile needs packing: true, which gives every micro-batch one shape. Set both, "
        "or neither.",
    )
    other_base = job.load_in_4bit or job.offload_embedding or job.precision in ("fp16", "fp32")
    yield job.torch_compile and other_base, NEEDS_BFLOAT16
    yield (
        job.packing and job.neftune_noise_alpha > 0,
        "neftune_noise_alpha scales by a row's length, which packing hides. Set packing: false, "
        "or neftune_noise_alpha: 0.",
    )
    yield (
        job.fsdp == "full_shard" and (job.load_in_4bit or job.torch_compile),
        "fsdp: full_shard works with a 16-bit base only, and without compiled steps. Set "
        "load_in_4bit: false and torch_compile: false, or fsdp: none.",
    )
    yield (
        job.fsdp == "full_shard" and job.num_gpus == 1,
        "fsdp: full_shard shards the base over several GPUs, but num_gpus is 1. Set fsdp: auto, "
        "or more GPUs.",
    )
    uneven = (
        job.num_gpus != "auto"
        and job.per_device_train_batch_size != "auto"
        and job.gradient_accumulation_steps % job.num_gpus > 0
    )
    yield (
        uneven,
        f"gradient_accumulation_steps is {job.gradient_accumulation_steps}, which {job.num_gpus} "
        f"GPUs cannot share evenly. Set a multiple of {job.num_gpus} (with a smaller "
        f"per_device_train_batch_size for the same rows a step), or num_gpus: 1.",
    )


def _of_unsloth(job: Params) -> Iterator[tuple[bool, str]]:
    if job.backend != "unsloth":
        return
    yield (
        job.torch_compile or job.packing,
        "backend: unsloth replaces the code that packing and torch_compile change. Set both to "
        "false, or backend: transformers.",
    )
    yield (
        job.train_end_token is True,
        "train_end_token was not tried with backend: unsloth. Set backend: transformers, or "
        "train_end_token: false.",
    )
    yield (
        job.use_dora,
        "backend: unsloth computes LoRA with kernels of its own, which do not support use_dora. "
        "Set use_dora: false, or backend: transformers.",
    )
