"""Threads for NumPy: a small pool that works through blocks of rows, a map that works ahead, and scratch memory for
each thread.

NumPy releases the interpreter lock in its loops and matrix products. So all cores are busy if each thread takes a block
that fits its core's cache. BLAS itself is told to use one thread.
"""

import math
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import chain
from queue import SimpleQueue
from typing import NamedTuple, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from gpt.system import limits

# Read at import, before OpenMP is loaded, which may bind this thread to one CPU (OMP_PROC_BIND, OMP_PLACES).
CPUS = limits.cpus()
ALLOWED = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None

MOST_PER_CPU = 8  # threads; with more, even starting them takes longer than a step


def available_threads(processes: int = 1) -> int:
    """The number of CPUs for this process, if so many processes share those that it may use: at least 1.

    It is OMP_NUM_THREADS if that is set to a positive number, or to several with commas between them, of which the
    first counts. But it is at most MOST_PER_CPU for each CPU.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if not wanted.isdecimal() or not wanted.strip("0"):
        return max(1, CPUS // processes)
    most = MOST_PER_CPU * CPUS
    return most if len(wanted.lstrip("0")) > len(str(most)) else min(int(wanted), most)


T = TypeVar("T")
R = TypeVar("R")

QUIET = partial(np.errstate, all="ignore")  # the loss shows that training diverges; NumPy need not warn as well


class _Job(NamedTuple):
    """A call of `Threads.run`, as each helping thread gets it."""

    task: Callable[[int], None]
    remaining: deque[int]  # the numbers that no thread has taken yet
    failures: SimpleQueue[BaseException | None]  # each helper puts one at its end: the exception raised, or None


_Jobs = SimpleQueue[_Job | None]  # None ends the thread that reads it


class Threads:
    """A pool of `wanted` threads, the calling one included, that share numbered tasks. `count` could be started.

    The timing decides which thread takes which task. So that no result depends on it, a task must write only to places
    that belong to its number. A task must not call `run`, and only one thread at a time may. `scratch` is memory for
    tasks: each thread has its own.

    Example:
        threads = Threads(4)
        threads.run_blocks(lambda rows: np.exp(x[rows], out=y[rows]), rows=len(x), block=64)
    """

    def __init__(self, wanted: int) -> None:
        self.wanted, self.scratch = wanted, Scratch()
        self._queues: list[_Jobs] = []  # one for each helping thread
        threadpool_limits(limits=1, user_api="blas")
        with suppress(RuntimeError):  # the system, or a container, allows no more threads
            for _ in range(wanted - 1):
                jobs: _Jobs = SimpleQueue()
                threading.Thread(target=_serve, args=(jobs,), daemon=True).start()
                self._queues.append(jobs)
        self.count = 1 + len(self._queues)
        weakref.finalize(self, _dismiss, self._queues)

    def run(self, task: Callable[[int], None], count: int) -> None:
        """Call task(0) … task(count - 1) and return when all are done. A single task runs in the calling thread.

        If a task raises, no further one is begun, and the exception is raised here once all threads have stopped.
        """
        if count == 1:
            with QUIET():
                task(0)
            return
        job = _Job(task, deque(range(count)), SimpleQueue())
        helpers = self._queues[: count - 1]
        for jobs in helpers:
            jobs.put(job)
        try:
            _work(job)
        finally:
            failures = [job.failures.get() for _ in helpers]
        for failure in filter(None, failures):
            raise failure

    def run_blocks(self, task: Callable[[slice], None], rows: int, block: int) -> None:
        """Call task(slice) for each block of at most `block` of the `rows` rows; return and raise as `run` does."""
        if rows <= block:  # the most frequent case in a small model
            with QUIET():
                task(slice(0, rows))
            return
        parts = blocks(slice(0, rows), block)
        self.run(lambda number: task(parts[number]), len(parts))


def blocks(rows: slice, block: int) -> list[slice]:
    """`rows` cut into slices of `block` rows; the last may be shorter.

    Example:
        >>> blocks(slice(0, 10), 4)
        [slice(0, 4), slice(4, 8), slice(8, 10)]
    """
    return [slice(start, min(start + block, rows.stop)) for start in range(rows.start, rows.stop, block)]


def _work(job: _Job) -> None:
    """Do tasks until none remains. If one raises, the other threads begin no further one."""
    try:
        with QUIET():
            while job.remaining:
                try:
                    number = job.remaining.popleft()
                except IndexError:  # another thread took the last one
                    return
                job.task(number)
    except BaseException:
        job.remaining.clear()
        raise


def _serve(jobs: _Jobs) -> None:
    """The work of a helping thread: one job after the other, until it is dismissed."""
    while job := jobs.get():
        failure = None
        try:
            _work(job)
        except BaseException as error:
            failure = error
        job.failures.put(failure)
        del job, failure  # else the arrays that they refer to would live until the next job


def _dismiss(queues: list[_Jobs]) -> None:
    for jobs in queues:
        jobs.put(None)


def ahead(function: Callable[[T], R], items: Sequence[T], threads: int) -> Iterator[R]:
    """Yields function(item) for each item, in their order, while so many threads work on the next ones.

    Not many more results than threads wait to be taken. A single item is worked on in the calling thread, and so is
    everything if the system, or a container, allows no more threads.

    Example:
        >>> list(ahead(abs, [-1, 2, -3], threads=2))
        [1, 2, 3]
    """
    if len(items) < 2:
        yield from map(function, items)
        return
    waiting: deque[Future[R]] = deque()
    left: Iterable[T] = ()  # for the calling thread
    remaining = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in remaining:
                try:
                    waiting.append(pool.submit(function, item))
                except RuntimeError:  # can't start new thread
                    left = chain([item], remaining)
                    break
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    yield from map(function, left)


class Scratch(threading.local):
    """Named arrays that each thread has for itself. Whoever asks for the same name next gets the same memory."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, np.dtype], np.ndarray] = {}

    def __call__(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """A C-contiguous array with undefined content. Memory is allocated only if it is the largest one so far."""
        size = math.prod(shape)
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.size < size:
            buffer = self._buffers[name, dtype] = np.empty(size, dtype)
        return buffer[:size].reshape(shape)
