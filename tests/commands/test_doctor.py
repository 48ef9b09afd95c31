"""`hipgpt doctor`: it finds every operation that computes wrongly, and says what is installed whatever is missing."""

import json
import os
import re
import signal
import subprocess
import sys
import types
import warnings

import numpy as np
import pytest
from click.testing import CliRunner

from gpt import cli, doctor, timing
from gpt import ops as operations
from gpt.config import ModelConfig
from gpt.doctor import products, selftest
from gpt.doctor.bounds import product_bound
from gpt.doctor.selftest import CASES, FUSED, Failure
from gpt.doctor.trial import Trial, difference
from gpt.errors import UserError
from gpt.ops.cpu.operations import CpuOps
from gpt.ops.gpu.operations import GpuOps
from gpt.ops.gpu.products import CACHE_BYTES
from gpt.ops.interface import Arithmetic
from tests.support.devices import executor
from tests.support.machines import machine

OPERATIONS = [name for name, method in vars(Arithmetic).items() if callable(method) and not name.startswith("_")]


# ---- wrong results --------------------------------------------------------------------------------------------------


def arrays_in(value):
    """The arrays of an argument, also those in bundles and lists."""
    if isinstance(value, np.ndarray):
        return [value]
    return [array for each in value for array in arrays_in(each)] if isinstance(value, tuple | list) else []


def spoil(array, before, fault):
    """Do to an output what a wrong kernel might: change an element, lose one to NaN, or leave all as it was."""
    if fault == "nothing is written":
        array[...] = before
        return
    worst = np.unravel_index(np.argmax(np.abs(np.nan_to_num(array.astype(np.float64)))), array.shape)
    if array.dtype == np.uint16:  # bf16
        array[worst] = 0x7FC0 if fault == "NaN" else array[worst] ^ 0x20
    elif array.dtype.kind == "f":
        array[worst] = np.nan if fault == "NaN" else array[worst] * 1.02 + 1e-30
    else:
        array[worst] += 1


class Wrong:
    """Operations of which one spoils one of its outputs, the one with this number, counted from 0."""

    def __init__(self, ops, operation, number, fault):
        self._ops, self._operation, self._number, self._fault = ops, operation, number, fault
        self.spoiled = 0

    def __getattr__(self, name):
        attribute = getattr(self._ops, name)
        return self._wrong(attribute) if name == self._operation else attribute

    def _wrong(self, operation):
        def wrong(*arguments, **keywords):
            arrays = arrays_in([*arguments, *keywords.values()])
            before = [array.copy() for array in arrays]
            operation(*arguments, **keywords)
            written = [
                (array, old) for array, old in zip(arrays, before, strict=True) if array.tobytes() != old.tobytes()
            ]
            if self._number < len(written):
                self.spoiled += 1
                spoil(*written[self._number], self._fault)

        return wrong


def findings(ops, operation):
    """Yields what the checks of one operation find."""
    return (found for check in selftest.checks(ops) if check.operation == operation and (found := check.finding()))


def test_every_operation_has_a_check():
    assert set(CASES) == set(OPERATIONS)
    assert set(selftest.CHECKS) == set(OPERATIONS)


@pytest.mark.parametrize(
    "make", [lambda: CpuOps(threads=2), lambda: GpuOps(executor("mma"), "bf16")], ids=["CPU", "GPU"]
)
def test_operations_that_compute_rightly_pass(make):
    ops = make()
    for name in OPERATIONS if ops.is_cpu else ("copy", "clear", "dropout", "adamw", "plan_update", "add_partials"):
        assert list(findings(ops, name)) == []


@pytest.mark.parametrize("fault", ["off by 2 %", "NaN", "nothing is written"])
@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name not in (selftest.BF16_ALONE, "copy")])
def test_a_wrong_result_is_found_in_every_output_of_every_operation(operation, fault):
    ops = CpuOps(threads=1)
    for number in range(9):
        wrong = Wrong(ops, operation, number, fault)
        found = any(findings(wrong, operation))
        if not wrong.spoiled:
            assert number > 0, "the operation wrote nothing"
            return
        assert found, f"output {number}"
    raise AssertionError("an operation has fewer outputs")


