"""Run one optimizer step: read its rows ahead, run its micro-batches, sum gradients over GPUs."""

import collections
import contextlib
import functools
import hashlib
import math
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypedDict

import torch

from lib.model import device, placement, ranks
from lib.params import Params
from lib.training import batches, compiled, packed, plan
from lib.training.batches import Batch
from lib.training.masters import Masters
from lib.training.stops import STOPS, Done, Guard, StopRequests

# adds a micro-batch's gradients to the masters and returns its share of the step's loss
Accumulate = Callable[[Batch], torch.Tensor]


class LoadedStep(TypedDict):
    """A step's rows on all ranks, and the micro-batches of this rank."""

    epoch: float  # epochs that are finished after it
    rows: list[int]
    trained: int  # tokens with a loss
    tokens: int
    padded: int  # positions, including padding
    batches: list[tuple[int, Batch]]  # each with its place in the step


# --------------------------------------------------------------------------------------------------
# reading ahead


def load_steps(
    data: Any, sizes: plan.Sizes, start: int, job: Params, shape: plan.Shape | None
) -> Generator[LoadedStep, None, None]:
    """Yield every step after `start`, read and padded ahead by dataloader_num_workers threads."""
    columns = data.select_columns(["input_ids", "labels"])
    read_step = functools.partial(_read_step, columns, sizes, shape)
    steps = plan.iterate_steps(sizes.lengths, start, job)  # without end
    if not job.dataloader_num_workers:
        while True:
            yield read_step(*next(steps))
    with ThreadPoolExecutor(job.dataloader_num_workers) as pool:
        ahead = collections.deque(
            pool.submit(read_step, *next(steps)) for _ in range(job.dataloader_num_workers + 1)
        )
        while True:
            yield ahead.popleft().result()
            ahead.append(pool.submit(read_step, *next(steps)))


def load_first_batch(
    data: Any, sizes: plan.Sizes, start: int, job: Params, shape: plan.Shape | None
) -> Batch:
    """Return this rank's first micro-batch of the step after `start`.

    It is read in this thread, since pinning memory in another would spoil the recording of a CUDA
    graph.
    """
    columns = data.select_columns(["input_ids", "labels"])
    epoch, step = next(plan.iterate_steps(sizes.lengths, start, job))
    return _read_step(columns, sizes, shape, epoch, step)["batches"][0][1]


def _read_step(
    columns: Any,
    sizes: plan.Sizes,
    shape: plan.Shape | None,
    epoch: float,
    step: list[plan.MicroBatch],
) -> LoadedStep:
    rows = [row for micro_batch in step for row in micro_batch]
    trained = int(sizes.trained[rows].sum())
    mine = []
    # Ranks wait for each other, so each takes part in a short step equally often. A rank without
    # rows left repeats some with weight 0.
    places = len(step) + -len(step) % ranks.world_size()
    for place in range(ranks.rank(), places, ranks.world_size()):
        micro_batch = step[min(place, len(step) - 1)]
        weight = 1 / max(1, trained) if place < len(step) else 0.0
        batch = batches.make_batch(columns[micro_batch], shape, weight)
        mine.append((place, batch.pinned() if torch.cuda.is_available() else batch))
    return {
        "epoch": round(epoch, 4),
        "rows": rows,
        "trained": trained,
        "tokens": int(sizes.lengths[rows].sum()),
        "padded": plan.count_positions(sizes, [step], shape),
        "batches": mine,
    }


# --------------------------------------------------------------------------------------------------
# one micro-batch


