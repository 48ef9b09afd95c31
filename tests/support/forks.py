"""The command `hipgpt …`, or another module's, in a fork of a process that has imported everything.

That takes 10 ms, and a new Python takes a second. But a fork inherits the imported modules, and the values of the
environment variables that they have read. So tests of things that only a new process has (PYTHON* variables, closed
streams, a signal handler that is set before the start) need a new process.
"""

import atexit
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from tests.support import ROOT


class Forks:
    """A process that has imported everything, and runs commands in forks of itself.

    It has only one thread. A fork gets a copy of no thread but the one that forks, and would wait forever for a lock
    that another thread held.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` gets the output of the commands."""
        self._folder, self._number = folder, 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forks"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,  # fmt: skip
        )

    def run(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str], timeout: float
    ) -> subprocess.CompletedProcess:
        """Run `hipgpt command` in `folder`; like `subprocess.run`, raises TimeoutExpired after `timeout` seconds."""
        streams = [self._folder / "stdout", self._folder / "stderr"]
        pid = self._ask("start", command, str(folder), dict(environment), list(map(str, streams)), "gpt.cli")
        timer = threading.Timer(timeout, os.kill, (pid, signal.SIGKILL))
        timer.start()
        status = self._ask("status", pid, True)
        if timer.finished.is_set():
            raise subprocess.TimeoutExpired(command, timeout)
        timer.cancel()
        return subprocess.CompletedProcess(command, status, *(path.read_text() for path in streams))

    def start(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str], module: str = "gpt.cli"
    ) -> "Fork":
        """Start `python -m module command` in `folder`, and return at once. The module has a function `main`."""
        self._number += 1
        pipes = [self._folder / f"{name}{self._number}" for name in ("stdout", "stderr")]
        for pipe in pipes:
            os.mkfifo(pipe)
        handles = [os.open(pipe, os.O_RDONLY | os.O_NONBLOCK) for pipe in pipes]  # now: a writer waits for it
        pid = self._ask("start", command, str(folder), dict(environment), list(map(str, pipes)), module)
        for handle, pipe in zip(handles, pipes, strict=True):
            os.set_blocking(handle, True)
            pipe.unlink()
        return Fork(command, pid, *(open(handle) for handle in handles), status=lambda: self._ask("status", pid, False))

    def _ask(self, *request: object) -> int | None:
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


class Fork:
    """A command that was started in a fork: the part of subprocess.Popen that tests use."""

    def __init__(
        self, args: Sequence[str], pid: int, stdout: TextIO, stderr: TextIO, status: Callable[[], int | None]
    ) -> None:
        self.args, self.pid, self.stdout, self.stderr, self._status = args, pid, stdout, stderr, status
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._status()
        return self.returncode

    def wait(self, timeout: float = float("inf")) -> int:
        end = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.002)
        return status

    def communicate(self, timeout: float = float("inf")) -> tuple[str, str]:
        """The rest of the output, once the command has ended; ("", "") if it was read before."""
        texts = ["", ""]

        def read(number: int, stream: TextIO) -> None:
            if not stream.closed:  # as it is after an earlier call
                with stream:
                    texts[number] = stream.read()

        threads = [
            threading.Thread(target=read, args=each, daemon=True) for each in enumerate((self.stdout, self.stderr))
        ]
        for thread in threads:
            thread.start()
        self.wait(timeout)
        for thread in threads:
            thread.join()
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def prepare() -> None:
    """Import every module of the package, and compile the large pattern, so that a fork has them."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the command does, before NumPy is imported
    import gpt.cli
    from gpt.tokenizer.text import blocks_of

    for module in pkgutil.walk_packages(gpt.__path__, "gpt."):
        with suppress(ImportError):  # of a package that is not installed
            importlib.import_module(module.name)
    importlib.import_module("numpy.ma")  # NumPy imports it when training first asks for it
    with suppress(ImportError):  # if numba is not installed
        from numba.core.registry import cpu_target

        cpu_target.typing_context.refresh()  # numba lists all that it can compile when it is first called
        cpu_target.target_context.refresh()
    list(blocks_of(["a text"], 1))
    gc.freeze()  # so that no fork's garbage collector touches, and thereby copies, what it shares with this process


def start(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    streams: Sequence[int],
    module: str = "gpt.cli",
) -> int:
    """Start `python -m module command` in a fork of this process, and return the number of the new process.

    Its standard input is empty, and it prints to `streams`. If `environment` has variables for the campaign's shim, the
    fork loads that too.
    """
    main = importlib.import_module(module).main
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        atexit._clear()
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        for number, handle in enumerate((os.open(os.devnull, os.O_RDONLY), *streams)):
            os.dup2(handle, number)
        sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
        if "CAMPAIGN_ROOT" in environment:
            ctypes.CDLL(environment["LD_PRELOAD"])
        sys.argv = [str(sys.modules[module].__file__), *command]
        sys.orig_argv = [sys.executable, "-m", module, *command]
        status = _run(main)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _run(main: Callable[[], object]) -> int:
    """Do the same as a new Python that runs `main`, including the end of the process; returns its exit status."""
    from gpt.system import interrupts

    signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupts.begin()
    try:
        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        with suppress(OSError):  # Python ignores a failure to print it, too
            traceback.print_exc()
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    try:
        sys.stderr.flush()
        sys.stdout.flush()
    except OSError as error:
        with suppress(OSError):
            print(f"Exception ignored while flushing: {error}", file=sys.stderr)
        status = 120
    return status


def _serve() -> None:
    """Start the commands that standard input asks for, and answer with their numbers or their exit status.

    Each request and each answer is a line of JSON.
    """
    prepare()
    assert len(os.listdir("/proc/self/task")) == 1, "a thread has been started"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the test run's; this process ends with its input
    for line in sys.stdin:
        request, *arguments = json.loads(line)
        if request == "start":
            command, folder, environment, paths, module = arguments
            streams = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for path in paths]
            answer: int | None = start(command, folder, environment, streams, module)
            for stream in streams:
                os.close(stream)
        else:
            pid, waits = arguments
            ended, status = os.waitpid(pid, 0 if waits else os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if ended else None
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
