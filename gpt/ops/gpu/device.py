"""A GPU through CuPy: its arrays, its memory, and kernels that NVRTC or hiprtc compiles at their first use."""

import atexit
import ctypes
import functools
import glob
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import numpy as np

from gpt.errors import UserError, first_line, shown
from gpt.ops.gpu.blas import Blas, BlasError, BlasMissingError, file_of, load_library
from gpt.ops.gpu.interface import Device, Kernel
from gpt.ops.gpu.sources import Instance
from gpt.ops.gpu.targets import has_bf16, has_tf32, has_wgmma, unsupported, warp_size
from gpt.ops.gpu.timeline import CupyTimeline
from gpt.ops.gpu.verdict import Verdict, given_up
from gpt.ops.interface import Array, Work

CACHE_ROOM = 2**20  # bytes that CuPy's cache must have room for: all kernels of a model take some 300 KiB
BLAS_WORKSPACE = 32 * 2**20  # bytes that the vendors recommend for their matrix products
DRIVER, RENDERERS = "/dev/kfd", "/dev/dri/renderD*"  # the files that a user of ROCm must be allowed to open
WINDOWS_DRIVER = "/dev/dxg"  # in DRIVER's place in a Linux inside of Windows
# Variables that may hide GPUs: they name those that a program sees. ROCm heeds CUDA's, too.
CUDA_HIDES = ("CUDA_VISIBLE_DEVICES",)
ROCM_HIDES = ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", *CUDA_HIDES)
# Beginnings of the names of environment variables that change the results of hipBLASLt
BLAS_SETTINGS = ("HSA_OVERRIDE_GFX_VERSION", "HIPBLASLT_", "TENSILE_")

# A library's name without lib and .so → the ROCm package that has it, if that has another name.
ROCM_PACKAGES = {
    "amdhip64": "hip-runtime-amd", "hiprtc": "hip-runtime-amd", "roctracer64": "roctracer", "roctx64": "roctracer",
}  # fmt: skip

_replaced: dict[str, str] = {}  # temporary folder → the note that says which cache of CuPy's it replaces, and why


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
        count = _count(cupy)
        if index >= count:
            there = f"there are {count}, counted from 0" if count > 1 else "there is only one, gpu:0"
            raise UserError(f"--device gpu:{index} does not exist: of {_vendor(cupy)} GPUs {there}")
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
        count = _count(cupy)
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
        self.cache = _cache()
        self.notes = [_replaced[self.cache]] if self.cache in _replaced else []
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


def count_gpus() -> int:
    """How many GPUs CuPy sees. Raises UserError if CuPy is missing, or if there is no GPU."""
    return _count(import_cupy())


def _card(runtime: Any, properties: Mapping[str, Any], library: str) -> str:
    """A GPU with its driver and its library for products, as JSON: everything that the library's results depend on.

    Size and time of the library's file tell one version or build from another.

    A user may let the library take one GPU for another (HSA_OVERRIDE_GFX_VERSION), or give it kernels from elsewhere.
    """
    settings = {name: value for name, value in sorted(os.environ.items()) if name.startswith(BLAS_SETTINGS)}
    parts = [properties["gcnArchName"].decode(), properties["name"].decode(), runtime.runtimeGetVersion()]
    status = os.stat(library) if library else None
    build = [library, status.st_size, status.st_mtime_ns] if status else []
    return json.dumps([*parts, runtime.driverGetVersion(), build, settings])


def _vendor(cupy: Any) -> str:
    return "AMD" if cupy.cuda.runtime.is_hip else "NVIDIA"


def _count(cupy: Any) -> int:
    """How many GPUs CuPy sees. Raises UserError if there is none."""
    runtime, reason = cupy.cuda.runtime, "it counts 0"
    try:
        if count := int(runtime.getDeviceCount()):
            return count
    except runtime.CUDARuntimeError as error:
        reason = first_line(error)
    raise UserError(
        f"the CuPy here is for {_vendor(cupy)} GPUs and finds none ({reason}): "
        f"{_remedy_on_rocm() if runtime.is_hip else _remedy_for_hidden_gpus(CUDA_HIDES)}, or, for "
        f"the other vendor's GPU, pip uninstall it and {install_advice()}"
    )


def _remedy_on_rocm() -> str:
    """What to do if ROCm finds no GPU. It always says that there is none, but device files tell more."""
    if not os.path.exists(DRIVER) and not os.path.exists(WINDOWS_DRIVER):
        return f"there is no {DRIVER}, so load Linux's driver amdgpu, or give the device to this container"
    for file in (DRIVER, *sorted(glob.glob(RENDERERS))):
        if os.path.exists(file) and not os.access(file, os.R_OK | os.W_OK):
            return f"you may not open {file}, so type sudo usermod -aG render,video $USER, and log in again"
    return _remedy_for_hidden_gpus(ROCM_HIDES)


