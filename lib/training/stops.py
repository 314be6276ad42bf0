"""Why a training session ends before its last step, and what is said then."""

import collections
import math
import signal
from typing import Any, NamedTuple

from lib.common.errors import UserError
from lib.model import device, ranks
from lib.params import Params
from lib.training import plan

STOP_FILE = "stop"  # `touch runs/NAME/stop` ends a session as Ctrl-C does
INTERRUPT = ".interrupt"  # the same, from the process that started the ranks
STOPS = ("interrupted", "time", "file", "memory")


class SessionOver(Exception):
    """max_minutes is up, or a stop file was found: the work so far is saved, the same command continues."""


class Diverged(Exception):
    """The loss is not a finite number, or has exploded; the last good checkpoint is kept."""


class Signals:
    """SIGINT (Ctrl-C, or the runner's SIGTERM) only sets `got` until the block ends; SIGTERM too in a rank, which has no runner."""

    got = False

    def __enter__(self) -> "Signals":
        numbers = (signal.SIGINT, signal.SIGTERM) if ranks.world_size() > 1 else (signal.SIGINT,)
        self.before = {n: signal.signal(n, self._note) for n in numbers}
        return self

    def _note(self, number: int, frame: Any) -> None:
        self.got = True

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


class Done(NamedTuple):
    """A step as all ranks see it, and why to stop after it ("" or one of STOPS). Loss and norm are None when it was not completed,
    and its accumulation dropped."""

    loss: float | None
    norm: float | None
    stop: str


def diverged(done: Done, recent: collections.deque, vocabulary: int) -> bool:
    """Whether a loss is no number, or both worse than guessing among all tokens and three times the mean of the last steps."""
    exploded = len(recent) >= 5 and done.loss > max(
        math.log(vocabulary), 3 * sum(recent) / len(recent)
    )
    return exploded or not math.isfinite(done.loss + done.norm)


def end_session(
    stop: str,
    step: int,
    total: int,
    done: int,
    current: dict[str, Any],
    sizes: plan.Sizes,
    job: Params,
) -> None:
    """Raise what ends a session early, its last completed step being saved."""
    if stop == "memory":
        longest = sizes.lengths[current["rows"]].max()
        raise UserError(
            f"{device.name()} ran out of memory in step {step + 1}, whose longest row has {longest} tokens. Step {step} is "
            f"saved. End what else uses the card (`nvidia-smi` lists it), and the same command continues; or start over with half "
            f"the per_device_train_batch_size and twice the gradient_accumulation_steps."
        )
    if stop == "interrupted":
        raise KeyboardInterrupt(f"stopped after step {step} of {total}; its checkpoint is saved")
    more = (
        f"; about {math.ceil((total - step) / max(1, done))} more sessions of this length remain"
        if stop == "time"
        else ""
    )
    raise SessionOver(
        f"{f'max_minutes={job.max_minutes:g} is up' if stop == 'time' else 'a stop file was found'} after step {step} of {total}; "
        f"its checkpoint is saved. The same command continues{more}."
    )
