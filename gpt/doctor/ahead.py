"""Kernels of the self-test, compiled by processes beside it: python -m gpt.doctor.ahead PARENT DEVICE PRECISION ….

On a machine that hipgpt is new to, the self-test waits for some two hundred kernels, which it asks for one by one, and
then half a minute for numba's loops. So other processes compile all that, too, and begin with what it needs last.
Kernels and loops go to the caches of CuPy and numba on disk, in files that appear under their names when they are
whole. The self-test waits for nobody: it compiles whatever is not in a cache. A process that crashes, hangs, or finds
no GPU or no space costs time, never a result.

They are processes, and not threads, because hiprtc lets one thread compile at a time (HIPRTC_INIT_API in ROCm's clr
keeps a lock), and because a compiler that crashes ends its process. Nothing runs on the GPU: a NotingDevice says which
kernels the checks ask for. numba's loops are compiled when they run, so the process that compiles them does the CPU's
checks.
"""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib.util import find_spec

from gpt import ops as operations
from gpt.doctor import selftest
from gpt.errors import UserError
from gpt.ops.gpu.installation import count_gpus
from gpt.ops.gpu.noting import NotingDevice
from gpt.ops.gpu.operations import GpuOps
from gpt.ops.gpu.sources import Instance
from gpt.ops.interface import Operations
from gpt.system import limits, process

COMMAND = process.command("gpt.doctor.ahead")
MOST = 7  # processes
HOST_BYTES = 2**30  # of the host's memory for each: CuPy, the driver, and a compiler at work
GPU_BYTES = 2**30  # of the GPU's memory that stay free for the self-test
# The number of each piece of work, two bytes for each; there are fewer pieces. A pipe takes so many bytes at once.
NUMBERS = b"".join(number.to_bytes(2, "little") for number in range(2048))
GRACE = 10.0  # seconds for a driver to let go of a process that was killed
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl


@contextmanager
def compiling(device: str, precisions: Sequence[str]) -> Iterator[None]:
    """Let other processes compile, during the `with`, what the self-test of `device` needs. After it they are gone.

    `precisions` are in the order of the self-test. There are no such processes on a machine with a single CPU, with
    little memory, or without a GPU.
    """
    with ExitStack() as stack:
        with suppress(OSError):  # no process can be started, or there is no folder for temporary files
            if count := _count(device):
                # A process that is killed leaves a compiler's files behind, so they get a folder of their own.
                folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
                children: list[subprocess.Popen[bytes]] = []
                stack.callback(_end, children)
                children.extend(_started(count, [str(os.getpid()), device, *precisions], folder))
        yield


def _count(device: str) -> int:
    """How many processes there should be."""
    try:
        gpus = count_gpus() if device != "cpu" else 0
    except Exception:  # CuPy may raise any
        gpus = 0
    return min(MOST, limits.cpus() - 1, limits.free_memory() // HOST_BYTES) if gpus else 0


def _started(count: int, arguments: Sequence[str], folder: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start processes that share a pipe full of numbers: whoever takes a number does the work that has it."""
    reader, writer = os.pipe()
    try:
        os.write(writer, NUMBERS)
        os.close(writer)
        for _ in range(count):
            yield subprocess.Popen(
                [*COMMAND, *arguments], env={**os.environ, "TMPDIR": folder}, stdin=reader,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
    finally:
        os.close(reader)


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    for child in children:
        child.kill()
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE)


def main(parent: str, device: str, *precisions: str) -> None:
    """Compile what has the numbers that this process takes from its standard input."""
    _end_with(int(parent))
    mine = -1
    for number, compile_it in enumerate(_last_first(device, precisions)):
        if mine < number:
            mine = _taken()
        if mine == number:
            with suppress(Exception):  # CuPy and numba may raise any; the self-test meets it again, and tells it
                compile_it()


def _taken() -> int:
    """The next number that no process has taken, or a larger one than any piece of work has."""
    return int.from_bytes(os.read(0, 2) or b"\xff\xff", "little")


def _end_with(parent: int) -> None:
    """Let this process end when its parent does, however that ends and whatever this one does then."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit()


def _last_first(device: str, precisions: Sequence[str]) -> Iterator[Callable[[], object]]:
    """Functions that compile what the self-test asks for, the last first: the same ones in every process.

    numba's loops come first, if the CPU is tested too. There are no kernels if the device is not a GPU, or if little of
    its memory is left.
    """
    if device == "auto" and find_spec("numba"):
        yield _compile_loops
    known: set[Instance] = set()
    for precision in reversed(precisions):
        try:
            ops = operations.select(device, precision, blas="own")
        except UserError:  # there is no such device, or it lacks this precision
            continue
        if not isinstance(ops, GpuOps) or ops.device.free_bytes() < GPU_BYTES:
            return
        noting = NotingDevice.like(ops.device)
        _run_checks(GpuOps(noting, precision))
        new = [instance for instance in noting.instances if instance not in known]
        known.update(new)
        for each in reversed(new):
            yield partial(ops.device.kernel, each.file, each.names[0], dict(each.defines))


def _compile_loops() -> None:
    """Compile numba's loops, which takes one thread, by running them."""
    _run_checks(operations.select("cpu", training=True, processes=limits.cpus()))


def _run_checks(ops: Operations) -> None:
    for check in selftest.checks(ops):
        check.finding()


if __name__ == "__main__":
    main(*sys.argv[1:])
