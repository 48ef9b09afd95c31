"""What several test files share: the real text, and the command as a user runs it."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import hypothesis
import pytest

from tests.amd import errors

hypothesis.settings.register_profile("patient", deadline=None)  # a busy machine is not a failure
hypothesis.settings.load_profile("patient")

ROOT = Path(__file__).parent.parent
SHAKESPEARE = (
    Path(os.environ.get("HIPGPT_SHAKESPEARE", "")),
    ROOT / "data" / "shakespeare.txt",
    ROOT.parent / "shared" / "data" / "tinyshakespeare.txt",
)


@pytest.fixture(scope="session")
def shakespeare() -> Path:
    """Tiny Shakespeare, which `hipgpt fetch shakespeare` brings; tests that need it skip where it is absent."""
    for path in SHAKESPEARE:
        if path.is_file():
            return path
    pytest.skip("Tiny Shakespeare is absent: `hipgpt fetch shakespeare` brings it")


def last_of_each(arguments: Iterable[object]) -> list[str | bytes]:
    """A command line without the options that are given again later: the command itself refuses those."""
    groups: list[list[str | bytes]] = [[]]  # an option and its values
    for argument in (each if isinstance(each, bytes) else str(each) for each in arguments):
        if isinstance(argument, str) and argument.startswith("--"):
            groups.append([])
        groups[-1].append(argument)
    last = {group[0]: number for number, group in enumerate(groups) if group}
    return [each for number, group in enumerate(groups) for each in group if last[group[0]] == number]


@pytest.fixture
def hipgpt(tmp_path, monkeypatch):
    """Run the real command in a process of its own, in an empty directory: hipgpt("train", "--steps", 3).

    An option that stands there again replaces the earlier one, so that a test can override what a fixture gives.
    """
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}

    def run(*arguments: object, status: int = 0, environment=environment, **kwargs) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "gpt.cli", *last_of_each(arguments)]
        result = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=120, check=False, **kwargs
        )
        assert result.returncode == status, f"{command}\n{result.stdout}\n{result.stderr}"
        if status == 2:
            assert result.stderr.startswith("Error: ")
            assert result.stderr.count("\n") == 1, "an error is one line"
        return result

    run.environment = environment
    return run


def pytest_collection_modifyitems(items):
    items[:] = errors.few(items)


def pytest_terminal_summary(terminalreporter):
    for line in errors.table():
        terminalreporter.write_line(line)
