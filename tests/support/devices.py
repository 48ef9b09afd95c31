"""The devices that operations are tested on: a GPU if there is one, a CPU in place of every kind of GPU, and numba."""

import functools

import numpy as np
import pytest

from gpt.errors import UserError
from gpt.ops.gpu.operations import GpuOps
from gpt.ops.interface import Array, Device, Operations
from tests.support.amd.emulator import TARGETS, EmulatorDevice, unavailable

GUARD = 64  # elements before and after a guarded array: a multiple of the length of every vector
# The values of guard bands, by the dtype's kind, or by its kind and size in bytes.
UNTOUCHED = {"f": 12345.0, "u": 54321, "i": 54321, "u1": 77}


@functools.cache
def gpu():
    """This machine's GPU; skips if there is none."""
    pytest.importorskip("cupy")
    from gpt.ops.gpu.device import CupyDevice

    try:
        return CupyDevice()
    except UserError as error:
        pytest.skip(f"no GPU: {error}")


@functools.cache
def executor(layout: str, order: str = "forward"):
    """The CPU executor for one tile layout; skips if there is no C++ compiler."""
    from tests.support.executor import ExecutorDevice, compiler

    if compiler() is None:
        pytest.skip("no C++ compiler: install g++")
    return ExecutorDevice(layout, order)


@functools.cache
def emulator(target: str):
    """An emulated AMD GPU; skips if there is no emulator."""
    if unavailable():
        pytest.skip(unavailable())
    return EmulatorDevice(target)


class Numba:
    """The CPU with numba, as a device."""

    has_bf16 = has_tf32 = False


@functools.cache
def numba_cpu() -> Numba:
    """The CPU with numba; skips if the packages of `pip install "hipgpt[numba]"` are missing."""
    pytest.importorskip("numba")
    pytest.importorskip("scipy")
    return Numba()


def operations(device: Device | Numba, precision: str) -> Operations:
    """The operations of `device`, in "fp32", "tf32" or "bf16"; skips if it lacks that precision."""
    if precision == "bf16" and not device.has_bf16:
        pytest.skip("no matrix unit")
    if precision == "tf32" and not device.has_tf32:
        pytest.skip("tf32 is NVIDIA's")
    if isinstance(device, Numba):
        from gpt.ops.cpu.numba_operations import NumbaOps

        return NumbaOps(threads=4)
    return GpuOps(device, precision)


# This machine's GPU; a stand-in on the CPU for each layout of the tile, with warps of 64 and 32 and all orders of the
# threads between them; and AMD's machine code on an emulator.
GPUS = [
    pytest.param(gpu, id="gpu", marks=pytest.mark.gpu),
    pytest.param(functools.partial(executor, "mma", "forward"), id="mma"),
    pytest.param(functools.partial(executor, "mfma", "seeded"), id="mfma"),
    pytest.param(functools.partial(executor, "wmma11", "reversed"), id="wmma11"),
    pytest.param(functools.partial(executor, "wmma12", "seeded"), id="wmma12"),
    *(pytest.param(functools.partial(emulator, target), id=target, marks=pytest.mark.amd) for target in TARGETS),
]
NUMBA = pytest.param(numba_cpu, id="numba")
DEVICES = [*GPUS, NUMBA]


def _untouched(dtype: np.dtype) -> float:
    return UNTOUCHED.get(dtype.str[1:], UNTOUCHED[dtype.kind])


class Arrays:
    """Makes arrays on the device of `ops`. `check` asserts that nothing was written outside of them."""

    def __init__(self, ops: Operations) -> None:
        self.ops = ops
        self._guarded: list[tuple[Array, int]] = []

    def of(self, value: np.ndarray, dtype: str = "") -> Array:
        """`value` on the device, between guard bands.

        Its type is `dtype`, or by default that of activations for floats and its own for integers.
        """
        value = np.asarray(value)
        whole = self.ops.empty(value.size + 2 * GUARD, dtype or (str(value.dtype) if value.dtype.kind in "iu" else ""))
        whole.fill(_untouched(whole.dtype))
        view = whole[GUARD : GUARD + value.size].reshape(value.shape)
        if value.dtype.kind == "f":
            value = value.astype(dtype or np.float32)
        self.ops.copy(value, out=view)
        self._guarded.append((whole, value.size))
        return view

    def poisoned(self, *shape: int, dtype: str = "") -> Array:
        """An array of NaN, for a kernel to overwrite."""
        return self.of(np.full(shape, np.nan), dtype)

    def rounded(self, value: np.ndarray) -> np.ndarray:
        """`value` as float64 after a trip through the type of activations."""
        array = self.ops.empty(value.shape)
        self.ops.copy(value.astype(np.float32), out=array)
        return self.ops.to_host(array).astype(np.float64)

    def check(self) -> None:
        for whole, size in self._guarded:
            host = whole if self.ops.is_cpu else self.ops.device.to_host(whole)
            band = np.concatenate([host[:GUARD], host[GUARD + size :]])
            assert (band == _untouched(whole.dtype)).all(), "a kernel wrote outside of its array"
