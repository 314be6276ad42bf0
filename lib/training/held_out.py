"""The held-out response loss before, during and after training, and early stopping by it."""

import math
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tqdm import tqdm

from lib.common import stats
from lib.model import ranks
from lib.params import Params
from lib.training import evaluate
from lib.training.checkpoint import resume, save_checkpoint
from lib.training.masters import Masters
from lib.training.stops import Diverged


class HeldOut:
    """Measures once at each (when, step), notes it in the ledger, and keeps the best weights in checkpoints/best.

    `known` are the losses that earlier sessions noted; `stopped` says whether this one was interrupted.
    """

    def __init__(
        self,
        model: Any,
        data: Any,
        job: Params,
        known: dict[tuple[str, int], float],
        note: Callable[..., None],
        stopped: Callable[[], bool],
    ):
        self.model, self.data, self.job, self.known, self.note, self.stopped = (
            model,
            data,
            job,
            known,
            note,
            stopped,
        )

    def measure(self, when: str, step: int) -> float | None:
        """Loss in nats a trained token; None, and nothing is noted, of an empty split. KeyboardInterrupt when stopped meanwhile."""
        if (when, step) in self.known or not len(self.data):
            return self.known.get((when, step))

        def bar(groups: Iterable[int]) -> Iterator[int]:
            for group in tqdm(
                groups,
                desc=f"held-out loss {when}",
                file=sys.stdout,
                mininterval=2,
                ncols=100,
                disable=ranks.rank() > 0,
            ):
                if self.stopped() and ranks.world_size() == 1:  # ranks finish together
                    raise KeyboardInterrupt(
                        f"stopped in the held-out loss after step {step}; its checkpoint is saved"
                    )
                yield group

        begun = time.monotonic()
        rows = evaluate.row_losses(
            self.model, self.data, rows_at_once=32 if self.job.torch_compile else 8, bar=bar
        )
        loss, tokens = evaluate.mean_loss(rows)
        if not math.isfinite(loss):
            raise Diverged(
                f"the held-out loss at step {step} is {loss}: the weights have gone bad. Earlier checkpoints are kept. "
                f"A lower learning_rate, or more warmup_steps, is the usual cure."
            )
        self.known[when, step] = loss
        seconds = round(time.monotonic() - begun, 3)
        shown = when != "during" and len(rows) > 1 and ranks.rank() == 0
        interval = {"ci95": stats.loss_interval(rows)} if shown else {}
        self.note(
            "eval", when=when, step=step, eval_loss=loss, tokens=tokens, seconds=seconds, **interval
        )
        return loss

    def due(self, step: int, total: int) -> bool:
        """Whether to measure after this step; with early stopping the last weights must be compared too."""
        return bool(self.job.eval_steps) and bool(
            step % self.job.eval_steps == 0 if step < total else self.job.early_stopping_patience
        )

    def during(
        self, step: int, masters: Masters, checkpoints: pathlib.Path, identity: dict[str, Any]
    ) -> None:
        """Measure, and with early stopping keep the weights if they are the best so far."""
        loss = self.measure("during", step)
        if self.job.early_stopping_patience and loss is not None and loss == min(self._course()):
            save_checkpoint(checkpoints / "best", step, masters, identity, sys.maxsize)

    def patience_spent(self) -> bool:
        """Whether the best of the evals during training is early_stopping_patience evals ago."""
        course = self._course()
        return (
            0 < self.job.early_stopping_patience <= len(course) - 1 - course.index(min(course))
            if course
            else False
        )

    def _course(self) -> list[float]:
        return [loss for (when, _), loss in self.known.items() if when == "during"]


def forget_later(checkpoints: pathlib.Path, step: int) -> None:
    """Remove best weights of steps that are run again."""
    for stale in (checkpoints / "best").glob("step-*"):
        if int(stale.name[5:]) > step:
            shutil.rmtree(stale)


def forget_earlier(checkpoints: pathlib.Path) -> None:
    """Keep the newest best weights alone; not sooner than a checkpoint is saved after them, since a resume may need those before."""
    for old in sorted((checkpoints / "best").glob("step-*"))[:-1]:
        shutil.rmtree(old)


def take_best(checkpoints: pathlib.Path, masters: Masters, identity: dict[str, Any]) -> int:
    """The best weights into the masters; returns their step, 0 where they cannot be read back."""
    step = resume(checkpoints / "best", masters, identity)
    if not step:
        print("the best weights cannot be read back; these are the last ones", flush=True)
    return step
