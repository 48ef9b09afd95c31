"""Inputs, outputs and clock of a device that works in the host's memory, and only while it is asked.

gpt/ops/gpu/replay.py and timeline.py have those of a GPU.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from gpt.ops.interface import Array, Fields, Inputs, Output, Timeline


class HostInputs(Inputs):
    """Arrays that the host writes where the operations read them."""

    def __init__(self, fields: Fields) -> None:
        self.device: dict[str, Array] = {name: np.zeros(shape, dtype) for name, (shape, dtype) in fields.items()}

    @contextmanager
    def written(self) -> Iterator[dict[str, np.ndarray]]:
        yield self.device


class HostOutput(Output):
    """An array on the host; what is fetched is a copy of it."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def fetched(self) -> Callable[[], np.ndarray]:
        value = self._array.copy()  # because the next step overwrites it
        return lambda: value


class HostTimeline(Timeline):
    """The host's own clock."""

    def mark(self) -> float:
        return time.perf_counter()

    def has_passed(self, mark: float) -> bool:
        return False  # the device never waits for work

    def seconds_between(self, begin: float, end: float) -> float:
        return end - begin
