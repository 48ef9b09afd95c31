"""The contract between `GpuOps` and a GPU: it sees the GPU as a `Device`.

`CupyDevice` (device.py) is the real one. In tests, a CPU or an emulator takes its place.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from gpt.ops.gpu.blas import Blas
from gpt.ops.interface import Array, Timeline, Work

Kernel = Callable[[tuple[int, ...], tuple[int, ...], tuple[Any, ...]], object]  # grid, block, arguments


class Device(Protocol):
    """A GPU, as `GpuOps` needs it."""

    xp: Any  # the array module: CuPy, or NumPy if tests put a CPU in a GPU's place
    description: str  # for the user
    target: str  # the compiler's name for it, such as gfx942 or sm_90a
    notes: list[str]  # lines that the user should read
    warp: int  # lanes of a warp
    multiprocessors: int  # the units that blocks of threads run on
    has_bf16: bool  # whether there are matrix units for bf16
    has_tf32: bool  # whether they take float32 rounded to tf32, as NVIDIA's do and AMD's do not
    has_wgmma: bool  # Hopper's matrix instruction for four warps
    blas: Blas | None  # None if the vendor's library is missing, has failed or is not wanted
    blas_choice: str  # --blas: "auto", "vendor" or "own"
    blas_card: str  # the card and the version of the library, if the library has to be checked on it; else ""
    cache: str  # the directory that remembers the result of that check
    records: bool  # whether work can be recorded as a graph; set to False after a failure
    timeline: Timeline

    def use(self) -> None:
        """Send the work that the calling thread asks for to this GPU, on its stream: both are settings of a thread.

        It is called before arrays are made, and before the inputs of a step are written.
        """

    @property
    def stream(self) -> int:
        """The raw pointer of the stream that work goes to."""

    def kernel(self, file: str, name: str, defines: Mapping[str, object], shared_bytes: int = 0) -> Kernel:
        """Kernel `name` of kernels/`file`, compiled with these macros; call it with (grid, block, arguments).

        Its blocks get `shared_bytes` of shared memory besides their arrays of fixed size.
        Raises UserError if it does not compile.
        """

    def to_host(self, array: Array) -> np.ndarray:
        """The array as a NumPy one, after all earlier work."""

    def clear(self, array: Array) -> None:
        """array[...] = 0."""

    def pinned(self, size: int) -> np.ndarray:
        """Memory of the host, uint8 [size], that the GPU can read by itself."""

    def upload(self, host: np.ndarray, out: Array) -> Work:
        """Copy pinned memory, after all earlier work, while the host goes on. Returns a function that waits for it."""

    def download(self, array: Array, host: np.ndarray) -> Work:
        """Copy into pinned memory, in the same way."""

    def record(self, work: Work) -> Work:
        """Record, as a graph, everything that `work` asks for, without doing it. Returns a function that does it."""

    def free_bytes(self) -> int:
        """Bytes that could be allocated now."""

    def held_bytes(self) -> int:
        """Bytes that this process holds."""
