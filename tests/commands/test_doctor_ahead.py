"""Processes that compile kernels for `hipgpt doctor`: whatever becomes of them, its report is the same."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial

import psutil
import pytest

from gpt import doctor
from gpt import ops as operations
from gpt.doctor import ahead, selftest
from gpt.ops.cpu.operations import CpuOps
from gpt.ops.gpu.noting import NotingDevice
from gpt.ops.gpu.operations import GpuOps
from gpt.ops.gpu.sources import Instance
from tests.commands.test_doctor import few, few_checks, run  # noqa: F401
from tests.support import ROOT
from tests.support.devices import executor

PRELUDE = f"import os, sys, time; sys.path.insert(0, {str(ROOT)!r}); "


def becomes(monkeypatch, program, cpus=3):
    """Let the processes run `program`, which gets the arguments of `main`, on a machine with a GPU."""
    monkeypatch.setattr(ahead, "COMMAND", [sys.executable, "-c", PRELUDE + program])
    monkeypatch.setattr(ahead, "count_gpus", lambda: 1)
    monkeypatch.setattr(ahead.limits, "cpus", lambda: cpus)
    monkeypatch.setattr(ahead.limits, "free_memory", lambda: 2**40)


def wait_until(holds, seconds=60.0):
    """Wait until `holds()` is true."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.01)


# ---- all kernels are compiled ---------------------------------------------------------------------------------------

COMPILING = """
from gpt import ops
from gpt.doctor import ahead, selftest
from gpt.errors import UserError
from gpt.ops.gpu.noting import NotingDevice
from gpt.ops.gpu.operations import GpuOps
from gpt.ops.gpu.sources import Instance

class Gpu(NotingDevice):
    def kernel(self, file, name, defines, shared_bytes=0):
        with open({path!r}, "a") as file_of_all:
            print(Instance.of(file, defines), file=file_of_all)
        time.sleep(0.02)

def select(device, precision, blas):
    assert (device, blas) == ("gpu:1", "own")
    if precision == "tf32":
        raise UserError("the GPU lacks it")
    return GpuOps(Gpu("gfx1100", 32, True), precision)

selftest.CASES = {{name: selftest.CASES[name] for name in {cases!r}}}
ops.select = select
ahead.main(*sys.argv[1:])
"""


def test_each_kernel_of_the_self_test_is_compiled_by_one_of_the_processes(monkeypatch, tmp_path):
    done, cases = tmp_path / "done", ("layernorm", "linear", "attention", "adamw")
    becomes(monkeypatch, COMPILING.format(path=str(done), cases=cases))
    monkeypatch.setattr(selftest, "CASES", {name: selftest.CASES[name] for name in cases})
    device = NotingDevice("gfx1100", 32, True)
    for precision in ("bf16", "fp32"):
        for check in selftest.checks(GpuOps(device, precision)):
            check.finding()
    expected, before = sorted(map(str, device.instances)), psutil.Process().children()
    with ahead.compiling("gpu:1", doctor.PRECISIONS):
        children = [child for child in psutil.Process().children() if child not in before]
        assert len(children) == 2
        wait_until(lambda: all(child.status() == psutil.STATUS_ZOMBIE for child in children))
    assert sorted(done.read_text().splitlines()) == expected


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_device_that_notes_kernels_is_asked_for_the_same_ones_as_one_that_runs_them(few_checks, precision):  # noqa: F811
    device, asked = executor("mma"), {}

    class Asked(type(device)):
        def kernel(self, file, name, defines, shared_bytes=0):
            asked[Instance.of(file, defines)] = None
            return device.kernel(file, name, defines, shared_bytes)

    noting, running = NotingDevice.like(device), Asked("mma")
    for each in (noting, running):
        for check in selftest.checks(GpuOps(each, precision)):
            assert check.finding() == "" or each is noting
    assert list(noting.instances) == list(asked)
    assert len(asked) > 5


