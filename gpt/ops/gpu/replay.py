"""What makes a step cheap to ask for: inputs at fixed addresses, and work that is recorded once and then replayed.

Asking a GPU for one kernel costs Python some microseconds, and a step has hundreds. A graph of them costs one call, but
what is recorded are addresses and numbers: whatever varies from step to step has to lie in the device's memory.

A device whose host waits for one step before it asks for the next is idle meanwhile. So what the host writes and reads
goes through slots of pinned memory, which the device reads and writes by itself when a step's turn comes.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from gpt.ops.interface import Array, Fields

SLOTS = 3  # uploads, or downloads, under way at most: so many steps the host may be ahead of the device
ALIGNMENT = 256  # bytes


class Replayed:
    """A function that only asks the device for work; calling this asks for the same.

    The first call runs the function, and whatever it compiles, plans or allocates is there from then on. The second
    records what it asks for, and this one and all later ones replay that. Where recording fails, the user hears of it
    once, and calls go on running functions.
    """

    def __init__(self, device: Any, function: Callable[[], object]) -> None:
        self._device, self._function = device, function
        self._ran = False
        self._replay: Callable[[], object] | None = None

    def __call__(self) -> None:
        if self._replay is None:
            if not self._ran or not self._device.records:
                self._ran = True
                self._function()
                return
            try:
                self._replay = self._device.record(self._function)
            except Exception as error:  # CuPy raises what it likes
                self._device.records = False
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
                warnings.warn(f"steps are not recorded as a graph ({reason}), which is slower", stacklevel=2)
                self._function()
                return
        self._replay()


class Inputs:
    """Arrays that the host writes for every step, at fixed addresses on the device, by name in `device`."""

    def __init__(self, device: Any, fields: Fields) -> None:
        self._fields, self._upload = fields, device.upload
        size = sum(_aligned(_bytes(*field)) for field in fields.values())
        self._memory = device.xp.zeros(size, np.uint8)
        self.device: dict[str, Array] = self._views(self._memory)
        self._slots = [device.pinned(size) for _ in range(SLOTS)]
        self._wait: list[Callable[[], object]] = [lambda: None] * SLOTS  # until a slot may be written again
        self._next = 0

    @contextmanager
    def written(self) -> Iterator[dict[str, np.ndarray]]:
        """All arrays in the host's memory, to be written whole; they are on the device for all work after this."""
        slot = self._next
        self._next = (slot + 1) % SLOTS
        self._wait[slot]()
        yield self._views(self._slots[slot])
        self._wait[slot] = self._upload(self._slots[slot], self._memory)

    def _views(self, memory: Array) -> dict[str, Array]:
        views, start = {}, 0
        for name, (shape, dtype) in self._fields.items():
            views[name] = memory[start : start + _bytes(shape, dtype)].view(dtype).reshape(shape)
            start += _aligned(_bytes(shape, dtype))
        return views


class Output:
    """An array on the device that the host reads after every step, while the device goes on with the next."""

    def __init__(self, device: Any, array: Array) -> None:
        self._array, self._download = array, device.download
        self._slots = [device.pinned(array.nbytes).view(array.dtype).reshape(array.shape) for _ in range(SLOTS)]
        self._next = 0

    def fetched(self) -> Callable[[], np.ndarray]:
        """Ask for the array as all work before this leaves it. What returns waits for that and no other work, and gives
        the slot itself: it has to be called, and what it gives read, before SLOTS more are asked for.
        """
        slot = self._slots[self._next]
        self._next = (self._next + 1) % SLOTS
        wait = self._download(self._array, slot)

        def value() -> np.ndarray:
            wait()
            return slot

        return value


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    return int(np.prod(shape)) * np.dtype(dtype).itemsize


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
