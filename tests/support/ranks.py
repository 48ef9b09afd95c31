"""Ranks as threads of one process: whatever ranks compute together can be tested without MPI, on every device."""

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from gpt.distributed.collectives import Collectives, Exchange
from gpt.distributed.ranks import Ranks

T = TypeVar("T")


class ThreadRanks(Ranks):
    """Rank number `rank` of a group of threads that have `meeting` and `slots` in common."""

    def __init__(self, rank: int, size: int, meeting: threading.Barrier, slots: list[Any], sharded: bool) -> None:
        self.rank, self.size, self._sharded = rank, size, sharded
        self.collectives = _ThreadCollectives(rank, meeting, slots)

    def share(self, value: Any = None) -> Any:
        return self.collectives.everyone(value)[0]

    def gather(self, value: Any) -> list[Any]:
        return self.collectives.everyone(value) if self.is_first else self.collectives.everyone(value)[:0]


class _ThreadCollectives(Collectives):
    """Sums are computed in the order of the ranks. Arrays are NumPy's."""

    def __init__(self, rank: int, meeting: threading.Barrier, slots: list[Any]) -> None:
        self._rank, self._meeting, self._slots = rank, meeting, slots

    def everyone(self, value: Any) -> list[Any]:
        """Every rank's value, by rank."""
        self._slots[self._rank] = value
        self._meeting.wait()
        values = list(self._slots)
        self._meeting.wait()
        return values

    def reduce(self, exchanges: Sequence[Exchange]) -> None:
        for whole, bounds, own in exchanges:
            total = sum(self.everyone(whole.copy()))
            if bounds:
                own[...] = total[bounds[self._rank] : bounds[self._rank + 1]]
            else:
                whole[...] = total

    def gather(self, exchanges: Sequence[Exchange]) -> None:
        for whole, bounds, own in exchanges:
            assert len(own) == bounds[self._rank + 1] - bounds[self._rank]
            whole[...] = np.concatenate(self.everyone(own.copy()))

    def wait(self) -> None:
        pass


def on_ranks(size: int, work: Callable[[Ranks], T], sharded: bool = False) -> list[T]:
    """The results of `work(ranks)`, by rank. The first exception of a rank is raised here."""
    meeting, slots, results, failures = threading.Barrier(size, timeout=60), [None] * size, [None] * size, []

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadRanks(rank, size, meeting, slots, sharded))
        except BaseException as error:
            failures.append(error)
            meeting.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise next((error for error in failures if not isinstance(error, threading.BrokenBarrierError)), failures[0])
    return results
