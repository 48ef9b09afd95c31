"""What `hipgpt doctor` says about this machine: GPUs, libraries, caches and environment, whatever is missing."""

import sys
import types

from gpt.doctor import inventory
from gpt.errors import UserError
from tests.support.blas import build
from tests.support.machines import machine


class Entered:
    """CuPy's context of a device."""

    def __init__(self, index):
        self.index = index

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


def facts(monkeypatch, **kwargs):
    """The section about GPUs on a machine that stands in for one with GPUs."""
    cupy = machine(monkeypatch, **kwargs)
    cupy.__version__, cupy.cuda.Device = "14.0.1", Entered
    cupy.cuda.nvrtc = types.SimpleNamespace(getVersion=lambda: (12, 9))
    hip = kwargs.get("hip")
    cupy.cuda.runtime.driverGetVersion = lambda: 70051831 if hip else 13000
    cupy.cuda.runtime.runtimeGetVersion = lambda: 60443482 if hip else 12090
    return inventory._gpu()


def test_a_gpu_is_told_with_name_target_memory_and_kind(monkeypatch):
    found = facts(monkeypatch, hip=True, gpus=[{"name": b"Radeon", "gcnArchName": b"gfx1151", "integrated": 1}])
    assert found["GPU 0"] == "Radeon (gfx1151), 1.0 GiB free of 16.0 GiB, integrated"
    assert found["CuPy"] == "14.0.1, for ROCm"
    assert found["driver"].endswith("supports ROCm 7.0.51831")
    assert found["ROCm runtime"] == "6.4.43482"
    assert found["hiprtc"] == "12.9"
    found = facts(monkeypatch, gpus=[{"name": b"H100"}])
    assert found["GPU 0"] == "H100 (sm_90), 1.0 GiB free of 16.0 GiB"
    assert found["driver"].endswith("supports CUDA 13.0")
    assert found["CUDA runtime"] == "12.9"


def test_the_version_of_hipblaslt_is_that_of_its_file_so_that_it_need_not_start(monkeypatch, tmp_path):
    library = build("rocm", tmp_path / "libhipblaslt.so.1.0.70002")
    monkeypatch.setattr("gpt.ops.gpu.facts.load_library", lambda kind: library)
    assert facts(monkeypatch, hip=True)["products"] == "hipBLASLt 1.0.70002"


def test_a_program_may_print_zero_bytes_which_a_report_does_not_repeat():
    assert inventory._output(sys.executable, "-c", r"print('Open MPI v4.1.6\0')") == "Open MPI v4.1.6"


def test_what_cannot_be_found_out_is_said_with_the_reason_in_one_line(monkeypatch):
    found = facts(monkeypatch, hip=True, failure="no device is detected\nor so")
    assert found["GPU"] == "not known: no device is detected"
    monkeypatch.setenv("PATH", "")
    cupy = machine(monkeypatch, hip=True)
    del cupy.cuda.runtime.memGetInfo
    found = inventory._gpu()
    assert found["GPU 0"].endswith("its memory cannot be asked for")
    assert found["ROCm runtime"].startswith("not known: ")
    assert found["hipcc"] == "not on the PATH"
    assert found["products"].startswith("not known: libhipblaslt.so.1 is not there: install")
    assert all("\n" not in fact for facet in inventory.inventory().values() for fact in facet.values())


def test_a_cupy_that_does_not_load_is_a_line(monkeypatch):
    def broken():
        raise UserError("CuPy does not load")

    monkeypatch.setattr("gpt.ops.gpu.facts.import_cupy", broken)
    assert inventory._gpu() == {"GPU": "not known: CuPy does not load"}


def test_a_program_that_fails_or_hangs_is_a_line(monkeypatch):
    monkeypatch.setattr(inventory, "PATIENCE", 0.2)
    assert inventory._known(lambda: inventory._output("sleep", "5")) == "not known: sleep does not answer within 0.2 s"
    assert inventory._known(lambda: inventory._output("ls", "/nowhere")).startswith("not known: ls fails: ")
    assert inventory._known(lambda: inventory._output("no-such-program")).startswith("not known: ")
    assert inventory._known(lambda: inventory._headline("true")) == "not known: true prints nothing"


def test_names_of_user_home_and_host_are_left_out(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setattr(inventory.getpass, "getuser", lambda: "ada")
    monkeypatch.setattr(inventory.socket, "gethostname", lambda: "babbage.example.org")
    assert inventory.private("/home/ada/.cupy on babbage") == "~/.cupy on HOST"
    assert inventory.private("/home/ada: babbage.example.org, /data/ada") == "~: HOST, /data/USER"
    assert inventory.private("/home/adam, Canada, cannot be read") == "/home/adam, Canada, cannot be read"


def test_of_the_environment_only_what_matters_and_is_set_is_shown():
    shown = {"HSA_OVERRIDE_GFX_VERSION": "11.0.0", "NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "4", "HIPGPT_RUNS_DIR": "a"}
    hidden = {
        "HIPGPT_RANKS_KEY": "secret",
        "USER": "ada",
        "PATH": "/bin",
        "MY_CUPY_X": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    assert inventory.environment({**shown, **hidden}) == shown


def test_a_cache_is_told_with_its_size_and_whether_it_can_be_written(monkeypatch, tmp_path):
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cache"))
    assert inventory._cupy_cache() == f"{tmp_path}/cache, 0 bytes, writable"
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "a.cubin").write_bytes(bytes(2048))
    assert inventory._cupy_cache() == f"{tmp_path}/cache, 2 KiB, writable"
    monkeypatch.setattr(inventory.os, "access", lambda path, mode: False)
    assert inventory._cupy_cache() == f"{tmp_path}/cache, 2 KiB, not writable"
    monkeypatch.undo()
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cache" / "a.cubin" / "below a file"))
    assert inventory._cupy_cache().endswith("0 bytes, not writable")


def test_a_cache_that_is_replaced_is_told_as_the_user_named_it(monkeypatch):
    def gpu():
        monkeypatch.setenv("CUPY_CACHE_DIR", "a temporary folder")
        return {}

    monkeypatch.setenv("CUPY_CACHE_DIR", "/proc/nowhere")
    monkeypatch.setattr(inventory, "_gpu", gpu)
    found = inventory.inventory()
    assert found["Caches"]["CuPy"].startswith("/proc/nowhere, 0 bytes, ")
    assert found["Environment"]["CUPY_CACHE_DIR"] == "/proc/nowhere"
