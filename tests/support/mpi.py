"""The real command on several ranks: `mpirun -n N hipgpt …`, its processes, and how they end."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from tests.conftest import last_of_each
from tests.support import ROOT

LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "TORCHELASTIC_", "SLURM_", "PMI", "OMPI_", "MPI", "HYDRA")
RANK_VARIABLES = ("PMI_RANK", "OMPI_COMM_WORLD_RANK")
MAIN = "\nfrom gpt.cli import main\nmain()"
NOISE = re.compile(  # what MPICH's mpirun adds
    r"\n=+\n=   BAD TERMINATION .*?=+\nYOUR APPLICATION TERMINATED [^\n]*\nThis typically [^\n]*\nPlease see [^\n]*\n"
    r"|^\[mpiexec@[^\n]*\] [^\n]*\n",
    re.DOTALL | re.MULTILINE,
)


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without a launcher's variables, for a command that finds this checkout."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
    return {**clean, "PYTHONPATH": str(ROOT), "COLUMNS": "100", **changes}


def mpirun() -> str:
    """The path of mpirun beside this Python, or on PATH. Skips if it or mpi4py is absent."""
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if not found or importlib.util.find_spec("mpi4py") is None:
        pytest.skip("ranks on CPUs need mpi4py and mpirun (pip install 'hipgpt[mpi]')")
    return found


class End(NamedTuple):
    """How a job has ended. `noise` is what mpirun itself has printed."""

    status: int
    stdout: str
    stderr: str
    noise: str


class Job:
    """A command on several ranks, which has been started. `command` is mpirun's, or one that starts other ranks."""

    def __init__(self, command: list[str], size: int, environ: Mapping[str, str]) -> None:
        self._size, self._output = size, ""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environ, start_new_session=True, **pipes)
        self._pids: dict[int, int] = {}

    @property
    def pids(self) -> dict[int, int]:
        """The process number of each rank."""
        deadline = time.monotonic() + 30
        while len(self._pids) < self._size:
            assert time.monotonic() < deadline, "not all ranks have started"
            for process in psutil.Process(self.process.pid).children(recursive=True):
                try:
                    environ = process.environ()
                except psutil.Error:
                    continue
                rank = next((environ[name] for name in (*RANK_VARIABLES, "RANK") if name in environ), None)
                if rank is not None and "gpt.cli" in " ".join(process.cmdline()):
                    self._pids[int(rank)] = process.pid
            if self._size == 1 + len(self._pids):  # --gpus: the first rank is the command itself
                self._pids.setdefault(0, self.process.pid)
        return self._pids

    def send(self, rank: int, number: int) -> None:
        os.kill(self.pids[rank], number)

    def wait_for(self, beginning: str) -> None:
        """Read the output up to a line that begins like this, which must come within two minutes."""
        timer = threading.Timer(120, self.clear)
        timer.start()
        for line in self.process.stdout:
            self._output += line
            if line.startswith(beginning):
                timer.cancel()
                return
        raise AssertionError(f"no line began with {beginning}: {self._output}{self.process.stderr.read()}")

    def end(self, within: float = 30.0) -> End:
        """Wait for the end of all processes, which must come within these seconds and leave none, dead or alive."""
        deadline = time.monotonic() + within
        if self.process.stdout.closed:
            self.process.stdout = None
        stdout, stderr = self.process.communicate(timeout=within)
        stdout = stdout or ""
        for pid in self._pids.values():
            while psutil.pid_exists(pid) and _parent(pid) != 1:  # init takes note of an end when it can
                assert time.monotonic() < deadline, f"process {pid} is there still"
                time.sleep(0.02)
        texts = [self._output + stdout, stderr]
        noise = "".join(match[0] for text in texts for match in NOISE.finditer(text))
        return End(self.process.returncode, *(NOISE.sub("", text) for text in texts), noise)

    def clear(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
            self.process.kill()
            self.process.wait()


def _parent(pid: int) -> int:
    """The parent of a process that waits to be taken note of; 0 if it runs."""
    try:
        process = psutil.Process(pid)
        return process.ppid() if process.status() == psutil.STATUS_ZOMBIE else 0
    except psutil.NoSuchProcess:
        return 1


class Mpi:
    """Runs commands on ranks: mpi(2, "train", "--steps", 3) for two, and `mpi.start` to return at once.

    If an option is repeated, the last one counts. `only` has further arguments, or Python code that runs before the
    command, for single ranks. For example only={1: ("--seed", 2)} gives rank 1 another seed, and only={1: "print(1)"}
    makes it print.
    """

    def __init__(self) -> None:
        self._mpirun, self._jobs = mpirun(), []

    def start(self, size: int, *arguments: object, only: Mapping[int, object] | None = None, **changes: str) -> Job:
        ranks = []
        for rank in range(size):
            special = (only or {}).get(rank, ())
            code = ["-c", special + MAIN] if isinstance(special, str) else ["-m", "gpt.cli"]
            more = () if isinstance(special, str) else special
            ranks.append([sys.executable, *code, *last_of_each((*arguments, *more))])
        if all(command == ranks[0] for command in ranks):
            command = ["-n", str(size), *ranks[0]]
        else:
            command = [part for rank in ranks for part in (":", "-n", "1", *rank)][1:]
        self._jobs.append(Job([self._mpirun, *command], size, environment(**changes)))
        return self._jobs[-1]

    def __call__(self, size: int, *arguments: object, status: int = 0, **kwargs) -> End:
        end = self.start(size, *arguments, **kwargs).end(within=60)
        assert end.status == status, end
        return end

    def clear(self) -> None:
        for job in self._jobs:
            job.clear()
