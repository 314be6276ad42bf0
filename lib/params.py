"""Parameters of a job: one schema, strict reading, printed overrides, the run folder's hash.

python -m lib.params            # the README's table of parameters
"""

import difflib
import hashlib
import json
import pathlib
import shlex
import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import annotated_types
import pydantic
import yaml

from lib.common import strict_yaml
from lib.common.errors import ROOT, UserError
from lib.common.redact import holds_secret

SEAL = "# sha256 of the lines above: "
GGUF_TYPES = ("f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0")


def _key(
    stage: str, default: Any, text: str, unit: str = "", free: bool = False, **bounds: Any
) -> Any:
    """`free` keys change no weight: they do not name the run folder, and may change from one session of a run to the next."""
    return pydantic.Field(
        default,
        description=text,
        json_schema_extra={"stage": stage, "unit": unit, "free": free},
        **bounds,
    )


Text = Annotated[str, annotated_types.MinLen(1)]
RULES = (
    "placeholder",
    "answer_is_question",
    "link_list",
    "exact_duplicate",
    "mojibake",
    "html",
    "control_characters",
    "blanks",
    "question_mark",
    "flattened_lists",
    "leaked_turns",
)


class Source(pydantic.BaseModel):
    """One entry of a `dataset` list: what is read, and how much of it."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)

    dataset: Text
    revision: str = ""
    weight: float = pydantic.Field(1.0, gt=0, le=1)
    max_rows: int = pydantic.Field(0, ge=0)
    columns: dict[str, str] = {}


class Params(pydantic.BaseModel):
    """Every parameter of a job; defaults are the recipe of the project this pipeline grew from (Gemma 3n E4B on a T4).

    `stage` says what a key changes first: keys of `prepare` and `train` name the run folder, those of `export` do not.
    """

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)

    base_model: Text = _key(
        "prepare", "unsloth/gemma-3n-E4B-it", "hub id, local folder, or `bundled:gemma-3-270m`"
    )
    base_revision: str = _key(
        "prepare", "", "commit, tag or branch of a hub `base_model`; empty is its newest"
    )
    dataset: Text | list[Text | Source] = _key(
        "prepare",
        "ericrisco/medrescue",
        "hub id, local file or folder, `bundled:first-aid`, or a list of these",
        min_length=1,
    )
    dataset_revision: str = _key(
        "prepare", "", "commit, tag or branch of a hub `dataset`; empty is its newest"
    )
    columns: dict[str, str] = _key(
        "prepare",
        {},
        "where a shape is not recognised, our field: the data's column; {question: ask, answer: reply}",
    )
    max_rows: int = _key(
        "prepare", 0, "read only the first so many rows; 0 reads all", "rows", ge=0
    )
    skip_bad_lines: int = _key(
        "prepare",
        0,
        "unreadable lines or rows passed over, and counted, before it is an error",
        "rows",
        ge=0,
    )
    exam: list[Text] = _key(
        "prepare",
        ["bundled:exam"],
        "multiple-choice sets the model is examined on; training rows that overlap are dropped",
    )
    max_seq_length: int = _key(
        "prepare",
        1024,
        "longest row in tokens; what happens to a longer one says `overlong`",
        "tokens",
        ge=16,
    )
    overlong: Literal["drop", "cut"] = _key(
        "prepare",
        "drop",
        "a row over max_seq_length: dropped, or its last answer cut after a whole sentence",
    )
    skip_rules: list[Literal[RULES]] = _key("prepare", [], "cleaning rules not applied")
    language: str = _key(
        "prepare", "en", "two-letter language the answers must be in; empty takes any"
    )
    reasoning: Literal["strip", "keep"] = _key(
        "prepare", "strip", "<reasoning> and <think> blocks in answers"
    )
    personal_data: Literal["mask", "drop", "keep"] = _key(
        "prepare", "mask", "e-mail addresses, phone, card and record numbers"
    )
    dangerous_advice: Literal["drop", "flag", "ignore"] = _key(
        "prepare",
        "drop",
        "outdated or harmful first-aid advice in answers; flag keeps it and says so",
    )
    same_question: Literal["all", "first", "longest"] = _key(
        "prepare", "all", "which of several answers to the same question are kept"
    )
    answer_cap: int = _key(
        "prepare", 10, "rows that may share one answer; 0 is no limit", "rows", ge=0
    )
    near_duplicates: Literal["drop", "keep"] = _key(
        "prepare", "drop", "rows much like an earlier one; kept ones stay on its side of the split"
    )
    near_duplicate_threshold: float = _key(
        "prepare",
        0.85,
        "Jaccard similarity of three-word shingles from which rows count as near duplicates",
        "share",
        ge=0.8,
        le=1,
    )
    decontaminate: int = _key(
        "prepare",
        13,
        "training rows that share so many words in a row with held-out rows, exam or safety set are dropped; "
        "0 is off",
        "words",
        ge=0,
        le=100,
    )
    validation_size: float = _key(
        "prepare",
        0.02,
        "share of question groups held out for the loss shown",
        "share",
        ge=0,
        lt=0.5,
    )
    test_size: float = _key(
        "prepare",
        0.02,
        "share of question groups never looked at in training",
        "share",
        ge=0,
        lt=0.5,
    )
    seed: int = _key("prepare", 3407, "split, data order and LoRA initialisation", ge=0, lt=2**32)

    backend: Literal["auto", "unsloth", "transformers"] = _key(
        "train", "auto", "who loads and patches the model; `auto` prints its choice and why"
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = _key(
        "train",
        "auto",
        "arithmetic; `auto` picks by card. fp16 keeps what overflows in float32 and scales the loss",
    )
    load_in_4bit: bool = _key(
        "train", True, "NF4 base weights (needs a CUDA card); false is 16-bit"
    )
    lora_r: int = _key("train", 8, "rank of the adapter", ge=1, le=256)
    lora_alpha: int = _key("train", 8, "adapter scale is lora_alpha / lora_r", ge=1)
    lora_dropout: float = _key("train", 0.0, "dropout on the adapter's input", "share", ge=0, lt=1)
    use_rslora: bool = _key("train", False, "adapter scale is lora_alpha / sqrt(lora_r)")
    use_dora: bool = _key("train", False, "weight-decomposed adapters (DoRA): slower, not fused")
    bias: Literal["none"] = _key("train", "none", "biases trained beside the adapter: none")
    finetune_attention_modules: bool = _key(
        "train", True, "adapters on q, k, v, o of the language layers"
    )
    finetune_mlp_modules: bool = _key(
        "train", True, "adapters on gate, up, down of the language layers"
    )
    per_device_train_batch_size: Annotated[int, annotated_types.Ge(1)] | Literal["auto"] = _key(
        "train",
        4,
        "micro-batch; `auto` is the largest that fits, for steps of 4 x gradient_accumulation_steps",
        "rows",
    )
    gradient_accumulation_steps: int = _key(
        "train", 4, "micro-batches a step, shared out among the GPUs", ge=1
    )
    packing: bool = _key(
        "train",
        False,
        "rows of a micro-batch end to end in one fixed shape, each seeing only itself: no padding",
    )
    torch_compile: bool = _key(
        "train",
        False,
        "compiled layers, on a GPU the whole micro-batch one CUDA graph; needs packing",
    )
    gradient_checkpointing: bool = _key(
        "train",
        True,
        "recompute activations in the backward pass: less memory, a third more arithmetic",
    )
    offload_embedding: bool = _key(
        "train",
        True,
        "Gemma 3n's per-layer embedding in main memory: 4.4 GiB less on the card",
        free=True,
    )
    num_gpus: Annotated[int, annotated_types.Ge(1)] | Literal["auto"] = _key(
        "train",
        "auto",
        "GPUs of this machine to train on; `auto` takes all that share out gradient_accumulation_steps evenly",
        free=True,
    )
    fsdp: Literal["auto", "full_shard", "none"] = _key(
        "train",
        "auto",
        "base weights sharded over the GPUs; `auto` where one is too small",
        free=True,
    )
    dataloader_num_workers: int = _key(
        "train",
        2,
        "threads that read and pad batches ahead; 0 reads between steps",
        ge=0,
        le=32,
        free=True,
    )
    num_train_epochs: float = _key("train", 1.0, "passes over the training rows", "epochs", gt=0)
    max_steps: int = _key(
        "train", -1, "stop after so many optimizer steps; -1 is num_train_epochs", "steps", ge=-1
    )
    max_minutes: float = _key(
        "train",
        0.0,
        "save and stop a session after so long; 0 is no limit",
        "minutes",
        ge=0,
        free=True,
    )
    learning_rate: float = _key("train", 2e-5, "peak of the schedule", gt=0, lt=1)
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = _key(
        "train", "linear", "shape after warm-up"
    )
    warmup_steps: int = _key("train", 5, "steps from 0 to the peak", "steps", ge=0)
    weight_decay: float = _key("train", 0.01, "AdamW's decoupled decay", ge=0, lt=1)
    neftune_noise_alpha: float = _key(
        "train", 0.0, "uniform noise on the embeddings, scaled as in NEFTune; 0 is none", ge=0
    )
    max_grad_norm: float = _key(
        "train", 1.0, "gradients are clipped to this norm; 0 does not clip", ge=0
    )
    optim: Literal["adamw_8bit", "adamw_torch"] = _key(
        "train", "adamw_8bit", "`adamw_8bit` needs a CUDA card"
    )
    save_steps: int = _key(
        "train", 500, "a checkpoint every so many steps", "steps", ge=1, free=True
    )
    save_total_limit: int = _key("train", 2, "checkpoints kept", ge=1, free=True)
    logging_steps: int = _key(
        "train", 1, "a ledger line every so many steps", "steps", ge=1, free=True
    )
    eval_steps: int = _key(
        "train", 0, "held-out loss every so many steps; 0 is before and after only", "steps", ge=0
    )
    early_stopping_patience: int = _key(
        "train",
        0,
        "stop after so many evals without a better held-out loss, keep the best; 0 is off",
        "evals",
        ge=0,
    )
    report_to: Literal["none", "tensorboard", "trackio", "wandb"] = _key(
        "train", "none", "a tracker that also gets every line of the ledger", free=True
    )
    sample_tokens: int = _key(
        "train", 96, "length of the fixed prompts' answers, before and after", "tokens", ge=1
    )

    gguf_types: list[Literal[GGUF_TYPES]] = _key(
        "export", ["q8_0"], "GGUF files to write", min_length=1
    )
    lora_gguf: bool = _key(
        "export", True, "also the adapter alone as a GGUF for llama.cpp's --lora; not of DoRA"
    )
    safety_tokens: int = _key(
        "export",
        128,
        "longest answer to a prompt of the safety set; 0 asks none of them",
        "tokens",
        ge=0,
    )
    push_to: str = _key(
        "export",
        "",
        "owner/name on the hub, for name-lora, name and name-lora-gguf (needs HF_TOKEN); empty pushes nothing",
    )
    push_private: bool = _key(
        "export", True, "hub repositories are private; false makes each public once it is complete"
    )


FIELDS = Params.model_fields


def stage_of(key: str) -> str:
    return FIELDS[key].json_schema_extra["stage"]


def is_free(key: str) -> bool:
    return FIELDS[key].json_schema_extra["free"]


# ---------------------------------------------------------------------------------------------------------------------
# checking


def type_name(key: str) -> str:
    """The expected form of a key, in words: type, choices and bounds."""
    field, low_high = FIELDS[key], []
    base = field.annotation
    if key == "dataset":
        return "a text, or a list of {dataset, revision, weight > 0 and <= 1, max_rows, columns}"
    if typing.get_origin(base) in (typing.Union, types.UnionType):
        return "a whole number >= 1, or auto"
    if typing.get_origin(base) is dict:
        return "a mapping of text to text"
    if typing.get_origin(base) is list:
        least = (
            "one or more"
            if any(getattr(m, "min_length", 0) for m in field.metadata)
            else "none or more"
        )
        choices = typing.get_args(typing.get_args(base)[0])
        return f"a list, {least} of " + ("texts" if choices[0] is str else ", ".join(choices))
    if typing.get_origin(base) is Literal:
        return "one of " + ", ".join(typing.get_args(base))
    for bound in field.metadata:
        for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
            if getattr(bound, name, None) is not None:
                low_high.append(
                    f"{sign} {getattr(bound, name):g}"
                    if getattr(bound, name) != 2**32
                    else "< 2^32"
                )
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[base]
    return " ".join([words, " and ".join(low_high)]).strip()


def nearest(key: Any, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)
    return f"did you mean `{near[0]}`?" if near else "README.md lists them all"


def check(values: dict[str, Any], where: str) -> Params:
    """Validate raw values against the schema; UserError names each wrong key, its value and the expected form."""
    wrong = []
    for key in values:
        if key not in FIELDS:
            wrong.append(f"unknown parameter `{key}`; {nearest(key, FIELDS)}")
        elif holds_secret(values[key]):
            wrong.append(
                f"`{key}` holds a token or password. Parameters are kept with the run and shown in its report; expected {type_name(key)}. "
                f"Secrets belong into the environment alone (HF_TOKEN), and one that stood in a file should be revoked"
            )
    if not wrong:
        try:
            return Params(**values)
        except pydantic.ValidationError as error:
            for key in dict.fromkeys(str(e["loc"][0]) for e in error.errors()):
                wrong.append(
                    f"`{key}` is {json.dumps(values[key], default=str)[:300]}; expected {type_name(key)}{_entry(error, key)}"
                )
    raise UserError("\n".join([f"{where}:"] + [f"  - {line}" for line in wrong]))


def _entry(error: pydantic.ValidationError, key: str) -> str:
    """Which entry of a list of sources is wrong, and its key where one is."""
    inside = [e for e in error.errors() if e["loc"][0] == key and "Source" in e["loc"]]
    if not inside:
        return ""
    where, name = inside[0]["loc"], inside[0]["loc"][-1]
    number = next(n for n in where if isinstance(n, int)) + 1
    return (
        f". Entry {number}{f', `{name}`' if name != 'Source' else ''}: {inside[0]['msg'].lower()}"
    )


def load(params_file: str | pathlib.Path, overrides: str = "") -> Params:
    """Read a params file (relative to the repository's root, or absolute) and apply `k=v k=v` overrides."""
    values = read(params_file)
    if "base" in values:  # no parameter of ours
        raise UserError(
            f"{params_file} is a sweep, many jobs in one file: `make sweep PARAMS={params_file}`."
        )
    where = str(params_file) + (f' + SET="{overrides}"' if overrides else "")
    return check({**values, **parse_overrides(overrides)}, where)


def read(params_file: str | pathlib.Path) -> dict[str, Any]:
    """The keys and values of a file as they stand, not checked."""
    path = ROOT / params_file
    if not path.is_file():
        have = ", ".join(
            sorted(
                str(p.relative_to(ROOT))
                for p in (ROOT / "params").glob("*.yaml")
                if p.name != "sweep.yaml"
            )
        )
        raise UserError(
            f"params file `{params_file}` does not exist (looked in {ROOT}).\n"
            f"At hand: {have}. Use PARAMS=params/cpu.yaml or write your own."
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"params file `{params_file}` is not UTF-8 text (byte {error.start})."
        ) from None
    values = strict_yaml.parse(text, str(params_file))
    if not isinstance(values, dict | types.NoneType):
        raise UserError(
            f"{params_file}: expected lines of `key: value`, found {type(values).__name__}."
        )
    return values or {}


def parse_overrides(text: str) -> dict[str, Any]:
    """`SET="learning_rate=1e-4 max_steps=50"` as a dict; values are read by the same strict YAML."""
    values: dict[str, Any] = {}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f'SET="{text}": {error}; expected SET="key=value key=value"') from None
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UserError(
                f'SET: `{word}` is not of the form key=value; expected SET="key=value key=value"'
            )
        if key in values:
            raise UserError(f"SET: `{key}` is given twice; keep one")
        try:
            values[key] = strict_yaml.parse(value, f"SET: {key}") if value else ""
        except UserError as error:
            quoted = value[0] in "[{" and value[-1] not in "]}"
            raise UserError(
                f"{error}"
                + (
                    f"""; quote a value with blanks in it: SET="{key}='{value} ...'\""""
                    if quoted
                    else ""
                )
            ) from None
    return values


