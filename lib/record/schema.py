"""The schemas of run.json and results.json, in which a run records what happened.

A key marked NotRequired is absent if there is nothing to record, and in records of versions that
did not have it yet.
"""

from typing import Any, Literal, NotRequired, TypedDict

from lib.common.files import Artifact
from lib.common.machine import Hardware

Stage = Literal["prepare", "train", "export"]
Status = Literal["pending", "running", "finished", "failed", "interrupted"]

# --------------------------------------------------------------------------------------------------
# run.json


class Attempt(TypedDict):
    """One attempt at a stage, by the runner (`make`) or a notebook opened by hand (`notebook`)."""

    by: Literal["make", "notebook"]
    start: str  # times are ISO 8601, in UTC
    end: str | None
    exit: str | None  # `ok`, or why it failed
    cell: int | None  # the cell of the executed notebook in which it ended, from 1
    pid: int
    host: str
    commit: str | None  # of the checkout; None outside a checkout
    dirty: bool | None  # whether tracked files, or files in lib/ or notebooks/, differed from it
    patch: NotRequired[str]  # the file in the run's folder with that difference
    kernel: NotRequired[int]  # the notebook kernel's process id
    stopped: NotRequired[str]  # the error of the last cell run by hand, in a kernel still open


class StageEntry(TypedDict):
    """A stage in run.json."""

    status: Status
    attempts: list[Attempt]
    artifacts: list[Artifact]
    inputs: dict[str, str | None]  # `output` of the earlier stages from which the result was made
    output: NotRequired[str]  # a hash that changes when the stage's result does
    # `output` of the earlier stages when the last attempt began; None if that attempt must not be
    # continued
    started_from: NotRequired[dict[str, str | None] | None]
    notebook: NotRequired[str]  # sha256 of the executed notebook, once finished


class PreparedBase(TypedDict):
    """The base as prepare read it."""

    files: dict[str, str]  # sha256 of the tokenizer's and configuration files, by name
    commit: NotRequired[str]  # of a base from the hub


class Fingerprints(TypedDict, total=False):
    """Hashes of the inputs of the run."""

    dataset: str  # the data and the exam, as they were read
    data: str  # the prepared rows
    prepared_base: PreparedBase
    base: str  # the base model's files, by their ends
    base_commit: str  # of a base from the hub
    base_files: dict[str, str]  # sha256 of every file that train read, by name


class Pruned(TypedDict):
    """A folder that `make prune` removed."""

    path: str
    bytes: int
    at: str
    again: NotRequired[str]  # when its stage began again


class Start(TypedDict):
    """The adapter, or the full weights, from which a training began (`start_from`)."""

    start_from: str  # as the job names it
    sha256: str  # of its file of weights
    weights: NotRequired[str]  # its numbers, by their hash; earlier records lack it
    base_by: str  # how its base was found to be the job's: `fingerprint` or `name`
    run: str | None  # the run that made it, if known
    data: str | None  # that run's prepared rows, by their fingerprint
    began_from: NotRequired[str]  # from what that run had begun
    full: NotRequired[bool]  # True for full weights


class EndToken(TypedDict):
    """Whether the end token's row was trained, and the measurement on the base behind it."""

    token: NotRequired[int]
    ends: NotRequired[int]  # ends of training answers at which it was measured
    log_probability: NotRequired[float]  # the token's mean there, in the base
    limit: NotRequired[float]  # below it, the base counts as unable to end an answer
    trained: NotRequired[bool]
    because: NotRequired[str]


class RunRecord(TypedDict):
    """The content of run.json."""

    run: str
    created: str
    fingerprints: Fingerprints
    stages: dict[str, StageEntry]  # by Stage, in the order in which they run
    packages: NotRequired[dict[str, str]]  # versions, of the last attempt
    hardware: NotRequired[Hardware]
    pruned: NotRequired[list[Pruned]]
    start: NotRequired[Start]
    end_token: NotRequired[EndToken]
    sources: NotRequired[dict[str, str]]  # hashes of data, exam and safety set, as prepared
    # in words, what of them had changed when a later stage last looked
    sources_changed: NotRequired[str]


# --------------------------------------------------------------------------------------------------
# results.json: a section for each stage, and the exams


class PrepareResults(TypedDict):
    """How many rows were read, dropped, changed and kept."""

    rows_read: int
    rows_kept: int
    dropped: dict[str, int]  # rows by the reason
    train: int  # rows of each split
    validation: int
    test: int
    forgetting: NotRequired[int]  # rows of another source, which are only measured
    changed: dict[str, int]  # rows by the cleaning rule
    review: NotRequired[dict[str, dict[str, int]]]  # bundled texts by their state of review
    tokens_total: int
    tokens_trained: int
    truncated: int
    seconds: float
    step_seconds: dict[str, float]
    seconds_between_steps: NotRequired[float]  # making or downloading the base, and the tables


