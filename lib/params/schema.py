"""Every parameter of a job, with its default, its bounds and what it does.

To add a parameter, write one line here, in its group, and one in the parameters cell of its stage's
notebook. The order here is that of those cells, of the table and of every params.yaml on disk.
"""

import functools
from typing import Annotated, Any, Literal

import annotated_types
import pydantic

from lib.common.gguf_types import GgufType
from lib.params.kinds import CONFIG, CountOrAuto, Judge, Rule, Source, Text, parameter

_prepare = functools.partial(parameter, "prepare")
_train = functools.partial(parameter, "train")
_export = functools.partial(parameter, "export")


class Params(pydantic.BaseModel):
    """Every parameter of a job.

    Defaults are the recipe of the project this pipeline grew from: Gemma 3n E4B on a T4. The name
    of the run's folder depends on the parameters of prepare and train, but not on those of export.
    """

    model_config = CONFIG

    # base model
    base_model: Text = _prepare(
        "unsloth/gemma-3n-E4B-it",
        "hub id or local folder of the model to tune, or `bundled:gemma-3-270m`",
    )
    base_revision: str = _prepare(
        "", "commit, tag or branch of a `base_model` on the hub; empty takes its newest"
    )

    # data
    dataset: Text | Annotated[list[Text | Source], annotated_types.MinLen(1)] | Source = _prepare(
        "ericrisco/medrescue",
        "hub id, local file, folder or archive, `bundled:first-aid`, or a list of these",
    )
    dataset_revision: str = _prepare(
        "", "commit, tag or branch of a `dataset` on the hub; empty takes its newest"
    )
    dataset_config: str = _prepare(
        "", "configuration of a `dataset` on the hub that has several; empty takes its only one"
    )
    dataset_split: str = _prepare(
        "",
        "split to train on; empty takes `train`, and holds out what a local folder has of others; "
        "`all` takes every file of a folder",
    )
    columns: dict[str, str] = _prepare(
        {},
        "the data's column for each of our fields, if these are not recognised, as in "
        "{question: ask, answer: reply}",
    )
    answer_numbers: Literal["auto", "from_0", "from_1", "text"] = _prepare(
        "auto",
        "what a number means as a multiple-choice answer: the option counted from 0 or from 1, or "
        "its text; `auto` decides over all rows of a source, or asks",
    )
    max_rows: int = _prepare(0, "how many rows of each split to read; 0 reads all", ge=0)
    skip_bad_lines: int = _prepare(
        0, "how many unreadable lines or rows are skipped and counted; one more is an error", ge=0
    )
    exam: list[Text | Source] = _prepare(
        ["bundled:exam"],
        "multiple-choice sets to examine the model on; training rows that overlap are dropped",
    )

    forgetting: str | Source = _prepare(
        "",
        "file or hub id of rows of another kind, never trained on, whose loss before and after "
        "shows what is forgotten; empty measures none",
    )

    # cleaning
    max_seq_length: int = _prepare(
        1024,
        "longest row, in tokens; `overlong` decides what happens to longer ones",
        ge=16,
        le=1_000_000,
    )
    overlong: Literal["drop", "cut"] = _prepare(
        "drop",
        "rows over max_seq_length: drop, or cut the last answer where a cut surely changes nothing "
        "of its advice (English only; else drop)",
    )
    skip_rules: list[Rule] = _prepare([], "cleaning rules that are not applied")
    language: str = _prepare(
        "en", "two-letter code of the language that answers must be in; empty takes any"
    )
    reasoning: Literal["strip", "keep"] = _prepare(
        "strip", "what to do with <reasoning> and <think> blocks in answers"
    )
    personal_data: Literal["mask", "drop", "keep"] = _prepare(
        "mask",
        "e-mail addresses, phone, card and record numbers: mask them, drop their rows, or keep",
    )
    damaged_text: Literal["drop", "flag", "ignore"] = _prepare(
        "drop",
        "texts that lost characters (U+FFFD) and answers that stop in the middle: drop their rows, "
        "keep and count them, or ignore",
    )
    dangerous_advice: Literal["drop", "flag", "ignore"] = _prepare(
        "drop",
        "outdated or harmful first-aid advice: drop its rows, keep and count them, or ignore",
    )

    # duplicates, and what is held out
    same_question: Literal["all", "first", "longest"] = _prepare(
        "all", "which of several answers to the same question are kept"
    )
    answer_cap: int = _prepare(10, "how many rows may share one answer; 0 is no limit", ge=0)
    near_duplicates: Literal["drop", "keep"] = _prepare(
        "drop", "rows much like an earlier one: drop, or keep on the same side of the split"
    )
    near_duplicate_threshold: float = _prepare(
        0.85,
        "Jaccard similarity of three-word shingles from which rows count as near duplicates",
        ge=0.8,
        le=1,
    )
    decontaminate: int = _prepare(
        13,
        "training rows are dropped that repeat held-out rows, exam or safety set, compared by runs "
        "of this many words; 0 is off",
        ge=0,
        le=100,
    )
    validation_size: float = _prepare(
        0.02, "share of question groups held out to measure the loss on", ge=0, lt=0.5
    )
    test_size: float = _prepare(
        0.02, "share of question groups that training never looks at", ge=0, lt=0.5
    )
    seed: int = _prepare(
        3407, "seed of the split, the data order and the adapter's first weights", ge=0, lt=2**32
    )

    # model
    backend: Literal["auto", "unsloth", "transformers"] = _train(
        "auto", "library that loads and patches the model; `auto` prints its choice and why"
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = _train(
        "auto",
        "arithmetic; `auto` picks by card; fp16 keeps what overflows in float32, scales the loss",
    )
    load_in_4bit: bool = _train(
        True, "load the base weights in 4 bits (NF4, needs a CUDA card); false loads 16 bits"
    )
    full_finetuning: bool = _train(
        False,
        "train all weights of the language model instead of an adapter; needs load_in_4bit: false",
    )

    # adapter
    lora_r: int = _train(8, "rank of the adapter", ge=1, le=256)
    lora_alpha: int = _train(8, "the adapter is scaled by lora_alpha / lora_r", ge=1, le=10_000)
    lora_dropout: float = _train(0.0, "dropout on the adapter's input, as a share", ge=0, lt=1)
    use_rslora: bool = _train(False, "scale the adapter by lora_alpha / sqrt(lora_r) instead")
    use_dora: bool = _train(False, "weight-decomposed adapters (DoRA): slower, not fused")
    bias: Literal["none"] = _train("none", "biases to train besides the adapter")
    finetune_attention_modules: bool = _train(
        True, "put adapters on q, k, v and o of the language layers"
    )
    finetune_mlp_modules: bool = _train(
        True, "put adapters on gate, up and down of the language layers"
    )

    train_end_token: bool | Literal["auto"] = _train(
        "auto",
        "also train the embedding's row of `<end_of_turn>`, without which a pretrained base cannot "
        "end its answers; `auto` measures whether the base can",
    )

    start_from: str = _train(
        "",
        "run, or adapter folder, whose weights training begins with: of the same base, rank and "
        "targets; with full_finetuning a run that also had it; empty begins with a new adapter, or "
        "the base's weights",
    )

    # batch
    per_device_train_batch_size: CountOrAuto = _train(
        4,
        "rows in a micro-batch; `auto` takes the most that fit, for steps of "
        "4 x gradient_accumulation_steps rows",
    )
    gradient_accumulation_steps: int = _train(
        4, "micro-batches in a step, divided among the GPUs", ge=1, le=100_000
    )
    packing: bool = _train(
        False,
        "lay the rows of a micro-batch end to end in one fixed shape, where each sees only itself: "
        "no padding",
    )

    # memory and speed
    torch_compile: bool = _train(
        False, "compile the layers, and run a micro-batch as one CUDA graph; needs packing"
    )
    layers: Literal["auto", "compiled"] = _train(
        "auto",
        "what trains under torch_compile: `auto` takes the hand-written layers for Gemma 3n where "
        "the job fits them, `compiled` always transformers' own, compiled",
    )
    gradient_checkpointing: bool = _train(
        True, "recompute activations in the backward pass: less memory, a third more arithmetic"
    )
    offload_embedding: bool = _train(
        True,
        "keep Gemma 3n's per-layer embedding in main memory: 4.4 GiB less on the card",
        free=True,
    )
    num_gpus: CountOrAuto = _train(
        "auto",
        "GPUs of this machine to train on; `auto` takes all that share gradient_accumulation_steps "
        "evenly",
        free=True,
    )
    fsdp: Literal["auto", "full_shard", "none"] = _train(
        "auto",
        "shard the base weights over the GPUs; `auto` does so if one GPU is too small",
        free=True,
    )
    dataloader_num_workers: int = _train(
        2, "threads that read and pad batches ahead; 0 reads between steps", ge=0, le=32, free=True
    )

    # schedule
    num_train_epochs: float = _train(1.0, "passes over the training rows", gt=0, le=100_000)
    max_steps: int = _train(
        -1,
        "optimizer steps after which training ends; -1 leaves it to num_train_epochs",
        ge=-1,
        le=10_000_000,
    )
    max_minutes: float = _train(
        0.0,
        "minutes after which a session saves and stops; 0 is no limit",
        ge=0,
        le=1_000_000,
        free=True,
    )
    learning_rate: float = _train(2e-5, "learning rate at the schedule's peak", gt=0, lt=1)
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = _train(
        "linear", "shape of the schedule after warm-up"
    )
    warmup_steps: int = _train(
        5, "steps in which the learning rate rises to its peak", ge=0, le=10_000_000
    )
    weight_decay: float = _train(0.01, "AdamW's decoupled weight decay", ge=0, lt=1)
    neftune_noise_alpha: float = _train(
        0.0, "uniform noise on the embeddings, scaled as in NEFTune; 0 is none", ge=0, le=1000
    )
    max_grad_norm: float = _train(
        1.0, "norm to clip gradients to; 0 does not clip", ge=0, le=1_000_000
    )
    optim: Literal["adamw_8bit", "adamw_torch"] = _train(
        "adamw_8bit", "optimizer; `adamw_8bit` needs a CUDA card"
    )

    # saving and looking
    save_steps: int = _train(500, "steps from one checkpoint to the next", ge=1, free=True)
    save_total_limit: int = _train(2, "how many checkpoints are kept", ge=1, free=True)
    logging_steps: int = _train(1, "steps from one ledger line to the next", ge=1, free=True)
    eval_steps: int = _train(
        0, "steps from one held-out loss to the next; 0 measures it before and after only", ge=0
    )
    early_stopping_patience: int = _train(
        0,
        "stop after this many held-out losses without a better one, and keep the best weights; "
        "0 is off",
        ge=0,
    )
    report_to: Literal["none", "tensorboard", "trackio", "wandb"] = _train(
        "none", "tracker that also gets every line of the ledger", free=True
    )
    sample_tokens: int = _train(
        96,
        "longest answer to the fixed prompts before and after training, in tokens",
        ge=1,
        le=100_000,
    )

    # export
    gguf_types: list[GgufType] = _export(["q8_0"], "types of GGUF file to write", min_length=1)
    imatrix: Text = _export(
        "auto",
        "importance of each weight's columns, for types below 8 bits: `auto` measures it on "
        "training rows, `none` packs without; or a file of llama-imatrix",
    )
    lora_gguf: bool = _export(
        True,
        "also write the adapter alone as a GGUF for llama.cpp's --lora; not with use_dora or "
        "full_finetuning",
    )
    exam_models: Literal["all", "merged"] = _export(
        "all",
        "models that take the exams: all of the run, or base and merged folder alone, which is "
        "made from the adapter and with which the export compares the GGUFs",
    )
    safety_tokens: int = _export(
        128,
        "longest answer to a prompt of the safety set, in tokens; 0 skips the set",
        ge=0,
        le=100_000,
    )
    judge: Judge = _export(
        {},
        "a model that judges the same answers, beside the rules: {base_url: address of an "
        "OpenAI-compatible server, model: its name there}; key in MEDRESCUE_JUDGE_KEY",
    )
    push_to: str = _export(
        "",
        "owner/name on the hub, for name-lora, name and name-lora-gguf, or with full_finetuning "
        "for name and name-gguf (needs HF_TOKEN); empty pushes nothing",
    )
    push_private: bool = _export(
        True, "keep the hub repositories private; false makes each public once it is complete"
    )


FIELDS = Params.model_fields


def _note(key: str) -> dict[str, Any]:
    note = FIELDS[key].json_schema_extra
    assert isinstance(note, dict)  # set by `parameter`
    return note


def stage_of(key: str) -> str:
    """Return the first stage that a parameter affects."""
    return _note(key)["stage"]


def is_free(key: str) -> bool:
    """Tell whether a parameter changes no weight, so that it may change during a run."""
    return _note(key)["free"]
