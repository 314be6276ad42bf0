"""The reasons for which a training session ends before its last step, and their messages."""

import math
import os
import pathlib
import signal
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from lib.common import files
from lib.common.errors import Plain, UserError
from lib.model import device, ranks
from lib.params import Params
from lib.params.continuing import depends_on_micro_batch
from lib.training import plan

STOP_FILE = "stop"  # `touch runs/NAME/stop` ends a session as Ctrl-C does
INTERRUPT = ".interrupt"  # the same, made by the process that started the ranks

RECENT, FEW = 20, 5  # a step's loss is compared with so many before it, if there are so few

# the fields of StopRequests, in their order, and memory; if several are true, the first counts
STOPS = ("interrupted", "time", "file", "memory")


class _Continues(Plain):
    """An end after which the run can go on; a notebook run by hand says how."""

    def _render_traceback_(self) -> list[str]:
        lines = super()._render_traceback_()
        if not os.environ.get(files.FD_VARIABLE):
            lines.append(
                "In this notebook, run all cells again to go on, beginning with the first."
            )
        return lines


class Interrupted(_Continues, KeyboardInterrupt):
    """The session was interrupted, and its work is saved."""


# the name by which records and the runner know it
Interrupted.__name__ = Interrupted.__qualname__ = "KeyboardInterrupt"


class SessionOver(_Continues, Exception):
    """max_minutes is up, or a stop file exists; the work is saved, and the same command goes on."""


class Diverged(Plain, Exception):
    """The loss is not finite or has exploded; the last good checkpoint is kept."""


class Signals:
    """Inside the block, a signal that would end the process only sets `got`.

    The signal is SIGINT (Ctrl-C, or the runner's SIGTERM passed on). A rank has no runner, so it
    handles SIGTERM too.
    """

    got = False

    def __enter__(self) -> "Signals":
        numbers = [signal.SIGINT]
        if ranks.world_size() > 1:
            numbers.append(signal.SIGTERM)
        self.before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def _note(self, number: int, frame: Any) -> None:
        self.got = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


class StopRequests(NamedTuple):
    """The requests to this rank to end the session."""

    interrupted: bool
    time_is_up: bool
    stop_file: bool


class Watcher:
    """Looks for requests to end the session; max_minutes count from its creation."""

    def __init__(self, folder: pathlib.Path, max_minutes: float, signals: Signals) -> None:
        self.folder, self.max_minutes, self.signals = folder, max_minutes, signals
        self.begun = time.monotonic()

    def look(self) -> StopRequests:
        minutes = (time.monotonic() - self.begun) / 60
        return StopRequests(
            interrupted=self.signals.got or (self.folder / INTERRUPT).exists(),
            time_is_up=0 < self.max_minutes <= minutes,
            stop_file=(self.folder / STOP_FILE).exists(),
        )


class Done(NamedTuple):
    """A step's result on all ranks, and why to stop after it: "" or one of STOPS.

    Loss and norm are None if the step was not completed and its gradients were dropped. A step that
    has diverged moved no weight.
    """

    loss: float | None
    norm: float | None
    stop: str
    diverged: bool = False


class Guard:
    """Refuses a step that has diverged, and every later one, in operations that a GPU can record.

    A step has diverged if its loss or gradient norm is not finite, or if its loss has exploded: it
    is worse than guessing among all tokens, and also than three times the mean of the losses
    before. `refused` is 1 from that step on.
    """

    def __init__(
        self, losses: Sequence[float], vocabulary: int, place: torch.device | str = "cpu"
    ) -> None:
        self.guessing = math.log(vocabulary)
        known = list(losses[-RECENT:])
        recent = [math.nan] * (RECENT - len(known)) + known
        self.recent = torch.tensor(recent, dtype=torch.float64, device=place)
        self.refused = torch.zeros((), device=place)

    def judge(self, loss: torch.Tensor, norm: torch.Tensor) -> None:
        """Set `refused` if the step has diverged; else keep its loss for the next ones."""
        loss = loss.double()
        count = self.recent.isfinite().sum()
        limit = (3 * self.recent.nansum() / count).clamp(min=self.guessing)
        exploded = (count >= FEW) & (loss > limit)
        diverged = exploded | ~(loss + norm.double()).isfinite()
        self.refused.copy_(torch.maximum(self.refused, diverged.float()))
        following = torch.cat([self.recent[1:], loss[None]])
        self.recent.copy_(torch.where(self.refused.bool(), self.recent, following))

    def refuses(self, loss: float, norm: float) -> bool:
        """Judge a step whose numbers are known already."""
        self.judge(*torch.tensor([loss, norm], dtype=torch.float64))
        return bool(self.refused)


def explain_divergence(step: int, loss: float, norm: float, row_ids: Iterable[str]) -> Diverged:
    """Return the error for a diverged step, counted from 1, with its rows."""
    return Diverged(
        f"step {step} has the loss {loss:.4g} and the gradient norm {norm:.4g}; its rows are "
        f"{list(row_ids)}. The last checkpoint is kept. "
        f"A lower learning_rate, or more warmup_steps, is the usual cure."
    )


def explain_memory(step: int, longest: int, job: Params) -> UserError:
    """Return the error for a session that ran out of memory in the step after `step`."""
    rows = plan.micro_batch_rows(job.per_device_train_batch_size)
    smaller = rows // 2 if rows % 2 == 0 else 1
    settings = (
        f"per_device_train_batch_size={smaller} "
        f"gradient_accumulation_steps={rows * job.gradient_accumulation_steps // smaller}"
    )
    if rows == 1:
        way_out = "set load_in_4bit: true or a smaller max_seq_length, and start over"
    elif depends_on_micro_batch(job):
        way_out = f"start over with {settings}, since rows or random numbers depend on them here"
    else:
        way_out = f'go on with smaller micro-batches, SET="{settings}"'
    return UserError(
        f"{device.name()} ran out of memory in step {step + 1}, whose longest row has {longest} "
        f"tokens. Step {step} is saved. End other programs that use the GPU (`nvidia-smi` lists "
        f"them), and the same command continues; or {way_out}."
    )


def explain_stop(
    stop: str, step: int, total: int, steps_done: int, max_minutes: float
) -> Interrupted | SessionOver:
    """Return the exception that ends a session after `step` of `total`, with a saved checkpoint.

    The number of remaining sessions is estimated from `steps_done`, the steps of this session.
    """
    if stop == "interrupted":
        return Interrupted(f"stopped after step {step} of {total}; its checkpoint is saved")
    reason, remaining = "a stop file was found", ""
    if stop == "time":
        sessions = math.ceil((total - step) / max(1, steps_done))
        reason = f"max_minutes={max_minutes:g} is up"
        remaining = f"; about {sessions} more sessions of this length remain"
    return SessionOver(
        f"{reason} after step {step} of {total}; its checkpoint is saved. "
        f"The same command continues{remaining}."
    )
