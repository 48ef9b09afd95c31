"""Run hipgpt's commands: in a fork of this process, which has imported everything (10 ms), or for real (1 s)."""

import atexit
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

from tests.support import ROOT, forks

TIME_LIMIT = 10.0  # seconds: a command takes a hundredth of that
MEMORY_LIMIT = 400 << 20  # bytes above those of this process

CHANGING = ("create", "write", "truncate", "copy", "rename", "link", "symlink", "unlink", "mkdir", "rmdir", "chmod",
            "utime", "fsync", "fsyncdir", "flock", "print")  # fmt: skip
READING = ("open", "read", "list", "stat", "mmap")


@dataclass(frozen=True)
class Order:
    """An order for the shim: do `do` (see shim.c) at call number `at` of those named in `calls`."""

    calls: Sequence[str] = ()
    at: int = 0
    do: str = ""
    journal: Path | None = None

    def environment(self, folder: Path) -> dict[str, str]:
        """The environment variables that give a command the shim and this order, for its calls under `folder`."""
        return {
            "LD_PRELOAD": str(shim()),
            "CAMPAIGN_ROOT": os.path.realpath(folder),
            "CAMPAIGN_CALLS": f" {' '.join(self.calls)} ",
            "CAMPAIGN_AT": str(self.at),
            "CAMPAIGN_DO": self.do,
            "CAMPAIGN_JOURNAL": str(self.journal or ""),
        }


@dataclass(frozen=True)
class Outcome:
    """How a command ended. `status` is its exit status, minus a signal's number, or None if it hung."""

    command: tuple[str, ...]
    status: int | None
    output: str
    errors: str
    memory: int  # the most that it took, in bytes above those of this process

    @property
    def fault(self) -> str | None:
        """The fault in how the command ended, if it did something that no command may do in any trouble; else None."""
        if self.status is None:
            return f"ran for more than {TIME_LIMIT:.0f} s"
        if self.status < 0:
            return f"ended by signal {-self.status}"
        if "Traceback (most recent call last)" in self.errors:
            return "traceback: " + self.errors.strip().splitlines()[-1][:100]
        *notes, last = self.errors.splitlines() or [""]
        if self.status == 2 and not last.startswith("Error: "):
            return "status 2 without an error"
        if self.status == 2 and not all(line.startswith("Note: ") for line in notes):
            return "an error of more than one line"
        if self.status == 2 and len(last) > 1000:
            return "an error of more than 1,000 characters"
        if self.status not in (0, 2):
            return f"ended with status {self.status}"
        if self.memory > MEMORY_LIMIT:
            return f"took {self.memory >> 20} MiB"
        return None

    def __str__(self) -> str:
        text = f"$ hipgpt {' '.join(self.command)}\n{self.output}{self.errors}"
        return f"{text}[status {self.status}]"


class Running:
    """A command that has been started; `wait` gives its outcome."""

    def __init__(self, command: Sequence[object], folder: Path, order: Order | None = None, real: bool = False) -> None:
        self.command = tuple(map(str, command))
        self._streams = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115 (closed by wait)
        start = _start_real if real else forks.start
        environment = {**os.environ, **(order.environment(folder) if order else {})}
        sys.stdout.flush()
        self.pid = start(self.command, folder, environment, [stream.fileno() for stream in self._streams])

    def wait(self, limit: float = TIME_LIMIT) -> Outcome:
        end = time.monotonic() + limit
        pause = 0.0005
        while True:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                os.wait4(self.pid, 0)
                break
            time.sleep(pause)
            pause = min(0.01, pause * 1.3)
        output, errors = map(_all_of, self._streams)
        memory = 1024 * (usage.ru_maxrss - resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return Outcome(self.command, os.waitstatus_to_exitcode(status) if pid else None, output, errors, memory)


def _all_of(stream: IO[bytes]) -> str:
    """The text in a file, which is then closed."""
    with stream:
        stream.seek(0)
        return stream.read().decode("utf-8", "replace")


def run(command: Sequence[object], folder: Path, order: Order | None = None, real: bool = False) -> Outcome:
    """Run a command of hipgpt in `folder` and wait for its end."""
    return Running(command, folder, order, real).wait()


def obstacle() -> str | None:
    """Why the shim cannot see the system calls of processes here; None if it can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64" or not shutil.which(os.environ.get("CC", "cc")):
        return "the campaign's shim needs Linux on x86-64 and a C compiler"
    environment = {**os.environ, **Order().environment(ROOT)}
    if "cannot trap" in subprocess.run(["true"], env=environment, capture_output=True, text=True, check=False).stderr:
        return "this system does not allow a process to trap its system calls"
    return None


@cache
def shim() -> Path:
    """The compiled shim."""
    folder = tempfile.mkdtemp(prefix="hipgpt-shim-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    target = Path(folder) / "shim.so"
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", target, Path(__file__).with_name("shim.c")], check=True)
    return target


def prepare() -> None:
    """Import everything that the commands import, so that a fork has it, and limit its arithmetic to one thread."""
    os.environ |= {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    forks.prepare()
    shim()


def _start_real(command: Sequence[str], folder: Path, environment: Mapping[str, str], streams: Sequence[int]) -> int:
    return subprocess.Popen(
        [sys.executable, "-m", "gpt.cli", *command], cwd=folder, env={**environment, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL, stdout=streams[0], stderr=streams[1],
    ).pid  # fmt: skip
