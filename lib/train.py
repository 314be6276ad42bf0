"""The training loop: an exact order, an honest ledger, a stop at any moment that loses no completed step."""

import collections
import contextlib
import functools
import hashlib
import math
import pathlib
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from lib import batches, evaluate, files, fused, machine, packed, parallel, plan, trackers
from lib import model as models
from lib.batches import Batch
from lib.checkpoint import Masters, resume, save_checkpoint
from lib.ledger import Ledger
from lib.params import Params, UserError

STOP_FILE = "stop"  # `touch runs/NAME/stop` ends a session as Ctrl-C does


class SessionOver(Exception):
    """max_minutes is up, or a stop file was found: the work so far is saved, the same command continues."""


class Diverged(Exception):
    """The loss is not a finite number, or has exploded; the last good checkpoint is kept."""


# ---------------------------------------------------------------------------------------------------------------------
# one step


def seed_for(job: Params, step: int, place: int) -> None:
    """Random numbers of a micro-batch (dropout, NEFTune) depend on seed, step and its place alone: a resumed run, or one on
    another number of GPUs, draws the same."""
    torch.manual_seed(int.from_bytes(hashlib.sha256(f"{job.seed} {step} {place}".encode()).digest()[:7], "big"))


def load_steps(data: Any, sizes: plan.Sizes, start: int, job: Params, fixed: plan.Shape | None) -> Iterator[dict[str, Any]]:
    """Every step after `start` with this rank's micro-batches, read and padded ahead by dataloader_num_workers threads."""
    columns, pin = data.select_columns(["input_ids", "labels"]), torch.cuda.is_available()

    def load(epoch: float, step: list[list[int]]) -> dict[str, Any]:
        rows = [n for b in step for n in b]
        trained, mine = int(sizes.trained[rows].sum()), []
        for place in range(parallel.rank(), len(step) + -len(step) % parallel.world(), parallel.world()):
            # of a short step every rank takes part, since they wait for each other: those without rows of it with rows that weigh nothing
            batch = batches.of(columns[step[min(place, len(step) - 1)]], fixed, 1 / max(1, trained) if place < len(step) else 0.0)
            mine.append((place, Batch(*(t.pin_memory() if pin and t is not None else t for t in batch))))
        return {"epoch": round(epoch, 4), "rows": rows, "trained": trained, "tokens": int(sizes.lengths[rows].sum()),
                "padded": plan.positions(sizes, [step], fixed), "batches": mine}

    steps = plan.steps_from(sizes.lengths, start, job)
    if not job.dataloader_num_workers:
        while True:
            yield load(*next(steps))
    with ThreadPoolExecutor(job.dataloader_num_workers) as pool:
        ahead = collections.deque(pool.submit(load, *next(steps)) for _ in range(job.dataloader_num_workers + 1))
        while True:
            yield ahead.popleft().result()
            ahead.append(pool.submit(load, *next(steps)))


def micro_batch(model: Any, masters: Masters, job: Params, example: Callable[[], Batch]) -> Callable[[Batch], torch.Tensor]:
    """The function that takes a micro-batch's gradients into the masters and returns its share of the loss.

    With torch_compile it is built from an example, which takes minutes and changes no weight.
    """
    attention = functools.partial(packed.in_use, model) if job.packing else contextlib.nullcontext
    if job.torch_compile:
        with attention(), fused.compiled(model):
            return fused.Graph(model, example(), masters.take_gradients, masters.drop_gradients)

    def eager(batch: Batch) -> torch.Tensor:
        with attention():
            loss = fused.forward_backward(model, batch.to(model.device), scale=masters.scale)
        masters.take_gradients()
        return loss
    return eager


STOPS = ("interrupted", "time", "file", "memory")


class Done(NamedTuple):
    """A step as all ranks see it, and why to stop after it ("" or one of STOPS). Loss and norm are None when it was not completed,
    and its accumulation dropped."""

    loss: float | None
    norm: float | None
    stop: str


