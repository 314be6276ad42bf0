"""The training loop: an exact order, an honest ledger, a stop at any moment that loses no completed step."""

import functools
import math
import pathlib
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lib import evaluate, files
from lib import model as models
from lib.checkpoint import Masters, resume, rng_state, save_checkpoint, set_rng_state
from lib.ledger import Ledger
from lib.loss import IGNORED, token_losses
from lib.params import Params, UserError

POOL = 8  # steps whose rows are sorted by length together: less padding, still a shuffled epoch


class SessionOver(Exception):
    """max_minutes is up: the work so far is saved, the same command continues."""


class Diverged(Exception):
    """The loss is not a finite number; the last checkpoint is kept."""


# ---------------------------------------------------------------------------------------------------------------------
# plan: which rows are in which micro-batch of which step, a pure function of lengths, seed and parameters


def epoch_steps(lengths: np.ndarray, epoch: int, job: Params) -> list[list[list[int]]]:
    """One epoch as steps of micro-batches of row numbers; every row once. Within a step rows are sorted by length."""
    order = np.random.default_rng([job.seed, epoch]).permutation(len(lengths))
    rows, size = job.per_device_train_batch_size, job.per_device_train_batch_size * job.gradient_accumulation_steps
    steps = []
    for start in range(0, len(order), size * POOL):
        pool = order[start:start + size * POOL]
        pool = pool[np.argsort(-lengths[pool], kind="stable")]
        steps += [pool[n:n + size].tolist() for n in range(0, len(pool), size)]
    shuffled = np.random.default_rng([job.seed, epoch, 1]).permutation(len(steps))
    return [[steps[s][n:n + rows] for n in range(0, len(steps[s]), rows)] for s in shuffled]


def total_steps(rows: int, job: Params) -> int:
    size = job.per_device_train_batch_size * job.gradient_accumulation_steps
    return job.max_steps if job.max_steps > 0 else max(1, math.ceil(math.ceil(rows / size) * job.num_train_epochs))


def steps_from(lengths: np.ndarray, done: int, job: Params) -> Iterator[tuple[float, list[list[int]]]]:
    """(epochs finished after it, micro-batches) of each step after the first `done`, without end."""
    per_epoch = len(epoch_steps(lengths, 0, job))
    epoch, offset = divmod(done, per_epoch)
    while True:
        for n, step in enumerate(epoch_steps(lengths, epoch, job)[offset:], offset + 1):
            yield epoch + n / per_epoch, step
        epoch, offset = epoch + 1, 0


def learning_rate(step: int, total: int, job: Params) -> float:
    """The rate of a step (0 is the first): transformers' schedules, so step 0 of a warm-up has rate 0."""
    if step < job.warmup_steps:
        return job.learning_rate * step / max(1, job.warmup_steps)
    progress = (step - job.warmup_steps) / max(1, total - job.warmup_steps)
    shape = {"linear": max(0.0, 1 - progress), "cosine": max(0.0, 0.5 * (1 + math.cos(math.pi * progress))), "constant": 1.0}
    return job.learning_rate * shape[job.lr_scheduler_type]


def plan(data: Any, validation: Any, job: Params) -> dict[str, Any]:
    """The derived numbers of a job: rows, steps, tokens a step, padding; computed, nothing is run."""
    lengths = np.asarray(data["length"][:])
    if not len(lengths):
        raise UserError("the training split has no rows; see the drop table of prepare.")
    epoch, total = epoch_steps(lengths, 0, job), total_steps(len(lengths), job)
    padded = sum(len(rows) * int(lengths[rows].max()) for step in epoch for rows in step)
    size = job.per_device_train_batch_size * job.gradient_accumulation_steps
    return {"training rows": len(lengths), "held-out rows": len(validation), "rows a step (micro-batch x accumulation)": size,
            "steps an epoch": len(epoch), "steps in all": total, "tokens an epoch": int(lengths.sum()),
            "tokens a step, mean": float(lengths.mean() * size), "padding, share of positions": 1 - int(lengths.sum()) / padded,
            "warm-up steps": job.warmup_steps, "peak learning rate": job.learning_rate, "schedule": job.lr_scheduler_type}