@pytest.mark.parametrize("fault", ["off by 2 %", "NaN", "nothing is written"])
@pytest.mark.parametrize("operation", ["convert", "adamw", "dropout", "embedding"])
def test_a_wrong_result_is_found_in_bf16_on_a_gpu(operation, fault):
    wrong = Wrong(GpuOps(executor("mma"), "bf16"), operation, 0, fault)
    assert any(findings(wrong, operation))
    assert wrong.spoiled


def test_the_vendors_library_gets_larger_products_and_in_bf16_those_with_gelu_inside():
    """The library applies GELU if the array is too large for the GPU's cache; gpt/ops/gpu/products.py decides."""

    def count(precision, has_vendor_blas):
        return sum(check.operation == "linear" for check in selftest.checks(Gpu(precision, has_vendor_blas)))

    assert count("fp32", False) < count("fp32", True) < count("bf16", True)
    assert all(rows * d_out * 2 > CACHE_BYTES for rows, _, d_out, *_ in FUSED["linear"])
    assert all(rows * d_in * 2 > CACHE_BYTES for rows, d_in, *_ in FUSED["linear_backward"])


@pytest.mark.parametrize("operation", selftest.LARGE)
def test_larger_products_pass(operation):
    ops = CpuOps(threads=2)
    for case in selftest.LARGE[operation]:
        assert selftest._trial(ops, operation, case) == []


def test_a_wrong_copy_is_found():
    """A copy makes the inputs of all other checks, so it is spoiled on the way to the device only."""

    class Ops(CpuOps):
        def copy(self, value, out):
            super().copy(value, out)
            if value.size == 1000 and not np.isnan(value).all():
                out.reshape(-1)[3] *= 1.02

    assert any(findings(Ops(threads=1), "copy"))


def test_a_kernel_that_writes_outside_of_its_array_is_found():
    class Ops(CpuOps):
        def add_partials(self, partials, out):
            super().add_partials(partials, out)
            out.base[63 if out.base.ndim == 1 else 0] = 1

    assert "outside" in next(findings(Ops(threads=1), "add_partials"))


def test_a_step_that_trains_wrongly_is_found():
    class Ops(CpuOps):
        def linear_backward(self, dout, weight, dx, *others, **how):
            super().linear_backward(dout, weight, dx, *others, **how)
            dx *= -1

    assert "the loss of step" in " ".join(findings(Ops(threads=1), selftest.TRAINING))


def test_an_exception_is_a_finding():
    class Ops(CpuOps):
        def add_sums(self, losses, hits, out):
            raise RuntimeError("an illegal address\nand more")

    assert list(findings(Ops(threads=1), "add_sums")) == ["RuntimeError: an illegal address"]


def test_a_difference_is_told_with_its_place_and_size():
    assert difference(np.array([1.0, 2.5]), np.array([1.0, 2.0]), 0.1) == "2.5 for 2 at (1,), off by 5 times the bound"
    assert difference(np.array([1.0, np.nan]), np.zeros(2), 9).startswith("1 of 2 elements are not finite")
    assert difference(np.array([1.0, 2.0]), np.array([1.0, 2.0]), 0) == ""


def test_a_trial_marks_what_was_not_written():
    trial = Trial(CpuOps(threads=1))
    trial.near("out", trial.poisoned(3), np.zeros(3), 1.0)
    assert trial.findings == ["out is 3 of 3 elements are not finite, or were not written"]


def test_the_bound_of_a_product_is_the_one_of_its_docstring():
    ones = np.ones((64, 64))
    assert product_bound(ones, ones, 2.0**-24)[0, 0] == pytest.approx(0.00026, rel=0.01)
    assert product_bound(ones, ones, 2.0**-8)[0, 0] == pytest.approx(0.25, rel=0.01)


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def few_checks(monkeypatch, tmp_path):
    """Two operations and a training step only."""
    monkeypatch.setattr(selftest, "CASES", {name: CASES[name][:1] for name in ("linear", "adamw")})
    shape = {"embed_dim": 32, "num_heads": 2, "ff_hidden_dim": 48, "num_layers": 1, "dropout": 0.1}  # test_replay's
    monkeypatch.setattr(selftest, "MODEL", ModelConfig(vocab_size=40, max_seq_len=8, **shape))
    monkeypatch.setattr(selftest, "STEPS", 1)
    monkeypatch.setattr(
        selftest, "SEQUENCES", 8
    )  # at bf16's 6e-4 a logit, 8e-5 in a mean of 64: a seventh of the bound
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def few(few_checks, monkeypatch):
    """A few checks, and no time for measuring."""
    monkeypatch.setattr(doctor, "measure", lambda ops: [])