def run_step(take: Callable[[Batch], torch.Tensor], masters: Masters, step: int, current: dict[str, Any], job: Params,
             told: Callable[[], tuple[bool, bool, bool]]) -> Done:
    """A step's micro-batches on all ranks: its loss a trained token and its gradient norm, the gradients summed in the masters.

    Every trained token of the step weighs the same, however its rows fall into micro-batches and ranks. `told` says
    whether this rank was interrupted, its time is over, a stop file is there.
    """
    total, full = torch.zeros(1 + len(STOPS), device=masters.flat.device), False
    try:
        for place, batch in current["batches"]:
            if parallel.world() == 1 and told()[0]:  # ranks finish their step together, or one would wait for ever
                masters.drop_gradients()
                return Done(None, None, "interrupted")
            seed_for(job, step, place)
            total[0] += take(batch)
    except torch.OutOfMemoryError:  # the others are waiting for this rank's sum
        full = True
    total[1:] = torch.tensor([*told(), full])
    parallel.add(total, masters.flat.grad)
    loss, *stops = total.tolist()
    stop = next((why for why, ranks in zip(STOPS, stops, strict=True) if ranks), "")
    if stops[-1]:
        masters.drop_gradients()
        return Done(None, None, stop)
    norm = masters.norm()
    if math.isfinite(loss) and not math.isfinite(norm) and masters.lower_scale():  # float16 overflowed: the same step again
        return run_step(take, masters, step, current, job, told)
    return Done(loss, norm, stop)


def diverged(done: Done, recent: collections.deque, vocabulary: int) -> bool:
    """Whether a loss is no number, or both worse than guessing among all tokens and three times the mean of the last steps."""
    exploded = len(recent) >= 5 and done.loss > max(math.log(vocabulary), 3 * sum(recent) / len(recent))
    return exploded or not math.isfinite(done.loss + done.norm)


# ---------------------------------------------------------------------------------------------------------------------
# the loop


def identity(job: Params, data_fingerprint: str, base_fingerprint: str, trainable: int) -> dict[str, Any]:
    """What a checkpoint must agree on with the job that resumes from it.

    Not the number of GPUs, nor, where neither packing nor random numbers depend on it, how the rows of a step fall into
    micro-batches: those change the rounding, nothing else.
    """
    keys = ("base_model", "base_revision", "load_in_4bit", "lora_r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora",
            "finetune_attention_modules", "finetune_mlp_modules", "packing", "num_train_epochs", "max_steps", "learning_rate",
            "lr_scheduler_type", "warmup_steps", "weight_decay", "neftune_noise_alpha", "max_grad_norm", "optim", "seed")
    exact = job.packing or job.lora_dropout or job.neftune_noise_alpha
    installed = machine.packages()
    versions = {f"{name} version": ".".join(installed[name].split(".")[:2]) for name in ("torch", "transformers", "peft")}
    return {"data": data_fingerprint, "base": base_fingerprint, "trainable_parameters": trainable, "rows_a_step": plan.rows_a_step(job),
            "computes in": str(models.precision(job)[0]), "by": models.backend(job)[0],
            **({"micro_batch": job.per_device_train_batch_size} if exact else {}), **{k: getattr(job, k) for k in keys}, **versions}


