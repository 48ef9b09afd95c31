"""A device that stands for a GPU and notes which kernels it is asked for. It needs no GPU and runs no kernel."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gpt.ops.cpu.host import HostTimeline
from gpt.ops.gpu.interface import Device, Kernel
from gpt.ops.gpu.sources import Instance
from gpt.ops.gpu.targets import has_tf32, has_wgmma
from gpt.ops.interface import Array, Work


class _ZeroedNumpy:
    """NumPy whose new arrays are zeros.

    No kernel writes to them. If they kept what was in memory before, arithmetic on them could overflow.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def empty(shape: Any, dtype: Any = np.float32) -> np.ndarray:
        return np.zeros(shape, dtype)


class NotingDevice(Device):
    """A GPU of the kind `target`. `instances` has what work on it would compile, in order; results mean nothing.

    The GPU has no library for matrix products.

    Example:
        >>> device = NotingDevice("gfx1100", 32, has_bf16=True)
        >>> GpuOps(device, "fp32").global_norm(x, out)
        >>> [str(each) for each in device.instances]
        ['norm.hip (BLOCKS=1024, T=float, THREADS=256, WIDTH=4)']
    """

    description = "a device that takes notes"
    xp: Any = _ZeroedNumpy()
    blas, blas_choice, blas_card, cache = None, "auto", "", ""
    stream = 0
    records = True
    timeline = HostTimeline()

    def __init__(self, target: str, warp: int, has_bf16: bool, multiprocessors: int = 1) -> None:
        self.target, self.warp, self.multiprocessors = target, warp, multiprocessors
        self.has_bf16, self.has_tf32, self.has_wgmma = has_bf16, has_tf32(target), has_wgmma(target)
        self.notes = []
        self.instances: dict[Instance, None] = {}

    @classmethod
    def like(cls, device: Device) -> "NotingDevice":
        """One that stands for this device."""
        noting = cls(device.target, device.warp, device.has_bf16, device.multiprocessors)
        noting.has_tf32, noting.has_wgmma = device.has_tf32, device.has_wgmma
        return noting

    def use(self) -> None:
        pass

    def kernel(self, file: str, name: str, defines: Mapping[str, object], shared_bytes: int = 0) -> Kernel:
        self.instances[Instance.of(file, defines)] = None
        return lambda grid, block, arguments: None

    def to_host(self, array: Array) -> np.ndarray:
        return np.array(array)

    def clear(self, array: Array) -> None:
        pass

    def pinned(self, size: int) -> np.ndarray:
        return np.zeros(size, np.uint8)

    def upload(self, host: np.ndarray, out: Array) -> Work:
        return _nothing

    def download(self, array: Array, host: np.ndarray) -> Work:
        return _nothing

    def record(self, work: Work) -> Work:
        return _nothing

    def free_bytes(self) -> int:
        return 2**40

    def held_bytes(self) -> int:
        return 0


def _nothing() -> None:
    """What is left of work on arrays."""
