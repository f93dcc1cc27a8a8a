"""Work in parallel processes, in order, with bounded memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")
AHEAD = 3


def cores() -> int:
    """Return the number of cores that this process may use."""
    # os.cpu_count also counts cores that taskset or a SLURM job keeps from this process.
    return len(os.sched_getaffinity(0))


def ordered_map(work: Callable[[In], Out], items: Iterable[In], workers: int) -> Iterator[Out]:
    """Yield `work(item)` for every item, in the order of the items.

    At most `AHEAD` items for each worker are under way, so that the iterable may be endless.
    One worker means no process besides this one.

    Raises:
        Whatever `work` raises, at the place of the item.
    """
    if workers <= 1:
        yield from map(work, items)
        return
    # A fork would copy locks that other threads of ours (progress, BLAS) hold at that moment.
    context = multiprocessing.get_context("spawn")
    # Not Executor.map: it takes all items at once (its `buffersize` is new in Python 3.14).
    waiting: deque[Future[Out]] = deque()
    with ProcessPoolExecutor(workers, context, initializer=_leave_interrupts_to_parent) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= workers * AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            # If the reader stops early: on its own the pool would first work off what is waiting.
            pool.shutdown(wait=True, cancel_futures=True)


def _leave_interrupts_to_parent() -> None:
    # Ctrl-C reaches the whole group: each worker would print a traceback of its own.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
