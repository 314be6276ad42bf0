"""Check that a job fits the card and the disk, and estimate its time, before hours are spent.

    job, plan = preflight.check_fit(model, rows, held_out_rows, job, folder)

If the job does not fit, the error names the parameters to set.
"""

import contextlib
import gc
import pathlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from lib.common import files
from lib.common.errors import UserError
from lib.model import adapter, device, placement, ranks
from lib.model.options import choose_backend
from lib.params import FIELDS, Params, number_bytes
from lib.training import batches, checkpoint, checks, compiled, packed, plan

SPARE = 0.05  # share of a card's memory that is left for fragmentation and the desktop
DEFAULT_ROWS = FIELDS["per_device_train_batch_size"].default
GIB = 2**30
NOT_PROBED = "not probed, the base is sharded"


class DoesNotFit(Exception):
    """The card does not have enough memory for a micro-batch."""


class Probe(NamedTuple):
    """The time of one micro-batch, forward and backward, and its number of positions."""

    seconds: float
    positions: int


def check_fit(
    model: Any, data: Any, held_out_rows: int, job: Params, folder: pathlib.Path
) -> tuple[Params, dict[str, Any]]:
    """Return the job with its final micro-batch, and a table of what it will take.

    Memory is estimated, then measured with the largest micro-batch; the disk must have room for the
    checkpoints. Raise UserError with settings that would work when the job cannot run here.
    """
    sizes = plan.read_sizes(data)
    devices = ranks.count_gpus(job.num_gpus, job.gradient_accumulation_steps)
    _require_rows(len(sizes.lengths), held_out_rows, job.early_stopping_patience)
    numbers = adapter.count_parameters(model)[0]
    checkpoint_bytes = number_bytes.checkpoint(numbers, job.optim)
    checkpoints = job.save_total_limit + 1  # one more exists while it is written
    if job.early_stopping_patience:
        checkpoints += 1  # the best weights
    # what was trained is kept besides, in float32
    disk = checkpoint_bytes * checkpoints + numbers * number_bytes.MASTER
    files.require_disk(folder, disk, f"the checkpoints, {checkpoint_bytes / 1e6:,.0f} MB each")

    newest = checkpoint.newest_checkpoint(folder / "checkpoints")
    state = newest[1] if newest else {}
    required_rows = 0
    if job.per_device_train_batch_size == "auto":
        required_rows = state.get("micro_batch", 0)
    if (
        required_rows
    ):  # chosen by an earlier session; the order of rows or random numbers depend on it
        job = _with_micro_batch(job, required_rows, DEFAULT_ROWS * job.gradient_accumulation_steps)
        devices = ranks.count_gpus(job.num_gpus, job.gradient_accumulation_steps)
    probe = None
    if devices > 1 and placement.is_spread(model):
        # here the base is spread over all cards, but in training each process has a share of it
        # on its own card: a probe here would not measure that memory
        if job.per_device_train_batch_size == "auto":
            raise UserError(
                "per_device_train_batch_size: auto cannot be probed for a base that is sharded "
                "over the GPUs. Set a number, 1 to begin with."
            )
    else:
        job, probe = _settle_micro_batch(model, data, sizes, job, devices, required_rows)
    _refuse_uneven_shares(job.gradient_accumulation_steps, devices, required_rows)

    memory = _describe_memory(model, sizes, job, devices, probed=probe is not None)
    minutes: float | str = NOT_PROBED
    if probe:
        minutes = _estimate_minutes(model, data, sizes, job, devices, probe)
    comment = ", before compiling makes it shorter" if job.torch_compile else ""
    shape = plan.fixed_shape(sizes, job)
    return job, {
        **plan.describe_plan(sizes, held_out_rows, job, shape, state.get("step", 0)),
        "GPUs": devices if torch.cuda.is_available() else 0,
        "micro-batch, rows": job.per_device_train_batch_size,
        "largest micro-batch, positions": probe.positions if probe else NOT_PROBED,
        **memory,
        "a checkpoint, MB": checkpoint_bytes / 1e6,
        f"time estimated{comment}, minutes": minutes,
    }


# --------------------------------------------------------------------------------------------------
# refusals


def _require_rows(rows: int, held_out_rows: int, early_stopping_patience: int) -> None:
    if not rows:
        raise UserError(plan.NO_ROWS)
    if early_stopping_patience and not held_out_rows:
        raise UserError(
            "early_stopping_patience needs held-out rows, but there are none. Set validation_size, "
            "or early_stopping_patience: 0."
        )