def identity(job: Params, data_fingerprint: str, trainable: int) -> dict[str, Any]:
    """What a checkpoint must agree on with the job that resumes from it."""
    keys = ("base_model", "base_revision", "load_in_4bit", "lora_r", "lora_alpha", "lora_dropout", "finetune_attention_modules",
            "finetune_mlp_modules", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps",
            "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "optim", "seed")
    return {"data": data_fingerprint, "trainable_parameters": trainable, **{k: getattr(job, k) for k in keys}}


# ---------------------------------------------------------------------------------------------------------------------
# the loop


def memory_gib() -> tuple[float, str]:
    """Peak memory so far and whose it is: the card's allocations, or this process's resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30, "GPU"
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, "process"


def run_step(model: Any, masters: Masters, rows: list[list[dict[str, Any]]], stop: Any = lambda: False) -> tuple[float, int, int, int] | None:
    """Forward and backward over a step's micro-batches: (loss a trained token, real, padded, trained tokens).

    Every trained token of the step weighs the same, however its rows fall into micro-batches. None when `stop()` came
    true: the unfinished accumulation is dropped, and the random numbers its dropout drew are put back.
    """
    trained = sum(label != IGNORED for batch in rows for r in batch for label in r["labels"][1:])
    total, real, padded, rng = 0.0, 0, 0, rng_state()
    for batch in rows:
        if stop():
            masters.drop_gradients()
            set_rng_state(rng)
            return None
        ids = evaluate.pad([r["input_ids"] for r in batch], 0, model.device)
        labels = evaluate.pad([r["labels"] for r in batch], IGNORED, model.device)
        losses, _ = token_losses(model, ids, labels)
        loss = losses.sum() / trained
        loss.backward()
        masters.take_gradients()
        total, real, padded = total + loss.item(), real + sum(len(r["input_ids"]) for r in batch), padded + ids.numel()
    return total, real, padded, trained


def train(model: Any, data: Any, validation: Any, job: Params, folder: pathlib.Path, identity: dict[str, Any]) -> Masters:
    """Train the adapter in `model`, writing folder/metrics.jsonl and folder/checkpoints; resumes from what is there.

    `identity` goes into every checkpoint, and one of another identity is refused. KeyboardInterrupt (Ctrl-C, or the
    runner's SIGTERM) and max_minutes end the session after saving the last completed step.
    """
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    lengths, total = np.asarray(data["length"][:]), total_steps(len(data), job)
    masters = Masters(model, job)
    first = step = resume(checkpoints, masters, identity)
    ledger = Ledger(folder / "metrics.jsonl")
    tuned, all_parameters = models.count(model)
    ledger.write("session", start_step=step, total_steps=total, trainable_parameters=tuned, total_parameters=all_parameters,
                 memory_of=memory_gib()[1], device=str(model.device), dtype=str(model.dtype).removeprefix("torch."))
    print(f"{'continuing after' if step else 'starting at'} step {step} of {total}: {len(data):,} rows, {tuned:,} trainable parameters", flush=True)
    held_out(model, validation, ledger, "before", step)
    model.train()
    interrupted: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: interrupted.append(number))
    started, line = time.monotonic(), {"steps": 0}
    bar = tqdm(total=total, initial=step, desc="training", unit="step", file=sys.stdout, mininterval=2, ncols=100)
    plan = steps_from(lengths, step, job)
    try:
        while step < total:
            reached, batches = next(plan)
            begun = time.monotonic()
            done = run_step(model, masters, [data.select(rows).to_list() for rows in batches], lambda: bool(interrupted))
            if done is not None:
                loss, real, padded, trained = done
                rate, epoch = learning_rate(step, total, job), reached
                norm = masters.step(rate, job.max_grad_norm)
                if not math.isfinite(loss + norm):
                    raise Diverged(f"step {step + 1} has the loss {loss} and the gradient norm {norm}; its rows are "
                                   f"{[data[n]['id'] for b in batches for n in b]}. The last checkpoint is kept. "
                                   f"A lower learning_rate, or more warmup_steps, is the usual cure.")
                step += 1
                line = _add(line, loss=loss, tokens=real, padded=padded, trained=trained, rows=sum(map(len, batches)),
                            seconds=time.monotonic() - begun)
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                bar.update()
            over = bool(job.max_minutes) and (time.monotonic() - started) / 60 >= job.max_minutes
            ending = bool(interrupted) or over or step == total
            saving = ending or step % job.save_steps == 0
            # a ledger line never spans a checkpoint: a session that resumes from it must replace whole lines
            if line["steps"] and (saving or step % job.logging_steps == 0):
                ledger.write("step", step=step, epoch=round(epoch, 4), lr=rate, grad_norm=norm, memory_gib=round(memory_gib()[0], 3),
                             **{**line, "loss": line["loss"] / line["steps"]})
                line = {"steps": 0}
            if saving:
                save_checkpoint(checkpoints, step, masters, identity, job.save_total_limit)
            if interrupted:  # after the last step too: measuring the held-out loss may take minutes
                raise KeyboardInterrupt(f"stopped after step {step} of {total}; its checkpoint is saved")
            if step < total and over:
                raise SessionOver(f"max_minutes={job.max_minutes:g} is up after step {step} of {total}; its checkpoint is saved. The same "
                                  f"command continues; about {math.ceil((total - step) / max(1, step - first))} more sessions of this length remain.")
    finally:
        bar.close()
        signal.signal(signal.SIGINT, previous)
    held_out(model, validation, ledger, "after", step)
    return masters


def held_out(model: Any, validation: Any, ledger: Ledger, when: str, step: int) -> None:
    """Measure the held-out response loss once a run, before and after; nothing is written for an empty split."""
    if any(e["event"] == "eval" and e["when"] == when and e["step"] == step for e in ledger.entries()):
        return
    if when == "before" and step:
        return
    begun = time.monotonic()
    bar = functools.partial(tqdm, desc=f"held-out loss {when}", file=sys.stdout, mininterval=2, ncols=100)
    loss, tokens = evaluate.response_loss(model, validation, bar=bar)
    if loss is not None:
        ledger.write("eval", when=when, step=step, eval_loss=loss, tokens=tokens, seconds=round(time.monotonic() - begun, 3))


def save_adapter(model: Any, masters: Masters, folder: pathlib.Path, job: Params) -> None:
    """Write the adapter as a PEFT folder with the float32 masters; the folder appears when it is complete."""
    temporary = folder.with_name(".adapter.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(str(temporary), state_dict={**model.state_dict(), **masters.weights})
    config = files.read_json(temporary / "adapter_config.json", "adapter configuration")
    # PEFT writes the local folder the base was loaded from, which means nothing on another machine
    files.write_json(temporary / "adapter_config.json", {**config, "base_model_name_or_path": job.base_model, "revision": job.base_revision or None})
    (temporary / "README.md").unlink(missing_ok=True)  # PEFT's empty template of a card says nothing true
    files.replace_folder(temporary, folder)


def _add(line: dict[str, Any], **values: float) -> dict[str, Any]:
    return {"steps": line["steps"] + 1, **{k: line.get(k, 0) + v for k, v in values.items()}}
