"""A GPU through CuPy: its arrays, its memory, and kernels that NVRTC or hiprtc compiles at their first use."""

import ctypes
import functools
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpt.errors import UserError, first_line
from gpt.ops.gpu.blas import Blas, BlasError, BlasMissingError, file_of, load_library
from gpt.ops.gpu.installation import cache_notes, count_gpus, import_cupy, kernel_cache, vendor
from gpt.ops.gpu.interface import Device, Kernel
from gpt.ops.gpu.sources import Instance
from gpt.ops.gpu.targets import has_bf16, has_tf32, has_wgmma, unsupported, warp_size
from gpt.ops.gpu.timeline import CupyTimeline
from gpt.ops.gpu.verdict import Verdict, given_up
from gpt.ops.interface import Array, Work

BLAS_WORKSPACE = 32 * 2**20  # bytes that the vendors recommend for their matrix products
# Beginnings of the names of environment variables that change the results of hipBLASLt
BLAS_SETTINGS = ("HSA_OVERRIDE_GFX_VERSION", "HIPBLASLT_", "TENSILE_")


class CupyDevice(Device):
    """GPU number `index`, with the vendor's library for matrix products unless `blas` is "own".

    Raises UserError if CuPy, one of its libraries or that GPU is missing, or the GPU too old. A missing library for
    products is none of those: `blas_missing` then says what is missing.
    """

    notes: list[str]
    blas_missing = ""

    def __init__(self, index: int = 0, blas: str = "auto") -> None:
        self.blas_choice = blas
        self.xp = cupy = import_cupy()
        count = count_gpus()
        if index >= count:
            there = f"there are {count}, counted from 0" if count > 1 else "there is only one, gpu:0"
            raise UserError(f"--device gpu:{index} does not exist: of {vendor(cupy)} GPUs {there}")
        try:
            self._start(cupy, index)
        except (cupy.cuda.runtime.CUDARuntimeError, MemoryError) as error:  # another process may fill or own it
            raise UserError(f"GPU {index} cannot be used: {first_line(error)}") from None

    @classmethod
    def best(cls, blas: str = "auto") -> "CupyDevice":
        """The first GPU that works, integrated ones last; a note names those that were passed over, and why.

        For example, with a Ryzen's own GPU as number 0 and a card as number 1, it is number 1. Raises UserError if none
        works.
        """
        cupy = import_cupy()
        count = count_gpus()
        integrated = [bool(cupy.cuda.runtime.getDeviceProperties(each).get("integrated")) for each in range(count)]
        passed_over = {}
        for index in sorted(range(count), key=integrated.__getitem__):
            try:
                device = cls(index, blas)
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
        self._gpu = cupy.cuda.Device(index)
        self._gpu.use()
        properties = runtime.getDeviceProperties(index)
        if runtime.is_hip:
            self.target = properties["gcnArchName"].decode().split(":")[0]
        else:
            self.target = f"sm_{properties['major']}{properties['minor']}"
        if reason := unsupported(self.target):
            raise UserError(f"GPU {index} {reason}; use --device cpu")
        if runtime.is_hip and shutil.which("hipcc") is None:
            raise UserError("hipcc is not on the PATH, which CuPy needs: install ROCm's hipcc and HIP headers")
        self.description = f"{properties['name'].decode()} ({self.target})"
        self.warp = warp_size(self.target)
        self.multiprocessors = properties["multiProcessorCount"]
        self.has_bf16, self.has_tf32 = has_bf16(self.target), has_tf32(self.target)
        self.has_wgmma = has_wgmma(self.target)
        self.cache, self.notes = kernel_cache(), cache_notes()
        self.timeline = CupyTimeline(cupy)
        self.blas, self.blas_card = None, ""
        if self.blas_choice != "own":
            self._load_blas("rocm" if runtime.is_hip else "cuda", properties)
        self._modules: dict[Instance, Any] = {}
        # CUDA's own stream cannot be recorded. CuPy, the kernels and the libraries all use this one.
        self._stream = _stream(cupy, index)
        self.use()
        self.records = True
        self._options: tuple[str, ...] = ("-std=c++17",)
        if self.has_wgmma:  # CuPy does not ask for it
            self._options += ("-arch=sm_90a",)

    def _load_blas(self, kind: str, properties: Mapping[str, Any]) -> None:
        """Start the vendor's library, but on ROCm not if that has ended a program, unless the user insists on it."""
        self._workspace = self.xp.empty(BLAS_WORKSPACE, np.uint8)
        fault = ""
        try:
            library = load_library(kind)

            def start() -> str:
                self.blas = Blas(kind, self._workspace.data.ptr, BLAS_WORKSPACE, library)
                return ""

            if kind == "rocm":
                self.blas_card = _card(self.xp.cuda.runtime, properties, file_of(kind, library))
                if self.blas_choice != "vendor":
                    fault = Verdict(Path(self.cache), "start", [self.blas_card]).fault(start)
            if fault:
                self.notes.append(given_up(fault))
            elif self.blas is None:
                start()
        except (BlasMissingError, BlasError) as error:
            self.blas_missing = str(error)
            self.notes.append(f"Note: {error}; until then matrix products run on hipgpt's own, slower kernel")

    def use(self) -> None:
        self._gpu.use()
        self._stream.use()

    @property
    def stream(self) -> int:
        return int(self.xp.cuda.get_current_stream().ptr)

    def kernel(self, file: str, name: str, defines: Mapping[str, object], shared_bytes: int = 0) -> Kernel:
        instance = Instance.of(file, defines)
        module = self._modules.get(instance)
        if module is None:
            module = self._modules[instance] = self._compiled(instance)
        kernel = module.get_function(name)
        if not shared_bytes:
            return kernel  # type: ignore[no-any-return]
        kernel.max_dynamic_shared_size_bytes = shared_bytes
        return functools.partial(kernel, shared_mem=shared_bytes)

    def _compiled(self, instance: Instance) -> Any:
        """A CuPy module with the kernels of an instance."""
        module = self.xp.RawModule(code=instance.source, options=self._options)
        try:
            module.compile()
        except self.xp.cuda.compiler.CompileException as error:
            raise UserError(
                f"the kernels of {instance} do not compile for {self.target}: {_first_error(str(error))}; "
                "please report this, and use --device cpu"
            ) from None
        except RuntimeError as error:
            if "hipcc" not in str(error):
                raise
            log = str(error).replace("\\n", "\n")  # of a call with an empty file, by which CuPy finds HIP's headers
            raise UserError(f"hipcc fails: {_first_error(log)}; if a header of C++ is missing, install g++") from None
        except OSError as error:
            raise UserError(
                f"CuPy cannot keep compiled kernels ({error.strerror}): free some space, or set CUPY_CACHE_DIR to "
                "another folder"
            ) from None
        return module

    def to_host(self, array: Array) -> np.ndarray:
        host: np.ndarray = self.xp.asnumpy(array)
        return host

    def clear(self, array: Array) -> None:
        array.fill(0)

    def pinned(self, size: int) -> np.ndarray:
        return np.frombuffer(self.xp.cuda.alloc_pinned_memory(size), np.uint8, size)

    def upload(self, host: np.ndarray, out: Array) -> Work:
        out.data.copy_from_host_async(ctypes.c_void_p(host.ctypes.data), host.nbytes)
        return self._until_here()

    def download(self, array: Array, host: np.ndarray) -> Work:
        array.data.copy_to_host_async(ctypes.c_void_p(host.ctypes.data), host.nbytes)
        return self._until_here()

    def _until_here(self) -> Work:
        """Returns a function that waits until all work asked for by now is done."""
        done = self.xp.cuda.Event(disable_timing=True)
        done.record(self.xp.cuda.get_current_stream())
        wait: Work = done.synchronize
        return wait

    def record(self, work: Work) -> Work:
        self._stream.begin_capture()
        try:
            work()
        finally:
            graph = self._stream.end_capture()
        launch: Work = graph.launch
        return launch

    def free_bytes(self) -> int:
        return int(self.xp.cuda.runtime.memGetInfo()[0] + self.xp.get_default_memory_pool().free_bytes())

    def held_bytes(self) -> int:
        # All that arrays have ever taken at once, because CuPy's memory pool gives nothing back.
        return int(self.xp.get_default_memory_pool().total_bytes())


