"""Run work in several processes, a bounded amount at a time, and yield the results in order."""

import collections
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from lib.common import machine
from lib.common.errors import UserError

MOST = 8  # processes, since each holds a tokenizer of 0.3 GiB


def start_pool(small: bool) -> ProcessPoolExecutor | None:
    """Return a pool with a process for each core that this process may use.

    Return None for little work (`small`) or one core; `map_in_order` then works in this process.
    """
    if small or machine.cores() == 1:
        return None
    # spawn, not fork: a notebook's kernel has threads, and a forked child may wait for ever for a
    # lock that one of them held
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(_count_processes(), context, _prepare_worker)


def _count_processes() -> int:
    return min(machine.cores(), MOST)


def stop_pool(pool: ProcessPoolExecutor | None) -> None:
    if pool:
        pool.shutdown(cancel_futures=True)


def map_in_order(
    pool: ProcessPoolExecutor | None,
    function: Callable[..., Any],
    items: Iterable[tuple[Any, ...]],
) -> Iterator[Any]:
    """Yield function(*item) for each item, in order.

    Items are taken only as workers become free, so that a stream of rows is never held in memory.
    """
    if pool is None:
        yield from (function(*item) for item in items)
        return
    waiting: collections.deque[Future[Any]] = collections.deque()
    most_waiting = _count_processes() + 2  # so that no process waits for work
    try:
        for item in items:
            waiting.append(pool.submit(function, *item))
            if len(waiting) > most_waiting:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed: by hand, or by the system because memory ran out. "
            "Run the same command again; if memory ran out, free some first."
        ) from None
    finally:
        for future in waiting:
            future.cancel()


def _prepare_worker() -> None:
    """Prepare a worker: leave the other cores alone, and end when the parent does."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the worker processes already use all cores
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # also returns when the parent is killed with -9, which no handler would see
    os._exit(1)