def run(*arguments):
    return CliRunner().invoke(cli.main, ["doctor", *arguments])


def test_a_person_reads_a_report_that_ends_with_the_verdict_and_has_no_name_of_a_folder(hipgpt, tmp_path):
    hipgpt.environment.update(HOME=str(tmp_path), CUPY_CACHE_DIR=str(tmp_path / "cache"))
    text = hipgpt("doctor", "--device", "cpu").stdout
    assert str(tmp_path) not in text
    assert re.search("CUPY_CACHE_DIR +~/cache", text)
    for heading in ("Program:", "Machine:", "Packages:", "GPU:", "Caches:", "Device:", "Self-test:", "Speed of CPU"):
        assert re.search(f"^{heading}", text, re.MULTILINE)
    assert re.search(r"^Verdict: all \d{3} checks passed$", text, re.MULTILINE)
    assert re.search(r"^  linear, 512 x 768 x 3072 +[\d.]+ ms +[\d.]+ TFLOP/s$", text, re.MULTILINE)
    assert re.search(r"^  adamw +[\d.]+ ms +[\d.]+ GB/s$", text, re.MULTILINE)


def test_json_is_one_object_that_says_the_same(few_checks, monkeypatch):
    monkeypatch.setattr(doctor.speed, "GROUP_SECONDS", 0)
    monkeypatch.setattr(doctor.speed, "ON_CPU", doctor.speed.Sizes(1, 32, 100, 1000))
    result = json.loads(run("--device", "cpu", "--json").stdout)
    assert result["Device"]["chosen"].startswith("CPU, ")
    checks = sum(each["checks"] for each in result["Self-test"])
    assert result["verdict"] == f"all {checks} checks passed"
    assert result["advice"] == ""
    assert {each["operation"].partition(",")[0] for each in result["Speed"]} >= {"linear", "attention", "adamw"}
    assert all(each["ms"] > 0 for each in result["Speed"])


@pytest.mark.parametrize(("device", "complaint"), [("tpu", "--device is tpu"), ("gpu", "--device gpu")])
def test_a_device_that_does_not_exist_is_refused_in_one_line(hipgpt, device, complaint):
    assert complaint in hipgpt("doctor", "--device", device, status=2).stderr


def on_executor(monkeypatch, spoil=lambda ops: ops):
    """Let --device auto take an executor in place of a GPU."""

    def select(device="auto", precision="auto", training=False, processes=1, blas="auto"):
        if device == "cpu":
            return CpuOps(threads=1)
        ops = GpuOps(executor("mma"), "bf16" if precision == "auto" else precision)
        return spoil(ops) if blas == "auto" else ops

    monkeypatch.setattr(operations, "select", select)


def test_with_auto_a_gpu_is_tested_in_each_precision_and_so_is_the_cpu(few, monkeypatch):
    on_executor(monkeypatch)
    result = run("--json")
    assert result.exit_code == 0, result.output
    tested = [each["device"] for each in json.loads(result.stdout)["Self-test"]]
    assert tested == [*(f"executor-mma, {each}" for each in ("bf16", "fp32", "tf32")), "CPU, 1 thread, fp32"]


def test_a_device_that_is_named_is_tested_alone(few, monkeypatch):
    on_executor(monkeypatch)
    tested = json.loads(run("--json", "--device", "gpu").stdout)["Self-test"]
    assert [each["device"].partition(",")[0] for each in tested] == ["executor-mma"] * 3
    tested = json.loads(run("--json", "--device", "cpu").stdout)["Self-test"]
    assert [each["device"] for each in tested] == ["CPU, 1 thread, fp32"]