# ---------------------------------------------------------------------------------------------------------------------
# writing


def changed(
    params: Params, stages: tuple[str, ...] = ("prepare", "train", "export")
) -> dict[str, Any]:
    """Keys that differ from the defaults, limited to what the given stages depend on."""
    return {
        k: v
        for k, v in params.model_dump().items()
        if v != FIELDS[k].get_default(call_default_factory=True) and stage_of(k) in stages
    }


def fingerprint(params: Params) -> str:
    """8 hex digits over the keys that affect data or training and differ from the defaults.

    A key added later with a default renames no folder, nor does one that changes no weight.
    """
    text = json.dumps(
        {k: v for k, v in changed(params, ("prepare", "train")).items() if not is_free(k)},
        sort_keys=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def dump(params: Params) -> str:
    """Every key as YAML that `load` reads back to the same values, and a comment by which `recorded` knows that they are the same."""
    text = yaml.safe_dump(params.model_dump(), sort_keys=False, allow_unicode=True)
    return f"{text}{SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n"


def recorded(folder: pathlib.Path) -> Params:
    """What a run was made with, from its params.yaml; UserError where that was damaged or edited: it would tell of another job."""
    job = load(path := folder / "params.yaml")
    # of the text, not of the values: a later version may know more parameters
    text, has_one, seal = path.read_text(encoding="utf-8").rpartition(SEAL)
    if has_one and seal.strip() != hashlib.sha256(text.encode()).hexdigest():
        raise UserError(
            f"{folder.name}/params.yaml is not as the run recorded it: damaged, or changed by hand. Put the old values back; "
            f"other parameters go into a file of your own, with PARAMS= and another RUN=."
        )
    return job


def table() -> str:
    """The parameters as a Markdown table, for the README."""
    rows = ["| parameter | default | expected | what it does |", "| --- | --- | --- | --- |"]
    for key, field in FIELDS.items():
        unit = field.json_schema_extra["unit"]
        default = json.dumps(field.default)
        rows.append(
            f"| `{key}` | `{default}` | {type_name(key)}{f' ({unit})' if unit else ''} | {field.description} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
