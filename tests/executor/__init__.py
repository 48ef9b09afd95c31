"""A device on the CPU: kernels compiled by the host's C++ compiler and run on NumPy arrays, thread by thread.

With HIPGPT_SANITIZE=1 kernels are built with AddressSanitizer and UndefinedBehaviorSanitizer; Python then has to be
started with LD_PRELOAD=$(g++ -print-file-name=libasan.so) and ASAN_OPTIONS=detect_leaks=0.
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
from pathlib import Path

import numpy as np

from gpt.ops.kernels import Instance

HERE = Path(__file__).parent
LAYOUTS = {"none32": (0, 32), "none64": (0, 64), "mma": (1, 32), "mfma": (2, 64), "wmma11": (3, 32), "wmma12": (4, 32)}
ORDERS = {"forward": 0, "reversed": 1, "seeded": 12345}
CACHE = Path(os.environ.get("HIPGPT_EXECUTOR_CACHE", Path(tempfile.gettempdir()) / f"hipgpt-executor-{os.getuid()}"))
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-shared", "-DEXECUTOR", "-Wall", "-Wextra", "-Werror", "-Wno-parentheses"]
FLAGS += ["-Wno-unused", "-Wno-unknown-pragmas", "-Wno-missing-field-initializers", "-Wno-ignored-qualifiers"]
SANITIZE = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]


class ExecutorError(RuntimeError):
    """What a kernel did that a GPU would not forgive."""


@functools.cache
def compiler() -> str | None:
    """The C++ compiler, or None."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


class ExecutorDevice:
    """Warps as wide, and tiles laid out, as LAYOUTS[layout] says; threads take turns in the order ORDERS[order]."""

    xp, blas, stream, notes = np, None, 0, ()

    def __init__(self, layout: str, order: str = "forward") -> None:
        self._layout, self.warp = LAYOUTS[layout]
        self._seed = ORDERS[order]
        self.target = self.description = f"executor-{layout}"
        self.has_bf16 = self._layout != 0

    def kernel(self, file: str, name: str, defines: Mapping[str, object]) -> Callable:
        """Kernel `name` of an instance; call it with (grid, block, arguments)."""
        return self.kernel_of(Instance.of(file, defines).source, name)

    def kernel_of(self, source: str, name: str) -> Callable:
        """Kernel `name` of a whole source text. Raises ExecutorError for what does not compile, and for what goes
        wrong in a launch."""
        library = _build(source, self._layout, self.warp)
        run, signature, most = (getattr(library, f"{what}_{name}") for what in ("run", "signature", "threads"))
        run.restype = signature.restype = ctypes.c_char_p
        run.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_uint64]
        kinds, most = signature().decode(), most()

        def launch(grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple) -> None:
            if block[0] > most:
                raise ExecutorError(f"{name}: a block of {block[0]} threads, but it was made for {most}")
            pointers = _pointers(name, kinds, arguments)
            error = run(pointers, *(*grid, 1)[:2], block[0], self._seed)
            if error:
                raise ExecutorError(f"{name}: {error.decode()}")

        return launch

    def to_host(self, array: np.ndarray) -> np.ndarray:
        return array

    def free_bytes(self) -> int:
        return 2**40


def _pointers(name: str, kinds: str, arguments: tuple) -> ctypes.Array:
    """The arguments as a kernel's entry takes them: a pointer to each. The array keeps what it points at alive."""
    given = "".join(
        "p" if isinstance(argument, np.ndarray) else str(argument.dtype.itemsize) for argument in arguments
    )
    if given != kinds:
        raise ExecutorError(f"{name}: takes {kinds} (p: a pointer, else bytes), but was given {given}")
    kept = []
    for number, argument in enumerate(arguments):
        if isinstance(argument, np.ndarray):
            if not argument.flags.c_contiguous:
                raise ExecutorError(f"{name}: argument {number} is not contiguous")
            argument = np.array(argument.ctypes.data, np.uint64)
        kept.append(np.asarray(argument))
    pointers = (ctypes.c_void_p * len(kept))(*(value.ctypes.data for value in kept))
    pointers.kept = kept
    return pointers


@functools.cache
def _build(source: str, layout: int, warp: int) -> ctypes.CDLL:
    """The source as a loaded library, from the cache on disk if it was compiled before."""
    kernels = re.findall(r"^KERNEL\((.*?)\) (\w+)\(", source, re.MULTILINE)
    text = source + "".join(f"EXECUTOR_ENTRY({name}, ({threads}))\n" for threads, name in kernels)
    command = [compiler(), *FLAGS, f"-DLAYOUT={layout}", f"-DWARP={warp}", "-I", str(HERE), "-x", "c++", "-"]
    if os.environ.get("HIPGPT_SANITIZE"):
        command[1:1] = SANITIZE
    key = hashlib.sha256("\0".join([text, *command, (HERE / "executor.h").read_text()]).encode()).hexdigest()
    path = CACHE / f"{key}.so"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=CACHE, delete=False) as file:
            command += ["-o", file.name]
            result = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        if result.returncode:
            os.unlink(file.name)
            raise ExecutorError(result.stderr)
        os.replace(file.name, path)
    return ctypes.CDLL(str(path))