def seed_micro_batch(seed: int, step: int, place: int) -> None:
    """Seed a micro-batch's random numbers (dropout, NEFTune) by seed, step and place only.

    So a resumed run, or one on another number of GPUs, draws the same numbers.
    """
    digest = hashlib.sha256(f"{seed} {step} {place}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:7], "big"))


def build_accumulate(
    model: Any,
    masters: Masters,
    packing: bool,
    example: Batch | None = None,
    stack: Accumulate | None = None,
) -> Accumulate:
    """Return the function that adds a micro-batch's gradients to the masters.

    With an example, it is compiled and recorded for batches of that shape, which takes minutes and
    changes no weight; `stack` computes it if given. A rank of a sharded base that runs out of
    memory ends with UserError.
    """
    attention: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    if packing:
        attention = functools.partial(packed.attend_within_rows, model)
    if example is not None and stack:
        return compiled.Graph(stack, example.copied_to(model.device), masters.drop_gradients)
    if example is not None:

        def add(batch: Batch) -> torch.Tensor:
            loss = compiled.forward_backward(model, batch, fused=True)
            masters.take_gradients()
            return loss

        with attention(), compiled.compile_layers(model):
            return compiled.Graph(add, example.copied_to(model.device), masters.drop_gradients)

    def accumulate(batch: Batch) -> torch.Tensor:
        with attention():
            loss = compiled.forward_backward(model, batch.to(model.device), scale=masters.scale)
        masters.take_gradients()
        return loss

    def accumulate_sharded(batch: Batch) -> torch.Tensor:
        # the other ranks wait for this one inside a layer, where they cannot be notified
        with device.explain_out_of_memory(
            "a step of a sharded base", "start over with a smaller per_device_train_batch_size"
        ):
            return accumulate(batch)

    return accumulate_sharded if placement.is_sharded(model) else accumulate


# --------------------------------------------------------------------------------------------------
# one step


def run_step(
    accumulate: Accumulate,
    masters: Masters,
    step: int,
    loaded: LoadedStep,
    seed: int,
    look: Callable[[], StopRequests],
) -> Done:
    """Run a step's micro-batches on all ranks, and leave the summed gradients in the masters.

    Return the loss per trained token and the gradient norm. Every trained token of the step has the
    same weight, however its rows are divided into micro-batches and ranks. `look` returns the
    reasons for this rank to stop.
    """
    total, stop = _sum_gradients(accumulate, masters, step, loaded, seed, look)
    if total is None:
        return Done(None, None, stop)
    loss, *votes = total.tolist()
    stop = _first_reason(votes)
    if votes[STOPS.index("memory")]:
        masters.drop_gradients()
        return Done(None, None, stop)

    norm = masters.norm()
    overflowed = math.isfinite(loss) and not math.isfinite(norm)
    if overflowed and masters.lower_scale():  # only in float16: repeat the same step
        return run_step(accumulate, masters, step, loaded, seed, look)
    return Done(loss, norm, stop)


def _first_reason(votes: list[float]) -> str:
    return next((reason for reason, count in zip(STOPS, votes, strict=True) if count), "")


def _sum_gradients(
    accumulate: Accumulate,
    masters: Masters,
    step: int,
    loaded: LoadedStep,
    seed: int,
    look: Callable[[], StopRequests],
) -> tuple[torch.Tensor | None, str]:
    """Leave a step's gradients, summed over micro-batches and ranks, in the masters.

    Return the step's loss and the ranks' votes to stop, still on the device, or None if the step is
    dropped; and the reason to stop, which several ranks know only from the votes.
    """
    # the step's loss, and how many ranks have each reason to stop
    total = torch.zeros(1 + len(STOPS), device=masters.flat.device)
    out_of_memory = False
    try:
        for place, batch in loaded["batches"]:
            # several ranks must finish their step together, or one would wait for ever
            if ranks.world_size() == 1 and look().interrupted:
                masters.drop_gradients()
                return None, "interrupted"
            seed_micro_batch(seed, step, place)
            total[0] += accumulate(batch)
    except torch.OutOfMemoryError:
        out_of_memory = True  # raised later, since the other ranks wait for this rank's sum
        total[0] = math.nan  # an update launched on the sum then moves no weight, on any rank

    votes = torch.tensor([*look(), out_of_memory], dtype=total.dtype)
    # a copy from other than pinned memory would wait for the GPU
    total[1:].copy_(votes.pin_memory() if total.is_cuda else votes, non_blocking=True)
    ranks.sum_in_place(total, masters.flat.grad)
    return total, _first_reason(votes.tolist()) if ranks.world_size() == 1 else ""


# --------------------------------------------------------------------------------------------------
# one step and the update after it


class Launched(NamedTuple):
    """A step that a GPU may still work on.

    `stop` is why to stop after it, as far as that is known; `read` waits for its result.
    """

    loaded: LoadedStep
    rate: float
    stop: str
    read: Callable[[], Done]


class Runner:
    """Runs steps and moves the weights after each, unless it has diverged.

    It is late if a GPU can record the update: then a step is only launched, and its result can be
    read when the next one is launched too. Otherwise both are done on return.
    """

    def __init__(self, accumulate: Accumulate, masters: Masters, guard: Guard, job: Params) -> None:
        self.accumulate, self.masters, self.guard, self.job = accumulate, masters, guard, job
        self.is_late = masters.recordable
        if self.is_late:
            self.update = compiled.Update(masters, guard, job.max_grad_norm)

    def launch(
        self, step: int, loaded: LoadedStep, rate: float, look: Callable[[], StopRequests]
    ) -> Launched:
        """Run or launch a step and its update; `look` returns this rank's reasons to stop."""
        if not self.is_late:
            done = self._run(step, loaded, rate, look)
            return Launched(loaded, rate, done.stop, lambda: done)
        self.masters.set_rate(rate)
        total, stop = _sum_gradients(
            self.accumulate, self.masters, step, loaded, self.job.seed, look
        )
        if total is None:
            return Launched(loaded, rate, stop, lambda: Done(None, None, stop))
        wait = self.update(total)
        return Launched(loaded, rate, stop, lambda: _read_update(wait()))

    def _run(
        self, step: int, loaded: LoadedStep, rate: float, look: Callable[[], StopRequests]
    ) -> Done:
        done = run_step(self.accumulate, self.masters, step, loaded, self.job.seed, look)
        if done.loss is None or done.norm is None:
            return done
        if self.guard.refuses(done.loss, done.norm):
            return done._replace(diverged=True)
        self.masters.step(done.norm, rate, self.job.max_grad_norm)
        return done


def _read_update(numbers: list[float]) -> Done:
    loss, *votes, norm, refused = numbers
    stop = _first_reason(votes)
    if votes[STOPS.index("memory")]:
        return Done(None, None, stop)
    return Done(loss, norm, stop, bool(refused))
