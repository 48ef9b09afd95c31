"""A device on the CPU: kernels compiled by the host's C++ compiler and run on NumPy arrays, thread by thread.

A fault that a GPU would refuse, or would forgive only sometimes, raises ExecutorError. executor.cpp lists these faults.

HIPGPT_EXECUTOR_CACHE names the folder for compiled kernels, by default one among the system's temporary files.

With HIPGPT_SANITIZE=1 kernels are built with AddressSanitizer, which sees accesses outside of NumPy's arrays, and with
UndefinedBehaviorSanitizer. Python then has to be started with LD_PRELOAD=$(g++ -print-file-name=libasan.so) and
ASAN_OPTIONS=detect_leaks=0.
"""

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from gpt.ops.gpu.sources import Instance
from tests.support.host_device import HostDevice

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("HIPGPT_EXECUTOR_CACHE", Path(tempfile.gettempdir()) / f"hipgpt-executor-{os.getuid()}"))

# {name: (the number that common.h gives to this layout of a matrix tile in registers, lanes of a warp)}
LAYOUTS = {"none32": (0, 32), "none64": (0, 64), "mma": (1, 32), "mfma": (2, 64), "wmma11": (3, 32), "wmma12": (4, 32)}
ORDERS = {"forward": 0, "reversed": 1, "seeded": 12345}  # how the threads take turns; 12345 is a random seed
STATIC_BYTES = 64 * 1024  # the most shared memory that a block may have on AMD GPUs, and elsewhere unless it asks
LARGEST_GRID = (2**31 - 1, 65535, 1)  # NVIDIA's limits for x and y; kernels do not use z

SANITIZED = bool(os.environ.get("HIPGPT_SANITIZE"))
FLAGS = ["-std=c++17", "-g1", "-fPIC", "-shared", "-pthread", "-Wall", "-Wextra", "-Werror"]
if SANITIZED:  # -O0: the compiler, which adds a check to each access, takes a third less time than with -Og
    FLAGS += ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
    FLAGS += ["-Wframe-larger-than=131072"]  # half of a fiber's stack, which STACK_BYTES in fiber.h gives
else:  # -Og: the compiler takes two thirds of the time that it takes with -O1, and kernels run for a quarter longer
    FLAGS += ["-Og", "-Wframe-larger-than=32768"]
KERNEL_FLAGS = ["-DEXECUTOR", "-Wno-unused", "-Wno-unused-parameter", "-Wno-unknown-pragmas", "-Wno-parentheses"]
KERNEL_FLAGS += ["-Wno-missing-field-initializers", "-Wno-ignored-qualifiers", "-Wundef"]
KERNEL_FLAGS += ["-nostdlib"]  # this process has the libraries, and it takes the linker 40 ms to look through them
TILE = '#line 1 "tile.h"'
# For the compiler itself, which takes half as long again if AddressSanitizer watches it too
_UNSANITIZED = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
# Tests ask for one or two kernels of these files with the same macros. Compiling the others takes half of the time.
ALONE = ("layernorm.hip", "matvec.hip", "skinny.hip")

# {NumPy's name for the type of an argument: executor.h's letter for the way it is passed}
CODES = {"array": "p", "f4": "f", "f8": "d", "i4": "i", "u4": "i", "i8": "l", "u8": "l"}


class ExecutorError(RuntimeError):
    """A kernel or its launch has a fault that a GPU would not forgive, or the kernel does not compile."""


