"""Ranks as real processes on this host."""

import json
import os
import random
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.forks import Fork, Forks
from tests.support.mpi import Mpi, environment

TEXT = "the cat sat on the mat and saw a dog .\n" * 60
MODEL = ("--vocab-size", 60, "--dim", 8, "--heads", 2, "--ff", 8, "--layers", 2, "--seq", 8, "--device", "cpu")


def free_port() -> int:
    """A port at which nobody listens. The system gives none of these to connections, which other tests open."""
    for port in random.sample(range(15_000, 30_000), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("a hundred ports are taken")


class Ranks:
    """Starts the ranks of tests/distributed/worker.py, and says how they end.

    `start` starts each rank by itself, with RANK and so on; `start_parent` starts the first, which starts the others.
    Those that are started here are forks; those that the first starts are new Pythons.
    """

    def __init__(self, out: Path, forks: Forks) -> None:
        self.out, self._forks = out, forks
        self.processes: list[Fork] = []
        self.port = free_port()
        self.environ = environment(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(self.port))

    def start(self, scenario: str, size: int, *options: object, only: list[int] | None = None, **changes: str) -> None:
        for rank in range(size) if only is None else only:
            place = {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
            self._start(scenario, options, {**self.environ, **place, **changes})

    def start_parent(self, scenario: str, size: int, *options: object) -> None:
        self._start(scenario, (*options, "--gpus", size), self.environ)

    def _start(self, scenario: str, options: tuple, environ: dict) -> None:
        command = list(map(str, (scenario, "--out", self.out, *options)))
        self.processes.append(self._forks.start(command, self.out, environ, module="tests.distributed.worker"))

    def began(self, size: int) -> None:
        """Wait until all have begun."""
        until(lambda: all((self.out / f"{rank}.began").exists() for rank in range(size)))

    def end(self, within: float = 30.0) -> list[tuple[int, str]]:
        """Exit status and standard error of each started process, which must end within these seconds."""
        deadline = time.monotonic() + within
        ends = []
        for process in self.processes:
            _, text = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
            ends.append((process.returncode, text))
        return ends

    def pid(self, rank: int) -> int:
        return int((self.out / f"{rank}.pid").read_text())

    def send(self, rank: int, number: int) -> None:
        os.kill(self.pid(rank), number)

    def results(self) -> list[dict]:
        return [json.loads(path.read_text()) for path in sorted(self.out.glob("*.json"))]

    def are_gone(self, size: int) -> bool:
        """Whether no process of these ranks exists, not even as a zombie of their parent."""
        return not any(exists(self.pid(rank)) for rank in range(size))

    def clear(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()
        for path in self.out.glob("*.pid"):
            with suppress(OSError):
                if b"distributed.worker" in Path(f"/proc/{path.read_text()}/cmdline").read_bytes():
                    os.kill(int(path.read_text()), signal.SIGKILL)


def exists(process: int) -> bool:
    """Whether a process runs. One that only waits for init to take note of its end does not."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return not (stat[0] == "Z" and stat[1] == "1")


def until(is_true, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "it has not happened in time"
        time.sleep(0.02)


@pytest.fixture
def ranks(tmp_path, forks):
    ranks = Ranks(tmp_path, forks)
    yield ranks
    ranks.clear()


@pytest.fixture
def mpi(tmp_path, monkeypatch):
    """Runs the command on ranks on CPUs, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    mpi = Mpi()
    yield mpi
    mpi.clear()


@pytest.fixture
def train(mpi, hipgpt, tmp_path):
    """Train a run on a number of ranks; one rank is a command by itself. `train.start` returns at once."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT)

    def command(name: str, arguments: tuple) -> tuple:
        made = () if "--resume" in arguments or "--ckpt" in arguments else ("--data-path", text, *MODEL)
        return ("train", "--run-name", name, *made, *arguments)

    def run(size: int, name: str, *arguments, **kwargs):
        line = command(name, arguments)
        return hipgpt(*line, **kwargs) if size == 1 else mpi(size, *line, **kwargs)

    run.start = lambda size, name, *arguments, **kwargs: mpi.start(size, *command(name, arguments), **kwargs)
    return run
