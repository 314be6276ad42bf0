"""Which rows are in which micro-batch of which step: a pure function of lengths, seed and parameters.

An optimizer step is per_device_train_batch_size x gradient_accumulation_steps rows, on however many GPUs.
"""

import heapq
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from lib.common.errors import UserError
from lib.data.label_mask import IGNORED
from lib.params import Params

POOL = 8  # steps whose rows are sorted by length together: less padding, still a shuffled epoch
# a packed micro-batch is filled up to a multiple of this: what a tensor-core tile covers
TILE = 64
NO_ROWS = "the training split has no rows; see the drop table of prepare."


class Sizes(NamedTuple):
    """Of each training row: tokens, and how many of them are trained."""

    lengths: np.ndarray
    trained: np.ndarray


class Shape(NamedTuple):
    """The one fixed shape of a job's packed micro-batches: positions, rows, trained positions (the largest that occur)."""

    tokens: int
    rows: int
    trained: int


def sizes(data: Any) -> Sizes:
    """Read a split's row sizes; the first token of a row has nothing before it that could predict it."""
    lengths, trained, labels = (
        np.asarray(data["length"][:]),
        [np.zeros(0, int)],
        data.select_columns(["labels"]).with_format("arrow"),
    )
    for start in range(0, len(lengths), 4096):  # the labels of a million rows are gigabytes
        part = labels[start : start + 4096]["labels"].combine_chunks()
        offsets = part.offsets.to_numpy()
        before = np.concatenate([[0], np.cumsum(part.values.to_numpy() != IGNORED)])
        trained.append(before[offsets[1:]] - before[offsets[:-1] + 1])
    return Sizes(lengths, np.concatenate(trained))


def rows_a_step(job: Params) -> int:
    return job.per_device_train_batch_size * job.gradient_accumulation_steps


def epoch_steps(lengths: np.ndarray, epoch: int, job: Params) -> list[list[list[int]]]:
    """One epoch as steps of micro-batches of row numbers; every row once, and only one step is short."""
    order = np.random.default_rng([job.seed, epoch]).permutation(len(lengths))
    rows, size = job.per_device_train_batch_size, rows_a_step(job)
    if job.packing:
        draw = np.random.default_rng([job.seed, epoch, 2])
        # nearly by length: in exact order the same rows would meet in every epoch
        order = order[np.argsort(-lengths[order] * draw.uniform(0.9, 1, len(order)), kind="stable")]
        left = len(order) % size
        # the short step takes rows of middling length: any others could need a larger shape than all the whole steps
        short = slice((len(order) - left) // 2, (len(order) + left) // 2)
        whole = _equal_tokens(lengths, np.delete(order, short), rows)
        batches = [whole[n] for n in draw.permutation(len(whole))] + [
            order[short][n : n + rows].tolist() for n in range(0, left, rows)
        ]
        steps = [
            batches[n : n + job.gradient_accumulation_steps]
            for n in range(0, len(batches), job.gradient_accumulation_steps)
        ]
    else:
        steps = []
        for start in range(0, len(order), size * POOL):
            pool = order[start : start + size * POOL]
            pool = pool[np.argsort(-lengths[pool], kind="stable")]
            steps += [
                [
                    pool[n : n + size][m : m + rows].tolist()
                    for m in range(0, len(pool[n : n + size]), rows)
                ]
                for n in range(0, len(pool), size)
            ]
    shuffled = np.random.default_rng([job.seed, epoch, 1]).permutation(len(steps))
    return [steps[s] for s in shuffled]


def _equal_tokens(lengths: np.ndarray, order: np.ndarray, rows: int) -> list[list[int]]:
    """Micro-batches of `rows` rows whose tokens sum to nearly the same, so that one fixed shape fits all with little padding.

    `order` has the longest first; each row goes into the emptiest micro-batch that has room (Graham's LPT rule with a limit on the count).
    """
    batches: list[list[int]] = [[] for _ in range(len(order) // rows)]
    heap = [(0, n) for n in range(len(batches))]
    for row in order:
        tokens, n = heapq.heappop(heap)
        batches[n].append(int(row))
        if len(batches[n]) < rows:
            heapq.heappush(heap, (tokens + int(lengths[row]), n))
    return batches


def total_steps(rows: int, job: Params) -> int:
    return (
        job.max_steps
        if job.max_steps > 0
        else max(1, math.ceil(math.ceil(rows / rows_a_step(job)) * job.num_train_epochs))
    )


def steps_from(
    lengths: np.ndarray, done: int, job: Params
) -> Iterator[tuple[float, list[list[int]]]]:
    """(epochs finished after it, micro-batches) of each step after the first `done`, without end."""
    per_epoch = math.ceil(len(lengths) / rows_a_step(job))
    epoch, offset = divmod(done, per_epoch)
    while True:
        for n, step in enumerate(epoch_steps(lengths, epoch, job)[offset:], offset + 1):
            yield epoch + n / per_epoch, step
        epoch, offset = epoch + 1, 0


def shape(rows: Sizes, job: Params) -> Shape:
    """The smallest fixed shape that holds every micro-batch of the job."""
    tokens = trained = 0
    if not len(rows.lengths):
        raise UserError(NO_ROWS)
    for epoch in range(
        math.ceil(
            total_steps(len(rows.lengths), job) / math.ceil(len(rows.lengths) / rows_a_step(job))
        )
    ):
        for batch in (b for step in epoch_steps(rows.lengths, epoch, job) for b in step):
            tokens, trained = (
                max(tokens, int(rows.lengths[batch].sum())),
                max(trained, int(rows.trained[batch].sum())),
            )
    return Shape(
        math.ceil(tokens / TILE) * TILE,
        job.per_device_train_batch_size,
        math.ceil(trained / TILE) * TILE,
    )


def positions(rows: Sizes, steps: list[list[list[int]]], fixed: Shape | None) -> int:
    """Positions computed for these steps, padding included."""
    return sum(
        fixed.tokens if fixed else len(b) * int(rows.lengths[b].max())
        for step in steps
        for b in step
    )


def learning_rate(step: int, total: int, job: Params) -> float:
    """The rate of a step (0 is the first): transformers' schedules, so step 0 of a warm-up has rate 0."""
    if step < job.warmup_steps:
        return job.learning_rate * step / max(1, job.warmup_steps)
    progress = (step - job.warmup_steps) / max(1, total - job.warmup_steps)
    forms = {
        "linear": max(0.0, 1 - progress),
        "cosine": max(0.0, 0.5 * (1 + math.cos(math.pi * progress))),
        "constant": 1.0,
    }
    return job.learning_rate * forms[job.lr_scheduler_type]


def figures(rows: Sizes, held_out: int, job: Params, fixed: Shape | None) -> dict[str, Any]:
    """The derived numbers of a job: rows, steps, tokens a step, padding; computed, nothing is run."""
    if not len(rows.lengths):
        raise UserError(NO_ROWS)
    epoch, total = epoch_steps(rows.lengths, 0, job), total_steps(len(rows.lengths), job)
    tokens = int(rows.lengths.sum())
    return {
        "training rows": len(rows.lengths),
        "held-out rows": held_out,
        "rows a step (micro-batch x accumulation)": rows_a_step(job),
        "steps an epoch": len(epoch),
        "steps in all": total,
        "tokens an epoch": tokens,
        "tokens a step, mean": tokens / len(epoch),
        "padding, share of positions": 1 - tokens / positions(rows, epoch, fixed),
        "warm-up steps": job.warmup_steps,
        "peak learning rate": job.learning_rate,
        "schedule": job.lr_scheduler_type,
    }
