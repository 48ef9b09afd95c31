"""The choice by --device, --precision and --blas: what is taken, what is passed over with a note, what is refused."""

import os
import signal
import types
import warnings
from importlib.util import find_spec

import pytest

from gpt import ops
from gpt.ops.gpu import device as cupy_device
from gpt.ops.gpu.blas import BlasMissingError
from gpt.ops.gpu.device import CupyDevice
from tests.support.machines import machine, refusal

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


def test_auto_takes_bf16_on_a_gpu_with_matrix_units_for_it(monkeypatch):
    machine(monkeypatch)
    assert ops.select("auto", "auto").precision == "bf16"
    machine(monkeypatch, properties={"name": b"a", "major": 7, "minor": 0})
    assert ops.select("auto", "auto").precision == "fp32"


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