def test_the_last_kernels_come_first(few_checks, monkeypatch):  # noqa: F811
    """The self-test itself begins at the other end."""
    gpu = NotingDevice("gfx1100", 32, True)
    monkeypatch.setattr(operations, "select", lambda device, precision, blas: GpuOps(gpu, precision))
    order = [Instance.of(work.args[0], work.args[2]) for work in ahead._last_first("gpu", ["fp32"])]
    device = NotingDevice("gfx1100", 32, True)
    for check in selftest.checks(GpuOps(device, "fp32")):
        check.finding()
    assert order == list(device.instances)[::-1]


def test_the_loops_of_the_cpu_are_compiled_too_if_it_is_tested_after_the_gpu(few_checks, monkeypatch):  # noqa: F811
    """They come first, because the self-test needs them last. They are compiled when they run, in a single thread."""
    selected, ran = [], []

    def select(device, precision="auto", **options):
        selected.append((device, options))
        return CpuOps(threads=1)

    monkeypatch.setattr(operations, "select", select)
    monkeypatch.setattr(ahead.limits, "cpus", lambda: 16)
    monkeypatch.setattr(ahead, "_run_checks", ran.append)
    monkeypatch.setattr(ahead, "find_spec", lambda name: name == "numba")
    first = next(ahead._last_first("auto", ["fp32"]))
    assert (selected, ran) == ([], [])
    first()
    assert selected == [("cpu", {"training": True, "processes": 16})]
    assert len(ran) == 1
    assert list(ahead._last_first("gpu", ["fp32"])) == []  # the CPU is not tested then
    monkeypatch.setattr(ahead, "find_spec", lambda name: None)
    assert list(ahead._last_first("auto", ["fp32"])) == []  # there is no numba


def test_a_process_that_finds_no_gpu_or_little_of_its_memory_compiles_nothing(monkeypatch):
    gpu = NotingDevice("gfx1100", 32, True)
    monkeypatch.setattr(operations, "select", lambda device, precision, blas: GpuOps(gpu, precision))
    monkeypatch.setattr(gpu, "free_bytes", lambda: ahead.GPU_BYTES - 1)
    assert list(ahead._last_first("gpu", ["fp32"])) == []
    monkeypatch.undo()
    assert list(ahead._last_first("cpu", ["fp32", "tf32"])) == []


def test_a_kernel_that_does_not_compile_does_not_end_the_process(few_checks, monkeypatch, tmp_path):  # noqa: F811
    tried = []

    class Gpu(NotingDevice):
        def kernel(self, file, name, defines, shared_bytes=0):
            tried.append(file)
            raise RuntimeError("a compiler's")

    ops = GpuOps(NotingDevice("gfx1100", 32, True), "fp32")
    ops.device = Gpu("gfx1100", 32, True)
    monkeypatch.setattr(operations, "select", lambda device, precision, blas: ops)
    (tmp_path / "numbers").write_bytes(ahead.NUMBERS[:6])
    with (tmp_path / "numbers").open("rb") as file:
        monkeypatch.setattr(ahead.os, "read", lambda descriptor, count: file.read(count))
        monkeypatch.setattr(ahead, "_end_with", lambda parent: None)
        ahead.main("1", "gpu", "fp32")
    assert len(tried) == 3


def test_there_are_more_numbers_than_kernels_and_a_pipe_takes_them_at_once():
    assert len(ahead.NUMBERS) <= 4096  # the least that a pipe of Linux has: a page
    assert len(ahead.NUMBERS) // 2 > 1000


# ---- whatever becomes of them ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cpus", [1, 2, 5, 100])
def test_there_is_a_process_for_each_cpu_but_one(monkeypatch, cpus):
    becomes(monkeypatch, "time.sleep(60)", cpus)
    before = psutil.Process().children()
    with ahead.compiling("auto", ["fp32"]):
        assert len(psutil.Process().children()) - len(before) == min(cpus - 1, ahead.MOST)
    assert psutil.Process().children() == before


@pytest.mark.parametrize("reason", ["the CPU alone is tested", "there is no GPU", "CuPy fails", "little memory"])
def test_no_process_is_started_without_a_gpu_or_memory_to_spare(monkeypatch, reason):
    def no_gpu():
        raise {"there is no GPU": doctor.UserError, "CuPy fails": RuntimeError}[reason]("no GPU")

    becomes(monkeypatch, "time.sleep(60)")
    if reason in ("there is no GPU", "CuPy fails"):
        monkeypatch.setattr(ahead, "count_gpus", no_gpu)
    if reason == "little memory":
        monkeypatch.setattr(ahead.limits, "free_memory", lambda: ahead.HOST_BYTES - 1)
    monkeypatch.setattr(ahead.subprocess, "Popen", lambda *arguments, **options: pytest.fail("a process is started"))
    with ahead.compiling("cpu" if reason == "the CPU alone is tested" else "auto", ["fp32"]):
        pass


