"""A GPU through CuPy: its arrays, its memory, and kernels that NVRTC or hiprtc compiles when they are first needed."""

import ctypes
import functools
import re
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gpt.errors import UserError
from gpt.ops.blas import Blas, BlasError, BlasMissingError
from gpt.ops.kernels import Instance
from gpt.ops.targets import has_bf16, has_tf32, warp_size
from gpt.ops.timeline import CupyTimeline

OLDEST_NVIDIA = 70  # sm_70, Volta: what CuPy's wheels still know
BLAS_WORKSPACE = 32 * 2**20  # bytes that the vendors recommend for their matrix products

# A library's name without lib and .so, and the ROCm package that has it where that is named otherwise.
ROCM_PACKAGES = {
    "amdhip64": "hip-runtime-amd", "hiprtc": "hip-runtime-amd", "roctracer64": "roctracer", "roctx64": "roctracer",
}  # fmt: skip

INSTALL = (
    "pip install 'hipgpt[rocm]' for an AMD GPU, 'hipgpt[cuda12]' or 'hipgpt[cuda13]' for an NVIDIA GPU; "
    "--device cpu needs nothing"
)


class CupyDevice:
    """GPU number `index`. Raises UserError when CuPy, a library of its or that GPU is not there, or the GPU too old."""

    def __init__(self, index: int = 0) -> None:
        self.xp = cupy = _import_cupy()
        runtime = cupy.cuda.runtime
        vendor = "AMD" if runtime.is_hip else "NVIDIA"
        try:
            count = runtime.getDeviceCount()
        except runtime.CUDARuntimeError as error:
            raise UserError(
                f"the CuPy here is for {vendor} GPUs and finds none ({_first_line(error)}): check the driver, or, for "
                f"the other vendor's GPU, pip uninstall it and {INSTALL}"
            ) from None
        if index >= count:
            raise UserError(f"--device gpu:{index} does not exist: there are {count} {vendor} GPUs, counted from 0")
        cupy.cuda.Device(index).use()
        properties = runtime.getDeviceProperties(index)
        if runtime.is_hip:
            self.target = properties["gcnArchName"].decode().split(":")[0]
            if shutil.which("hipcc") is None:
                raise UserError("hipcc is not on the PATH, which CuPy needs: install ROCm's hipcc and HIP headers")
        else:
            self.target = f"sm_{properties['major']}{properties['minor']}"
            if int(self.target[3:]) < OLDEST_NVIDIA:
                raise UserError(
                    f"GPU {index} is too old: {self.target}, and sm_{OLDEST_NVIDIA} is the least; use --device cpu"
                )
        self.description = f"{properties['name'].decode()} ({self.target})"
        self.warp, self.has_bf16, self.has_tf32 = (of(self.target) for of in (warp_size, has_bf16, has_tf32))
        self.notes: list[str] = []
        self.timeline = CupyTimeline(cupy)
        self.blas = self._load_blas("rocm" if runtime.is_hip else "cuda")
        self._modules: dict[Instance, Any] = {}
        # CUDA's own stream cannot be recorded. This one is everybody's: CuPy's, the kernels' and the libraries'.
        self._stream = _stream(cupy, index)
        self._stream.use()
        self.records = True
        self._options = ("-std=c++17",)
        if self.target == "sm_90":  # with Hopper's own matrix instruction, which CuPy does not ask for
            self._options += ("-arch=sm_90a",)

    def _load_blas(self, kind: str) -> Blas | None:
        self._workspace = self.xp.empty(BLAS_WORKSPACE, np.uint8)
        try:
            return Blas(kind, self._workspace.data.ptr, BLAS_WORKSPACE)
        except (BlasMissingError, BlasError) as error:
            self.notes.append(f"Note: {error}; until then matrix products run on hipgpt's own, slower kernel")
            return None

    @property
    def stream(self) -> int:
        """The raw pointer of the stream that work goes to."""
        return self.xp.cuda.get_current_stream().ptr

    def kernel(self, file: str, name: str, defines: Mapping[str, object]) -> Callable:
        """Kernel `name` of kernels/`file`, compiled with these macros; call it with (grid, block, arguments).

        Raises UserError when it does not compile.
        """
        instance = Instance.of(file, defines)
        module = self._modules.get(instance)
        if module is None:
            module = self.xp.RawModule(code=instance.source, options=self._options)
            try:
                module.compile()
            except self.xp.cuda.compiler.CompileException as error:
                raise UserError(
                    f"the kernels of {instance} do not compile for {self.target}: {_first_error(str(error))}; "
                    "please report this, and use --device cpu"
                ) from None
            self._modules[instance] = module
        return module.get_function(name)

    def to_host(self, array: Any) -> np.ndarray:
        """The array as a NumPy one, after all work before it."""
        return self.xp.asnumpy(array)

    def clear(self, array: Any) -> None:
        """array = 0"""
        array.fill(0)

    def pinned(self, size: int) -> np.ndarray:
        """Memory of the host, uint8 [size], that the GPU can read by itself."""
        return np.frombuffer(self.xp.cuda.alloc_pinned_memory(size), np.uint8, size)

    def upload(self, host: np.ndarray, out: Any) -> Callable[[], object]:
        """Copy pinned memory, after all work before it, while the host goes on. What returns waits until it is done."""
        out.data.copy_from_host_async(ctypes.c_void_p(host.ctypes.data), host.nbytes)
        return self._until_here()

    def download(self, array: Any, host: np.ndarray) -> Callable[[], object]:
        """Copy into pinned memory, in the same way."""
        array.data.copy_to_host_async(ctypes.c_void_p(host.ctypes.data), host.nbytes)
        return self._until_here()

    def _until_here(self) -> Callable[[], object]:
        """What waits until all that was asked for by now is done."""
        done = self.xp.cuda.Event(disable_timing=True)
        done.record(self.xp.cuda.get_current_stream())
        return done.synchronize

    def record(self, work: Callable[[], object]) -> Callable[[], object]:
        """What `work` asks the GPU for, without doing it, as a graph; calling what returns does it."""
        self._stream.use()  # whatever the current one is by now: CUDA's own would refuse
        self._stream.begin_capture()
        try:
            work()
        finally:
            graph = self._stream.end_capture()
        return graph.launch

    def free_bytes(self) -> int:
        """Bytes that could be allocated now."""
        return self.xp.cuda.runtime.memGetInfo()[0] + self.xp.get_default_memory_pool().free_bytes()

    def held_bytes(self) -> int:
        """Bytes that CuPy's memory pool holds: all that arrays have ever taken at once, as it gives nothing back."""
        return self.xp.get_default_memory_pool().total_bytes()


@functools.cache  # for CuPy itself forgets a stream that nobody keeps
def _stream(cupy: Any, index: int) -> Any:
    return cupy.cuda.Stream(non_blocking=True)


def _import_cupy() -> Any:
    try:
        import cupy
    except ModuleNotFoundError:
        raise UserError(f"--device gpu needs CuPy: {INSTALL}") from None
    except ImportError as error:
        error = error.__cause__ or error  # CuPy wraps it into a page of advice
        library = re.search(r"lib(\w+?)\.so", str(error))
        package = ROCM_PACKAGES.get(library[1], library[1]) if library else "ROCm's or CUDA's libraries"
        raise UserError(
            f"CuPy does not load ({_first_line(error)}): install {package}, or, if it was made for another vendor's "
            f"GPU or version, pip uninstall it and {INSTALL}"
        ) from None
    return cupy


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _first_error(log: str) -> str:
    """The first line of a compiler's log that speaks of an error, with file and line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return next((line for line in lines if re.search(r"\berror\b", line)), lines[0] if lines else "no message")
