"""Training and writing on ROCm, without a GPU: see tests/support/rocm."""

import functools
import json
import os
import shutil
import signal
from ctypes.util import find_library

import numpy as np
import pytest

from gpt import doctor
from gpt.doctor import ahead
from gpt.ops.cpu.operations import CpuOps
from tests.support import rocm
from tests.support.amd.emulator import TARGETS
from tests.support.rocm.tiny import LEARNING_RATE, STEPS, train, weights, write

pytestmark = [
    pytest.mark.amd,
    pytest.mark.skipif(bool(rocm.unavailable()), reason=str(rocm.unavailable())),
]

# A loss is a mean over 32 tokens of log 40 and some logits of size 0.1. In bf16 a logit has been rounded some ten
# times, each time by 2^-9 / sqrt(3) in root mean square. That is a relative error of 3.6e-3 in logits of 0.1, an error
# of 6e-5 in a mean of 32 of them, and 2e-5 relative to the loss. The bound is five times that.
LOSS = {"fp32": 1e-5, "bf16": 1e-4}
# A step moves a weight by the learning rate times a ratio of gradients. Their relative errors are about 1e-6 in fp32
# and 2e-2 in bf16. But gradients that would be 0 without rounding (those of the keys' bias) are only noise, so their
# weights may move in either direction by up to the learning rate.
MOVED = STEPS * LEARNING_RATE
WEIGHT = {"fp32": 1e-2 * MOVED, "bf16": 2 * MOVED}
MEAN_WEIGHT = {"fp32": 1e-4 * MOVED, "bf16": 5e-2 * MOVED}


@pytest.fixture(scope="module")
def simulation(tmp_path_factory):
    return rocm.Simulation(tmp_path_factory.mktemp("rocm"))


@functools.cache
def reference():
    model, losses = train(CpuOps(threads=1, dtype="float64"))
    return losses, weights(model), write(model)


def trained(simulation, *precisions, **machine):
    """The results that `train` printed, by precision. Asserts that they are near those of the CPU."""
    result = simulation.run("train", *precisions, **machine)
    assert result.returncode == 0, result.stderr
    results = json.loads(result.stdout)
    losses, expected, ids = reference()
    for precision in precisions:
        np.testing.assert_allclose(results[precision]["losses"], losses, rtol=LOSS[precision])
        off = np.abs(np.array(results[precision]["weights"]) - expected)
        assert off.max() <= WEIGHT[precision]
        assert off.mean() <= MEAN_WEIGHT[precision]
        if precision == "fp32":  # in bf16 rounding may make other ids the likeliest
            assert results[precision]["ids"] == ids
    return results


def refused(simulation, program, *arguments, target="gfx942", **machine):
    """The one line of the error with which a program ended."""
    result = simulation.run(program, *arguments, target=target, **machine)
    assert result.returncode == 1
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1, "an error is one line"
    return result.stderr


@pytest.mark.parametrize("target", TARGETS)
def test_a_model_trains_as_on_the_cpu(simulation, target):
    for precision, result in trained(simulation, "fp32", "bf16", target=target).items():
        assert result["description"] == f"Simulated Radeon ({target}), {precision}"


def test_auto_is_the_gpu_in_bf16(simulation):
    result = simulation.run("choose", target="gfx1100")
    assert result.stdout == "Simulated Radeon (gfx1100), bf16\n"


# ---- without, or with less of, hipBLASLt -----------------------------------------------------------------------------


OWN_PRODUCTS, PLAIN_ACTIVATIONS = {"matmul", "activation_backward"}, {"activation", "activation_backward"}
PLAIN_EPILOGUES = PLAIN_ACTIVATIONS | {"add_bias"}


@pytest.mark.parametrize(
    ("mode", "kernels"),
    [
        ("", {"fp32": OWN_PRODUCTS, "bf16": OWN_PRODUCTS}),
        ("whole", {"fp32": PLAIN_ACTIVATIONS, "bf16": set()}),  # fp32 needs a more exact GELU than the library's
        ("products", {"fp32": PLAIN_EPILOGUES, "bf16": PLAIN_EPILOGUES}),
        ("nothing", {"fp32": OWN_PRODUCTS, "bf16": OWN_PRODUCTS}),
        ("promises", {"fp32": OWN_PRODUCTS, "bf16": OWN_PRODUCTS}),
        ("broken", {"fp32": OWN_PRODUCTS, "bf16": OWN_PRODUCTS}),
    ],
)
def test_hipgpts_kernels_do_the_work_that_hipblaslt_cannot_do(simulation, mode, kernels):
    for precision, result in trained(simulation, "fp32", "bf16", target="gfx942", hipblaslt=mode).items():
        assert (OWN_PRODUCTS | PLAIN_EPILOGUES) & set(result["kernels"]) == kernels[precision]
        notes = {"": "install ROCm's hipblaslt", "broken": "hipblasLtCreate failed with status 6"}
        assert [notes[mode] in note for note in result["notes"]] == [True] * (mode in notes)


def test_hipblaslt_is_checked_and_given_up_if_it_is_wrong(simulation):
    def said(mode, blas="auto"):
        result = simulation.run("check", blas, target="gfx1201", hipblaslt=mode)
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines()

    note = "Note: hipBLASLt computes wrong products on this GPU: "
    assert said("whole") == ["used: True"]
    assert said("wrong") == ["used: True"]  # remembered: neither the card nor the file of the library is another
    for verdict in simulation.folder.glob("cache-gfx1201/hipgpt-hipblaslt-check-*.json"):
        verdict.unlink()
    wrong, used = said("wrong")
    assert (wrong.startswith(note), used) == (True, "used: False")
    assert " with bias; matrix products run on hipgpt's own" in wrong
    assert said("wrong", "vendor") == ["used: True"]
    assert said("whole", "own") == ["used: False"]


