"""Fixtures of several test files: the real text, the devices, and the command as a user runs it."""

import gc
import importlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import hypothesis
import pytest

from gpt.config import TokenizerConfig
from tests.support import ROOT
from tests.support.amd import errors
from tests.support.devices import DEVICES, one_layout_each, operations
from tests.support.forks import Fork, Forks

hypothesis.settings.register_profile("patient", deadline=None)  # a slow example on a busy machine is not a failure
hypothesis.settings.load_profile("patient")

SHAKESPEARE = (
    Path(os.environ.get("HIPGPT_SHAKESPEARE", "")),
    ROOT / "data" / "shakespeare.txt",
    ROOT.parent / "shared" / "data" / "tinyshakespeare.txt",
)

HANGS = 600  # seconds after which a command will never end; numba compiles for 120 on a machine with much else to do
MEMORY, ROOM = Path("/dev/shm"), 4 << 30  # a file system in memory, and how many bytes of it have to be free


@pytest.fixture(scope="session")
def shakespeare() -> Path:
    """Tiny Shakespeare, which `hipgpt fetch shakespeare` brings; tests that need it skip if it is absent."""
    for path in SHAKESPEARE:
        if path.is_file():
            return path
    pytest.skip("Tiny Shakespeare is absent: `hipgpt fetch shakespeare` brings it")


def last_of_each(arguments: Iterable[object]) -> list[str | bytes]:
    """The command line with only the last one of each repeated option, because the command refuses repeated options."""
    groups: list[list[str | bytes]] = [[]]  # an option and its values
    for argument in (each if isinstance(each, bytes) else str(each) for each in arguments):
        if isinstance(argument, str) and argument.startswith("--"):
            groups.append([])
        groups[-1].append(argument)
    last = {group[0]: number for number, group in enumerate(groups) if group}
    return [each for number, group in enumerate(groups) for each in group if last[group[0]] == number]


@pytest.fixture(scope="session")
def forks(tmp_path_factory) -> Iterator[Forks | None]:
    """Runs commands in forks; None on systems that lack forks, or whose libraries do not survive them."""
    if not sys.platform.startswith("linux"):
        yield None
        return
    forks = Forks(tmp_path_factory.mktemp("forks"))
    yield forks
    forks.close()


@pytest.fixture(scope="session")
def trained() -> dict[tuple[str, ...], Path]:
    """Runs that `hipgpt.once` has made, by module and command."""
    return {}


@pytest.fixture(params=DEVICES)
def device(request):
    """Each device that operations are tested on; skips if this machine lacks it."""
    return request.param()


@pytest.fixture(params=["fp32", "bf16"])
def ops(request, device):
    """The operations of each device in each precision; skips if the device lacks the precision."""
    return operations(device, request.param)


@pytest.fixture(scope="session")
def shim():
    """The campaign's module of processes; skips if its shim cannot see the system calls of a process."""
    from tests.campaign import process

    if reason := process.obstacle():
        pytest.skip(reason)
    return process


