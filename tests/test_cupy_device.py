"""What a user reads when a GPU cannot be used: one line, with what to do. A stand-in for CuPy plays the machines."""

import sys
import types

import numpy as np
import pytest

from gpt import ops
from gpt.errors import UserError
from gpt.ops import cupy_device
from gpt.ops.cupy_device import CupyDevice
from gpt.ops.gpu import GpuOps


class RuntimeFailureError(Exception):
    pass


class CompileError(Exception):
    pass


def machine(monkeypatch, *, hip=False, count=1, properties=None, failure=None, module=None):
    """Let `import cupy` give a machine with these GPUs."""

    def device_count():
        if failure:
            raise RuntimeFailureError(failure)
        return count

    cupy = types.ModuleType("cupy")
    cupy.empty, cupy.zeros, cupy.asarray, cupy.asnumpy = np.empty, np.zeros, np.asarray, np.asarray
    properties = properties or {"name": b"A GPU", "major": 9, "minor": 0, "gcnArchName": b"gfx942:sramecc+:xnack-"}
    runtime = types.SimpleNamespace(
        is_hip=hip, getDeviceCount=device_count, CUDARuntimeError=RuntimeFailureError,
        getDeviceProperties=lambda index: properties, memGetInfo=lambda: (2**30, 2**34),
    )  # fmt: skip
    cupy.cuda = types.SimpleNamespace(
        runtime=runtime, Device=lambda index: types.SimpleNamespace(use=lambda: None),
        compiler=types.SimpleNamespace(CompileException=CompileError),
        Stream=lambda non_blocking: types.SimpleNamespace(use=lambda: None),
    )  # fmt: skip
    cupy.get_default_memory_pool = lambda: types.SimpleNamespace(free_bytes=lambda: 0)
    cupy.RawModule = module
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(CupyDevice, "_load_blas", lambda self, kind: None)
    return cupy


def refusal(make=CupyDevice, *arguments) -> str:
    with pytest.raises(UserError) as error:
        make(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def failing_import(monkeypatch, error):
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == "cupy":
                raise error

    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])


def test_without_cupy_it_says_what_to_install(monkeypatch):
    failing_import(monkeypatch, ModuleNotFoundError("No module named 'cupy'"))
    assert "pip install 'hipgpt[rocm]'" in refusal()


@pytest.mark.parametrize(
    ("library", "package"),
    [("libamdhip64.so.7", "hip-runtime-amd"), ("libhipfft.so.0", "hipfft"), ("librccl.so.1", "rccl")],
)
def test_a_missing_rocm_library_names_its_package(monkeypatch, library, package):
    failing_import(monkeypatch, ImportError(f"{library}: cannot open shared object file: No such file or directory"))
    assert f"install {package}," in refusal()


@pytest.mark.parametrize(("hip", "vendor"), [(True, "AMD"), (False, "NVIDIA")])
def test_cupy_for_another_vendor_says_whose_it_is(monkeypatch, hip, vendor):
    machine(monkeypatch, hip=hip, failure="no device is detected")
    message = refusal()
    assert f"for {vendor} GPUs" in message
    assert "no device is detected" in message


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    machine(monkeypatch, count=2)
    assert "gpu:2 does not exist: there are 2" in refusal(CupyDevice, 2)


def test_a_gpu_too_old_is_named(monkeypatch):
    machine(monkeypatch, properties={"name": b"Old", "major": 6, "minor": 1})
    assert "sm_61" in refusal()


def test_without_hipcc_it_says_so(monkeypatch):
    machine(monkeypatch, hip=True)
    monkeypatch.setattr(cupy_device.shutil, "which", lambda name: None)
    assert "hipcc" in refusal()


@pytest.mark.parametrize(
    ("hip", "properties", "target", "warp", "has_bf16"),
    [
        (True, {"name": b"a", "gcnArchName": b"gfx942:sramecc+:xnack-"}, "gfx942", 64, True),
        (True, {"name": b"a", "gcnArchName": b"gfx906"}, "gfx906", 64, False),
        (True, {"name": b"a", "gcnArchName": b"gfx1030"}, "gfx1030", 32, False),
        (True, {"name": b"a", "gcnArchName": b"gfx1151"}, "gfx1151", 32, True),
        (True, {"name": b"a", "gcnArchName": b"gfx1201"}, "gfx1201", 32, True),
        (False, {"name": b"a", "major": 7, "minor": 5}, "sm_75", 32, False),
        (False, {"name": b"a", "major": 12, "minor": 0}, "sm_120", 32, True),
    ],
)
def test_what_a_gpu_can_do_is_read_from_its_name(monkeypatch, hip, properties, target, warp, has_bf16):
    machine(monkeypatch, hip=hip, properties=properties)
    monkeypatch.setattr(cupy_device.shutil, "which", lambda name: name)
    device = CupyDevice()
    assert (device.target, device.warp, device.has_bf16) == (target, warp, has_bf16)


def test_a_kernel_that_does_not_compile_names_file_line_and_target(monkeypatch):
    class Module:
        def __init__(self, code, options):
            pass

        def compile(self):
            raise CompileError('a warning first\ngelu.hip(12): error: identifier "x" is undefined\nmore')

    machine(monkeypatch, module=Module)
    message = refusal(CupyDevice().kernel, "gelu.hip", "activation", {"T": "float"})
    assert 'gelu.hip(12): error: identifier "x" is undefined' in message
    assert "sm_90" in message


def test_out_of_memory_says_how_much_and_what_to_lower(monkeypatch):
    cupy = machine(monkeypatch)
    operations = GpuOps(CupyDevice(), "fp32")

    def exhausted(shape, dtype):
        raise MemoryError

    cupy.empty = exhausted
    message = refusal(operations.empty, (1024, 1024))
    assert "4 MiB more are needed, 1,024 MiB are free" in message
    assert "--batch" in message


def test_a_head_too_wide_for_the_kernels_is_refused_before_anything_is_allocated(monkeypatch):
    from gpt.config import ModelConfig
    from gpt.model import GPT

    machine(monkeypatch)
    config = ModelConfig(vocab_size=9, embed_dim=512, num_heads=2)
    assert "use at least 4 heads" in refusal(GPT, config, GpuOps(CupyDevice(), "fp32"))


def test_precisions_that_a_device_lacks_are_refused(monkeypatch):
    assert "--device gpu" in refusal(ops.select, "cpu", "bf16")
    machine(monkeypatch, properties={"name": b"a", "major": 7, "minor": 0})
    assert "--precision fp32" in refusal(ops.select, "gpu", "bf16")
    machine(monkeypatch, hip=True)
    monkeypatch.setattr(cupy_device.shutil, "which", lambda name: name)
    assert "NVIDIA" in refusal(ops.select, "gpu", "tf32")


def test_auto_takes_bf16_where_it_is_fast(monkeypatch):
    machine(monkeypatch)
    assert ops.select("auto", "auto").precision == "bf16"
    machine(monkeypatch, properties={"name": b"a", "major": 7, "minor": 0})
    assert ops.select("auto", "auto").precision == "fp32"


def test_auto_on_a_machine_with_cupy_and_no_gpu_says_why_it_is_on_the_cpu(monkeypatch):
    machine(monkeypatch, failure="no CUDA-capable device is detected")
    monkeypatch.setattr(ops.importlib.util, "find_spec", lambda name: object())
    chosen = ops.select("auto")
    assert chosen.is_cpu
    assert "no CUDA-capable device" in chosen.notes[0]
