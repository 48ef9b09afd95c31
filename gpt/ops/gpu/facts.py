"""Facts about the GPUs here, for `hipgpt doctor`: driver, runtime, memory, and the libraries that hipgpt calls."""

import ctypes
from typing import NamedTuple

from gpt.ops.gpu.blas import file_of, load_library
from gpt.ops.gpu.installation import import_cupy


class Gpu(NamedTuple):
    """A GPU that CuPy sees. `memory` is None if the GPU cannot be asked for it."""

    name: str
    target: str  # the compiler's name for it, such as gfx1201 or sm_90
    integrated: bool
    memory: tuple[int, int] | None  # bytes that are free, and bytes in all


class Facts:
    """The facts that CuPy knows. Raises UserError if CuPy is missing or does not load."""

    def __init__(self) -> None:
        self._cupy = import_cupy()
        self._runtime = self._cupy.cuda.runtime
        self.is_rocm = bool(self._runtime.is_hip)

    @property
    def cupy_version(self) -> str:
        return str(self._cupy.__version__)

    def driver(self) -> str:
        """The newest version of CUDA or HIP that the driver supports."""
        return self._version(self._runtime.driverGetVersion())

    def runtime(self) -> str:
        """The version of CUDA's or HIP's runtime."""
        return self._version(self._runtime.runtimeGetVersion())

    def compiler(self) -> str:
        """The version of NVRTC or hiprtc, such as "12.9"."""
        return ".".join(map(str, self._cupy.cuda.nvrtc.getVersion()))

    def gpus(self) -> list[Gpu]:
        """Every GPU, in the order of their numbers."""
        return [self._gpu(index) for index in range(self._runtime.getDeviceCount())]

    def _gpu(self, index: int) -> Gpu:
        properties = self._runtime.getDeviceProperties(index)
        if self.is_rocm:
            target = properties["gcnArchName"].decode().split(":")[0]
        else:
            target = f"sm_{properties['major']}{properties['minor']}"
        try:
            with self._cupy.cuda.Device(index):
                free, total = map(int, self._runtime.memGetInfo())
            memory = free, total
        except Exception:  # CuPy may raise any; another process may own the GPU
            memory = None
        return Gpu(properties["name"].decode(), target, bool(properties.get("integrated")), memory)

    def _version(self, number: int) -> str:
        """12090 as "12.9" for CUDA, 70051831 as "7.0.51831" for HIP."""
        if self.is_rocm:
            return f"{number // 10**7}.{number // 10**5 % 100}.{number % 10**5}"
        return f"{number // 1000}.{number % 1000 // 10}"

    def blas(self) -> tuple[str, str]:
        """Name and version of the vendor's library for matrix products. Raises BlasMissingError if it is missing.

        hipBLASLt tells its version only once it has started, which may end the program. So its version is that of its
        file: libhipblaslt.so.1.0.70002 is 1.0.70002, of ROCm 7.0.2.
        """
        library = load_library("rocm" if self.is_rocm else "cuda")
        if not self.is_rocm:
            library.cublasLtGetVersion.restype = ctypes.c_size_t
            number = int(library.cublasLtGetVersion())
            return "cuBLASLt", f"{number // 10_000}.{number // 100 % 100}.{number % 100}"
        return "hipBLASLt", file_of("rocm", library).rpartition(".so.")[2]
