"""Measure the held-out response loss before, during and after training, and stop early by it."""

import functools
import math
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lib.common import stats
from lib.common.progress import progress_bar
from lib.model import ranks
from lib.params import Params
from lib.training import evaluate
from lib.training.checkpoint import resume, save_checkpoint
from lib.training.masters import Masters
from lib.training.stops import Diverged, Interrupted, Signals

# a job that compiles runs on a large card; if its memory is not enough, half as many are tried
ROWS_AT_ONCE = 8
ROWS_AT_ONCE_COMPILED = 32


class HeldOut:
    """Measures once at each (when, step), records it in the ledger, and keeps the best weights.

    `known` are the losses that earlier sessions recorded. The best weights are in checkpoints/best.
    """

    event = "eval"  # of the ledger
    what = "held-out loss"

    def __init__(
        self,
        model: Any,
        data: Any,
        job: Params,
        known: dict[tuple[str, int], float],
        note: Callable[..., None],
        signals: Signals,
    ) -> None:
        self.model = model
        self.data = data
        self.job = job
        self.known = known
        self.note = note
        self.signals = signals

    def measure(self, when: str, step: int) -> float | None:
        """Return the loss in nats per trained token; for an empty split, record and return nothing.

        Raise KeyboardInterrupt when the session is interrupted meanwhile, and Diverged when the
        loss is not finite.
        """
        if (when, step) in self.known or not len(self.data):
            return self.known.get((when, step))
        begun = time.monotonic()
        rows = evaluate.measure_row_losses(
            self.model,
            self.data,
            rows_at_once=ROWS_AT_ONCE_COMPILED if self.job.torch_compile else ROWS_AT_ONCE,
            bar=functools.partial(self._watch, when, step),
        )
        loss, tokens = evaluate.mean_loss(rows)
        assert loss is not None, "every row of a split has a trained token"
        if not math.isfinite(loss):
            raise Diverged(
                f"the {self.what} at step {step} is {loss}: the weights have diverged. Earlier "
                f"checkpoints are kept. A lower learning_rate, or more warmup_steps, is the usual "
                f"cure."
            )
        self.known[when, step] = loss
        seconds = round(time.monotonic() - begun, 3)
        interval = {}
        if when != "during" and len(rows) > 1 and ranks.rank() == 0:
            interval["ci95"] = stats.loss_interval(rows)
        measured = {"eval_loss": loss, "tokens": tokens, "seconds": seconds, **interval}
        self.note(self.event, when=when, step=step, **measured)
        return loss

    def _watch(self, when: str, step: int, groups: Iterable[int]) -> Iterator[int]:
        """Yield the groups under a progress bar, until the session is interrupted."""
        for group in progress_bar(f"{self.what} {when}", groups, disable=ranks.rank() > 0):
            # several ranks must finish together
            if self.signals.got and ranks.world_size() == 1:
                raise Interrupted(
                    f"stopped in the {self.what} after step {step}; its checkpoint is saved"
                )
            yield group

    def is_due(self, step: int, total: int) -> bool:
        """Tell whether to measure after this step.

        The last step counts only with early stopping, which must compare the last weights too.
        """
        if not self.job.eval_steps:
            return False
        if step < total:
            return step % self.job.eval_steps == 0
        return self.job.early_stopping_patience > 0

    def measure_during(
        self, step: int, masters: Masters, checkpoints: pathlib.Path, identity: dict[str, Any]
    ) -> None:
        """Measure the loss; with early stopping, keep the weights if they are the best so far."""
        loss = self.measure("during", step)
        if self.job.early_stopping_patience and loss is not None and loss == min(self._course()):
            save_checkpoint(checkpoints / "best", step, masters, identity, keep=sys.maxsize)

    def is_patience_spent(self) -> bool:
        """Tell whether early_stopping_patience evals have passed since the best one in training."""
        course = self._course()
        if not course or not self.job.early_stopping_patience:
            return False
        evals_since_best = len(course) - 1 - course.index(min(course))
        return evals_since_best >= self.job.early_stopping_patience

    def _course(self) -> list[float]:
        return [loss for (when, _), loss in self.known.items() if when == "during"]


class Forgetting(HeldOut):
    """Measures rows of another source before and after: what is forgotten by training."""

    event = "forgetting"
    what = "loss on rows of another source"


def forget_later(checkpoints: pathlib.Path, step: int) -> None:
    """Remove the best weights of steps that are run again."""
    for stale in (checkpoints / "best").glob("step-*"):
        if int(stale.name.removeprefix("step-")) > step:
            shutil.rmtree(stale)


def forget_earlier(checkpoints: pathlib.Path) -> None:
    """Keep only the newest best weights.

    Call this after a later checkpoint is saved: until then, a resume may need earlier ones.
    """
    for old in sorted((checkpoints / "best").glob("step-*"))[:-1]:
        shutil.rmtree(old)


def restore_best(checkpoints: pathlib.Path, masters: Masters, identity: dict[str, Any]) -> int:
    """Load the best weights into the masters; return their step, 0 if they cannot be read back."""
    step = resume(checkpoints / "best", masters, identity)
    if not step:
        print("the best weights cannot be read; the last weights are kept instead", flush=True)
    return step
