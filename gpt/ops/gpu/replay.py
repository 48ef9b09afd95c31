"""Cheap steps: inputs at fixed addresses, and work that is recorded once and then replayed.

Asking a GPU for one kernel costs Python some microseconds, and a step has hundreds. A graph of them costs one call, but
a graph records addresses and numbers: whatever varies from step to step has to lie in the device's memory.

A device whose host waits for one step before it asks for the next is idle meanwhile. So the host writes
and reads through slots of pinned memory, which the device reads and writes by itself when a step's turn comes.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from gpt.arithmetic import round_up
from gpt.errors import first_line
from gpt.ops.gpu.interface import Device
from gpt.ops.interface import Array, Fields, Inputs, Output, Work

SLOTS = 3  # uploads, or downloads, under way at most: so many steps the host may be ahead of the device
ALIGNMENT = 256  # bytes


class Replayed:
    """A function that only asks the device for work; calling this asks for the same.

    The first call runs the function: everything that it compiles, plans or allocates is there from then on. The second
    call records the work, and replays it, as do all later calls. If recording fails, the user hears of it once, and
    later calls run the function.
    """

    def __init__(self, device: Device, function: Work) -> None:
        self._device, self._function = device, function
        self._ran = False
        self._replay: Work | None = None

    def __call__(self) -> None:
        if self._replay is None:
            if not self._ran or not self._device.records:
                self._ran = True
                self._function()
                return
            try:
                self._replay = self._device.record(self._function)
            except Exception as error:  # CuPy may raise any
                self._device.records = False
                warnings.warn(f"steps are not recorded as a graph ({first_line(error)}), which is slower", stacklevel=2)
                self._function()
                return
        self._replay()


class PinnedInputs(Inputs):
    """Arrays that the host writes into slots of pinned memory, while the device may still read earlier slots."""

    def __init__(self, device: Device, fields: Fields) -> None:
        self._fields, self._device = fields, device
        device.use()
        size = sum(round_up(_bytes(*field), ALIGNMENT) for field in fields.values())
        self._memory = device.xp.zeros(size, np.uint8)
        self.device: dict[str, Array] = self._views(self._memory)
        self._slots = [device.pinned(size) for _ in range(SLOTS)]
        self._wait: list[Work] = [lambda: None] * SLOTS  # until a slot may be written again
        self._next = 0

    @contextmanager
    def written(self) -> Iterator[dict[str, np.ndarray]]:
        slot = self._next
        self._next = (slot + 1) % SLOTS
        self._wait[slot]()
        self._device.use()
        yield self._views(self._slots[slot])
        self._wait[slot] = self._device.upload(self._slots[slot], self._memory)

    def _views(self, memory: Array) -> dict[str, Array]:
        views, start = {}, 0
        for name, (shape, dtype) in self._fields.items():
            views[name] = memory[start : start + _bytes(shape, dtype)].view(dtype).reshape(shape)
            start += round_up(_bytes(shape, dtype), ALIGNMENT)
        return views


class PinnedOutput(Output):
    """An array that the host reads from slots of pinned memory, while the device goes on with the next step."""

    def __init__(self, device: Device, array: Array) -> None:
        self._array, self._download = array, device.download
        self._slots = [device.pinned(array.nbytes).view(array.dtype).reshape(array.shape) for _ in range(SLOTS)]
        self._next = 0

    def fetched(self) -> Callable[[], np.ndarray]:
        """As `Output.fetched`. The function waits for this copy alone and returns the slot: call it, and read the
        result, before SLOTS more fetches.
        """
        slot: np.ndarray = self._slots[self._next]
        self._next = (self._next + 1) % SLOTS
        wait = self._download(self._array, slot)

        def value() -> np.ndarray:
            wait()
            return slot

        return value


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    return int(np.prod(shape)) * np.dtype(dtype).itemsize