def test_a_failed_check_is_named_with_precision_shape_and_size_and_the_exit_status_is_1(few, monkeypatch):
    on_executor(monkeypatch, lambda ops: Wrong(ops, "linear", 0, "off by 2 %") if ops.low_precision else ops)
    result = run()
    assert result.exit_code == 1
    assert re.search(r"executor-mma, bf16: \d of \d checks FAILED", result.stdout)
    assert re.search(r"linear in bf16 of 3 x 5 x 7: out is .* off by [\d.]+ times the bound", result.stdout)
    assert re.search(r"^Verdict: \d of \d+ checks FAILED$", result.stdout, re.MULTILINE)
    assert "What to do: use --precision fp32, or use --device cpu; and report this" in result.stdout


def test_a_gpu_whose_kernels_cannot_be_loaded_fails_all_checks_but_not_the_doctor(few, monkeypatch):
    cupy = machine(monkeypatch, gpus=[{"name": b"Inside", "integrated": 1}, {"name": b"Card"}])
    cupy.cuda.get_current_stream = lambda: types.SimpleNamespace(ptr=0)
    result = run()
    assert result.exit_code == 1, result.output
    assert "Note: on GPU 1, Card (sm_90); passed over: GPU 0 is integrated" in result.stdout
    assert "use --device cpu" in result.stdout
    assert re.search(r"CPU, .*: \d+ checks passed", result.stdout)


@pytest.mark.parametrize(
    ("program", "fault"),
    [
        ("os.abort()", "it ends the program by SIGABRT"),
        ("os.kill(os.getpid(), 11)", "it ends the program by SIGSEGV"),
        ("time.sleep(60)", "it does not answer within 1 s"),
    ],
)
def test_a_library_that_crashes_or_hangs_is_told_from_one_that_does_not(monkeypatch, program, fault):
    monkeypatch.setattr(products, "COMMAND", [sys.executable, "-c", f"import os, time; {program}"])
    monkeypatch.setattr(products, "PATIENCE", 1.0 if "sleep" in program else 60.0)
    assert products.fault("gpu", ["bf16"]) == fault


def test_a_library_that_crashes_is_a_finding_and_the_rest_is_tested_without_it(few, monkeypatch):
    monkeypatch.setattr(products, "COMMAND", [sys.executable, "-c", "import os; os.abort()"])
    on_executor(monkeypatch, lambda ops: pytest.fail("the library is started"))
    result = run()
    assert result.exit_code == 1, result.output
    fault = "it ends the program by SIGABRT"
    assert f"  the vendor's library for matrix products FAILED: {fault}; all else is done without it" in result.stdout
    assert len(re.findall(r"^  executor-mma, \w+: \d checks passed$", result.stdout, re.MULTILINE)) == 3
    assert re.search(r"^Verdict: 1 of \d+ checks FAILED$", result.stdout, re.MULTILINE)
    assert "What to do: use hipgpt's own matrix products, by --blas own, or use --device cpu; and" in result.stdout


def test_json_has_the_crash_of_a_library():
    told = doctor.Diagnosis({}, library="it ends the program by SIGABRT").to_json()
    assert (told["library"], told["verdict"]) == ("it ends the program by SIGABRT", "1 of 1 checks FAILED")
    assert "--blas own" in told["advice"]


def test_a_library_is_asked_for_the_products_of_each_precision_in_another_process(few, monkeypatch, tmp_path):
    """Whether they are right is left to the self-test."""
    noted = tmp_path / "noted"
    program = f"import sys; open({str(noted)!r}, 'w').write(' '.join(sys.argv[1:])); sys.exit(1)"
    monkeypatch.setattr(products, "COMMAND", [sys.executable, "-c", program])
    assert products.fault("gpu:1", ["bf16", "fp32"]) == ""
    assert noted.read_text() == "gpu:1 bf16 fp32"


def test_the_other_process_asks_for_every_product_and_nothing_else(few, monkeypatch):
    asked = []

    def select(device, precision):
        if precision == "tf32":
            raise UserError("the GPU lacks it")
        asked.append(precision)
        return types.SimpleNamespace(has_vendor_blas=precision == "bf16", low_precision=True)

    monkeypatch.setattr(operations, "select", select)
    monkeypatch.setattr(selftest.Check, "finding", lambda check: asked.append(check.operation))
    products.main("gpu", "fp32", "tf32", "bf16")
    assert asked[:2] == ["fp32", "bf16"]
    assert set(asked[2:]) == {"linear", selftest.TRAINING}
    assert subprocess.run([*products.COMMAND, "cpu", "fp32"], check=False).returncode == 0


