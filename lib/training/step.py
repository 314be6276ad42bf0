"""Run one optimizer step: read its rows ahead, run its micro-batches, sum gradients over GPUs."""

import collections
import contextlib
import functools
import hashlib
import math
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypedDict

import torch

from lib.model import device, placement, ranks
from lib.params import Params
from lib.training import batches, compiled, packed, plan
from lib.training.batches import Batch
from lib.training.masters import Masters
from lib.training.stops import STOPS, Done, StopRequests

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
    model: Any, masters: Masters, packing: bool, example: Batch | None = None
) -> Accumulate:
    """Return the function that adds a micro-batch's gradients to the masters.

    With an example, it is compiled and recorded for batches of that shape, which takes minutes and
    changes no weight. A rank of a sharded base that runs out of memory ends with UserError.
    """
    attention: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    if packing:
        attention = functools.partial(packed.attend_within_rows, model)
    if example is not None:
        with attention(), compiled.compile_layers(model):
            return compiled.Graph(model, example, masters.take_gradients, masters.drop_gradients)

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
    # the step's loss, and how many ranks have each reason to stop
    total = torch.zeros(1 + len(STOPS), device=masters.flat.device)
    out_of_memory = False
    try:
        for place, batch in loaded["batches"]:
            # several ranks must finish their step together, or one would wait for ever
            if ranks.world_size() == 1 and look().interrupted:
                masters.drop_gradients()
                return Done(None, None, "interrupted")
            seed_micro_batch(seed, step, place)
            total[0] += accumulate(batch)
    except torch.OutOfMemoryError:
        out_of_memory = True  # raised later, since the other ranks wait for this rank's sum

    total[1:] = torch.tensor([*look(), out_of_memory])
    ranks.sum_in_place(total, masters.flat.grad)
    loss, *votes = total.tolist()
    stop = next((reason for reason, count in zip(STOPS, votes, strict=True) if count), "")
    if votes[STOPS.index("memory")]:
        masters.drop_gradients()
        return Done(None, None, stop)

    norm = masters.norm()
    overflowed = math.isfinite(loss) and not math.isfinite(norm)
    if overflowed and masters.lower_scale():  # only in float16: repeat the same step
        return run_step(accumulate, masters, step, loaded, seed, look)
    return Done(loss, norm, stop)