def _refuse_uneven_shares(
    gradient_accumulation_steps: int, devices: int, required_rows: int
) -> None:
    if gradient_accumulation_steps % devices == 0:
        return
    if required_rows:
        cure = (
            f"This run's checkpoints require micro-batches of {required_rows} rows: set "
            f"num_gpus: 1, or start over with FORCE=1."
        )
    else:
        cure = (
            f"Set a multiple of {devices} (with a smaller per_device_train_batch_size for the same "
            f"rows a step), or num_gpus: 1."
        )
    raise UserError(
        f"gradient_accumulation_steps is {gradient_accumulation_steps}, which {devices} GPUs "
        f"cannot share evenly. {cure}"
    )


# --------------------------------------------------------------------------------------------------
# the micro-batch


def probe_micro_batch(
    model: Any, data: Any, sizes: plan.Sizes, job: Params, rows: plan.MicroBatch, devices: int = 1
) -> Probe:
    """Run the rows forward and backward as a micro-batch, without changing a weight.

    Raise DoesNotFit when the card does not have enough memory, for this or for several processes.
    """
    cuda, was_training = torch.cuda.is_available(), model.training
    columns = data.select_columns(["input_ids", "labels"])[rows]
    weight = 1 / max(1, int(sizes.trained[rows].sum()))
    batch = batches.make_batch(columns, plan.fixed_shape(sizes, job), weight)
    model.train()
    if cuda:  # free the memory and the peaks of an earlier candidate, or of loading
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        for _ in range(2 if cuda else 1):  # the first one loads kernels
            begun = time.monotonic()
            with packed.attend_within_rows(model) if job.packing else contextlib.nullcontext():
                float(compiled.forward_backward(model, batch.to(model.device)))
            seconds = time.monotonic() - begun
            if cuda:
                needed = torch.cuda.max_memory_reserved() * _memory_factor(job, devices)
                if job.full_finetuning:  # which a probe does not have yet; an adapter's are small
                    needed += number_bytes.masters(adapter.count_parameters(model)[0], job.optim)
                if needed > (1 - SPARE) * 1e9 * device.card().gb:
                    raise DoesNotFit
    except torch.OutOfMemoryError:
        raise DoesNotFit from None
    finally:
        for p in adapter.trainable(model).values():
            p.grad = None
        model.train(was_training)
        gc.collect()
        torch.cuda.empty_cache()
    return Probe(seconds, batch.input_ids.numel())


def smaller_micro_batches(job: Params, devices: int) -> Iterator[Params]:
    """Yield the job with smaller and smaller micro-batches and the same rows per step.

    The devices can share each accumulation evenly.
    """
    if job.per_device_train_batch_size == "auto":
        rows = largest = DEFAULT_ROWS * job.gradient_accumulation_steps
    else:
        rows, largest = plan.rows_per_step(job), job.per_device_train_batch_size - 1
    for size in range(largest, 0, -1):
        if rows % size == 0 and rows // size % devices == 0:
            yield _with_micro_batch(job, size, rows)


def find_fitting(
    model: Any, data: Any, sizes: plan.Sizes, candidates: Iterator[Params], devices: int = 1
) -> tuple[Params, Probe] | None:
    """Return the first candidate that fits, with its probe."""
    for job in candidates:
        _, largest = plan.find_extremes(sizes, job)
        try:
            return job, probe_micro_batch(model, data, sizes, job, largest, devices)
        except DoesNotFit:
            print(f"micro-batches of {job.per_device_train_batch_size} rows do not fit", flush=True)
    return None


def _settle_micro_batch(
    model: Any, data: Any, sizes: plan.Sizes, job: Params, devices: int, required_rows: int
) -> tuple[Params, Probe]:
    """Return the job with a micro-batch that fits, and its probe.

    Raise UserError where none does.
    """
    if job.per_device_train_batch_size != "auto":
        fitting = find_fitting(model, data, sizes, iter([job]), devices)
    elif torch.cuda.is_available():
        candidates = smaller_micro_batches(job, devices)
        fitting = find_fitting(model, data, sizes, candidates, devices)
    else:  # main memory does not limit a micro-batch, and DEFAULT_ROWS rows keep the cores busy
        small = next(
            candidate
            for candidate in smaller_micro_batches(job, devices)
            if plan.micro_batch_rows(candidate.per_device_train_batch_size) <= DEFAULT_ROWS
        )
        _, largest = plan.find_extremes(sizes, small)
        fitting = small, probe_micro_batch(model, data, sizes, small, largest)
    if fitting:
        return fitting
    if required_rows:
        raise UserError(
            f"this run's checkpoints require micro-batches of {required_rows} rows, which do not "
            f"fit {device.name()} ({device.card().gb:.1f} GB). Continue on a card like the one the "
            f"run began on, or start over with FORCE=1."
        )
    raise UserError(_explain_misfit(model, data, sizes, job, devices))


