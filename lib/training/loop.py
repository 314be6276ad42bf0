"""The training loop: an exact order, an honest ledger, a stop at any moment that loses no completed step."""

import collections
import contextlib
import pathlib
import sys
import time
from typing import Any

import torch
from tqdm import tqdm

from lib.common import machine
from lib.common.errors import UserError
from lib.model import adapter, device, options, ranks
from lib.params import Params
from lib.record.ledger import Ledger
from lib.training import checks, compiled, plan, stops, trackers
from lib.training.checkpoint import resume, save_checkpoint
from lib.training.held_out import HeldOut, forget_earlier, forget_later, take_best
from lib.training.masters import Masters
from lib.training.step import load_steps, micro_batch, run_step


def identity(
    job: Params, data_fingerprint: str, base_fingerprint: str, trainable: int
) -> dict[str, Any]:
    """What a checkpoint must agree on with the job that resumes from it.

    Not the number of GPUs, nor, where neither packing nor random numbers depend on it, how the rows of a step fall into
    micro-batches: those change the rounding, nothing else.
    """
    keys = (
        "base_model",
        "base_revision",
        "load_in_4bit",
        "lora_r",
        "lora_alpha",
        "lora_dropout",
        "use_rslora",
        "use_dora",
        "finetune_attention_modules",
        "finetune_mlp_modules",
        "packing",
        "num_train_epochs",
        "max_steps",
        "learning_rate",
        "lr_scheduler_type",
        "warmup_steps",
        "weight_decay",
        "neftune_noise_alpha",
        "max_grad_norm",
        "optim",
        "seed",
    )
    exact = job.packing or job.lora_dropout or job.neftune_noise_alpha
    installed = machine.packages()
    versions = {
        f"{name} version": ".".join(installed[name].split(".")[:2])
        for name in ("torch", "transformers", "peft")
    }
    return {
        "data": data_fingerprint,
        "base": base_fingerprint,
        "trainable_parameters": trainable,
        "rows_a_step": plan.rows_per_step(job),
        "computes in": str(device.choose_precision(job.precision, job.load_in_4bit)[0]),
        "by": options.choose_backend(job)[0],
        **({"micro_batch": job.per_device_train_batch_size} if exact else {}),
        **{k: getattr(job, k) for k in keys},
        **versions,
    }


def train(
    model: Any,
    data: Any,
    validation: Any,
    job: Params,
    folder: pathlib.Path,
    identity: dict[str, Any],
) -> Masters:
    """Train the adapter in `model`, writing folder/metrics.jsonl and folder/checkpoints; resumes from what is there.

    `identity` goes into every checkpoint, and one of another identity is refused. KeyboardInterrupt (Ctrl-C, or the
    runner's SIGTERM), a stop file and max_minutes end the session after saving the last completed step. Under torchrun
    every rank calls it; rank 0 alone writes.
    """
    report = trackers.start(job, folder) if ranks.rank() == 0 else None
    try:
        return _train(model, data, validation, job, folder, identity, report)
    finally:
        if report:
            report(
                "end", {}
            )  # the kernel is killed when the notebook ends, and a tracker's queue with it


