"""The command `hipgpt …` in a fork of a process that has imported everything (10 ms), not in a new Python (a second).

A fork inherits what was imported, and the variables that were read meanwhile. So a test of what only a new process has
(PYTHON* variables, closed streams, a handler that is set before the start) needs a new one.
"""

import atexit
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tests.support import ROOT


class Forks:
    """A process that has imported everything, and runs one command after the other in forks of itself.

    It has no thread but its own: a fork has only the one that forks, and would wait for a lock of another forever.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` gets what the commands print."""
        self._streams = [folder / "stdout", folder / "stderr"]
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
        request = (command, str(folder), dict(environment), list(map(str, self._streams)))
        print(json.dumps(request), file=self._process.stdin, flush=True)
        timer = threading.Timer(timeout, os.kill, (int(self._process.stdout.readline()), signal.SIGKILL))
        timer.start()
        status = int(self._process.stdout.readline())
        if timer.finished.is_set():
            raise subprocess.TimeoutExpired(command, timeout)
        timer.cancel()
        return subprocess.CompletedProcess(command, status, *(path.read_text() for path in self._streams))

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def prepare() -> None:
    """Import whatever the commands import, so that a fork has it."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the command does, before NumPy is imported
    import gpt.bench
    import gpt.cli
    import gpt.export
    import gpt.fetch
    import gpt.generate
    import gpt.ops.cpu.operations
    import gpt.plan
    import gpt.trainer  # noqa: F401


def start(command: Sequence[str], folder: Path, environment: Mapping[str, str], streams: Sequence[int]) -> int:
    """Start `hipgpt command` in a fork of this process, and give the number of the new one.

    It reads nothing, and prints to `streams`. If `environment` has an order for the campaign's shim, it gets that too.
    """
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
        status = _main(command)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _main(command: Sequence[str]) -> int:
    """What `python -m gpt.cli` does, its end included."""
    import gpt.cli
    from gpt.system import interrupts

    signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupts.begin()
    sys.argv = [gpt.cli.__file__, *command]
    try:
        gpt.cli.main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
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
    """Run the commands that standard input asks for, a line for each, and answer with process number and status."""
    prepare()
    assert len(os.listdir("/proc/self/task")) == 1, "a thread has been started"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the test run's; this process ends with its input
    for line in sys.stdin:
        command, folder, environment, paths = json.loads(line)
        streams = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for path in paths]
        pid = start(command, folder, environment, streams)
        print(pid, flush=True)
        for stream in streams:
            os.close(stream)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
