"""Work in several processes, a bounded amount of it at a time, results in order."""

import collections
import concurrent.futures.process
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lib.common import machine
from lib.common.errors import UserError

MOST = 8  # each holds a tokenizer of 0.3 GiB


def start(small: bool) -> concurrent.futures.ProcessPoolExecutor | None:
    """A pool with a process a core this one may use; None, so that all is done here, for little work or one core."""
    cores = machine.cores()
    if small or cores == 1:
        return None
    # spawn, not fork: a notebook's kernel has threads, and a forked child of it may wait for ever for a lock one of them held
    return concurrent.futures.ProcessPoolExecutor(
        min(cores, MOST), multiprocessing.get_context("spawn"), _begin
    )


def stop(pool: concurrent.futures.ProcessPoolExecutor | None) -> None:
    if pool:
        pool.shutdown(cancel_futures=True)


def ordered(
    pool: concurrent.futures.ProcessPoolExecutor | None,
    function: Callable[..., Any],
    items: Iterable[tuple[Any, ...]],
) -> Iterator[Any]:
    """function(*item) for each item, in order; items are taken only as the work goes on, so that a stream stays one."""
    if pool is None:
        yield from (function(*item) for item in items)
        return
    waiting: collections.deque[concurrent.futures.Future[Any]] = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, *item))
            if len(waiting) > pool._max_workers + 2:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except concurrent.futures.process.BrokenProcessPool:
        raise UserError(
            "a worker process was killed: by hand, or by the system because memory ran out. The same command tries again."
        ) from None
    finally:
        for future in waiting:
            future.cancel()


def _begin() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the cores are taken by our processes
    parent = multiprocessing.parent_process()

    def follow() -> None:  # a parent killed with -9 tells nobody
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
