"""Inputs, outputs and clock of a device that works in the host's memory and while it is asked.

gpt/ops/gpu/replay.py and timeline.py have those of a GPU.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from gpt.ops.interface import Fields


class HostInputs:
    """As Inputs, for a device that works in the host's memory and while it is asked."""

    def __init__(self, fields: Fields) -> None:
        self.device = {name: np.zeros(shape, dtype) for name, (shape, dtype) in fields.items()}

    @contextmanager
    def written(self) -> Iterator[dict[str, np.ndarray]]:
        yield self.device


class HostOutput:
    """As Output, for a device that works in the host's memory and while it is asked."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def fetched(self) -> Callable[[], np.ndarray]:
        value = self._array.copy()  # for the next step overwrites it
        return lambda: value


class HostTimeline:
    """Of a device that works while it is asked: the host's own clock."""

    def mark(self) -> Any:
        """A point right behind the work asked for so far."""
        return time.perf_counter()

    def has_passed(self, mark: Any) -> bool:
        """Whether the device is beyond `mark`, and may have waited for what was asked for after it. Never, here."""
        return False

    def seconds_between(self, begin: Any, end: Any) -> float:
        """From mark to mark in the device's time, once it has got to `end`."""
        return end - begin
