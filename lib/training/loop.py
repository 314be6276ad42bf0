"""The training loop: a reproducible order, a complete ledger, and stops that lose no step.

    masters = loop.train(model, data, validation, job, folder, identity)

The notebook calls it through `launch.train`, which starts several processes for several GPUs.
"""

import collections
import contextlib
import dataclasses
import functools
import pathlib
import time
from typing import Any

import torch

from lib.common.errors import UserError
from lib.common.progress import progress_bar
from lib.data import splits
from lib.model import adapter, device, ranks, trained
from lib.params import Params
from lib.record.ledger import Ledger
from lib.training import checks, plan, stops, trackers
from lib.training.checkpoint import resume, save_checkpoint
from lib.training.held_out import Forgetting, HeldOut, forget_earlier, forget_later, restore_best
from lib.training.masters import Masters
from lib.training.stack import choose
from lib.training.step import (
    Launched,
    LoadedStep,
    Runner,
    build_accumulate,
    load_first_batch,
    load_steps,
)


def train(
    model: Any,
    data: Any,
    validation: Any,
    job: Params,
    folder: pathlib.Path,
    identity: dict[str, Any],
) -> Masters:
    """Train the adapter in `model`, or all of it; write metrics.jsonl and checkpoints to `folder`.

    It resumes from the newest checkpoint there. `identity` is stored in every checkpoint, and one
    with another identity is refused. KeyboardInterrupt (Ctrl-C, or the runner's SIGTERM), a stop
    file and max_minutes end the session after the last completed step is saved. Under torchrun,
    every rank calls it, and only rank 0 writes.
    """
    session = _Session(model, data, validation, job, folder, identity)
    try:
        session.set_up()
        session.train_steps()
        session.finish()
        return session.masters
    finally:
        session.close()


