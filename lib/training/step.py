"""One optimizer step: its rows read ahead, its micro-batches through the model, its gradients summed over the GPUs."""

import collections
import contextlib
import functools
import hashlib
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from lib.model import device, placement, ranks
from lib.params import Params
from lib.training import batches, compiled, packed, plan
from lib.training.batches import Batch
from lib.training.masters import Masters
from lib.training.stops import STOPS, Done


def seed_for(job: Params, step: int, place: int) -> None:
    """Random numbers of a micro-batch (dropout, NEFTune) depend on seed, step and its place alone: a resumed run, or one on
    another number of GPUs, draws the same."""
    torch.manual_seed(
        int.from_bytes(hashlib.sha256(f"{job.seed} {step} {place}".encode()).digest()[:7], "big")
    )


def load_steps(
    data: Any, sizes: plan.Sizes, start: int, job: Params, fixed: plan.Shape | None
) -> Iterator[dict[str, Any]]:
    """Every step after `start` with this rank's micro-batches, read and padded ahead by dataloader_num_workers threads."""
    columns, pin = data.select_columns(["input_ids", "labels"]), torch.cuda.is_available()

    def load(epoch: float, step: list[list[int]]) -> dict[str, Any]:
        rows = [n for b in step for n in b]
        trained, mine = int(sizes.trained[rows].sum()), []
        for place in range(
            ranks.rank(), len(step) + -len(step) % ranks.world_size(), ranks.world_size()
        ):
            # of a short step every rank takes part, since they wait for each other: those without rows of it with rows that weigh nothing
            batch = batches.make_batch(
                columns[step[min(place, len(step) - 1)]],
                fixed,
                1 / max(1, trained) if place < len(step) else 0.0,
            )
            mine.append(
                (place, Batch(*(t.pin_memory() if pin and t is not None else t for t in batch)))
            )
        return {
            "epoch": round(epoch, 4),
            "rows": rows,
            "trained": trained,
            "tokens": int(sizes.lengths[rows].sum()),
            "padded": plan.count_positions(sizes, [step], fixed),
            "batches": mine,
        }

    steps = plan.iterate_steps(sizes.lengths, start, job)
    if not job.dataloader_num_workers:
        while True:
            yield load(*next(steps))
    with ThreadPoolExecutor(job.dataloader_num_workers) as pool:
        ahead = collections.deque(
            pool.submit(load, *next(steps)) for _ in range(job.dataloader_num_workers + 1)
        )
        while True:
            yield ahead.popleft().result()
            ahead.append(pool.submit(load, *next(steps)))


def micro_batch(
    model: Any, masters: Masters, job: Params, example: Callable[[], Batch]
) -> Callable[[Batch], torch.Tensor]:
    """The function that takes a micro-batch's gradients into the masters and returns its share of the loss.

    With torch_compile it is built from an example, which takes minutes and changes no weight.
    """
    attention = functools.partial(packed.in_use, model) if job.packing else contextlib.nullcontext
    if job.torch_compile:
        with attention(), compiled.compiled(model):
            return compiled.Graph(model, example(), masters.take_gradients, masters.drop_gradients)

    def eager(batch: Batch) -> torch.Tensor:
        with attention():
            loss = compiled.forward_backward(model, batch.to(model.device), scale=masters.scale)
        masters.take_gradients()
        return loss

    def gathering(
        batch: Batch,
    ) -> torch.Tensor:  # the others wait for this rank inside a layer, where no word reaches them
        with device.explain_out_of_memory(
            "a step of a sharded base", "start over with a smaller per_device_train_batch_size"
        ):
            return eager(batch)

    return gathering if placement.is_sharded(model) else eager


def run_step(
    take: Callable[[Batch], torch.Tensor],
    masters: Masters,
    step: int,
    current: dict[str, Any],
    job: Params,
    told: Callable[[], tuple[bool, bool, bool]],
) -> Done:
    """A step's micro-batches on all ranks: its loss a trained token and its gradient norm, the gradients summed in the masters.

    Every trained token of the step weighs the same, however its rows fall into micro-batches and ranks. `told` says
    whether this rank was interrupted, its time is over, a stop file is there.
    """
    total, full = torch.zeros(1 + len(STOPS), device=masters.flat.device), False
    try:
        for place, batch in current["batches"]:
            if (
                ranks.world_size() == 1 and told()[0]
            ):  # ranks finish their step together, or one would wait for ever
                masters.drop_gradients()
                return Done(None, None, "interrupted")
            seed_for(job, step, place)
            total[0] += take(batch)
    except torch.OutOfMemoryError:  # the others are waiting for this rank's sum
        full = True
    total[1:] = torch.tensor([*told(), full])
    ranks.sum_in_place(total, masters.flat.grad)
    loss, *stops = total.tolist()
    stop = next((why for why, ranks in zip(STOPS, stops, strict=True) if ranks), "")
    if stops[-1]:
        masters.drop_gradients()
        return Done(None, None, stop)
    norm = masters.norm()
    if (
        math.isfinite(loss) and not math.isfinite(norm) and masters.lower_scale()
    ):  # float16 overflowed: the same step again
        return run_step(take, masters, step, current, job, told)
    return Done(loss, norm, stop)
