"""Before hours are spent: does the job fit the card and the disk, what will it take, and what to set when it does not fit."""

import contextlib
import gc
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import torch

from lib.common import files
from lib.common.errors import UserError
from lib.model import adapter, device, placement, ranks
from lib.model.options import choose_backend
from lib.params import FIELDS, Params
from lib.training import batches, checkpoint, compiled, loss, packed, plan

SPARE = 0.05  # of a card's memory, left for fragmentation and the desktop
DEFAULT_ROWS = FIELDS["per_device_train_batch_size"].default


def extremes(sizes: plan.Sizes, job: Params) -> tuple[list[int], list[int]]:
    """The rows of the micro-batches that need the least and the most memory: by positions, then by trained tokens."""

    def cost(b: list[int]) -> tuple[int, int]:
        return len(b) * sizes.lengths[b].max() if not job.packing else sizes.lengths[
            b
        ].sum(), sizes.trained[b].sum()

    every = [b for step in plan.plan_epoch(sizes.lengths, 0, job) for b in step]
    return min(every, key=cost), max(every, key=cost)


def estimate(model: Any, sizes: plan.Sizes, job: Params) -> dict[str, float]:
    """GiB by arithmetic: what is loaded, the adapter's masters with AdamW's state, and the largest micro-batch's activations.

    Activations a position, in 2 bytes: checkpointed layers keep their input (4 streams in Gemma 3n), one layer at a time is
    whole; otherwise all are. A layer keeps about 14 widths and 5 MLP widths. Coarse; the probe measures it.
    """
    text = model.config.get_text_config()
    mlp = (
        max(text.intermediate_size)
        if isinstance(text.intermediate_size, list | tuple)
        else text.intermediate_size
    )
    streams = getattr(text, "altup_num_inputs", 1)
    layer = (14 + 2 * streams) * text.hidden_size + 5 * mlp
    kept = (
        text.num_hidden_layers * streams * text.hidden_size + layer
        if job.gradient_checkpointing
        else text.num_hidden_layers * layer
    )
    _, rows = extremes(sizes, job)
    positions = (
        plan.find_shape(sizes, job).tokens if job.packing else len(rows) * int(sizes.lengths[rows].max())
    )
    loaded = sum(
        p.numel() * p.element_size() for p in model.parameters() if p.device == model.device
    )
    state = adapter.count_parameters(model)[0] * (8 + (2 if job.optim == "adamw_8bit" else 8))
    logits = (
        10 * text.vocab_size * loss.CHUNK[model.device.type]
    )  # in 2 bytes, in 4, and their softmax
    return {
        "weights": loaded / 2**30,
        "masters and optimizer": state / 2**30,
        "activations": (2 * kept * positions + logits) / 2**30,
    }


class DoesNotFit(Exception):
    """The card has not enough memory for one micro-batch."""


def probe(
    model: Any, data: Any, sizes: plan.Sizes, job: Params, rows: list[int], devices: int = 1
) -> tuple[float, int]:
    """(seconds, positions) of a forward and backward of the rows as a micro-batch; no weight is moved. DoesNotFit when it doesn't,
    or would not in each process of several."""
    cuda, was_training = torch.cuda.is_available(), model.training
    columns = data.select_columns(["input_ids", "labels"])[rows]
    batch = batches.make_batch(
        columns,
        plan.find_shape(sizes, job) if job.packing else None,
        1 / max(1, int(sizes.trained[rows].sum())),
    )
    model.train()
    if cuda:  # the memory and the peaks of an earlier candidate, or of loading, are not this one's
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        for _ in range(2 if cuda else 1):  # the first one loads kernels
            begun = time.monotonic()
            with packed.in_use(model) if job.packing else contextlib.nullcontext():
                float(compiled.forward_backward(model, batch.to(model.device)))
            seconds = time.monotonic() - begun
            if (
                cuda
                and torch.cuda.max_memory_reserved() * _of_a_rank(job, devices)
                > (1 - SPARE) * 1e9 * device.card().gb
            ):
                raise DoesNotFit
    except torch.OutOfMemoryError:
        raise DoesNotFit from None
    finally:
        for p in adapter.trainable(model).values():
            p.grad = None
        model.train(was_training)
        gc.collect()
        torch.cuda.empty_cache()
    return seconds, batch.input_ids.numel()


