"""Plan which rows are in which micro-batch of which step, from lengths, seed and job alone.

An optimizer step trains per_device_train_batch_size x gradient_accumulation_steps rows, on any
number of GPUs.
"""

import heapq
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from lib.common.errors import UserError
from lib.data.label_mask import IGNORED
from lib.params import Params

# steps whose rows are sorted by length together: less padding, and still a shuffled epoch
POOL = 8
# a packed micro-batch is filled up to a multiple of this, the size of a tensor-core tile
TILE = 64
# rows whose labels are read at once, since the labels of a million rows are gigabytes
ROWS_AT_ONCE = 4096
NO_ROWS = "the training split has no rows; see the drop table of prepare."

MicroBatch = list[int]  # row numbers


class Sizes(NamedTuple):
    """The number of tokens in each training row, and how many of them are trained."""

    lengths: np.ndarray
    trained: np.ndarray


class Shape(NamedTuple):
    """The fixed shape of a job's packed micro-batches; each number is the largest that occurs.

    `longest` are the tokens of a single row, 0 if it may fill the whole shape.
    """

    tokens: int
    rows: int
    trained: int
    longest: int = 0

    def fillers(self) -> int:
        """Return how many rows, none longer than `longest`, fill a shape without a token."""
        return math.ceil(self.tokens / self.longest) if self.longest else 1


# --------------------------------------------------------------------------------------------------
# rows


def read_sizes(data: Any) -> Sizes:
    """Read the sizes of a split's rows.

    The first token of a row is never trained, since there is nothing before it to predict it from.
    """
    lengths = np.asarray(data["length"][:])
    trained = [np.zeros(0, int)]
    labels = data.select_columns(["labels"]).with_format("arrow")
    for start in range(0, len(lengths), ROWS_AT_ONCE):
        part = labels[start : start + ROWS_AT_ONCE]["labels"].combine_chunks()
        offsets = part.offsets.to_numpy()
        # trained labels before each position; a row's number is the difference of its two ends
        before = np.concatenate([[0], np.cumsum(part.values.to_numpy() != IGNORED)])
        trained.append(before[offsets[1:]] - before[offsets[:-1] + 1])
    return Sizes(lengths, np.concatenate(trained))


def micro_batch_rows(per_device_train_batch_size: int | str) -> int:
    """Return the rows of a micro-batch; the preflight must have resolved `auto`."""
    assert isinstance(per_device_train_batch_size, int), "auto is not resolved yet"
    return per_device_train_batch_size


def rows_per_step(job: Params) -> int:
    """Return the rows of an optimizer step."""
    return micro_batch_rows(job.per_device_train_batch_size) * job.gradient_accumulation_steps


def count_steps(rows: int, job: Params) -> int:
    """Return the optimizer steps of the whole job."""
    if job.max_steps > 0:
        return job.max_steps
    return max(1, math.ceil(math.ceil(rows / rows_per_step(job)) * job.num_train_epochs))


# --------------------------------------------------------------------------------------------------
# steps


def plan_epoch(lengths: np.ndarray, epoch: int, job: Params) -> list[list[MicroBatch]]:
    """Return one epoch as steps of micro-batches, with every row once and only one short step."""
    order = np.random.default_rng([job.seed, epoch]).permutation(len(lengths))
    if job.packing:
        steps = _packed_steps(lengths, order, epoch, job)
    else:
        steps = _padded_steps(lengths, order, job)
    shuffled = np.random.default_rng([job.seed, epoch, 1]).permutation(len(steps))
    return [steps[n] for n in shuffled]


def _padded_steps(lengths: np.ndarray, order: np.ndarray, job: Params) -> list[list[MicroBatch]]:
    """Put rows of similar length together, in pools of a few steps."""
    size = rows_per_step(job)
    rows = micro_batch_rows(job.per_device_train_batch_size)
    steps = []
    for start in range(0, len(order), size * POOL):
        pool = order[start : start + size * POOL]
        pool = pool[np.argsort(-lengths[pool], kind="stable")]
        for first in range(0, len(pool), size):
            steps.append(_split(pool[first : first + size].tolist(), rows))
    return steps


