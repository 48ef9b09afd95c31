"""CuPy that is missing, broken, for another machine, or without a place for its cache: a line says what to do."""

import importlib.util
import os
import sys

import pytest

from gpt import ops
from gpt.errors import UserError
from gpt.ops.gpu import installation
from gpt.ops.gpu.device import CupyDevice
from tests.support import ROOT
from tests.support.machines import machine, refusal


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
    assert "pip install -e '.[rocm]'" in installation.install_advice()
    monkeypatch.setattr(
        installation, "__file__", str(tmp_path / "site-packages" / "gpt" / "ops" / "gpu" / "installation.py")
    )
    advice = installation.install_advice()
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
    monkeypatch.setattr(installation, "find_library", lambda name: None)
    failing_import(monkeypatch, ImportError(f"{library}: cannot open shared object file: No such file or directory"))
    assert f"install {package}," in refusal()


def test_a_rocm_library_that_the_loader_does_not_look_for_names_its_folder(monkeypatch, tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libhipfft.so.0").touch()
    monkeypatch.setenv("ROCM_HOME", str(tmp_path))
    failing_import(monkeypatch, ImportError("libhipfft.so.0: cannot open shared object file"))
    assert f"add {tmp_path}/lib to LD_LIBRARY_PATH, or" in refusal()


@pytest.mark.parametrize("place", ["ROCM_HOME", "the loader"])
def test_an_older_rocm_is_named_with_the_version_that_cupy_needs(monkeypatch, tmp_path, place):
    """ROCm 6 has libamdhip64.so.6, and to install its packages again would not help."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libhipfft.so").touch()
    if place == "ROCM_HOME":
        (tmp_path / "lib" / "libamdhip64.so.6").touch()
        (tmp_path / "lib" / "libamdhip64.so.6.4.60403").touch()
    found = {"amdhip64": "libamdhip64.so.6"} if place == "the loader" else {}
    monkeypatch.setattr(installation, "find_library", found.get)
    monkeypatch.setenv("ROCM_HOME", str(tmp_path))
    failing_import(monkeypatch, ImportError("libamdhip64.so.7: cannot open shared object file"))
    assert "): install ROCm 7, because the ROCm here has libamdhip64.so.6, or, if it was made" in refusal()
    failing_import(monkeypatch, ImportError("libhipfft.so.0: cannot open shared object file"))
    assert "): install hipfft, or" in refusal()


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
    monkeypatch.setattr(installation, "find_library", lambda name: None)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "cupy", None)  # so that the test's end restores what was there
    del sys.modules["cupy"]
    with pytest.raises(UserError, match="^CuPy does not load .*pip uninstall it") as error:
        installation.import_cupy()
    assert said in str(error.value)
    sys.modules.pop("cupy", None)
    assert ops.select("auto").is_cpu


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
    monkeypatch.setattr(installation.tempfile, "mkdtemp", lambda prefix: str(cache))
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


@pytest.mark.parametrize(("hip", "vendor"), [(True, "AMD"), (False, "NVIDIA")])
def test_cupy_for_another_vendor_says_whose_it_is(monkeypatch, hip, vendor):
    machine(monkeypatch, hip=hip, failure="no device is detected")
    message = refusal()
    assert f"for {vendor} GPUs" in message
    assert "no device is detected" in message


@pytest.mark.parametrize("hip", [True, False])
def test_if_no_gpu_is_visible_the_error_says_so_and_names_the_variables_that_may_hide_them(monkeypatch, hip):
    monkeypatch.setattr(installation, "DRIVER", os.devnull)
    monkeypatch.setattr(installation, "RENDERERS", os.devnull)
    for name in installation.ROCM_HIDES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "")
    machine(monkeypatch, hip=hip, count=0)
    hiding = "HIP_VISIBLE_DEVICES ('') and CUDA_VISIBLE_DEVICES ('-1')" if hip else "CUDA_VISIBLE_DEVICES ('-1')"
    for make in (CupyDevice, CupyDevice.best):
        message = refusal(make)
        assert f"finds none (it counts 0): unset {hiding}, which may hide it, or, for the other vendor's" in message
        assert "gpu:0" not in message


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
    monkeypatch.setattr(installation, "DRIVER", str(tmp_path / "kfd"))
    monkeypatch.setattr(installation, "WINDOWS_DRIVER", str(tmp_path / "dxg"))
    monkeypatch.setattr(installation, "RENDERERS", str(tmp_path / "renderD*"))
    monkeypatch.setattr(installation.os, "access", lambda path, mode: os.path.basename(path) not in closed)
    for name in installation.ROCM_HIDES:
        monkeypatch.delenv(name, raising=False)
    machine(monkeypatch, hip=True, failure="hipErrorNoDevice: no ROCm-capable device is detected")
    expected = remedy.format(driver=tmp_path / "kfd", folder=tmp_path)
    assert f"(hipErrorNoDevice: no ROCm-capable device is detected): {expected}" in refusal()
