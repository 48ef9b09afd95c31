"""The checks of machine code that NVIDIA's compiler makes find every fault that they look for.

`python -m tests.support.fit` checks every kernel for every target, which takes minutes.
"""

import pytest

from gpt.ops.gpu.sources import Instance
from tests.support import nvidia
from tests.support.nvidia import NvidiaCompilation, compile_source, complaints

ABSENT = nvidia.missing()
CONVERT = Instance.of("convert.hip", {"FROM": "float", "TO": "bf16", "WIDTH": 8, "THREADS": 256})
pytestmark = pytest.mark.skipif(bool(ABSENT), reason=str(ABSENT))


@pytest.mark.parametrize("target", nvidia.TARGETS)
def test_a_modest_kernel_is_fit(target):
    assert NvidiaCompilation("nvrtc", target, CONVERT).faults() == []


def test_a_kernel_that_is_not_compiled_is_found(monkeypatch):
    compilation = NvidiaCompilation("nvrtc", "sm_80", CONVERT)
    monkeypatch.setattr(Instance, "names", ["convert", "another"])
    assert compilation.faults() == ["another: the source and the code differ on it"]


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