def alternatives(job: Params, devices: int) -> Iterator[Params]:
    """The job with ever smaller micro-batches, as many rows a step, and accumulation that shares out among the devices."""
    if job.per_device_train_batch_size == "auto":
        rows = most = DEFAULT_ROWS * job.gradient_accumulation_steps
    else:
        rows, most = plan.rows_per_step(job), job.per_device_train_batch_size - 1
    for size in range(most, 0, -1):
        if rows % size == 0 and rows // size % devices == 0:
            yield job.model_copy(
                update={
                    "per_device_train_batch_size": size,
                    "gradient_accumulation_steps": rows // size,
                }
            )


def fitting(
    model: Any, data: Any, sizes: plan.Sizes, candidates: Iterator[Params], devices: int = 1
) -> tuple[Params, tuple[float, int]] | None:
    """The first of the candidates that fits, with its probe."""
    for job in candidates:
        try:
            return job, probe(model, data, sizes, job, extremes(sizes, job)[1], devices)
        except DoesNotFit:
            print(f"micro-batches of {job.per_device_train_batch_size} rows do not fit", flush=True)
    return None


def check(
    model: Any, data: Any, held_out: int, job: Params, folder: pathlib.Path
) -> tuple[Params, dict[str, Any]]:
    """The job with its micro-batch settled, and what it will take; UserError when it cannot run here, naming what would.

    Memory is estimated, then measured by one micro-batch, the largest. Disk must hold the checkpoints.
    """
    sizes = plan.read_sizes(data)
    devices = ranks.count_gpus(job.num_gpus, job.gradient_accumulation_steps)
    if not len(sizes.lengths):
        raise UserError(plan.NO_ROWS)
    if job.early_stopping_patience and not held_out:
        raise UserError(
            "early_stopping_patience needs held-out rows, and there are none. Set validation_size, or early_stopping_patience: 0."
        )
    kept = adapter.count_parameters(model)[0] * (4 + (2 if job.optim == "adamw_8bit" else 8))
    files.require_disk(
        folder,
        kept * (job.save_total_limit + 1 + (job.early_stopping_patience > 0)),
        "the checkpoints",
    )
    settled = _settled(folder) if job.per_device_train_batch_size == "auto" else 0
    if settled:  # by a session before; where the order of rows depends on it, it must stay
        rows = DEFAULT_ROWS * job.gradient_accumulation_steps
        job = job.model_copy(
            update={
                "per_device_train_batch_size": settled,
                "gradient_accumulation_steps": rows // settled,
            }
        )
        devices = ranks.count_gpus(job.num_gpus, job.gradient_accumulation_steps)
    if devices > 1 and placement.is_spread(model):
        # here the base lies over all cards, there each holds a share of it: the one says nothing of the other
        if job.per_device_train_batch_size == "auto":
            raise UserError(
                "per_device_train_batch_size: auto cannot be tried for a base sharded over the GPUs. Set a number, 1 to begin with."
            )
        probed = None
    else:
        job, probed = _probed(model, data, sizes, job, devices, settled)
    if job.gradient_accumulation_steps % devices:
        cure = (
            f"This run's checkpoints insist on micro-batches of {settled} rows: set num_gpus: 1, or start over with FORCE=1."
            if settled
            else f"Set a multiple of {devices} (with a smaller per_device_train_batch_size for the same rows a step), or num_gpus: 1."
        )
        raise UserError(
            f"gradient_accumulation_steps is {job.gradient_accumulation_steps}, which {devices} GPUs cannot share out evenly. {cure}"
        )
    fixed, guess = plan.find_shape(sizes, job) if job.packing else None, estimate(model, sizes, job)
    figures = plan.describe_plan(sizes, held_out, job, fixed)
    peak, of = device.peak_memory()
    positions = minutes = "not probed, the base is sharded"
    if probed:
        positions = probed[1]
        short = _shortest(model, data, sizes, job) or probed
        minutes = (
            _seconds_an_epoch(short, probed, sizes, job, fixed)
            * figures["steps in all"]
            / figures["steps an epoch"]
            / devices
            / 60
        )
    return job, {
        **figures,
        "GPUs": devices if torch.cuda.is_available() else 0,
        "micro-batch, rows": job.per_device_train_batch_size,
        "largest micro-batch, positions": positions,
        "memory estimated, GiB": sum(guess.values()),
        **{f"  of it {k}": v for k, v in guess.items()},
        f"memory probed, {of} peak GiB": peak if probed else "not probed",
        **(
            {"  in each of several processes, about": peak * more}
            if probed and (more := _of_a_rank(job, devices)) > 1
            else {}
        ),
        "memory of the card, GiB": device.card().gb * 1e9 / 2**30 or None,
        "a checkpoint, MB": kept / 1e6,
        f"time estimated{', before compiling makes it shorter' * job.torch_compile}, minutes": minutes,
    }


