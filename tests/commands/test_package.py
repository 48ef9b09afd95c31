"""The files that an installation brings, and the cost of importing."""

import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from packaging.requirements import Requirement

import gpt
from gpt.system import shipped
from tests.support import ROOT

HEAVY = {"numpy", "cupy", "rich", "safetensors", "regex", "psutil", "threadpoolctl", "tokenizers", "torch"}


def test_the_kernels_and_a_text_come_with_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "KERNEL(" in shipped.kernel("gelu.hip").read_text(encoding="utf-8")
    assert Path(shipped.default_text()).stat().st_size > 1_000_000


def test_files_inside_the_package_win_over_files_beside_it(tmp_path, monkeypatch):
    """A wheel's neighbors in site-packages are other distributions, and Hugging Face has a `kernels` there."""
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "gpt")
    (tmp_path / "gpt").mkdir()
    (tmp_path / "kernels").mkdir()
    assert shipped.kernel("a.hip") == tmp_path / "kernels" / "a.hip"
    (tmp_path / "gpt" / "kernels").mkdir()
    assert shipped.kernel("a.hip") == tmp_path / "gpt" / "kernels" / "a.hip"


def test_a_text_of_the_users_own_in_data_is_the_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "data.txt").write_text("mine")
    assert shipped.default_text() == "data/data.txt"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs git's list of files")
def test_no_file_of_the_repository_is_a_link():
    """Windows turns links into text files, and so may a ZIP from the web."""
    listed = subprocess.run(["git", "ls-files", "-s"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert [line for line in listed.splitlines() if line.startswith("12")] == []


def test_the_file_at_the_top_is_the_command():
    result = subprocess.run([sys.executable, ROOT / "cli.py", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"hipgpt, version {gpt.__version__}\n"


def extras() -> dict[str, list[Requirement]]:
    """The extras of setup.py with their requirements."""
    with mock.patch("setuptools.setup") as setup:
        runpy.run_path(str(ROOT / "setup.py"))
    return {name: list(map(Requirement, lines)) for name, lines in setup.call_args.kwargs["extras_require"].items()}


@pytest.mark.parametrize("cuda", [12, 13])
@pytest.mark.parametrize(("system", "brings"), [("linux", True), ("win32", False)])
def test_on_linux_the_extras_for_nvidia_bring_the_nccl_of_the_same_cuda(cuda, system, brings):
    """NVIDIA has no NCCL for Windows. The message of gpt/distributed/nccl.py names the same package."""
    pytest.importorskip("setuptools")
    wanted = [
        each for each in extras()[f"cuda{cuda}"] if not each.marker or each.marker.evaluate({"sys_platform": system})
    ]
    assert f"cupy-cuda{cuda}x" in [each.name for each in wanted]
    assert (f"nvidia-nccl-cu{cuda}" in [each.name for each in wanted]) == brings


def modules_after(code: str) -> set[str]:
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules, file=sys.stderr)"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    return set(result.stderr.split())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], ["generate", "--help"]])
def test_help_and_version_import_nothing_heavy(arguments):
    run = f"from gpt.cli import main\ntry: main({arguments})\nexcept SystemExit as e: assert not e.code"
    modules = modules_after(run)
    assert "gpt.cli" in modules
    assert not modules & HEAVY


def test_importing_the_package_imports_nothing_else():
    modules = modules_after("import gpt")
    assert not modules & (HEAVY | {"click", "gpt.config"})


def test_the_version_is_printed(hipgpt):
    assert hipgpt("--version").stdout == f"hipgpt, version {gpt.__version__}\n"