def test_hipblaslt_is_not_used_again_if_it_ended_the_program(simulation):
    crashed, healed = (simulation.run("check", "auto", target="gfx1100", hipblaslt="crashes") for _ in range(2))
    assert crashed.returncode == -signal.SIGABRT
    assert "If the program crashes or hangs here, start it again with --blas own." in crashed.stderr
    note, used = healed.stdout.splitlines()
    assert note.startswith("Note: the last check of hipBLASLt on this GPU crashed, hung or was killed (remove ")
    assert (healed.stderr, used) == ("", "used: False")


def test_a_hipblaslt_that_ended_the_program_when_it_started_is_not_started_again(simulation):
    runs = [simulation.run("check", "auto", target="gfx90a", hipblaslt="dies") for _ in range(3)]
    assert runs[0].returncode == -signal.SIGABRT
    assert "If the program crashes or hangs here, start it again with --blas own." in runs[0].stderr
    for healed in runs[1:]:
        note, used = healed.stdout.splitlines()
        assert note.startswith("Note: the last start of hipBLASLt on this GPU crashed, hung or was killed (remove ")
        assert "; matrix products run on hipgpt's own, slower kernel (--blas vendor insists" in note
        assert (healed.stderr, used) == ("", "used: False")
    assert simulation.run("check", "vendor", target="gfx90a", hipblaslt="dies").returncode == -signal.SIGABRT
    (verdict,) = simulation.folder.glob("cache-gfx90a/hipgpt-hipblaslt-start-*.json")
    assert f"(remove {verdict} to repeat it)" in note
    verdict.unlink()
    assert simulation.run("check", "auto", target="gfx90a", hipblaslt="whole").stdout == "used: True\n"


def test_vendor_is_refused_if_hipblaslt_is_missing_or_has_no_kernels(simulation):
    assert "install ROCm's hipblaslt; or use --blas own" in refused(simulation, "check", "vendor")
    assert "has no kernels for Simulated Radeon" in refused(simulation, "check", "vendor", hipblaslt="nothing")


# ---- a ROCm that is not whole ----------------------------------------------------------------------------------------


def test_no_gpu_is_one_line(simulation):
    line = refused(simulation, "train", "fp32", gpus=0)
    assert "for AMD GPUs and finds none (hipErrorNoDevice: no ROCm-capable device is detected)" in line


def test_auto_without_a_gpu_is_the_cpu_and_says_why(simulation):
    result = simulation.run("choose", target="gfx942", gpus=0)
    description, note = result.stdout.splitlines()
    assert description.startswith("CPU")
    assert note.startswith("Note: on the CPU, because ")
    assert "hipErrorNoDevice" in note


def test_no_hipcc_is_one_line(simulation):
    assert "hipcc is not on the PATH" in refused(simulation, "train", "fp32", hipcc=False)


@pytest.mark.parametrize(
    ("library", "package"),
    [("libamdhip64.so.7", "hip-runtime-amd"), ("librocfft.so.0", "rocfft"), ("libroctracer64.so.4", "roctracer")],
)
def test_a_library_that_cupy_lacks_is_one_line_with_its_package(simulation, library, package):
    line = refused(simulation, "train", "fp32", without=library)
    assert f"{library}: cannot open shared object file" in line
    older = find_library("amdhip64") if package == "hip-runtime-amd" else None  # Debian's ROCm 5.2, which has hiprtc
    assert f"install ROCm 7, because the ROCm here has {older}" if older else f"install {package}," in line


def test_a_gpu_without_kernels_is_one_line(simulation):
    line = refused(simulation, "train", "fp32", target="gfx1250")
    assert line == "Error: GPU 0 is a gfx1250, for which hipgpt has no kernels; use --device cpu\n"


@pytest.mark.parametrize("target", ["gfx90a", "gfx942"])
def test_a_kernel_that_does_not_compile_is_one_line_with_file_and_line(simulation, target):
    line = refused(simulation, "broken", target=target)
    assert f"do not compile for {target}: gelu.hip:" in line
    assert "error: unknown type name 'no_such_type'" in line


# ---- the doctor ------------------------------------------------------------------------------------------------------


def test_the_doctor_compiles_none_of_the_kernels_that_another_process_has_compiled(simulation, monkeypatch, tmp_path):
    """What it still compiles are CuPy's own kernels, which copy and convert arrays."""
    target, checks = "gfx1201", ["clear", "layernorm", "global_norm"]
    cache = simulation.folder / f"cache-{target}"
    shutil.rmtree(cache, ignore_errors=True)
    monkeypatch.setenv("SIMULATED_CHECKS", " ".join(checks))
    numbers = tmp_path / "numbers"
    numbers.write_bytes(ahead.NUMBERS)
    with numbers.open("rb") as file:
        result = simulation.run("ahead", str(os.getpid()), "gpu", *doctor.PRECISIONS, target=target, stdin=file)
    assert result.returncode == 0, result.stderr
    compiled = set(cache.iterdir())
    assert {name for name in checks if any(name.encode() in path.read_bytes() for path in compiled)} == set(checks[1:])
    result = simulation.run("doctor", "--device", "gpu", "--json", target=target)
    assert json.loads(result.stdout)["verdict"] == "all 6 checks passed", result.stderr
    for path in set(cache.iterdir()) - compiled:
        assert b"cupy_" in path.read_bytes()
        assert not any(name.encode() in path.read_bytes() for name in checks)
