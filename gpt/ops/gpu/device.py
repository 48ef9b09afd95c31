"""A GPU through CuPy: its arrays, its memory, and kernels that NVRTC or hiprtc compiles when they are first needed."""

import atexit
import ctypes
import functools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpt.errors import UserError
from gpt.ops.gpu.blas import Blas, BlasError, BlasMissingError
from gpt.ops.gpu.sources import Instance
from gpt.ops.gpu.targets import has_bf16, has_tf32, warp_size
from gpt.ops.gpu.timeline import CupyTimeline

OLDEST_NVIDIA = 70  # sm_70, Volta: what CuPy's wheels still know
CACHE_ROOM = 2**20  # bytes that CuPy's cache must have room for: all kernels of a model take some 300 KiB
BLAS_WORKSPACE = 32 * 2**20  # bytes that the vendors recommend for their matrix products

# A library's name without lib and .so, and the ROCm package that has it where that is named otherwise.
ROCM_PACKAGES = {
    "amdhip64": "hip-runtime-amd", "hiprtc": "hip-runtime-amd", "roctracer64": "roctracer", "roctx64": "roctracer",
}  # fmt: skip


class CupyDevice:
    """GPU number `index`. Raises UserError when CuPy, a library of its or that GPU is not there, or the GPU too old."""

    def __init__(self, index: int = 0) -> None:
        self.xp = cupy = _import_cupy()
        count = _count(cupy)
        if index >= count:
            there = f"there are {count}, counted from 0" if count > 1 else "there is only one, gpu:0"
            raise UserError(f"--device gpu:{index} does not exist: of {_vendor(cupy)} GPUs {there}")
        try:
            self._start(cupy, index)
        except (cupy.cuda.runtime.CUDARuntimeError, MemoryError) as error:  # another process may fill or own it
            raise UserError(f"GPU {index} cannot be used: {_first_line(error)}") from None

    @classmethod
    def best(cls) -> "CupyDevice":
        """The first GPU that works, the integrated ones coming last; a note says which were passed over, and why.

        For example with a Ryzen's own GPU as number 0 and a card as number 1 it is number 1. Raises UserError if none
        works.
        """
        cupy = _import_cupy()
        count = _count(cupy)
        integrated = [bool(cupy.cuda.runtime.getDeviceProperties(each).get("integrated")) for each in range(count)]
        passed_over = {}
        for index in sorted(range(count), key=integrated.__getitem__):
            try:
                device = cls(index)
            except UserError as error:
                passed_over[index] = str(error)
                continue
            passed_over |= {each: f"GPU {each} is integrated" for each in range(index) if each not in passed_over}
            if passed_over:
                device.notes.insert(0, f"Note: on GPU {index}, {device.description}; passed over: {_said(passed_over)}")
            return device
        raise UserError(passed_over[0] if count == 1 else f"none of the {count} GPUs works: {_said(passed_over)}")

    def _start(self, cupy: Any, index: int) -> None:
        runtime = cupy.cuda.runtime
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
        self._check_cache()
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

    def _check_cache(self) -> None:
        """Let CuPy keep compiled kernels in a temporary folder if it cannot write to its own."""
        cache = os.environ.get("CUPY_CACHE_DIR") or os.path.expanduser("~/.cupy/kernel_cache")
        try:
            os.makedirs(cache, exist_ok=True)
            with tempfile.TemporaryFile(dir=cache) as file:
                file.write(bytes(CACHE_ROOM))
        except OSError as error:
            self.notes.append(
                f"Note: CuPy's cache {cache} cannot be written ({error.strerror}), so every start compiles the kernels "
                "anew; free some space, or set CUPY_CACHE_DIR to another folder"
            )
            os.environ["CUPY_CACHE_DIR"] = folder = tempfile.mkdtemp(prefix="hipgpt-kernels-")
            atexit.register(shutil.rmtree, folder, ignore_errors=True)

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
            except OSError as error:
                raise UserError(
                    f"CuPy cannot keep compiled kernels ({error.strerror}): free some space, or set CUPY_CACHE_DIR to "
                    "another folder"
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


def _vendor(cupy: Any) -> str:
    return "AMD" if cupy.cuda.runtime.is_hip else "NVIDIA"


def _count(cupy: Any) -> int:
    """How many GPUs CuPy sees. Raises UserError if there is none."""
    runtime, reason = cupy.cuda.runtime, "it counts 0"
    try:
        if count := runtime.getDeviceCount():
            return count
    except runtime.CUDARuntimeError as error:
        reason = _first_line(error)
    hiding = "HIP_VISIBLE_DEVICES and ROCR_VISIBLE_DEVICES" if runtime.is_hip else "CUDA_VISIBLE_DEVICES"
    raise UserError(
        f"the CuPy here is for {_vendor(cupy)} GPUs and finds none ({reason}): check the driver and {hiding}, or, for "
        f"the other vendor's GPU, pip uninstall it and {install_advice()}"
    )


def _said(passed_over: Mapping[int, str]) -> str:
    return "; ".join(reason for _, reason in sorted(passed_over.items()))


def install_advice() -> str:
    """How CuPy is installed: from a checkout by hipgpt's own extras, elsewhere by name, as no index may have hipgpt."""
    root = Path(__file__).parents[3]
    if (root / "setup.py").is_file():
        where = "." if root == Path.cwd() else str(root)
        ways = [f"pip install -e '{where}[{extra}]'" for extra in ("rocm", "cuda12", "cuda13")]
    else:
        ways = ["pip install cupy-rocm-7-0", "pip install 'cupy-cuda12x[ctk]'", "pip install 'cupy-cuda13x[ctk]'"]
    return f"{ways[0]} for an AMD GPU, {ways[1]} or {ways[2]} for an NVIDIA GPU; --device cpu needs nothing"


def _import_cupy() -> Any:
    try:
        import cupy
    except ModuleNotFoundError:
        raise UserError(f"--device gpu needs CuPy: {install_advice()}") from None
    except ImportError as error:
        error = error.__cause__ or error  # CuPy wraps it into a page of advice
        library = re.search(r"lib(\w+?)\.so", str(error))
        package = ROCM_PACKAGES.get(library[1], library[1]) if library else "ROCm's or CUDA's libraries"
        raise UserError(
            f"CuPy does not load ({_first_line(error)}): install {package}, or, if it was made for another vendor's "
            f"GPU or version, pip uninstall it and {install_advice()}"
        ) from None
    return cupy


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _first_error(log: str) -> str:
    """The first line of a compiler's log that speaks of an error, with file and line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return next((line for line in lines if re.search(r"\berror\b", line)), lines[0] if lines else "no message")
