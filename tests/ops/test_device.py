"""The choice of a GPU, and the one line that a user reads if it cannot be used, which says what to do.

A stand-in for the module cupy plays the machines.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import types
import warnings
from importlib.util import find_spec
from itertools import product

import numpy as np
import pytest

from gpt import ops
from gpt.errors import UserError
from gpt.ops.gpu import device as cupy_device
from gpt.ops.gpu.blas import BlasMissingError
from gpt.ops.gpu.device import CupyDevice
from gpt.ops.gpu.operations import GpuOps
from tests.support import ROOT


class RuntimeFailureError(Exception):
    pass


class CompileError(Exception):
    pass


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def machine(monkeypatch, *, hip=False, count=1, properties=None, failure=None, module=None, gpus=None, busy=()):
    """Let `import cupy` give a machine with `count` GPUs that all have `properties`.

    Or give `gpus`, a list with the properties of each. GPUs whose numbers are in `busy` cannot be used.
    """
    count = count if gpus is None else len(gpus)

    def use(index):
        if index in busy:
            raise RuntimeFailureError("all devices are busy")

    def device_count():
        if failure:
            raise RuntimeFailureError(failure)
        return count

    cupy = types.ModuleType("cupy")
    cupy.empty, cupy.zeros, cupy.asarray, cupy.asnumpy = np.empty, np.zeros, np.asarray, np.asarray
    properties = properties or {"name": b"A GPU", "major": 9, "minor": 0, "gcnArchName": b"gfx942:sramecc+:xnack-"}
    properties = {"multiProcessorCount": 80} | properties
    runtime = types.SimpleNamespace(
        is_hip=hip, getDeviceCount=device_count, CUDARuntimeError=RuntimeFailureError,
        getDeviceProperties=lambda index: properties | (gpus[index] if gpus else {}),
        memGetInfo=lambda: (2**30, 2**34),
    )  # fmt: skip
    cupy.cuda = types.SimpleNamespace(
        runtime=runtime, Device=lambda index: types.SimpleNamespace(use=lambda: use(index)),
        compiler=types.SimpleNamespace(CompileException=CompileError),
        Stream=lambda non_blocking: types.SimpleNamespace(use=lambda: None),
    )  # fmt: skip
    cupy.get_default_memory_pool = lambda: types.SimpleNamespace(free_bytes=lambda: 0)
    cupy.RawModule = module
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(CupyDevice, "_load_blas", lambda *_: None)
    return cupy


def refusal(make=CupyDevice, *arguments, **options) -> str:
    with pytest.raises(UserError) as error:
        make(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def failing_import(monkeypatch, error):
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == "cupy":
                raise error

    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])


def test_without_cupy_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    failing_import(monkeypatch, ModuleNotFoundError("No module named 'cupy'"))
    message = refusal()
    assert f"pip install -e '{ROOT}[rocm]'" in message
    assert f"pip install -e '{ROOT}[cuda13]'" in message


def test_advice_of_a_checkout_is_short_inside_of_it_and_needs_no_checkout_outside(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert "pip install -e '.[rocm]'" in cupy_device.install_advice()
    monkeypatch.setattr(cupy_device, "__file__", str(tmp_path / "site-packages" / "gpt" / "ops" / "gpu" / "device.py"))
    advice = cupy_device.install_advice()
    assert "pip install cupy-rocm-7-0 for an AMD GPU" in advice
    assert "hipgpt[" not in advice


def test_the_names_in_the_advice_are_those_that_the_extras_bring():
    setup = (ROOT / "setup.py").read_text()
    assert all(f'["{name}"' in setup for name in ("cupy-rocm-7-0", "cupy-cuda12x[ctk]", "cupy-cuda13x[ctk]"))


@pytest.mark.parametrize(
    ("library", "package"),
    [("libamdhip64.so.7", "hip-runtime-amd"), ("libhipfft.so.0", "hipfft"), ("librccl.so.1", "rccl")],
)
def test_a_missing_rocm_library_names_its_package(monkeypatch, library, package):
    monkeypatch.setattr(cupy_device, "find_library", lambda name: None)
    failing_import(monkeypatch, ImportError(f"{library}: cannot open shared object file: No such file or directory"))
    assert f"install {package}," in refusal()


def test_a_rocm_library_that_the_loader_does_not_look_for_names_its_folder(monkeypatch, tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libhipfft.so.0").touch()
    monkeypatch.setenv("ROCM_HOME", str(tmp_path))
    failing_import(monkeypatch, ImportError("libhipfft.so.0: cannot open shared object file"))
    assert f"add {tmp_path}/lib to LD_LIBRARY_PATH, or" in refusal()


@pytest.mark.parametrize(("hip", "vendor"), [(True, "AMD"), (False, "NVIDIA")])
def test_cupy_for_another_vendor_says_whose_it_is(monkeypatch, hip, vendor):
    machine(monkeypatch, hip=hip, failure="no device is detected")
    message = refusal()
    assert f"for {vendor} GPUs" in message
    assert "no device is detected" in message


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    machine(monkeypatch, count=2)
    assert "gpu:2 does not exist: of NVIDIA GPUs there are 2, counted from 0" in refusal(CupyDevice, 2)
    machine(monkeypatch, count=1)
    assert "gpu:2 does not exist: of NVIDIA GPUs there is only one, gpu:0" in refusal(CupyDevice, 2)


@pytest.mark.parametrize("hip", [True, False])
def test_if_no_gpu_is_visible_the_error_says_so_and_names_the_variables_that_may_hide_them(monkeypatch, hip):
    monkeypatch.setattr(cupy_device, "DRIVER", os.devnull)
    monkeypatch.setattr(cupy_device, "RENDERERS", os.devnull)
    for name in cupy_device.ROCM_HIDES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "")
    machine(monkeypatch, hip=hip, count=0)
    hiding = "HIP_VISIBLE_DEVICES ('') and CUDA_VISIBLE_DEVICES ('-1')" if hip else "CUDA_VISIBLE_DEVICES ('-1')"
    for make in (CupyDevice, CupyDevice.best):
        message = refusal(make)
        assert f"finds none (it counts 0): unset {hiding}, which may hide it, or, for the other vendor's" in message
        assert "gpu:0" not in message


CARD, INTEGRATED, OLD = {"name": b"Card"}, {"name": b"Inside", "integrated": 1}, {"name": b"Old", "major": 6}


@pytest.mark.parametrize(
    ("gpus", "busy", "chosen", "passed_over"),
    [
        ([CARD], [], "Card", None),
        ([CARD, INTEGRATED], [], "Card", None),
        ([INTEGRATED], [], "Inside", None),
        ([INTEGRATED, CARD], [], "Card", ["GPU 0 is integrated"]),
        ([OLD, CARD], [], "Card", ["GPU 0 is too old: sm_60"]),
        ([CARD, {"name": b"Second"}], [0], "Second", ["GPU 0 cannot be used: all devices are busy"]),
        ([INTEGRATED, OLD], [], "Inside", ["GPU 1 is too old"]),
    ],
)
def test_auto_takes_the_first_card_that_works_before_an_integrated_gpu(monkeypatch, gpus, busy, chosen, passed_over):
    machine(monkeypatch, gpus=gpus, busy=busy)
    for device in ("auto", "gpu"):
        operations = ops.select(device)
        assert operations.description.startswith(chosen)
        notes = " ".join(operations.notes)
        assert all(each in notes for each in passed_over or []), notes
        assert ("passed over" in notes) == (passed_over is not None)


def test_if_no_gpu_works_the_error_gives_a_reason_for_each(monkeypatch):
    machine(monkeypatch, gpus=[OLD, CARD], busy=[1])
    message = refusal(ops.select, "gpu")
    assert "none of the 2 GPUs works: GPU 0 is too old" in message
    assert "GPU 1 cannot be used: all devices are busy" in message


def importable(monkeypatch, cupy):
    """Let `cupy` be imported for the first time. Returns a list: the folders that it will find as its cache."""
    found = []

    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == "cupy":
                found.append(os.environ.get("CUPY_CACHE_DIR"))
                return importlib.util.spec_from_loader(name, self)
            return None

        def create_module(self, spec):
            return cupy

        def exec_module(self, module):
            pass

    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    return found


def test_a_cache_that_can_be_written_is_left_alone(monkeypatch, cache):
    found = importable(monkeypatch, machine(monkeypatch))
    device = CupyDevice()
    assert (device.notes, device.cache, found) == ([], str(cache), [str(cache)])


def test_a_cache_that_cannot_be_written_is_replaced_and_named_before_cupy_sees_it(monkeypatch, cache):
    """CuPy 14.2 makes the folder, and remembers its name, as soon as it is imported."""
    cache.rmdir()
    cache.write_text("a file in its place")
    found = importable(monkeypatch, machine(monkeypatch))
    for _ in range(2):
        device = CupyDevice()
        (note,) = device.notes
        assert f"CuPy's cache {cache} cannot be written (File exists)" in note
        assert "CUPY_CACHE_DIR" in note
    assert found == [device.cache] == [os.environ["CUPY_CACHE_DIR"]]
    assert os.path.isdir(device.cache)


def test_a_cache_for_which_there_is_no_folder_at_all_is_refused(monkeypatch, cache):
    cache.rmdir()
    cache.write_text("a file in its place")
    importable(monkeypatch, machine(monkeypatch))
    monkeypatch.setattr(cupy_device.tempfile, "mkdtemp", lambda prefix: str(cache))
    assert refusal() == (
        f"CuPy's cache {cache} cannot be written (File exists), nor can a temporary folder (File exists): free some "
        "space, or set CUPY_CACHE_DIR to another folder"
    )


def test_an_empty_name_of_the_cache_stands_for_none(monkeypatch, tmp_path):
    monkeypatch.setenv("CUPY_CACHE_DIR", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    found = importable(monkeypatch, machine(monkeypatch))
    assert CupyDevice().cache == str(tmp_path / ".cupy" / "kernel_cache")
    assert found == [None]


@pytest.mark.parametrize("place", ["ROCM_HOME", "the loader"])
def test_an_older_rocm_is_named_with_the_version_that_cupy_needs(monkeypatch, tmp_path, place):
    """ROCm 6 has libamdhip64.so.6, and to install its packages again would not help."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libhipfft.so").touch()
    if place == "ROCM_HOME":
        (tmp_path / "lib" / "libamdhip64.so.6").touch()
        (tmp_path / "lib" / "libamdhip64.so.6.4.60403").touch()
    found = {"amdhip64": "libamdhip64.so.6"} if place == "the loader" else {}
    monkeypatch.setattr(cupy_device, "find_library", found.get)
    monkeypatch.setenv("ROCM_HOME", str(tmp_path))
    failing_import(monkeypatch, ImportError("libamdhip64.so.7: cannot open shared object file"))
    assert "): install ROCm 7, because the ROCm here has libamdhip64.so.6, or, if it was made" in refusal()
    failing_import(monkeypatch, ImportError("libhipfft.so.0: cannot open shared object file"))
    assert "): install hipfft, or" in refusal()


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