def _packed_steps(
    lengths: np.ndarray, order: np.ndarray, epoch: int, job: Params
) -> list[list[MicroBatch]]:
    """Fill micro-batches with rows whose tokens sum to nearly the same."""
    micro_batch = micro_batch_rows(job.per_device_train_batch_size)
    draw = np.random.default_rng([job.seed, epoch, 2])
    # sort by length only roughly: in exact order, the same rows would meet in every epoch
    order = order[np.argsort(-lengths[order] * draw.uniform(0.9, 1, len(order)), kind="stable")]

    # the short step takes rows of medium length: others could need a larger shape than all the
    # full steps
    left = len(order) % rows_per_step(job)
    short = slice((len(order) - left) // 2, (len(order) + left) // 2)
    full = _equal_tokens(lengths, np.delete(order, short), micro_batch)
    batches = [full[n] for n in draw.permutation(len(full))]
    batches += _split(order[short].tolist(), micro_batch)
    return _split(batches, job.gradient_accumulation_steps)


def _split(items: list[Any], size: int) -> list[list[Any]]:
    return [items[n : n + size] for n in range(0, len(items), size)]


def _equal_tokens(lengths: np.ndarray, order: np.ndarray, rows: int) -> list[MicroBatch]:
    """Fill micro-batches of `rows` rows so that one fixed shape fits all with little padding.

    `order` has the longest row first; each row is put into the emptiest micro-batch with room
    (Graham's LPT rule with a limit on the count).
    """
    batches: list[MicroBatch] = [[] for _ in range(len(order) // rows)]
    heap = [(0, n) for n in range(len(batches))]  # tokens, number of the micro-batch
    for row in order:
        tokens, n = heapq.heappop(heap)
        batches[n].append(int(row))
        if len(batches[n]) < rows:
            heapq.heappush(heap, (tokens + int(lengths[row]), n))
    return batches


def iterate_steps(
    lengths: np.ndarray, done: int, job: Params
) -> Iterator[tuple[float, list[MicroBatch]]]:
    """Yield (epochs finished after it, step) for each step after the first `done`, without end."""
    per_epoch = math.ceil(len(lengths) / rows_per_step(job))
    epoch, offset = divmod(done, per_epoch)
    while True:
        for n, step in enumerate(plan_epoch(lengths, epoch, job)[offset:], offset + 1):
            yield epoch + n / per_epoch, step
        epoch, offset = epoch + 1, 0


def find_shape(sizes: Sizes, job: Params) -> Shape:
    """Return the smallest fixed shape that fits every micro-batch of the job."""
    rows = len(sizes.lengths)
    if not rows:
        raise UserError(NO_ROWS)
    tokens = trained = longest = 0
    epochs = math.ceil(count_steps(rows, job) / math.ceil(rows / rows_per_step(job)))
    for epoch in range(epochs):
        for step in plan_epoch(sizes.lengths, epoch, job):
            for batch in step:
                tokens = max(tokens, int(sizes.lengths[batch].sum()))
                trained = max(trained, int(sizes.trained[batch].sum()))
                longest = max(longest, int(sizes.lengths[batch].max()))
    batch_rows = micro_batch_rows(job.per_device_train_batch_size)
    return Shape(_fill_tiles(tokens), batch_rows, _fill_tiles(trained), longest)


def fixed_shape(sizes: Sizes, job: Params) -> Shape | None:
    """Return the shape of a job that packs its rows; None for one that pads them."""
    return find_shape(sizes, job) if job.packing else None


def _fill_tiles(count: int) -> int:
    return math.ceil(count / TILE) * TILE


def find_extremes(sizes: Sizes, job: Params) -> tuple[MicroBatch, MicroBatch]:
    """Return the micro-batches that need the least and the most memory.

    They are compared by positions, then by trained tokens.
    """

    def cost(rows: MicroBatch) -> tuple[int, int]:
        lengths = sizes.lengths[rows]
        positions = lengths.sum() if job.packing else len(rows) * lengths.max()
        return positions, sizes.trained[rows].sum()

    steps = plan_epoch(sizes.lengths, 0, job)
    micro_batches = [rows for step in steps for rows in step]
    return min(micro_batches, key=cost), max(micro_batches, key=cost)


def count_positions(sizes: Sizes, steps: list[list[MicroBatch]], shape: Shape | None) -> int:
    """Return the number of positions computed for these steps, including padding."""
    if shape:
        return shape.tokens * sum(map(len, steps))
    return sum(len(batch) * int(sizes.lengths[batch].max()) for step in steps for batch in step)


# --------------------------------------------------------------------------------------------------
# the schedule, and a summary for people


def learning_rate(step: int, total: int, job: Params) -> float:
    """Return the learning rate of a step; the first step is 0.

    The schedules are transformers' own, so step 0 of a warm-up has the rate 0.
    """
    if step < job.warmup_steps:
        return job.learning_rate * step / max(1, job.warmup_steps)
    progress = (step - job.warmup_steps) / max(1, total - job.warmup_steps)
    factors = {
        "linear": max(0.0, 1 - progress),
        "cosine": max(0.0, 0.5 * (1 + math.cos(math.pi * progress))),
        "constant": 1.0,
    }
    return job.learning_rate * factors[job.lr_scheduler_type]


def describe_rates(done: int, total: int, job: Params) -> dict[str, Any]:
    """Return how many of the steps after the first `done` have which learning rate, for people."""
    counts = {"zero": 0, "rising": 0, "peak": 0, "falling": 0}
    highest = 0.0
    for step in range(done, total):
        rate = learning_rate(step, total, job)
        highest = max(highest, rate)
        if rate == 0:
            counts["zero"] += 1
        elif rate == job.learning_rate:
            counts["peak"] += 1
        else:
            counts["rising" if step < job.warmup_steps else "falling"] += 1
    return {
        **({"steps that are done already": done} if done else {}),
        "steps at a learning rate of 0": counts["zero"],
        "steps in which it rises": counts["rising"],
        f"steps at its peak of {job.learning_rate:g}": counts["peak"],
        "steps in which it falls": counts["falling"],
        "highest learning rate": highest,
        **({"caution": _explain_short(total, job)} if total <= job.warmup_steps else {}),
    }


def _explain_short(total: int, job: Params) -> str:
    """Say what becomes of a training that ends before its warm-up does."""
    cure = "set fewer warmup_steps, or train for more steps"
    if total == 1:
        return (
            f"the only step has a learning rate of 0, so the adapter will equal its start, and "
            f"export will refuse it: {cure}"
        )
    return (
        f"the warm-up of {job.warmup_steps:,} steps is not over after all {total:,} steps, so the "
        f"learning rate never reaches its peak: {cure}"
    )


def describe_longer(step: int, planned: int, total: int, job: Params) -> str:
    """Say what the learning rate does where a training goes on to more steps than were planned."""
    last, following = (
        learning_rate(*of, job) for of in ((max(0, step - 1), planned), (step, total))
    )
    share = following / job.learning_rate
    end = learning_rate(total - 1, total, job)
    return (
        f"The first {step} steps followed a schedule of {planned} steps, with a learning rate of "
        f"{last:.3g} in the last of them. From here on it is the {job.lr_scheduler_type} schedule "
        f"of {total} steps: the rate goes on at {following:.3g} ({share:.0%} of the peak), and is "
        f"{end:.3g} in the last step. The optimizer keeps its state."
    )


def describe_plan(
    sizes: Sizes, held_out_rows: int, job: Params, shape: Shape | None, done: int = 0
) -> dict[str, Any]:
    """Return the derived numbers of a job for people: rows, steps, tokens, padding, rates.

    They are computed without running anything. `done` steps of an earlier session are trained.
    """
    if not len(sizes.lengths):
        raise UserError(NO_ROWS)
    epoch = plan_epoch(sizes.lengths, 0, job)
    total = count_steps(len(sizes.lengths), job)
    tokens = int(sizes.lengths.sum())
    return {
        "training rows": len(sizes.lengths),
        "held-out rows": held_out_rows,
        "rows a step (micro-batch x accumulation)": rows_per_step(job),
        "steps an epoch": len(epoch),
        "steps in all": total,
        "tokens an epoch": tokens,
        "tokens a step, mean": tokens / len(epoch),
        "padding, share of positions": 1 - tokens / count_positions(sizes, epoch, shape),
        "warm-up steps": job.warmup_steps,
        "peak learning rate": job.learning_rate,
        "schedule": job.lr_scheduler_type,
        **describe_rates(done, total, job),
    }