def _of_a_rank(job: Params, devices: int) -> float:
    """Memory of a process of several beside that of the only one: Unsloth's checkpointing keeps more on the card there, 12.8 GiB where one
    process took 9.7 (two H100, 8 rows of 994 tokens)."""
    return 4 / 3 if devices > 1 and choose_backend(job)[0] == "unsloth" else 1.0


def _shortest(model: Any, data: Any, sizes: plan.Sizes, job: Params) -> tuple[float, int] | None:
    """The probe of the shortest micro-batch; None where all are of one shape, or the card has filled up meanwhile."""
    with contextlib.suppress(DoesNotFit):
        return None if job.packing else probe(model, data, sizes, job, extremes(sizes, job)[0])


def _seconds_an_epoch(
    short: tuple[float, int],
    long: tuple[float, int],
    sizes: plan.Sizes,
    job: Params,
    fixed: plan.Shape | None,
) -> float:
    """On one device, by a line through two micro-batches: below some size a card takes as long as launching its kernels does.

    By the longer one alone where they are too much alike, or a line would start below zero.
    """
    (less, few), (more, many) = short, long
    each = (more - less) / (many - few) if many >= 1.5 * few else 0.0
    if not 0 < each * many <= more:
        each = more / many
    start = more - each * many
    steps = plan.plan_epoch(sizes.lengths, 0, job)
    return start * sum(map(len, steps)) + each * plan.count_positions(sizes, steps, fixed)


def _probed(
    model: Any, data: Any, sizes: plan.Sizes, job: Params, devices: int, settled: int
) -> tuple[Params, tuple[float, int]]:
    """The job with a micro-batch that fits, and its probe; UserError where none does."""
    if job.per_device_train_batch_size != "auto":
        found = fitting(model, data, sizes, iter([job]), devices)
    elif torch.cuda.is_available():
        found = fitting(model, data, sizes, alternatives(job, devices), devices)
    else:  # main memory is not what limits a micro-batch; this many keep the cores busy
        small = next(
            a for a in alternatives(job, devices) if a.per_device_train_batch_size <= DEFAULT_ROWS
        )
        found = small, probe(model, data, sizes, small, extremes(sizes, small)[1])
    if found:
        return found
    if settled:
        raise UserError(
            f"this run's checkpoints insist on micro-batches of {settled} rows, which do not fit {device.name()} "
            f"({device.card().gb:.1f} GB). Continue on a card like the one it began on, or start over with FORCE=1."
        )
    raise UserError(_what_would_fit(model, data, sizes, job, devices))


def _settled(folder: pathlib.Path) -> int:
    """The micro-batch that the newest checkpoint insists on; 0 without one."""
    found = checkpoint.newest_checkpoint(folder / "checkpoints")
    return found[1].get("micro_batch", 0) if found else 0


def _what_would_fit(model: Any, data: Any, sizes: plan.Sizes, job: Params, devices: int) -> str:
    rows, (name, size) = job.per_device_train_batch_size, device.card()
    text = f"per_device_train_batch_size={rows} does not fit {name} ({size:.1f} GB) with rows of up to {int(sizes.lengths.max())} tokens."
    found = (
        fitting(model, data, sizes, alternatives(job, devices), devices) if rows != "auto" else None
    )
    if found:
        return (
            f"{text} This fits, with the same rows a step: per_device_train_batch_size={found[0].per_device_train_batch_size} "
            f"gradient_accumulation_steps={found[0].gradient_accumulation_steps} (or per_device_train_batch_size=auto)."
        )
    more = [
        words
        for words, helps in (
            ("gradient_checkpointing: true", not job.gradient_checkpointing),
            ("load_in_4bit: true", not job.load_in_4bit),
            ("offload_embedding: true", not job.offload_embedding),
        )
        if helps
    ]
    return (
        f"{text} No smaller micro-batch does. Set {' or '.join(more)}."
        if more
        else f"{text} No smaller micro-batch does. Lower max_seq_length."
    )
