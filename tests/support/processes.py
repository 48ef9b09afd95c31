"""Other processes of a test: a training in the background, a fork that may die, a terminal."""

import fcntl
import os
import subprocess
import time
from collections.abc import Callable


def start(hipgpt, *arguments) -> subprocess.Popen:
    """Start a training that cannot get far ahead of whoever reads its log: at most 4 KiB wait in its pipe."""
    process = hipgpt.start("train", *arguments)
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 1 << 12)
    return process


def wait_for_line(process: subprocess.Popen, beginning: str) -> None:
    """Read what the process prints until a line has this beginning."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.stdout.readline().startswith(beginning):
            return
    raise AssertionError(f"no line began with {beginning}")


def in_a_child(action: Callable[[], object]) -> int:
    """Run `action` in a forked process, which may die; return its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def read_terminal(handle: int) -> bytes:
    """What a program has written to a terminal, by our side of it; nothing more once the program has closed it."""
    try:
        return os.read(handle, 1 << 16)
    except OSError:  # Linux's error for a terminal whose other side is closed
        return b""
