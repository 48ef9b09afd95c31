"""The memory of one GPU: new arrays, and scratch arrays that are made at their first use and kept."""

import math
from collections.abc import Callable

import numpy as np

from gpt.errors import UserError
from gpt.ops.gpu.interface import Device
from gpt.ops.interface import Array, Shape


class Memory:
    """Arrays on a device. `dtype` is the type of activations, and of all arrays whose type is not named."""

    def __init__(self, device: Device, dtype: np.dtype) -> None:
        self._device, self.dtype = device, dtype
        self._scratch: dict[str, list[Array]] = {}

    def empty(self, shape: Shape, dtype: str = "") -> Array:
        """As `Operations.empty`."""
        return self._allocate(self._device.xp.empty, shape, dtype)

    def zeros(self, shape: Shape, dtype: str = "") -> Array:
        """As `Operations.zeros`."""
        return self._allocate(self._device.xp.zeros, shape, dtype)

    def scratch(self, name: str, size: int, dtype: str = "float32") -> Array:
        """An array [size] of undefined content. Whoever asks for the same name next gets the same memory."""
        arrays = self._scratch.setdefault(name, [])
        if not arrays or arrays[-1].size < size:
            # Smaller ones are kept, because a recorded step may know their addresses. Each is at least twice as large
            # as the one before, so all together stay below four times the need.
            arrays.append(self.empty(max(size, 2 * arrays[-1].size) if arrays else size, dtype))
        return arrays[-1][:size]

    def _allocate(self, make: Callable[..., Array], shape: Shape, dtype: str) -> Array:
        wanted = np.dtype(dtype) if dtype else self.dtype
        self._device.use()
        try:
            return make(shape, wanted)
        except MemoryError:  # CuPy's OutOfMemoryError is one
            needed = math.prod(shape if isinstance(shape, tuple) else (shape,)) * wanted.itemsize
            free = self._device.free_bytes()
            raise UserError(
                f"out of GPU memory: {needed / 2**20:,.0f} MiB more are needed, {free / 2**20:,.0f} MiB are free; "
                "lower --batch (--accumulate makes up for it), --seq or the model's size, or give --recompute"
            ) from None
