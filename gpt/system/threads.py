"""Threads for NumPy: a small pool that works through blocks, and scratch memory of each thread's own.

NumPy lets go of the interpreter lock inside its loops and matrix products, so threads that each take a block which
fits a core's cache keep all cores busy. BLAS itself is told to use one thread.
"""

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue

import numpy as np
from threadpoolctl import threadpool_limits

from gpt.system import limits

# Before OpenMP is loaded, which may bind this thread to one CPU (OMP_PROC_BIND, OMP_PLACES, GOMP_CPU_AFFINITY):
CPUS = limits.cpus()
ALLOWED = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


def available_threads() -> int:
    """CPUs this process may use, or OMP_NUM_THREADS where that is set to a positive number."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdecimal() and int(wanted) > 0 else CPUS


QUIET = partial(np.errstate, all="ignore")  # training that diverges is found by its loss; NumPy need not warn as well


class Threads:
    """`wanted` threads, the calling one among them, that share out numbered tasks; `count` of them could be started.

    Which thread gets which task is a matter of timing, so no result may depend on it: a task writes only what belongs
    to its number. Not reentrant: a task must not call `run`, and only one thread at a time may.
    """

    def __init__(self, wanted: int) -> None:
        self.wanted, self._jobs = wanted, []
        threadpool_limits(limits=1, user_api="blas")
        with suppress(RuntimeError):  # the system, or a container, has no more threads for us
            for _ in range(wanted - 1):
                jobs: SimpleQueue = SimpleQueue()
                threading.Thread(target=_serve, args=(jobs,), daemon=True).start()
                self._jobs.append(jobs)
        self.count = 1 + len(self._jobs)
        weakref.finalize(self, _dismiss, self._jobs)

    def run(self, task: Callable[[int], None], count: int) -> None:
        """Call task(0) … task(count - 1) and return when all are done; a single one runs right here.

        Raises what a task raised, after the others have stopped.
        """
        if count == 1:
            with QUIET():
                task(0)
            return
        remaining = deque(range(count))
        helpers = self._jobs[: count - 1]
        failures = SimpleQueue()  # of each helper, in the end: its exception, or None
        for jobs in helpers:
            jobs.put((task, remaining, failures))
        try:
            _work(task, remaining)
        finally:
            failed = [failures.get() for _ in helpers]
        for failure in filter(None, failed):
            raise failure

    def run_blocks(self, task: Callable[[slice], None], rows: int, block: int) -> None:
        """Call task(slice) for every block of at most `block` of the `rows` rows."""
        if rows <= block:  # most often, where a model is small
            with QUIET():
                task(slice(0, rows))
            return
        parts = blocks(slice(0, rows), block)
        self.run(lambda number: task(parts[number]), len(parts))


def blocks(rows: slice, block: int) -> list[slice]:
    """`rows` in slices of `block` rows, but for the last."""
    return [slice(start, min(start + block, rows.stop)) for start in range(rows.start, rows.stop, block)]


def _work(task: Callable[[int], None], remaining: deque) -> None:
    try:
        with QUIET():
            while remaining:
                try:
                    number = remaining.popleft()
                except IndexError:  # another thread took the last one
                    return
                task(number)
    except BaseException:
        remaining.clear()
        raise


def _serve(jobs: SimpleQueue) -> None:
    while job := jobs.get():
        task, remaining, failures = job
        failure = None
        try:
            _work(task, remaining)
        except BaseException as error:
            failure = error
        failures.put(failure)
        del job, task  # else the arrays they refer to would live until the next job


def _dismiss(queues: list[SimpleQueue]) -> None:
    for jobs in queues:
        jobs.put(None)


class Scratch(threading.local):
    """Named arrays that every thread has for itself and that are reused by whoever asks for the name next."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, np.dtype], np.ndarray] = {}

    def __call__(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """A C-contiguous array of undefined content; memory is allocated only when a larger one than ever is asked."""
        size = 1
        for length in shape:
            size *= length
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.size < size:
            buffer = self._buffers[name, dtype] = np.empty(size, dtype)
        return buffer[:size].reshape(shape)