@functools.cache  # because CuPy itself forgets a stream that nobody keeps
def _stream(cupy: Any, index: int) -> Any:
    return cupy.cuda.Stream(non_blocking=True)


def _card(runtime: Any, properties: Mapping[str, Any], library: str) -> str:
    """A GPU with its driver and its library for products, as JSON: everything that the library's results depend on.

    Size and time of the library's file tell one version or build from another. The variables are there because a user
    may let the library take one GPU for another (HSA_OVERRIDE_GFX_VERSION), or give it kernels from elsewhere.
    """
    settings = {name: value for name, value in sorted(os.environ.items()) if name.startswith(BLAS_SETTINGS)}
    parts = [properties["gcnArchName"].decode(), properties["name"].decode(), runtime.runtimeGetVersion()]
    status = os.stat(library) if library else None
    build = [library, status.st_size, status.st_mtime_ns] if status else []
    return json.dumps([*parts, runtime.driverGetVersion(), build, settings])


def _said(passed_over: Mapping[int, str]) -> str:
    return "; ".join(reason for _, reason in sorted(passed_over.items()))


def _first_error(log: str) -> str:
    """The first line of a compiler's log that speaks of an error, with file and line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return next((line for line in lines if re.search(r"\berror\b", line)), lines[0] if lines else "no message")
