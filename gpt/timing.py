"""How long something takes, as `hipgpt bench` and the scripts of benchmarks/ time it: the median over groups of calls.

A GPU goes on working after the host has asked it. The clock is therefore read only at the ends of a group, when all of
its calls are done.
"""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

GROUPS = 3
GROUP_SECONDS = 1.0  # about the length of a group, unless the number of its calls is given


class Groups(NamedTuple):
    """Times of some groups of `calls` calls each."""

    calls: int
    seconds: list[float]  # seconds per call, one number for each group

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def time_groups(
    call: Callable[[], object], now: Callable[[], float], calls: int | None = None, seconds: float | None = None
) -> Groups:
    """Time groups of `calls` calls (None: of as many as take about `seconds`, by default GROUP_SECONDS).

    `now` waits until all calls so far are done, and returns a time in seconds.
    """

    def seconds_per_call(calls: int) -> float:
        begin = now()
        for _ in range(calls):
            call()
        return (now() - begin) / calls

    calls = calls or max(1, round((GROUP_SECONDS if seconds is None else seconds) / seconds_per_call(1)))
    return Groups(calls, [seconds_per_call(calls) for _ in range(GROUPS)])


def after(wait: Callable[[], object]) -> Callable[[], float]:
    """A `now` for time_groups that reads the host's clock when `wait` has returned."""

    def now() -> float:
        wait()
        return time.perf_counter()

    return now