def memory_gib() -> tuple[float, str]:
    """Peak memory so far and whose it is: the card's allocations, or this process's resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30, "GPU"
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, "process"


class _Signals:
    """SIGINT (Ctrl-C, or the runner's SIGTERM) only sets `got` until the block ends; SIGTERM too in a rank, which has no runner."""

    def __enter__(self) -> "_Signals":
        self.got = False
        numbers = (signal.SIGINT, signal.SIGTERM) if parallel.world() > 1 else (signal.SIGINT,)
        self.before = {n: signal.signal(n, self._note) for n in numbers}
        return self

    def _note(self, number: int, frame: Any) -> None:
        self.got = True

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def train(model: Any, data: Any, validation: Any, job: Params, folder: pathlib.Path, identity: dict[str, Any]) -> Masters:
    """Train the adapter in `model`, writing folder/metrics.jsonl and folder/checkpoints; resumes from what is there.

    `identity` goes into every checkpoint, and one of another identity is refused. KeyboardInterrupt (Ctrl-C, or the
    runner's SIGTERM), a stop file and max_minutes end the session after saving the last completed step. Under torchrun
    every rank calls it; rank 0 alone writes.
    """
    report = trackers.start(job, folder) if parallel.rank() == 0 else None
    try:
        return _train(model, data, validation, job, folder, identity, report)
    finally:
        if report:
            report("end", {})  # the kernel is killed when the notebook ends, and a tracker's queue with it


def _train(model: Any, data: Any, validation: Any, job: Params, folder: pathlib.Path, identity: dict[str, Any], report: Any) -> Masters:
    checkpoints, writes = folder / "checkpoints", parallel.rank() == 0
    checkpoints.mkdir(exist_ok=True)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()  # of what came before: the probe, answers
    sizes, total = plan.sizes(data), plan.total_steps(len(data), job)
    fixed = plan.shape(sizes, job) if job.packing else None
    if job.torch_compile:
        fused.fuse(model)
    masters = Masters(model, job)
    first = step = resume(checkpoints, masters, identity)
    if not step and any(w.any() for n, w in masters.weights.items() if "lora_B" in n):
        raise UserError("the adapter in memory has been trained already, and there is no checkpoint to go back to. Restart the kernel (the notebook) "
                        "and run all cells again.")
    parallel.copy_from_first(masters.flat)  # cards of different kinds draw different numbers
    masters.publish()
    if step > total:
        raise UserError(f"the checkpoint of `{folder.name}` is at step {step}, beyond the {total} steps of this job: max_steps or "
                        f"num_train_epochs was lowered. Raise it to {step} steps or more, or choose another RUN=.")
    ledger = Ledger(folder / "metrics.jsonl") if writes else None

    def note(event: str, **values: Any) -> None:
        if writes:
            ledger.write(event, **values)
            report(event, values)

    tuned, everything = models.count(model)
    note("session", start_step=step, total_steps=total, trainable_parameters=tuned, total_parameters=everything, memory_of=memory_gib()[1],
         device=models.device_name(), devices=parallel.world(), dtype=str(models.precision(job)[0]).removeprefix("torch."), **models.flops(model))
    if writes:
        print(f"{'continuing after' if step else 'starting at'} step {step} of {total}: {len(data):,} rows, {tuned:,} trainable parameters",
              flush=True)
    evals = parallel.agree(ledger.evals(step) if writes else None)
    measure = functools.partial(held_out, model, validation, job, evals, note)
    best = checkpoints / "best"
    for stale in best.glob("step-*") if writes else ():
        if int(stale.name[5:]) > step:  # of steps that are run again
            shutil.rmtree(stale)

    def eval_now() -> None:
        loss = measure("during", step)
        if job.early_stopping_patience and loss is not None and loss == min(v for (when, _), v in evals.items() if when == "during"):
            save_checkpoint(best, step, masters, identity, sys.maxsize)

    def due() -> bool:  # with early stopping the last weights must be compared too
        return bool(job.eval_steps) and bool(step % job.eval_steps == 0 if step < total else job.early_stopping_patience)

    if not step:
        measure("before", step)
    elif due():  # the session before had no time for it
        eval_now()
    loader = load_steps(data, sizes, step, job, fixed)
    model.train()
    begun = time.monotonic()
    take = micro_batch(model, masters, job, lambda: next(load_steps(data, sizes, step, job, fixed))["batches"][0][1])
    if job.torch_compile:
        note("compiled", seconds=round(time.monotonic() - begun, 3))
    started, line, recent = time.monotonic(), {"steps": 0}, collections.deque(parallel.agree(ledger.losses() if writes else None), maxlen=20)
    vocabulary = model.config.get_text_config().vocab_size
    bar = tqdm(total=total, initial=step, desc="training", unit="step", file=sys.stdout, mininterval=2, ncols=100, disable=not writes)
    with _Signals() as signals, bar, models.neftune(model, job.neftune_noise_alpha), contextlib.closing(loader):
        while step < total and not patience_spent(evals, job):
            begun, current, rate = time.monotonic(), next(loader), plan.learning_rate(step, total, job)
            done = run_step(take, masters, step, current, job, lambda: (
                signals.got or (folder / parallel.INTERRUPT).exists(), 0 < job.max_minutes <= (time.monotonic() - started) / 60,
                (folder / STOP_FILE).exists()))
            if done.loss is not None:
                if diverged(done, recent, vocabulary):
                    raise Diverged(f"step {step + 1} has the loss {done.loss:.4g} and the gradient norm {done.norm:.4g}; its rows are "
                                   f"{[data[n]['id'] for n in current['rows']]}. The last checkpoint is kept. "
                                   f"A lower learning_rate, or more warmup_steps, is the usual cure.")
                masters.step(done.norm, rate, job.max_grad_norm)
                step += 1
                recent.append(done.loss)
                line = _add(line, loss=done.loss, tokens=current["tokens"], padded=current["padded"], trained=current["trained"],
                            rows=len(current["rows"]), seconds=time.monotonic() - begun)
                last = {"epoch": current["epoch"], "lr": rate, "grad_norm": done.norm}
                bar.set_postfix(loss=f"{done.loss:.3f}", refresh=False)
                bar.update()
            stop = done.stop if done.stop != "time" or step < total else ""
            measuring = not stop and due()
            saving = stop or measuring or step == total or step % job.save_steps == 0
            # a ledger line never spans a checkpoint or an eval: a session that resumes from it must replace whole lines
            if line["steps"] and (saving or step % job.logging_steps == 0):
                note("step", step=step, **last, memory_gib=round(memory_gib()[0], 3), **{**line, "loss": line["loss"] / line["steps"]})
                line = {"steps": 0}
            if saving:
                save_checkpoint(checkpoints, step, masters, identity, job.save_total_limit)
                for old in sorted(best.glob("step-*"))[:-1] if writes else ():  # not sooner: a resume may need it
                    shutil.rmtree(old)
            if measuring:
                eval_now()
            if stop:
                (folder / STOP_FILE).unlink(missing_ok=True)
                end_session(stop, step, total, step - first, current, sizes, job)
    del take  # a recorded graph holds the memory of a step
    if job.early_stopping_patience:
        if step < total and writes:
            print(f"stopped early: no better held-out loss in the last {job.early_stopping_patience} evals", flush=True)
        if not resume(best, masters, identity):
            print("the best weights cannot be read back; these are the last ones", flush=True)
    measure("after", step)
    return masters


def end_session(stop: str, step: int, total: int, done: int, current: dict[str, Any], sizes: plan.Sizes, job: Params) -> None:
    """Raise what ends a session early, its last completed step being saved."""
    if stop == "memory":
        longest = sizes.lengths[current["rows"]].max()
        raise UserError(f"{models.device_name()} ran out of memory in step {step + 1}, whose longest row has {longest} tokens. Step {step} is "
                        f"saved. End what else uses the card (`nvidia-smi` lists it), and the same command continues; or start over with half "
                        f"the per_device_train_batch_size and twice the gradient_accumulation_steps.")
    if stop == "interrupted":
        raise KeyboardInterrupt(f"stopped after step {step} of {total}; its checkpoint is saved")
    more = f"; about {math.ceil((total - step) / max(1, done))} more sessions of this length remain" if stop == "time" else ""
    raise SessionOver(f"{f'max_minutes={job.max_minutes:g} is up' if stop == 'time' else 'a stop file was found'} after step {step} of {total}; "
                      f"its checkpoint is saved. The same command continues{more}.")


def held_out(model: Any, validation: Any, job: Params, evals: dict[tuple[str, int], float], note: Callable[..., None], when: str,
             step: int) -> float | None:
    """Measure the held-out response loss, unless that was done at this step; nothing is noted for an empty split."""
    if (when, step) in evals or not len(validation):
        return evals.get((when, step))
    begun = time.monotonic()
    bar = functools.partial(tqdm, desc=f"held-out loss {when}", file=sys.stdout, mininterval=2, ncols=100, disable=parallel.rank() > 0)
    loss, tokens = evaluate.response_loss(model, validation, rows_at_once=32 if job.torch_compile else 8, bar=bar)
    if not math.isfinite(loss):
        raise Diverged(f"the held-out loss at step {step} is {loss}: the weights have gone bad. Earlier checkpoints are kept. "
                       f"A lower learning_rate, or more warmup_steps, is the usual cure.")
    evals[when, step] = loss
    note("eval", when=when, step=step, eval_loss=loss, tokens=tokens, seconds=round(time.monotonic() - begun, 3))
    return loss


def patience_spent(evals: dict[tuple[str, int], float], job: Params) -> bool:
    """Whether the best of the evals during training is early_stopping_patience evals ago."""
    during = [loss for (when, _), loss in evals.items() if when == "during"]
    return 0 < job.early_stopping_patience <= len(during) - 1 - during.index(min(during)) if during else False


def save_adapter(model: Any, masters: Masters, folder: pathlib.Path, job: Params) -> None:
    """Write the adapter as a PEFT folder with the float32 masters; the folder appears when it is complete."""
    temporary = folder.with_name(".adapter.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(str(temporary), state_dict={**model.state_dict(), **masters.weights})
    weights = temporary / "adapter_model.safetensors"
    save_file({models.saved_name(model, n): w for n, w in load_file(weights).items()}, weights, metadata={"format": "pt"})
    config = files.read_json(temporary / "adapter_config.json", "adapter configuration")
    # PEFT writes the local folder the base was loaded from, which means nothing on another machine
    files.write_json(temporary / "adapter_config.json", {**config, "base_model_name_or_path": job.base_model, "revision": job.base_revision or None})
    (temporary / "README.md").unlink(missing_ok=True)  # PEFT's empty template of a card says nothing true
    files.replace_folder(temporary, folder)


def _add(line: dict[str, Any], **values: float) -> dict[str, Any]:
    return {"steps": line["steps"] + 1, **{k: line.get(k, 0) + v for k, v in values.items()}}
