"""Which parameters cannot go together with full_finetuning, asked before anything starts."""

from lib.params.schema import FIELDS, Params

# what makes an adapter another one; full fine-tuning does not use them
ADAPTER_SETTINGS = (
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "use_dora",
    "finetune_attention_modules",
    "finetune_mlp_modules",
)


def list_conflicts(job: Params) -> list[str]:
    """Return a message for each parameter that full fine-tuning excludes, and what to set."""
    if not job.full_finetuning:
        return []
    unused = [
        f"{name}={value}"
        for name in ADAPTER_SETTINGS
        if (value := getattr(job, name)) != FIELDS[name].get_default()
    ]
    conflicts = {
        "full_finetuning trains the base's own weights, which 4 bits cannot hold. Set "
        "load_in_4bit: false, or full_finetuning: false for an adapter on a 4-bit base.": (
            job.load_in_4bit
        ),
        f"full_finetuning trains no adapter, so {', '.join(unused)} would have no effect. Leave "
        f"{'it' if len(unused) == 1 else 'them'} out, or set full_finetuning: false.": bool(unused),
        "full_finetuning trains all rows, the end token's too. Leave train_end_token out, or set "
        "full_finetuning: false.": job.train_end_token is True,
        "torch_compile records steps in which the base's weights are frozen. Set torch_compile: "
        "false, or full_finetuning: false.": job.torch_compile,
        "fsdp: full_shard shards frozen weights only, and full_finetuning trains them: each GPU "
        "holds all. Set fsdp: auto, or full_finetuning: false.": job.fsdp == "full_shard",
        "backend: unsloth is used for adapters only. Set backend: auto, or full_finetuning: "
        "false.": job.backend == "unsloth",
    }
    return [message for message, applies in conflicts.items() if applies]