def _remedy_for_hidden_gpus(variables: Sequence[str]) -> str:
    """What to do if these variables, as far as they are set, or the driver may be why no GPU is found."""
    hiding = [f"{name} ({shown(os.environ[name])})" for name in variables if name in os.environ]
    return f"unset {' and '.join(hiding)}, which may hide it" if hiding else "check the driver"


def _said(passed_over: Mapping[int, str]) -> str:
    return "; ".join(reason for _, reason in sorted(passed_over.items()))


def install_advice() -> str:
    """The commands that install CuPy: hipgpt's extras if this is a checkout, else CuPy's own names."""
    root = Path(__file__).parents[3]
    if (root / "setup.py").is_file():
        where = "." if root == Path.cwd() else str(root)
        ways = [f"pip install -e '{where}[{extra}]'" for extra in ("rocm", "cuda12", "cuda13")]
    else:
        ways = ["pip install cupy-rocm-7-0", "pip install 'cupy-cuda12x[ctk]'", "pip install 'cupy-cuda13x[ctk]'"]
    return f"{ways[0]} for an AMD GPU, {ways[1]} or {ways[2]} for an NVIDIA GPU; --device cpu needs nothing"


def import_cupy() -> Any:
    """CuPy. Raises UserError, with what to install, if it is missing or does not load."""
    if "cupy" not in sys.modules:
        _prepare_cache()
    try:
        import cupy

        _ = cupy.cuda.runtime  # the folder that is left of a CuPy that was removed can be imported, too
    except ModuleNotFoundError:
        raise UserError(f"--device gpu needs CuPy: {install_advice()}") from None
    except (ImportError, OSError, AttributeError) as error:  # a library that cannot be loaded is an OSError of ctypes
        reason = error.__cause__ or error  # CuPy wraps it into a page of advice
        library = re.search(r"lib(\w+?)\.so[.\d]*", str(reason))
        package = ROCM_PACKAGES.get(library[1], library[1]) if library else "ROCm's or CUDA's libraries"
        remedy = library and _remedy_for_a_library(*library.group(0, 1)) or f"install {package}"
        raise UserError(
            f"CuPy does not load ({first_line(reason)}): {remedy}, or, if it was made for another vendor's "
            f"GPU or version, pip uninstall it and {install_advice()}"
        ) from None
    return cupy


def _prepare_cache() -> None:
    """Let CuPy keep compiled kernels in a temporary folder if it cannot write to its own.

    CuPy makes the folder, and remembers its name, as soon as it is imported. Raises UserError if no folder can be
    written to.
    """
    if os.environ.get("CUPY_CACHE_DIR") == "":  # CuPy would take it for the name of a folder
        del os.environ["CUPY_CACHE_DIR"]
    cache = _cache()
    try:
        _try_cache(cache)
    except OSError as error:
        reason = f"CuPy's cache {cache} cannot be written ({error.strerror})"
    else:
        return
    remedy = "free some space, or set CUPY_CACHE_DIR to another folder"
    try:
        temporary = tempfile.mkdtemp(prefix="hipgpt-kernels-")
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        _try_cache(temporary)
    except OSError as error:
        raise UserError(f"{reason}, nor can a temporary folder ({error.strerror}): {remedy}") from None
    os.environ["CUPY_CACHE_DIR"] = temporary
    _replaced[temporary] = f"Note: {reason}, so every start compiles the kernels anew; {remedy}"


def _try_cache(folder: str) -> None:
    """Raises OSError if kernels cannot be written to the folder. Makes it if it is missing."""
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(CACHE_ROOM))


def _cache() -> str:
    """CuPy's folder of compiled kernels."""
    return os.environ.get("CUPY_CACHE_DIR") or os.path.expanduser("~/.cupy/kernel_cache")


def _remedy_for_a_library(file: str, name: str) -> str:
    """What to do about a file of ROCm's that the loader does not find, such as libamdhip64.so.7, if the file or another
    version of it is there; else "".
    """
    folder = Path(os.environ.get("ROCM_HOME", "/opt/rocm"), "lib")
    if (folder / file).exists():
        return f"add {folder} to LD_LIBRARY_PATH"
    others = sorted(path.name for path in folder.glob(f"lib{name}.so.*"))
    other = others[0] if others else find_library(name)
    if other and re.match("amdhip|hip|roc|rccl", name):
        return f"install ROCm 7, because the ROCm here has {other}"
    return ""


def _first_error(log: str) -> str:
    """The first line of a compiler's log that speaks of an error, with file and line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return next((line for line in lines if re.search(r"\berror\b", line)), lines[0] if lines else "no message")
