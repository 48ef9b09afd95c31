"""Compile kernels for NVIDIA GPUs, with no GPU and no CUDA at hand, and judge the machine code's use of registers.

The compiler is NVRTC, which CuPy calls, from the wheel nvidia-cuda-nvrtc-cu12. ptxas, which is a part of it, says how
many bytes a thread keeps in memory.
"""

import ctypes
import re
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from tests.support.compilation import Compilation
from tests.support.instances import instances

TARGETS = ("sm_80", "sm_90a", "sm_120")
WHEEL = "nvidia-cuda-nvrtc-cu12"
# Bytes that a thread may keep in memory: a few variables that do not fit, not an array that is not kept in registers.
MEMORY_LIMIT = 512


class NvidiaCompilation(Compilation):
    """NVRTC's: the code must have every kernel of the source, and keep variables in registers."""

    def faults(self) -> list[str]:
        succeeded, log = compile_source(self.instance.source, self.target)
        if not succeeded:
            return [log]
        compiled = re.findall(r"Compiling entry function '(\w+)'", log)
        absent = sorted(set(self.instance.names).symmetric_difference(compiled))
        return [f"{name}: the source and the code differ on it" for name in absent] + complaints(log)


def compilations() -> list[NvidiaCompilation]:
    """One for each target and each instance that training and generation need there."""
    return [
        NvidiaCompilation("nvrtc", target, instance) for target in TARGETS for instance in instances(target, 32, True)
    ]


def missing() -> str | None:
    """Why NVRTC cannot be used here; None if it can."""
    found = find_spec("nvidia") and find_spec("nvidia.cuda_nvrtc")
    return None if found else f"NVRTC is absent (pip install {WHEEL})"


def compiler_version() -> str:
    return version(WHEEL)


def compile_source(source: str, target: str) -> tuple[bool, str]:
    """Whether NVRTC compiles a source for a real architecture, and its log with ptxas's report on every kernel."""
    library, program, size = _nvrtc(), ctypes.c_void_p(), ctypes.c_size_t()
    assert library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None) == 0
    options = [f"--gpu-architecture={target}".encode(), b"-std=c++17", b"--ptxas-options=-v"]
    status = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return status == 0, log.value.decode()


def complaints(log: str) -> list[str]:
    """The lines of ptxas's report on threads that keep more than MEMORY_LIMIT bytes in memory, not in registers."""
    lines = re.findall(r"(?:\d+ bytes (?:stack frame|spill stores|spill loads)(?:, )?)+", log)
    return [line for line in lines if max(map(int, re.findall(r"\d+", line))) > MEMORY_LIMIT]


@cache
def _nvrtc() -> ctypes.CDLL:
    """The library of the wheel."""
    (folder,) = find_spec("nvidia.cuda_nvrtc").submodule_search_locations
    return ctypes.CDLL(str(next((Path(folder) / "lib").glob("libnvrtc.so.*"))))