@pytest.fixture
def cheap(few, monkeypatch):  # noqa: F811
    """A device whose checks take little time."""
    monkeypatch.setattr(operations, "select", lambda *arguments, **options: CpuOps(threads=1))


FATES = {
    "crashes": "print('noise'); print('noise', file=sys.stderr, flush=True); os.abort()",
    "hangs": "import signal, tempfile; signal.signal(15, signal.SIG_IGN); tempfile.mkdtemp(); time.sleep(600)",
}


@pytest.mark.parametrize("fate", FATES)
def test_the_report_is_the_same_whatever_becomes_of_the_processes(cheap, monkeypatch, tmp_path, fate):
    """What they leave in the folder for temporary files is removed."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(ahead.tempfile, "TemporaryDirectory", partial(tempfile.TemporaryDirectory, dir=tmp_path))
    without = json.loads(run("--json").stdout)
    becomes(monkeypatch, FATES[fate])
    before, files, result = psutil.Process().children(), set(tmp_path.iterdir()), run("--json")
    for report in (without, found := json.loads(result.stdout)):
        del report["Machine"]
    assert (found, result.stderr, result.exit_code) == (without, "", 0)
    assert (psutil.Process().children(), set(tmp_path.iterdir())) == (before, files)


def no_folder(**options):
    raise FileNotFoundError("No usable temporary directory found")


@pytest.mark.parametrize("absent", ["the command", "a folder for temporary files"])
def test_the_report_is_the_same_if_no_process_can_be_started(cheap, monkeypatch, absent):
    becomes(monkeypatch, "time.sleep(600)")
    if absent == "the command":
        monkeypatch.setattr(ahead, "COMMAND", ["/nowhere/python"])
    else:
        monkeypatch.setattr(ahead.tempfile, "TemporaryDirectory", no_folder)
    assert run("--json").exit_code == 0


DOCTOR = """
from gpt import cli, ops
from gpt.doctor import ahead
from gpt.ops.cpu.operations import CpuOps
ahead.count_gpus, ahead.limits.cpus, ahead.limits.free_memory = lambda: 1, lambda: 3, lambda: 2**40
ahead.COMMAND = [sys.executable, "-c", {child!r}]
ops.select = lambda *arguments, **options: time.sleep(600)
cli.main(["doctor"])
"""
CHILD = """
from gpt.doctor import ahead
ahead._end_with(int(sys.argv[1]))
print(os.getpid(), file=open({path!r} + str(os.getpid()), "w"), flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
@pytest.mark.parametrize(("how", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_the_processes_end_with_the_doctor_however_that_ends(tmp_path, how, status):
    """Ctrl-C is sent to all of them at once."""
    pids, temporary = tmp_path / "pids", tmp_path / "temporary"
    pids.mkdir()
    temporary.mkdir()
    program = PRELUDE + DOCTOR.format(child=PRELUDE + CHILD.format(path=f"{pids}/"))
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env={**os.environ, "TMPDIR": str(temporary)},
    )  # fmt: skip
    try:
        wait_until(lambda: len([path for path in pids.iterdir() if path.read_text()]) == 2)
        os.killpg(parent.pid, how) if how == signal.SIGINT else parent.send_signal(how)
        _, errors = parent.communicate(timeout=60)
        wait_until(lambda: not any(psutil.pid_exists(int(path.name)) for path in pids.iterdir()))
    finally:
        parent.kill()
    assert (parent.returncode, errors.strip()) == (status, "" if how == signal.SIGKILL else "Interrupted")
    assert how == signal.SIGKILL or list(temporary.iterdir()) == []


def test_a_process_whose_parent_has_ended_before_it_began_ends():
    with pytest.raises(SystemExit):
        ahead._end_with(os.getppid() + 1)