@pytest.fixture
def hipgpt(forks, trained, request, tmp_path, tmp_path_factory, monkeypatch):
    """Run the real command in a process of its own, in an empty directory: hipgpt("train", "--steps", 3).

    The process is a fork if the command gets only arguments. It is a new Python if it also gets an environment or
    keyword arguments of `subprocess.run`, such as input. `order` is a tests.campaign.process.Order for the calls that
    touch checkpoints/.

    If an option is repeated, the last one counts, so that a test can override the options of a fixture.
    `hipgpt.start` starts a command and returns at once; its `stdout` and `stderr` are pipes of text. The process is a
    new Python if there are keyword arguments, for `subprocess.Popen`. It is killed when the test ends.

    `hipgpt.once` is for a command that makes a run which tests only read. The first test of a module that asks for it
    runs the command; the others get a copy of the run's directory.
    """
    monkeypatch.chdir(tmp_path)
    usual = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}

    def run(
        *arguments: object, status: int = 0, environment: Mapping | None = None, order=None, **kwargs
    ) -> subprocess.CompletedProcess:
        command = last_of_each(arguments)
        orders = order.environment(tmp_path / "checkpoints") if order else {}
        if forks and environment is None and not kwargs:
            result = forks.run(list(map(os.fsdecode, command)), Path.cwd(), {**usual, **orders}, timeout=HANGS)
        else:
            result = subprocess.run(
                [sys.executable, "-m", "gpt.cli", *command], env={**(environment or usual), **orders},
                capture_output=True, text=True, timeout=HANGS, check=False, **kwargs,
            )  # fmt: skip
        assert result.returncode == status, f"{command}\n{result.stdout}\n{result.stderr}"
        if status == 2:
            assert result.stderr.startswith("Error: ")
            assert result.stderr.count("\n") == 1, "an error is one line"
        return result

    started: list[subprocess.Popen | Fork] = []

    def start(*arguments: object, **kwargs) -> subprocess.Popen | Fork:
        command = list(map(str, arguments))
        if forks and not kwargs:
            started.append(forks.start(command, Path.cwd(), usual))
        else:
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            command = [sys.executable, "-m", "gpt.cli", *command]
            started.append(subprocess.Popen(command, **{"env": usual, **pipes, **kwargs}))
        return started[-1]

    def once(*arguments: object, name: str) -> None:
        command = last_of_each((*arguments, "--run-name", name))
        key = (request.module.__name__, *(os.fsdecode(part).replace(str(tmp_path), "") for part in command))
        made = tmp_path / "checkpoints" / name
        if key in trained:
            shutil.copytree(trained[key], made, symlinks=True)
        else:
            run(*command)
            trained[key] = shutil.copytree(made, tmp_path_factory.mktemp("once") / name, symlinks=True)

    run.environment, run.start, run.once = usual, start, once
    yield run
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A directory with a text, whose tokenizer has 60 tokens unless a test asks for others."""
    from tests.support.project import Project

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TokenizerConfig, "of", lambda preset: TokenizerConfig(vocab_limit=60))
    return Project(tmp_path)


@pytest.fixture
def made(project):
    """The project, with its tokenizer and tokens made."""
    project.prepare()
    return project


@pytest.hookimpl(wrapper=True, optionalhook=True)  # there is no such hook without pytest-xdist
def pytest_xdist_auto_num_workers():
    """One process more than xdist's one for each core, because tests wait for a seventh of their time."""
    return (yield) + ("PYTEST_XDIST_AUTO_NUM_WORKERS" not in os.environ)


def pytest_configure():
    """Handle signals that nohup or a shell's `&` made this process ignore, because commands would inherit that.

    And keep the folders of tests in memory if there is room: a command that trains syncs some thirty files and folders,
    and waits some 5 ms for a disk each time. And let the Pythons that tests start write bytecode, whatever the shell
    says: each of the hundred would compile anew what it imports, and each process of xdist the tests.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
    for number in (getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def pytest_sessionstart(session):
    """Import the tests here, in each process of pytest-xdist from another file on.

    The first process that comes to a file compiles it, which takes longer than all else in the collection. So each
    compiles a part of the files. In the order of the collection all would come to all files at once.
    """
    if (worker := getattr(session.config, "workerinput", None)) is None:
        return
    files = sorted(file for each in session.config.args for file in Path(each).rglob("test_*.py"))
    first = len(files) * int(worker["workerid"].removeprefix("gw")) // worker["workercount"]
    for file in files[first:] + files[:first]:
        with suppress(Exception, pytest.skip.Exception):  # the collection comes to it again, and reports it
            importlib.import_module(".".join(file.resolve().relative_to(ROOT).with_suffix("").parts))


def pytest_collection_modifyitems(items):
    items[:] = one_layout_each(errors.few(items))


def pytest_collection_finish():
    """Let the garbage collector look no more through thousands of tests, which stay until the end."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter):
    for line in errors.table():
        terminalreporter.write_line(line)