@dataclasses.dataclass
class _Session:
    """One session of a run: what it trains, its progress, and its records."""

    model: Any
    data: Any
    validation: Any
    job: Params
    folder: pathlib.Path
    identity: dict[str, Any]

    def __post_init__(self) -> None:
        self.writes = ranks.rank() == 0
        self.checkpoints = self.folder / "checkpoints"
        self.signals = stops.Signals()
        self.line: dict[str, Any] = {"steps": 0}  # sums since the last ledger line
        self.last: dict[str, float] = {}  # epoch, rate and gradient norm of the last step
        # steps that are launched and not yet counted in `step`
        self.pending: collections.deque[Launched] = collections.deque()
        self.clock = 0.0  # when the last step was counted, or the first pending one began
        self.report = trackers.start_tracker(self.job, self.folder) if self.writes else None

    def close(self) -> None:
        # the kernel is killed when the notebook ends, together with a tracker's queue
        if self.report:
            self.report("end", {})

    # ----------------------------------------------------------------------------------------------
    # set-up

    def set_up(self) -> None:
        """Continue the run from its newest checkpoint, and measure the held-out loss if due."""
        self.checkpoints.mkdir(exist_ok=True)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()  # exclude the peaks of the probe and the answers
        self.sizes = plan.read_sizes(self.data)
        self.total = plan.count_steps(len(self.data), self.job)
        self.shape = plan.fixed_shape(self.sizes, self.job)
        self.vocabulary = self.model.config.get_text_config().vocab_size
        self.stack = self._prepare_layers() if self.job.torch_compile else None

        self.masters = Masters(self.model, self.job)
        if self.stack:
            self.stack.bind(self.masters)
        self.first = self.step = resume(self.checkpoints, self.masters, self.identity)
        self.ledger = Ledger(self.folder / "metrics.jsonl") if self.writes else None
        if self.ledger:
            self.ledger.require_steps(self.step)
        # not a method: HeldOut keeps it, and a reference cycle would keep the model on the card
        self.note = functools.partial(trackers.note, self.ledger, self.report)
        if not self.step:
            self._refuse_a_trained_adapter()
            self._take_start()
        # cards of different kinds draw different random numbers for a new adapter
        ranks.copy_from_first(self.masters.flat)
        self.masters.publish()

        self._note_session()
        self.held_out = self._watch_losses(HeldOut, self.validation)
        other = splits.load_split(self.folder / "data", "forgetting") if self.job.forgetting else []
        self.forgetting = self._watch_losses(Forgetting, other)
        if self.writes:
            forget_later(self.checkpoints, self.step)
        if not self.step:
            self.held_out.measure("before", self.step)
            self.forgetting.measure("before", self.step)
        elif self.held_out.is_due(self.step, self.total):  # the last session ended before it
            self._measure_held_out()

    def _prepare_layers(self) -> Any:
        """Return the hand-written layers, or None for transformers' own."""
        assert self.shape, "torch_compile needs packing"
        stack, self.layers = choose.prepare_layers(
            self.model, self.job, self.shape.longest, self.checkpoints
        )
        self.identity = {**self.identity, "layers by": self.layers}
        return stack

    def _watch_losses(self, kind: type[HeldOut], data: Any) -> HeldOut:
        """Return a HeldOut of these rows, which knows what earlier sessions measured."""
        recorded = self.ledger.eval_losses(self.step, kind.event) if self.ledger else {}
        known = ranks.from_first(recorded)
        return kind(self.model, data, self.job, known, self.note, self.signals)

    def _refuse_a_trained_adapter(self) -> None:
        """Raise UserError unless the adapter in memory is new: every B of LoRA starts at zero."""
        if any(w.any() for name, w in self.masters.weights.items() if "lora_B" in name):
            raise UserError(
                "the adapter in memory has been trained already, and there is no checkpoint to "
                "resume from. Restart the kernel (the notebook) and run all cells again."
            )

    def _take_start(self) -> None:
        """Take the weights to begin from, in float32; a new adapter keeps its own."""
        for name, weight in trained.read_start(self.model, self.job):
            self.masters.weights[name].copy_(weight)

    def _note_session(self) -> None:
        trainable, parameters = adapter.count_parameters(self.model)
        dtype, _ = device.choose_precision(self.job.precision, self.job.load_in_4bit)
        planned = self.ledger.planned_steps() if self.ledger else 0
        self.note(
            "session",
            start_step=self.step,
            **({"start_from": self.job.start_from} if self.job.start_from else {}),
            total_steps=self.total,
            trainable_parameters=trainable,
            total_parameters=parameters,
            memory_of=device.peak_memory()[1],
            device=device.name(),
            devices=ranks.world_size(),
            dtype=str(dtype).removeprefix("torch."),
            **({"layers": self.layers} if self.job.torch_compile else {}),
            vocabulary=self.vocabulary,
            **checks.count_flops(self.model),
        )
        if self.writes:
            begin = "continuing after" if self.step else "starting at"
            print(
                f"{begin} step {self.step} of {self.total}: {len(self.data):,} rows, "
                f"{trainable:,} trainable parameters",
                flush=True,
            )
            if self.step and planned and self.total > planned:
                print(plan.describe_longer(self.step, planned, self.total, self.job), flush=True)

    # ----------------------------------------------------------------------------------------------
    # the steps

    def train_steps(self) -> None:
        """Train until the last step or the end of patience; raise any other reason to stop.

        On return, the memory of recorded graphs is free for the held-out loss.
        """
        checks.set_training(self.model)
        loader = load_steps(self.data, self.sizes, self.step, self.job, self.shape)
        # a run whose steps are all done must not wait for compiling
        runner = self._build_runner() if self._steps_remain() else None
        watcher = stops.Watcher(self.folder, self.job.max_minutes, self.signals)
        self.bar = progress_bar(
            "training", total=self.total, initial=self.step, unit="step", disable=not self.writes
        )
        noise = checks.add_neftune_noise(self.model, self.job.neftune_noise_alpha)
        with self.signals, self.bar, noise, contextlib.closing(loader):
            while runner and self._steps_remain():
                if not self.pending:
                    self.clock = time.monotonic()
                loaded = next(loader)

                # forward, backward, the sum over the ranks, the update
                step = self.step + len(self.pending)
                rate = plan.learning_rate(step, self.total, self.job)
                launched = runner.launch(step, loaded, rate, watcher.look)
                self.pending.append(launched)

                # While a GPU works on this step, the one before it is counted. What is saved or
                # measured must be the weights of the step it is named by, so there both are.
                wait = not runner.is_late or launched.stop or self._is_saved_after(step + 1)
                self._count_steps(waiting=0 if wait else 1)

    def _steps_remain(self) -> bool:
        launched = self.step + len(self.pending)
        return launched < self.total and not self.held_out.is_patience_spent()

    def _build_runner(self) -> Runner:
        losses = ranks.from_first(self.ledger.step_losses() if self.ledger else [])
        place = self.masters.flat.device if self.masters.recordable else "cpu"
        guard = stops.Guard(losses, self.vocabulary, place)
        begun, example = time.monotonic(), None
        if self.job.torch_compile:
            example = load_first_batch(self.data, self.sizes, self.step, self.job, self.shape)
        accumulate = build_accumulate(
            self.model, self.masters, self.job.packing, example, self.stack
        )
        runner = Runner(accumulate, self.masters, guard, self.job)
        if self.job.torch_compile:
            self.note("compiled", seconds=round(time.monotonic() - begun, 3))
        return runner

    def _count_steps(self, waiting: int) -> None:
        """Count launched steps until `waiting` are left: write down, save, measure, stop."""
        stop = ""
        while len(self.pending) > waiting:
            launched = self.pending.popleft()
            done = launched.read()
            stop = stop or done.stop
            if done.loss is None or done.norm is None:
                self.pending.clear()  # the steps launched after a dropped one moved no weight
            else:
                self._count_step(launched, done.loss, done.norm, done.diverged)
            if stop:  # several ranks learn of it when the next step is launched already
                waiting = 0
            self._after_step("" if self.pending else stop, launched.loaded)

    def _count_step(self, launched: Launched, loss: float, norm: float, diverged: bool) -> None:
        """Count a step that moved the weights; raise Diverged for one that was refused."""
        loaded = launched.loaded
        if diverged:
            row_ids = [self.data[row]["id"] for row in loaded["rows"]]
            raise stops.explain_divergence(self.step + 1, loss, norm, row_ids)
        now = time.monotonic()
        self.step += 1
        self._add_to_line(loss, loaded, now - self.clock)
        self.clock = now
        self.last = {"epoch": loaded["epoch"], "lr": launched.rate, "grad_norm": norm}
        self.bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        self.bar.update()

    # ----------------------------------------------------------------------------------------------
    # after a step

    def _is_saved_after(self, step: int) -> bool:
        due = step == self.total or step % self.job.save_steps == 0
        return due or self.held_out.is_due(step, self.total)

    def _after_step(self, stop: str, loaded: LoadedStep) -> None:
        if stop == "time" and self.step == self.total:
            stop = ""  # training is complete, so there is no later session to announce
        measuring = not stop and self.held_out.is_due(self.step, self.total)
        saving = bool(stop) or self._is_saved_after(self.step)
        # a ledger line never spans a checkpoint or an eval, so that a session that resumes there
        # replaces complete lines
        if self.line["steps"] and (saving or self.step % self.job.logging_steps == 0):
            self._write_line()
        if saving:
            self._save()
        if measuring:
            self._measure_held_out()
        if stop:
            self._end(stop, loaded)

    def _add_to_line(self, loss: float, loaded: LoadedStep, seconds: float) -> None:
        values = {
            "loss": loss,
            "tokens": loaded["tokens"],
            "padded": loaded["padded"],
            "trained": loaded["trained"],
            "rows": len(loaded["rows"]),
            "seconds": seconds,
        }
        self.line["steps"] += 1
        for name, value in values.items():
            self.line[name] = self.line.get(name, 0) + value

    def _write_line(self) -> None:
        line = {**self.line, "loss": self.line["loss"] / self.line["steps"]}
        memory = round(device.peak_memory()[0], 3)
        self.note("step", step=self.step, **self.last, memory_gib=memory, **line)
        self.line = {"steps": 0}

    def _save(self) -> None:
        save_checkpoint(
            self.checkpoints, self.step, self.masters, self.identity, self.job.save_total_limit
        )
        if self.writes:
            forget_earlier(self.checkpoints)

    def _measure_held_out(self) -> None:
        self.held_out.measure_during(self.step, self.masters, self.checkpoints, self.identity)

    def _end(self, stop: str, loaded: LoadedStep) -> None:
        # a stop file that was left there would end the next session too
        (self.folder / stops.STOP_FILE).unlink(missing_ok=True)
        if stop == "memory":
            longest = int(self.sizes.lengths[loaded["rows"]].max())
            raise stops.explain_memory(self.step, longest, self.job)
        raise stops.explain_stop(
            stop, self.step, self.total, self.step - self.first, self.job.max_minutes
        )

    # ----------------------------------------------------------------------------------------------
    # the end of a run

    def finish(self) -> None:
        """Restore the best weights with early stopping, and measure the held-out loss."""
        patience = self.job.early_stopping_patience
        if patience:
            if self.step < self.total and self.writes:
                print(
                    f"stopped early: no better held-out loss in the last {patience} evals",
                    flush=True,
                )
            best = restore_best(self.checkpoints, self.masters, self.identity)
            if best:
                self.note("best", step=best)
        self.held_out.measure("after", self.step)
        self.forgetting.measure("after", self.step)