def _train(
    model: Any,
    data: Any,
    validation: Any,
    job: Params,
    folder: pathlib.Path,
    identity: dict[str, Any],
    report: Any,
) -> Masters:
    checkpoints, writes = folder / "checkpoints", ranks.rank() == 0
    checkpoints.mkdir(exist_ok=True)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()  # of what came before: the probe, answers
    sizes, total = plan.read_sizes(data), plan.count_steps(len(data), job)
    fixed = plan.find_shape(sizes, job) if job.packing else None
    if job.torch_compile:
        compiled.fuse(model)
    masters = Masters(model, job)
    first = step = resume(checkpoints, masters, identity)
    ledger = Ledger(folder / "metrics.jsonl") if writes else None
    if writes:
        ledger.require_steps(step)
    if not step and any(w.any() for n, w in masters.weights.items() if "lora_B" in n):
        raise UserError(
            "the adapter in memory has been trained already, and there is no checkpoint to go back to. Restart the kernel (the notebook) "
            "and run all cells again."
        )
    ranks.copy_from_first(masters.flat)  # cards of different kinds draw different numbers
    masters.publish()

    def note(event: str, **values: Any) -> None:
        if writes:
            ledger.write(event, **values)
            report(event, values)

    (tuned, everything), vocabulary = (
        adapter.count_parameters(model),
        model.config.get_text_config().vocab_size,
    )
    note(
        "session",
        start_step=step,
        total_steps=total,
        trainable_parameters=tuned,
        total_parameters=everything,
        memory_of=device.peak_memory()[1],
        device=device.name(),
        devices=ranks.world_size(),
        dtype=str(device.choose_precision(job.precision, job.load_in_4bit)[0]).removeprefix(
            "torch."
        ),
        vocabulary=vocabulary,
        **checks.flops(model),
    )
    if writes:
        print(
            f"{'continuing after' if step else 'starting at'} step {step} of {total}: {len(data):,} rows, {tuned:,} trainable parameters",
            flush=True,
        )
    signals = stops.Signals()
    held_out = HeldOut(
        model,
        validation,
        job,
        ranks.from_first(ledger.eval_losses(step) if writes else None),
        note,
        lambda: signals.got,
    )
    if writes:
        forget_later(checkpoints, step)
    if not step:
        held_out.measure("before", step)
    elif held_out.due(step, total):  # the session before had no time for it
        held_out.during(step, masters, checkpoints, identity)
    loader, take = load_steps(data, sizes, step, job, fixed), None
    # not train() alone: Unsloth's generate turns gradient checkpointing off, and only its for_training() turns it on again
    getattr(model, "for_training", model.train)()
    if step < total and not held_out.patience_spent():
        begun = time.monotonic()
        take = micro_batch(
            model,
            masters,
            job,
            lambda: next(load_steps(data, sizes, step, job, fixed))["batches"][0][1],
        )
        if job.torch_compile:
            note("compiled", seconds=round(time.monotonic() - begun, 3))
    started, line, recent = (
        time.monotonic(),
        {"steps": 0},
        collections.deque(ranks.from_first(ledger.step_losses() if writes else None), maxlen=20),
    )
    bar = tqdm(
        total=total,
        initial=step,
        desc="training",
        unit="step",
        file=sys.stdout,
        mininterval=2,
        ncols=100,
        disable=not writes,
    )
    with signals, bar, checks.neftune(model, job.neftune_noise_alpha), contextlib.closing(loader):
        while step < total and not held_out.patience_spent():
            begun, current, rate = (
                time.monotonic(),
                next(loader),
                plan.learning_rate(step, total, job),
            )
            done = run_step(
                take,
                masters,
                step,
                current,
                job,
                lambda: (
                    signals.got or (folder / stops.INTERRUPT).exists(),
                    0 < job.max_minutes <= (time.monotonic() - started) / 60,
                    (folder / stops.STOP_FILE).exists(),
                ),
            )
            if done.loss is not None:
                if stops.diverged(done, recent, vocabulary):
                    raise stops.Diverged(
                        f"step {step + 1} has the loss {done.loss:.4g} and the gradient norm {done.norm:.4g}; its rows are "
                        f"{[data[n]['id'] for n in current['rows']]}. The last checkpoint is kept. "
                        f"A lower learning_rate, or more warmup_steps, is the usual cure."
                    )
                masters.step(done.norm, rate, job.max_grad_norm)
                step += 1
                recent.append(done.loss)
                line = _add(
                    line,
                    loss=done.loss,
                    tokens=current["tokens"],
                    padded=current["padded"],
                    trained=current["trained"],
                    rows=len(current["rows"]),
                    seconds=time.monotonic() - begun,
                )
                last = {"epoch": current["epoch"], "lr": rate, "grad_norm": done.norm}
                bar.set_postfix(loss=f"{done.loss:.3f}", refresh=False)
                bar.update()
            stop = done.stop if done.stop != "time" or step < total else ""
            measuring = not stop and held_out.due(step, total)
            saving = stop or measuring or step == total or step % job.save_steps == 0
            # a ledger line never spans a checkpoint or an eval: a session that resumes from it must replace whole lines
            if line["steps"] and (saving or step % job.logging_steps == 0):
                note(
                    "step",
                    step=step,
                    **last,
                    memory_gib=round(device.peak_memory()[0], 3),
                    **{**line, "loss": line["loss"] / line["steps"]},
                )
                line = {"steps": 0}
            if saving:
                save_checkpoint(checkpoints, step, masters, identity, job.save_total_limit)
                if writes:
                    forget_earlier(checkpoints)
            if measuring:
                held_out.during(step, masters, checkpoints, identity)
            if stop:
                (folder / stops.STOP_FILE).unlink(missing_ok=True)
                stops.end_session(stop, step, total, step - first, current, sizes, job)
    del take  # a recorded graph holds the memory of a step
    if job.early_stopping_patience:
        if step < total and writes:
            print(
                f"stopped early: no better held-out loss in the last {job.early_stopping_patience} evals",
                flush=True,
            )
        if best := take_best(checkpoints, masters, identity):
            note("best", step=best)
    held_out.measure("after", step)
    return masters


def _add(line: dict[str, Any], **values: float) -> dict[str, Any]:
    return {"steps": line["steps"] + 1, **{k: line.get(k, 0) + v for k, v in values.items()}}
