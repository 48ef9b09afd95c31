"""A process between mpirun and its rank, so that the ranks themselves can say which of them was killed.

MPICH's mpirun kills all ranks within a millisecond after one was killed. That is too early for them to say which, and
mpirun may name another one. So the process that it starts forks. The child is the rank, the parent is its keeper:

    mpirun ─┬─ keeper ── rank 0
            └─ keeper ── rank 1

A keeper waits for its rank. If that ends while the ranks watch each other (gpt/distributed/control.py), the keeper says
goodbye to mpirun and ends with an exit status. For mpirun this is an orderly end, which leaves the other ranks alone.
They say what has happened, and end by themselves. At other times they cannot: mpirun has to end them, as it would
without keepers.

Rank and keeper are one process group, to which mpirun sends signals. The keeper ignores those that a rank handles.
SIGKILL ends both.
"""

import os
import select
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress

PATIENCE = 5.0  # seconds in which mpirun must answer to the goodbye

_telling: int | None = None  # in a rank that has a keeper: the pipe to it


def begin(ignored: Iterable[int]) -> None:
    """If MPICH's mpirun has started this process, return in its child, the rank. The keeper ignores these signals.

    A command calls this first, because a fork leaves threads behind.
    """
    global _telling
    # Slurm sets PMI_FD too, for another language; HYDI_CONTROL_FD is of MPICH's mpirun alone
    if sys.platform != "linux" or not os.environ.keys() >= {"PMI_FD", "HYDI_CONTROL_FD"}:
        return
    if os.environ.get("PMI_SIZE") == "1":
        return
    hearing, telling = os.pipe()
    try:
        child = os.fork()
    except OSError:  # too many processes: go without a keeper
        return
    if child == 0:
        os.close(hearing)
        _telling = telling
        return
    os.close(telling)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):  # its command line and its environment shall not look like those of a rank
        os.set_inheritable(hearing, True)
        environ = {name: value for name, value in os.environ.items() if name != "PMI_RANK"}
        os.execve(sys.executable, [sys.executable, "-S", __file__, str(child), str(hearing)], environ)
    _keep(child, hearing)


def tell(watching: bool) -> None:
    """Tell this rank's keeper, if it has one, whether the ranks watch each other from now on."""
    if _telling is not None:
        with suppress(OSError):
            os.write(_telling, b"+" if watching else b"-")


def _keep(rank: int, hearing: int) -> None:
    """Wait for the end of the process `rank`, a child of this one, and end."""
    status = os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1])  # the negative number of a signal
    if os.read(hearing, 9).endswith(b"+"):
        connection = int(os.environ["PMI_FD"])
        with suppress(OSError):
            os.write(connection, b"cmd=finalize\n")  # of PMI-1, which MPICH and mpirun speak
            select.select([connection], [], [], PATIENCE)
    elif status < 0:
        os.kill(os.getpid(), -status)
    os._exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    _keep(*map(int, sys.argv[1:]))