class Lengthening(TypedDict):
    """Where a training went on to more steps than it was planned for."""

    after_step: int
    planned: int  # steps in all, before and after
    then_planned: int
    rate_before: float  # learning rates of the steps on both sides
    rate_after: float


class TrainResults(TypedDict):
    """Numbers from the ledger; ledger.summarise says over which steps. None: not measured."""

    start_from: NotRequired[str]  # the adapter with which eval_loss_before was measured
    steps: int
    epochs: float
    sessions: int
    steps_repeated: int
    loss_first: float | None  # losses are in nats per trained token
    loss_last: float | None
    loss_mean: float | None
    eval_loss_before: float | None
    eval_loss_after: float | None
    eval_loss_before_ci95: NotRequired[list[float]]
    eval_loss_after_ci95: NotRequired[list[float]]
    forgetting_loss_before: NotRequired[float]  # on the rows of `forgetting`
    forgetting_loss_after: NotRequired[float]
    forgetting_loss_before_ci95: NotRequired[list[float]]
    forgetting_loss_after_ci95: NotRequired[list[float]]
    samples_per_second: float | None
    tokens_per_second: float | None
    samples_per_second_with_warm_up: float | None
    tokens_per_second_with_warm_up: float | None
    compile_seconds: float
    padding_share: float | None
    flops_utilisation: float | None
    device: str | None
    devices: int | None
    earlier_devices: NotRequired[list[str]]
    trainable_parameters: int | None
    total_parameters: int | None
    peak_memory_gib: float | None
    memory_of: str | None
    best_step: NotRequired[int | None]
    lengthened: NotRequired[list[Lengthening]]
    end_token: NotRequired[EndToken]
    seconds: float


class ChoicePair(TypedDict):
    """Right answers of a tuned model and its base in one form of a multiple-choice exam."""

    items: int
    base_correct: int
    tuned_correct: int
    base_ci95: list[float]
    tuned_ci95: list[float]
    gained: int
    lost: int
    mcnemar_p: float


class CompletionPair(ChoicePair):
    """The same by the text of the options; `normalised` says how their length counts."""

    normalised: str  # `character` or `sum`


class BitsPair(TypedDict):
    """Bits per byte of the right options' text, paired by item; fewer are better."""

    items: int
    base: float
    tuned: float
    base_ci95: list[float]
    tuned_ci95: list[float]
    difference: float
    difference_ci95: list[float]
    better: int  # items on which it fell
    worse: int


class ExamPair(ChoicePair):
    """A tuned model compared with its base in one multiple-choice exam, first by letters.

    Results of versions that asked for letters only lack the other two.
    """

    completion: NotRequired[CompletionPair]
    bits_per_byte: NotRequired[BitsPair]


# The exam's name (`exam`), the form that comes first (`headline`: `completion` or `letters`) and
# why (`headline_reason`), the keys of ExamPair for the merged model, perplexities, and an ExamPair
# for each GGUF under its type (`q8_0`). A TypedDict cannot have keys known only at run time.
ExamResults = dict[str, Any]


class Count(TypedDict):
    """How many (`count`) of how many (`of`)."""

    count: int
    of: int


class SafetyResults(TypedDict):
    """One model's answers to the safety set; prompts gained and lost are relative to the base."""

    names_call: Count
    no_harm: Count
    no_refusal: Count
    ended: Count
    passed: Count
    passed_ci95: list[float]
    gained: NotRequired[int]
    lost: NotRequired[int]
    mcnemar_p: NotRequired[float]


class ExportResults(TypedDict):
    """What was exported, and how it was verified and measured."""

    artifacts: list[Artifact]
    # by GGUF type, from lib/export/parity/compare.py; share_of_tuning from few_bits/share.py
    parity: dict[str, dict[str, Any]]
    imatrix: NotRequired[dict[str, Any]]  # where the weights' importance came from
    edge: list[dict[str, Any]]  # from lib/export/edge.py
    lora: dict[str, Any]  # about the adapter's own GGUF; empty if none was written
    turns: dict[str, int]  # conversations compared with the chat template, by server
    seconds: float
    pushed: NotRequired[list[dict[str, Any]]]  # from lib/export/push.py


class Results(TypedDict, total=False):
    """The content of results.json: a section for each finished stage and each exam taken."""

    prepare: PrepareResults
    train: TrainResults
    export: ExportResults
    exam: ExamResults  # of the first exam in the job's list
    exams: dict[str, ExamResults]  # of the others, by name
    # SafetyResults by model (base, tuned, each GGUF type), and by their own names `criteria` (every
    # figure of each model), `baselines` (of answers without a model) and `judge` (a judge model's)
    safety: dict[str, Any]