@pytest.mark.parametrize(
    ("there", "closed", "remedy"),
    [
        ([], [], "there is no {driver}, so load Linux's driver amdgpu, or give the device to this container, or, for"),
        (["kfd"], ["kfd"], "you may not open {driver}, so type sudo usermod -aG render,video $USER, and log in again"),
        (["kfd", "renderD128"], ["renderD128"], "you may not open {folder}/renderD128, so type sudo usermod"),
        (["kfd", "renderD128"], [], "check the driver, or, for"),
        (["dxg"], [], "check the driver, or, for"),
    ],
)
def test_if_rocm_finds_no_gpu_the_device_files_tell_what_to_do(monkeypatch, tmp_path, there, closed, remedy):
    for name in there:
        (tmp_path / name).touch()
    monkeypatch.setattr(cupy_device, "DRIVER", str(tmp_path / "kfd"))
    monkeypatch.setattr(cupy_device, "WINDOWS_DRIVER", str(tmp_path / "dxg"))
    monkeypatch.setattr(cupy_device, "RENDERERS", str(tmp_path / "renderD*"))
    monkeypatch.setattr(cupy_device.os, "access", lambda path, mode: os.path.basename(path) not in closed)
    for name in cupy_device.ROCM_HIDES:
        monkeypatch.delenv(name, raising=False)
    machine(monkeypatch, hip=True, failure="hipErrorNoDevice: no ROCm-capable device is detected")
    expected = remedy.format(driver=tmp_path / "kfd", folder=tmp_path)
    assert f"(hipErrorNoDevice: no ROCm-capable device is detected): {expected}" in refusal()


