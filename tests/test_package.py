"""What installing brings, and what importing costs."""

import subprocess
import sys
from importlib.resources import files

import pytest

import gpt

HEAVY = {"numpy", "cupy", "rich", "safetensors", "regex", "psutil", "threadpoolctl", "tokenizers", "torch"}


def test_the_kernels_are_reached_through_the_package():
    assert [file.name for file in (files("gpt") / "kernels").iterdir()]


def modules_after(code: str) -> set[str]:
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules, file=sys.stderr)"],
        capture_output=True, text=True, check=True, cwd=files("gpt").parent,
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


def test_the_version_is_told(hipgpt):
    assert hipgpt("--version").stdout == f"hipgpt, version {gpt.__version__}\n"


@pytest.mark.parametrize("command", ["train", "tokenize", "generate", "export", "runs", "fetch"])
def test_every_command_has_help(hipgpt, command):
    out = hipgpt(command, "--help").stdout
    assert out.startswith("Usage: ")
    assert f"  {command} " in hipgpt("--help").stdout