def _explain_misfit(model: Any, data: Any, sizes: plan.Sizes, job: Params, devices: int) -> str:
    """Return what to set for a job whose micro-batch does not fit, after trying smaller ones."""
    rows, card = job.per_device_train_batch_size, device.card()
    problem = (
        f"per_device_train_batch_size={rows} does not fit {card.name} ({card.gb:.1f} GB) with rows "
        f"of up to {int(sizes.lengths.max())} tokens."
    )
    if rows != "auto":
        candidates = smaller_micro_batches(job, devices)
        fitting = find_fitting(model, data, sizes, candidates, devices)
        if fitting:
            smaller, _ = fitting
            return (
                f"{problem} These settings fit, with the same rows per step: "
                f"per_device_train_batch_size={smaller.per_device_train_batch_size} "
                f"gradient_accumulation_steps={smaller.gradient_accumulation_steps} "
                f"(or per_device_train_batch_size=auto)."
            )
    savings = {
        "gradient_checkpointing: true": job.gradient_checkpointing,
        "load_in_4bit: true": job.load_in_4bit,
        "offload_embedding: true": job.offload_embedding,
    }
    unused = [setting for setting, used in savings.items() if not used]
    cure = f"Set {' or '.join(unused)}." if unused else "Lower max_seq_length."
    return f"{problem} No smaller micro-batch fits either. {cure}"


def _with_micro_batch(job: Params, size: int, rows_per_step: int) -> Params:
    changes = {
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": rows_per_step // size,
    }
    return job.model_copy(update=changes)


# --------------------------------------------------------------------------------------------------
# memory and time


def _memory_factor(job: Params, devices: int) -> float:
    """Return the memory of each of several processes as a multiple of a single process's.

    Unsloth's checkpointing keeps more on the card if there are several: 12.8 GiB instead of the
    9.7 of a single process (two H100, 8 rows of 994 tokens).
    """
    return 4 / 3 if devices > 1 and choose_backend(job)[0] == "unsloth" else 1.0


def _describe_memory(
    model: Any, sizes: plan.Sizes, job: Params, devices: int, probed: bool
) -> dict[str, Any]:
    """Return the estimated memory, and the peak so far, which is that of the probe."""
    estimated = checks.estimate_memory(model, sizes, job)
    peak, place = device.peak_memory()
    lines: dict[str, Any] = {"memory estimated, GiB": sum(estimated.values())}
    for part, gib in estimated.items():
        lines[f"  of it {part}"] = gib
    lines[f"memory probed, {place} peak GiB"] = peak if probed else "not probed"
    factor = _memory_factor(job, devices) if probed else 1.0
    if factor > 1:
        lines["  in each of several processes, about"] = peak * factor
    lines["memory of the card, GiB"] = device.card().gb * 1e9 / GIB or None
    return lines


def _estimate_minutes(
    model: Any, data: Any, sizes: plan.Sizes, job: Params, devices: int, longest: Probe
) -> float:
    """Estimate the minutes of all steps, after also probing the shortest micro-batch."""
    shortest = _probe_shortest(model, data, sizes, job) or longest
    seconds = _seconds_an_epoch(shortest, longest, sizes, job, plan.fixed_shape(sizes, job))
    steps = plan.count_steps(len(sizes.lengths), job)
    steps_an_epoch = len(plan.plan_epoch(sizes.lengths, 0, job))
    return seconds * steps / steps_an_epoch / devices / 60


def _probe_shortest(model: Any, data: Any, sizes: plan.Sizes, job: Params) -> Probe | None:
    """Probe the shortest micro-batch; return None if all have one shape, or the card is full."""
    if job.packing:
        return None
    shortest, _ = plan.find_extremes(sizes, job)
    try:
        return probe_micro_batch(model, data, sizes, job, shortest)
    except DoesNotFit:
        return None


def _seconds_an_epoch(
    short: Probe, long: Probe, sizes: plan.Sizes, job: Params, shape: plan.Shape | None
) -> float:
    """Estimate the seconds of an epoch on one device, by a line through two micro-batches.

    Launching kernels takes a fixed time for any micro-batch, so the line has an intercept. If the
    two are too similar, or the intercept would be negative, the line goes through zero and the
    longer one.
    """
    (less, few), (more, many) = short, long
    each = (more - less) / (many - few) if many >= 1.5 * few else 0.0
    if not 0 < each * many <= more:
        each = more / many
    start = more - each * many
    steps = plan.plan_epoch(sizes.lengths, 0, job)
    return start * sum(map(len, steps)) + each * plan.count_positions(sizes, steps, shape)