@functools.cache
def compiler() -> str | None:
    """The C++ compiler, or None."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


class ExecutorDevice(HostDevice):
    """A device on which LAYOUTS[layout] is the width of a warp and the layout of a tile.

    The threads of a block take turns in the order ORDERS[order].
    """

    def __init__(self, layout: str, order: str = "forward") -> None:
        self._layout, self.warp = LAYOUTS[layout]
        self._seed = ORDERS[order]
        self.target = self.description = f"executor-{layout}"
        self.has_bf16, self.has_tf32 = self._layout != 0, layout == "mma"
        self._kernels: dict[tuple[Instance, str, int], _Kernel] = {}

    def kernel(self, file: str, name: str, defines: Mapping[str, object], shared_bytes: int = 0) -> Callable[..., None]:
        """Kernel `name` of a file in kernels/, as a function of grid, block and arguments."""
        key = instance, name, shared_bytes = Instance.of(file, defines), name, shared_bytes or STATIC_BYTES
        if key not in self._kernels:  # tests ask for it again and again, and to put its source together takes 5 ms
            self._kernels[key] = self.kernel_of(instance.source, name, shared_bytes, alone=file in ALONE)
        kernel = self._kernels[key]
        return lambda *launch: self.ask(partial(kernel, *launch))

    def kernel_of(
        self, source: str, name: str, shared_bytes: int = STATIC_BYTES, alone: bool = False
    ) -> Callable[..., None]:
        """Kernel `name` of a source text that includes common.h's. Raises ExecutorError if that does not compile.

        A block may have `shared_bytes` of shared memory. The text's other kernels are compiled, too, unless `alone`.
        """
        kernels = re.findall(r"^KERNEL\((.*?)(?:, \w+)?\) (\w+)\(", source, re.MULTILINE)
        entries = "".join(
            f"EXECUTOR_ENTRY({each}, ({threads}))\n" for threads, each in kernels if each == name or not alone
        )
        source += f'#line 1 "executor.h"\n{entries}'
        # Without tile.h a use of LAYOUT is an error, so one library serves all layouts whose warps have the same width.
        # A tile of float32 has no layout, and 0 makes the use of one an error; but on NVIDIA copies are asynchronous.
        in_float = "#define T float\n" in source and not self.has_tf32
        layout = "ONLY_WITH_TILE_H" if TILE not in source else 0 if in_float else self._layout
        flags = (*KERNEL_FLAGS, f"-DLAYOUT={layout}", f"-DWARP={self.warp}")
        return _Kernel(_compile(source, flags), name, self.warp, shared_bytes, self._seed)


class _Kernel:
    """A kernel of a compiled library."""

    def __init__(self, path: Path, name: str, warp: int, shared_bytes: int, seed: int) -> None:
        self._path, self._name, self._warp, self._shared_bytes, self._seed = path, name, warp, shared_bytes, seed
        self._run = _runtime().executor_run
        library = ctypes.CDLL(str(path))
        self._call = ctypes.cast(library[f"call_{name}"], ctypes.c_void_p)
        self._most_threads = library[f"threads_{name}"]()
        parameters = library[f"parameters_{name}"]
        parameters.restype = ctypes.c_char_p
        self._parameters = parameters().decode()

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple) -> None:
        """Run the kernel. Raises ExecutorError, in one line, for a fault of the launch or in the kernel."""
        self._check(grid, block, arguments)
        cells = [np.array(x.ctypes.data if isinstance(x, np.ndarray) else x) for x in arguments]
        pointers = (ctypes.c_void_p * len(cells))(*(cell.ctypes.data for cell in cells))
        error = ctypes.create_string_buffer(2048)
        numbers = *(*grid, 1)[:2], block[0], self._warp, self._shared_bytes, self._seed
        self._run(self._call, pointers, *numbers, error, len(error))
        if error.value:
            message, *calls = error.value.decode().splitlines()
            raise ExecutorError(f"{self._name}: {message}{_places(self._path, calls)}")

    def _check(self, grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple) -> None:
        """Raise ExecutorError for a grid, a block or arguments that a GPU or the kernel would not take.

        A pointer takes an array, and a number takes a NumPy scalar of the same kind and size.
        """
        if any(not 1 <= n <= most for n, most in zip(grid, LARGEST_GRID, strict=False)):
            blocks = " x ".join(map(str, grid))
            raise ExecutorError(f"{self._name}: a grid of {blocks} blocks, but none may be 0 or above {LARGEST_GRID}")
        if not 1 <= block[0] <= self._most_threads or any(n != 1 for n in block[1:]):
            threads = " x ".join(map(str, block))
            raise ExecutorError(f"{self._name}: a block of {threads} threads, but it was made for {self._most_threads}")
        types = ["array" if isinstance(x, np.ndarray) else np.asarray(x).dtype.str[1:] for x in arguments]
        given = "".join(CODES.get(each, "?") for each in types)
        if given != self._parameters:
            raise ExecutorError(f"{self._name}: it takes {self._parameters}, but was given {given}")
        for number, argument in enumerate(arguments):
            if isinstance(argument, np.ndarray) and not argument.flags.c_contiguous:
                raise ExecutorError(f"{self._name}: argument {number} is not contiguous")


def _places(library: Path, calls: list[str]) -> str:
    """The source lines of `calls`, which are offsets in the library, as " (common.h:12, gelu.hip:34)"."""
    if not calls or not shutil.which("addr2line"):
        return ""
    result = subprocess.run(["addr2line", "-i", "-e", library, *calls], capture_output=True, text=True, check=True)
    places = [Path(line.split(" (")[0]).name for line in result.stdout.splitlines()]  # drop discriminators
    return f" ({', '.join(place for place in places if not place.startswith(('?', 'executor.h')))})"


@functools.cache
def _runtime() -> ctypes.CDLL:
    """The compiled executor.cpp, for kernels to call."""
    path = _compile((HERE / "executor.cpp").read_text(), () if SANITIZED else ("-O2",))
    library = ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    pointer = ctypes.c_void_p
    counts = [*[ctypes.c_int] * 4, ctypes.c_size_t, ctypes.c_uint64]
    library.executor_run.argtypes = [pointer, pointer, *counts, pointer, ctypes.c_size_t]
    library.executor_run.restype = None
    return library


@functools.cache
def _compile(source: str, flags: tuple[str, ...]) -> Path:
    """The path of the source as a library, which comes from the cache if it was compiled before."""
    command = [compiler(), *FLAGS, *flags, "-x", "c++", "-"]
    headers = [(HERE / header).read_text() for header in ("executor.h", "fiber.h")]
    path = CACHE / f"{hashlib.sha256(chr(0).join([source, *command, *headers]).encode()).hexdigest()}.so"
    if not path.exists():
        CACHE.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            made = Path(folder) / path.name
            places = ["-I", HERE, "-o", made]  # not in the name, which is the same in every checkout
            result = subprocess.run(
                [*command, *places], input=source, env=_UNSANITIZED, capture_output=True, text=True, check=False
            )
            if result.returncode:
                raise ExecutorError(result.stderr)
            os.replace(made, path)  # atomically: another process may be looking for it
    return path
