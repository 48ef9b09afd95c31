"""One GPU: what its name says about it, what it refuses, and the line about a kernel or an array that fails."""

import subprocess
import threading
import types
from itertools import product

import numpy as np
import pytest

from gpt.config import ModelConfig
from gpt.model import GPT
from gpt.ops.gpu import device as cupy_device
from gpt.ops.gpu.device import CupyDevice
from gpt.ops.gpu.operations import GpuOps
from tests.support.machines import CompileError, machine, refusal


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    machine(monkeypatch, count=2)
    assert "gpu:2 does not exist: of NVIDIA GPUs there are 2, counted from 0" in refusal(CupyDevice, 2)
    machine(monkeypatch, count=1)
    assert "gpu:2 does not exist: of NVIDIA GPUs there is only one, gpu:0" in refusal(CupyDevice, 2)


def test_a_gpu_too_old_is_named(monkeypatch):
    machine(monkeypatch, properties={"name": b"Old", "major": 6, "minor": 1})
    assert "sm_61" in refusal()


@pytest.mark.parametrize("target", ["gfx803", "gfx1250", "gfx1310"])
def test_a_gpu_whose_kernels_nobody_has_compiled_is_refused_before_anything_compiles(monkeypatch, target):
    machine(monkeypatch, hip=True, properties={"name": b"a", "gcnArchName": target.encode()})
    assert refusal() == f"GPU 0 is a {target}, for which hipgpt has no kernels; use --device cpu"


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
def test_the_abilities_of_a_gpu_are_read_from_its_name(monkeypatch, hip, properties, target, warp, has_bf16):
    machine(monkeypatch, hip=hip, properties=properties)
    monkeypatch.setattr(cupy_device.shutil, "which", lambda name: name)
    device = CupyDevice()
    assert (device.target, device.warp, device.has_bf16) == (target, warp, has_bf16)


def test_each_of_two_gpus_gets_the_work_of_its_own_model_from_any_thread(monkeypatch):
    """CuPy's current GPU and stream are settings of a thread, and the last device that was made has set them."""
    cupy, used = machine(monkeypatch, count=2), []

    def noting(name):
        return types.SimpleNamespace(use=lambda: used.append((name, threading.get_ident())))

    streams = iter(("stream 0", "stream 1"))
    monkeypatch.setattr(cupy.cuda, "Device", lambda index: noting(f"GPU {index}"))
    monkeypatch.setattr(cupy.cuda, "Stream", lambda non_blocking: noting(next(streams)))
    monkeypatch.setattr(CupyDevice, "pinned", lambda self, size: np.empty(size, np.uint8))
    monkeypatch.setattr(CupyDevice, "upload", lambda self, host, out: lambda: None)
    both = [GpuOps(CupyDevice(index), "fp32") for index in (0, 1)]
    inputs = [ops.inputs(ids=((4,), "int32")) for ops in both]

    def write(number):
        with inputs[number].written():
            pass

    ways = [lambda number: both[number].zeros(3), lambda number: both[number].from_host(np.ones(3)), write]
    for ask, number in product(ways, (0, 1)):
        used.clear()
        thread = threading.Thread(target=ask, args=(number,))
        thread.start()
        thread.join()
        assert used == [(f"GPU {number}", thread.ident), (f"stream {number}", thread.ident)]


def test_without_hipcc_it_says_so(monkeypatch):
    machine(monkeypatch, hip=True)
    monkeypatch.setattr(cupy_device.shutil, "which", lambda name: None)
    assert "hipcc" in refusal()


def test_a_hipcc_that_fails_is_a_one_line_error_with_its_own_message(monkeypatch):
    log = "In file included from <built-in>:1:\nwrapper.h:50:10: fatal error: 'cmath' file not found\n1 error.\n"
    result = subprocess.CompletedProcess(["hipcc", "-x", "hip", "-E", "-v", "/dev/null"], 1, stderr=log)

    class Module:
        def __init__(self, code, options):
            pass

        def compile(self):  # as cupy/_environment.py of CuPy 14
            raise RuntimeError(f"Subprocess command '{result}' failed.")

    machine(monkeypatch, hip=True, module=Module)
    monkeypatch.setattr(cupy_device.shutil, "which", lambda name: name)
    message = refusal(CupyDevice().kernel, "gelu.hip", "activation", {"T": "float"})
    assert "hipcc fails: wrapper.h:50:10: fatal error: 'cmath' file not found; " in message
    assert "install g++" in message


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


def test_a_disk_that_fills_up_later_is_a_one_line_error(monkeypatch):
    class Module:
        def __init__(self, code, options):
            pass

        def compile(self):
            raise OSError(28, "No space left on device")

    machine(monkeypatch, module=Module)
    message = refusal(CupyDevice().kernel, "gelu.hip", "activation", {"T": "float"})
    assert "No space left on device" in message
    assert "CUPY_CACHE_DIR" in message


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
    machine(monkeypatch)
    config = ModelConfig(vocab_size=9, embed_dim=512, num_heads=2)
    assert "use at least 4 heads" in refusal(GPT, config, GpuOps(CupyDevice(), "fp32"))
