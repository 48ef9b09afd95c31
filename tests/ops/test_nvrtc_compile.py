"""Every kernel compiles to machine code for NVIDIA GPUs and stays in registers. NVRTC's wheel needs no GPU for it."""

import ctypes
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.instances import instances

TARGETS = ("sm_80", "sm_90a", "sm_120")
# Bytes that a thread may keep in memory: a few variables that do not fit, not an array that is not kept in registers.
MEMORY_LIMIT = 512


FOUND = find_spec("nvidia.cuda_nvrtc") if find_spec("nvidia") else None
pytestmark = pytest.mark.skipif(not FOUND, reason="NVRTC is absent (pip install nvidia-cuda-nvrtc-cu12)")


@cache
def nvrtc() -> ctypes.CDLL:
    """The library of the wheel nvidia-cuda-nvrtc-cu12."""
    folder = Path(FOUND.submodule_search_locations[0]) / "lib"
    return ctypes.CDLL(str(next(folder.glob("libnvrtc.so.*"))))


def compile_source(source: str, target: str) -> tuple[bool, str]:
    """Whether NVRTC compiles a source for a real architecture, and its log with ptxas's report on every kernel."""
    library, program, size = nvrtc(), ctypes.c_void_p(), ctypes.c_size_t()
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


# Without NVRTC there are no cases: hundreds of skipped tests would say no more than one.
CASES = [(target, instance) for target in TARGETS if FOUND for instance in instances(target, 32, True)]


@pytest.mark.parametrize(("target", "instance"), CASES, ids=[f"{target} {instance}" for target, instance in CASES])
def test_every_kernel_compiles_and_stays_in_registers(target, instance):
    succeeded, log = compile_source(instance.source, target)
    assert succeeded, log
    compiled = re.findall(r"Compiling entry function '(\w+)'", log)
    assert set(compiled) == set(instance.names)
    assert complaints(log) == []


def test_a_source_that_does_not_compile_is_an_error():
    succeeded, log = compile_source('extern "C" __global__ void k(float* y) { *y = nonsense; }', "sm_90")
    assert not succeeded
    assert 'identifier "nonsense" is undefined' in log


def test_shared_memory_beyond_the_static_limit_is_refused():
    """The limit is 48 KiB. Kernels that need more take it from what their launch asks for (wgmma.h)."""
    body = "__shared__ float s[12289]; s[threadIdx.x] = *y; __syncthreads(); *y = s[threadIdx.x ^ 1];"
    succeeded, _ = compile_source(f'extern "C" __global__ void k(float* y) {{ {body} }}', "sm_90")
    assert not succeeded


def test_memory_in_place_of_registers_is_found():
    body = "float v[200]; for (int i = 0; i < 200; i++) v[at[i]] = y[i]; *y = v[at[0]];"
    succeeded, log = compile_source(f'extern "C" __global__ void k(float* y, int* at) {{ {body} }}', "sm_90")
    assert succeeded
    assert len(complaints(log)) == 1
    assert "800 bytes stack frame" in complaints(log)[0]