@pytest.mark.parametrize("target", ["gfx803", "gfx1250", "gfx1310"])
def test_a_gpu_whose_kernels_nobody_has_compiled_is_refused_before_anything_compiles(monkeypatch, target):
    machine(monkeypatch, hip=True, properties={"name": b"a", "gcnArchName": target.encode()})
    assert refusal() == f"GPU 0 is a {target}, for which hipgpt has no kernels; use --device cpu"


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


@pytest.mark.parametrize(("hip", "package"), [(True, "ROCm's hipblaslt"), (False, "nvidia-cublas, or CUDA's cuBLAS")])
def test_a_missing_library_for_products_is_a_note_or_with_vendor_an_error(monkeypatch, hip, package):
    def missing(*_):
        raise BlasMissingError(f"the library is not there: install {package}")

    load = CupyDevice._load_blas
    cupy = machine(monkeypatch, hip=hip)
    monkeypatch.setattr(CupyDevice, "_load_blas", load)
    monkeypatch.setattr(cupy_device, "load_library", missing)
    monkeypatch.setattr(cupy_device.shutil, "which", lambda name: name)
    workspace = types.SimpleNamespace(data=types.SimpleNamespace(ptr=0))
    cupy.empty = lambda shape, dtype: workspace
    (note,) = ops.select("gpu").notes
    assert note == (
        f"Note: the library is not there: install {package}; until then matrix products run on hipgpt's own, slower "
        "kernel"
    )
    assert refusal(ops.select, "gpu", blas="vendor") == (
        f"--blas vendor: the library is not there: install {package}; or use --blas own"
    )