def test_a_crash_says_at_which_check_it_was(few, monkeypatch, tmp_path):
    monkeypatch.setitem(selftest.CHECKS, "adamw", lambda trial, *case: os.abort())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pytest-xdist has a thread, which the child does not use
        child = os.fork()
    if not child:
        try:
            os.dup2(os.open(tmp_path / "stderr", os.O_WRONLY | os.O_CREAT), 2)
            run("--device", "cpu")
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGABRT
    told = (tmp_path / "stderr").read_text()
    assert "Fatal Python error: Aborted" in told
    assert re.search(r'gpt/doctor/selftest.py", line \d+ in _trial', told)


class Gpu:
    """What the advice needs to know of an operations object."""

    is_cpu, description = False, "a GPU"

    def __init__(self, precision, has_vendor_blas=False):
        self.precision, self.has_vendor_blas = precision, has_vendor_blas
        self.low_precision = precision == "bf16"


def ill(ops, *wrong):
    return doctor.Patient(ops, 9, [Failure(name, ops.precision, "3 x 5", "") for name in wrong])


def test_advice_fits_the_failures():
    cpu = CpuOps(threads=1)
    assert doctor.advice([ill(Gpu("bf16")), ill(cpu)]) == ""
    products = doctor.advice([ill(Gpu("bf16", True), "linear", "training"), ill(Gpu("fp32", True))])
    assert products.startswith("use hipgpt's own matrix products, by --blas own, or use --precision fp32, or use --dev")
    assert "--blas" not in doctor.advice([ill(Gpu("bf16", True), "linear", "attention")])
    assert "--blas" not in doctor.advice([ill(Gpu("bf16"), "linear")])
    assert doctor.advice([ill(Gpu("fp32"))], fatal_library=True).startswith("use hipgpt's own matrix products, by --bl")
    assert "--precision" not in doctor.advice([ill(Gpu("bf16"), "adamw"), ill(Gpu("fp32"), "adamw")])
    assert doctor.advice([ill(cpu, "linear")]).startswith("install NumPy and numba anew; and report")


def test_advice_for_a_gpu_that_poses_as_another_is_to_end_that_first(monkeypatch):
    """Many set it for programs without kernels for their GPU. If it names another family, no kernel runs."""
    monkeypatch.setenv("HSA_OVERRIDE_GFX_VERSION", "10.3.0")
    expected = "unset HSA_OVERRIDE_GFX_VERSION (10.3.0), which hipgpt does not need, or use --device cpu; and report"
    assert doctor.advice([ill(Gpu("fp32"), "adamw")]).startswith(expected)
    assert doctor.advice([ill(Gpu("fp32"))], fatal_library=True).startswith("unset HSA_OVERRIDE_GFX_VERSION (10.3.0)")
    assert "HSA" not in doctor.advice([ill(CpuOps(threads=1), "linear")])
    assert doctor.advice([ill(Gpu("fp32"))]) == ""


def test_the_times_are_few_and_their_rates_follow(monkeypatch):
    monkeypatch.setattr(doctor.speed, "GROUP_SECONDS", 0)
    monkeypatch.setattr(doctor.speed, "ON_CPU", doctor.speed.Sizes(1, 32, 100, 1000))
    speeds = list(doctor.speed.measure(CpuOps(threads=1)))
    assert len({speed.operation for speed in speeds}) == len(speeds) == 9
    linear = speeds[0]
    assert linear.to_json()["tflops"] == pytest.approx(2 * 32 * 768 * 3072 / linear.seconds / 1e12)
    assert all(bool(speed.flops) != bool(speed.bytes) for speed in speeds)


def test_the_length_of_a_group_can_be_given():
    clock = iter(range(100))
    assert timing.time_groups(lambda: None, lambda: next(clock), seconds=5).calls == 5