def test_a_library_that_ended_the_program_when_it_started_is_not_started_again(monkeypatch, tmp_path):
    load, library = CupyDevice._load_blas, types.SimpleNamespace()
    cupy = machine(monkeypatch, hip=True)
    cupy.empty = lambda shape, dtype: types.SimpleNamespace(data=types.SimpleNamespace(ptr=0))
    cupy.cuda.runtime.runtimeGetVersion = cupy.cuda.runtime.driverGetVersion = lambda: 70051831
    monkeypatch.setattr(CupyDevice, "_load_blas", load)
    monkeypatch.setattr(cupy_device, "load_library", lambda kind: library)
    monkeypatch.setattr(cupy_device, "file_of", lambda kind, library: "")
    monkeypatch.setattr(cupy_device, "Blas", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    monkeypatch.setattr(cupy_device.shutil, "which", lambda name: name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pytest-xdist has a thread, which the child does not use
        child = os.fork()
    if not child:
        try:
            ops.select("gpu")
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    monkeypatch.setattr(cupy_device, "Blas", lambda *_: pytest.fail("it is started again"))
    for _ in range(2):
        chosen = ops.select("gpu")
        (note,) = chosen.notes
        assert note.startswith("Note: the last start of hipBLASLt on this GPU crashed, hung or was killed (remove ")
        assert not chosen.has_vendor_blas
    monkeypatch.setattr(cupy_device, "Blas", lambda *_: "started")
    assert ops.select("gpu", blas="vendor").device.blas == "started"
    next((tmp_path / "cache").iterdir()).unlink()
    assert ops.select("gpu").device.blas == "started"


def test_own_does_not_even_load_the_library(monkeypatch):
    machine(monkeypatch)
    monkeypatch.setattr(CupyDevice, "_load_blas", lambda *_: pytest.fail("it loads the library"))
    chosen = ops.select("gpu", blas="own")
    assert (chosen.notes, chosen.has_vendor_blas) == ([], False)


@pytest.mark.parametrize("blas", ["vendor", "own"])
def test_a_cpu_has_no_library_to_choose(monkeypatch, blas):
    machine(monkeypatch, count=0)
    monkeypatch.setattr(ops.importlib.util, "find_spec", lambda name: object())
    for device in ("cpu", "auto"):
        assert refusal(ops.select, device, blas=blas) == (
            f"--blas {blas} needs a GPU: leave it out, or use --device gpu"
        )


def test_auto_takes_bf16_on_a_gpu_with_matrix_units_for_it(monkeypatch):
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


@pytest.mark.skipif(find_spec("cupy") is not None, reason="CuPy is installed here")
@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("/dev/kfd", "on the CPU, though this machine has a driver for AMD GPUs: --device gpu needs CuPy: pip install"),
        ("/proc/driver/nvidia/version", "has a driver for NVIDIA GPUs: --device gpu needs CuPy: pip install"),
        (None, None),
    ],
)
def test_a_gpu_that_only_lacks_cupy_is_not_passed_over_in_silence(monkeypatch, file, said):
    monkeypatch.setattr("os.path.exists", lambda path: path == file)
    notes = ops.select("auto").notes
    assert said in notes[0] if said else not notes


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise ImportError('libamdhip64.so.7: cannot open shared object file')", "install hip-runtime-amd"),
        ("raise OSError('libnvrtc.so.12: cannot open shared object file')", "libnvrtc.so.12: cannot open"),
        ("", "module 'cupy' has no attribute 'cuda'"),
    ],
)
def test_a_cupy_that_is_broken_is_named_and_auto_takes_the_cpu(tmp_path, monkeypatch, source, said):
    (tmp_path / "cupy.py").write_text(source)
    monkeypatch.setattr(cupy_device, "find_library", lambda name: None)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "cupy", None)  # so that the test's end restores what was there
    del sys.modules["cupy"]
    with pytest.raises(UserError, match="^CuPy does not load .*pip uninstall it") as error:
        cupy_device.import_cupy()
    assert said in str(error.value)
    sys.modules.pop("cupy", None)
    assert ops.select("auto").is_cpu
