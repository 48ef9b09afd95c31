"""Where this process stands among the ranks, and where they meet, for every way of starting them.

gpus    `hipgpt train --gpus N`: the user's own process is the first rank, and starts the others as its children
env     RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, which torchrun and most schedulers set
slurm   srun sets SLURM_PROCID, SLURM_STEP_NUM_TASKS and others
mpi     mpirun; MPI itself knows the ranks

The first rank listens at a port and the others connect to it. Two jobs that meet at one port have different keys.
"""

import faulthandler
import hashlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from gpt.errors import UserError, shown

GPUS_KEY = "HIPGPT_RANKS_KEY"  # set for children of --gpus: their key, in hexadecimal digits
LOOPBACK = "127.0.0.1"
PORTS = range(15_000, 30_000)  # of Slurm's jobs: below the ports that systems give to outgoing connections
SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")  # Open MPI; MPICH and Intel; MVAPICH
PATIENCE = 60.0  # seconds in which all ranks must come
INSTALL_MPI = "pip install 'hipgpt[mpi]'"


class Place(NamedTuple):
    """A process among `size` ranks. The first rank is 0. `local_rank` counts the ranks of one host, also from 0."""

    rank: int
    size: int
    local_rank: int
    local_size: int | None  # ranks on this host; None if the launcher does not say
    launcher: str  # "gpus", "env", "slurm" or "mpi"


class Meeting(NamedTuple):
    """Where the ranks meet. `addresses` all lead to the first rank; the first one that answers is taken."""

    addresses: tuple[str, ...]
    port: int
    key: bytes
    listener: socket.socket | None = None  # at the first rank
    children: tuple[subprocess.Popen[bytes], ...] = ()  # of the first rank: ranks 1, 2, …


# ---- where this process stands ------------------------------------------------------------------------------------


def find(environ: Mapping[str, str]) -> Place | None:
    """The place that the launcher's variables give to this process; None if it works alone.

    Variables of torchrun's kind come first, because a user may set them. A process that both srun and MPI know is
    srun's, unless they differ: mpirun starts its helpers by srun. Raises UserError if variables are missing or
    contradict each other, or if MPI is needed and does not work.
    """
    if "RANK" in environ or "WORLD_SIZE" in environ:
        place: Place | None = _of_variables(environ)
    else:
        slurm = _of_slurm(environ)
        place = slurm if slurm and _same_for_mpi(environ, slurm) else _of_mpi(environ) or slurm
    return place if place and place.size > 1 else None


def _of_variables(environ: Mapping[str, str]) -> Place:
    rank, size = _number(environ, "RANK", needed_by="WORLD_SIZE"), _number(environ, "WORLD_SIZE", needed_by="RANK")
    local_rank = _number(environ, "LOCAL_RANK", default=0)
    local_size = _number(environ, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in environ else None
    _check_below("RANK", rank, "WORLD_SIZE", size)
    if local_size is not None:
        _check_below("LOCAL_RANK", local_rank, "LOCAL_WORLD_SIZE", local_size)
        if local_size > size:
            raise UserError(f"LOCAL_WORLD_SIZE is {local_size}, but WORLD_SIZE only {size}")
    _check_mpi_agrees(environ, size)
    if size > 1:
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            if not environ.get(name):
                raise UserError(f"WORLD_SIZE is {size}, but {name} is not set: all ranks need that of the first")
    return Place(rank, size, local_rank, local_size, "gpus" if GPUS_KEY in environ else "env")


def _of_slurm(environ: Mapping[str, str]) -> Place | None:
    """The place that srun gives. A shell of sbatch has SLURM_PROCID too, but belongs to no step of srun."""
    if "SLURM_STEP_NUM_TASKS" not in environ or "SLURM_PROCID" not in environ:
        return None
    rank, size = _number(environ, "SLURM_PROCID"), _number(environ, "SLURM_STEP_NUM_TASKS")
    _check_below("SLURM_PROCID", rank, "SLURM_STEP_NUM_TASKS", size)
    counts = tasks_per_node(environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    node = _number(environ, "SLURM_NODEID", default=len(counts))
    return Place(
        rank, size, _number(environ, "SLURM_LOCALID", default=0), counts[node] if node < len(counts) else None, "slurm"
    )


def _of_mpi(environ: Mapping[str, str]) -> Place | None:
    started = _mpi_size(environ)
    if started is None or started == 1:
        return None
    world = _mpi_world()
    rank, size = world.Get_rank(), world.Get_size()
    if size != started:
        raise UserError(
            f"mpirun started {started} processes, but mpi4py's MPI counts {size}: it is another MPI than mpirun's. "
            "Use the mpirun beside this Python, or build mpi4py with this MPI"
        )
    from mpi4py import MPI

    local = world.Split_type(MPI.COMM_TYPE_SHARED)
    return Place(rank, size, local.Get_rank(), local.Get_size(), "mpi")


def _mpi_world() -> Any:
    """mpi4py's communicator of all ranks. Raises UserError if mpi4py or its MPI is absent.

    The first import waits for all ranks, and lets no other thread run. If one has ended before, it would wait for ever:
    after PATIENCE the process ends, and shows where it has waited.
    """
    try:
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        reason = "is not installed" if isinstance(error, ModuleNotFoundError) else f"does not work ({error})"
        raise UserError(f"mpirun needs mpi4py, which {reason}: {INSTALL_MPI}") from None
    finally:
        faulthandler.cancel_dump_traceback_later()
    return MPI.COMM_WORLD


def _mpi_size(environ: Mapping[str, str]) -> int | None:
    """How many processes mpirun has started; None without mpirun."""
    for name in SIZES:
        if name in environ:
            return _number(environ, name)
    return None


def _same_for_mpi(environ: Mapping[str, str], slurm: Place) -> bool:
    """Whether MPI's variables, if there are any, say the same as Slurm's."""
    return all(
        name not in environ or _number(environ, name) == value
        for size in SIZES
        for name, value in ((size, slurm.size), (size.replace("SIZE", "RANK"), slurm.rank))
    )


def _check_mpi_agrees(environ: Mapping[str, str], size: int) -> None:
    for name in SIZES:
        if "TORCHELASTIC_RUN_ID" not in environ and name in environ and _number(environ, name) not in (1, size):
            raise UserError(
                f"{name} is {environ[name]}, but WORLD_SIZE is {size}: unset RANK and WORLD_SIZE to use mpirun's ranks"
            )


def _number(environ: Mapping[str, str], name: str, default: int | None = None, needed_by: str = "") -> int:
    text = environ.get(name)
    if text is None:
        if default is not None:
            return default
        raise UserError(f"{needed_by} is {shown(environ[needed_by])}, but {name} is not set: set both or none")
    if not re.fullmatch(r"\s*[0-9]{1,9}\s*", text):
        raise UserError(f"{name} is {shown(text)}, but must be a whole number from 0")
    return int(text)


def _check_below(name: str, value: int, size_name: str, size: int) -> None:
    if value >= size:
        raise UserError(f"{name} is {value}, but {size_name} is {size}: {name} must be below it")


# ---- where the ranks meet -----------------------------------------------------------------------------------------


def meeting_point(place: Place, environ: Mapping[str, str] = os.environ) -> Meeting:
    """Where the ranks meet. The first rank listens there when this returns, and has started its children.

    The port is
    - MASTER_PORT, or the next one if torchrun's agent listens at it (TORCHELASTIC_USE_AGENT_STORE=True);
    - under srun without MASTER_PORT, one in 15,000 … 29,999 that follows from the numbers of the job and its step;
    - a free one for --gpus and mpirun, which tell it to the other ranks.

    Raises UserError if the port is taken, or a variable is missing.
    """
    if place.launcher == "mpi":
        return _meet_by_mpi(place)
    if place.launcher == "gpus":
        return _meet_parent(environ) if place.rank else _start(place.size)
    if place.launcher == "slurm":
        job = f"{environ.get('SLURM_JOB_ID', '')}.{environ.get('SLURM_STEP_ID', '')}"
        address = environ.get("MASTER_ADDR") or first_host(environ.get("SLURM_STEP_NODELIST", ""))
        if not address:
            raise UserError("SLURM_STEP_NODELIST is not set: start the ranks with srun, or set MASTER_ADDR")
        port = _port(environ) if "MASTER_PORT" in environ else PORTS[_digest(job)[0] % len(PORTS)]
    else:
        job = environ.get("TORCHELASTIC_RUN_ID", "")
        address, port = environ["MASTER_ADDR"], _port(environ)
    key = _digest(job, address, str(port))[1]
    return Meeting((address,), port, key, None if place.rank else _listen("", port))


def _port(environ: Mapping[str, str]) -> int:
    port = _number(environ, "MASTER_PORT")
    if not 0 < port < 65536:
        raise UserError(f"MASTER_PORT is {port}, but must be from 1 to 65535")
    if environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        port += 1 if port < 65535 else -1
    return port


def _digest(*parts: str) -> tuple[int, bytes]:
    """A number and a key that follow from these texts."""
    digest = hashlib.sha256("\0".join(("hipgpt", *parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big"), digest


def _listen(address: str, port: int) -> socket.socket:
    """A socket that listens at a port (0: a free one) of one of this host's addresses ("": of all)."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # a port whose last user has just ended is free
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise UserError(
            f"the ranks cannot meet at port {port} of {socket.gethostname()}: {error.strerror}. "
            "Set MASTER_PORT to a port that is free"
        ) from None
    return listener


def first_host(nodelist: str) -> str:
    """The first host of a list of Slurm's.

    Example:
        >>> first_host("gpu[03-04,07],big1")
        'gpu03'
    """
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])*", nodelist)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0]) if first else ""


def tasks_per_node(text: str) -> list[int]:
    """How many tasks run on each node, as Slurm writes it; [] if it does not.

    Example:
        >>> tasks_per_node("4(x2),3")
        [4, 4, 3]
    """
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if not match:
            return []
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _meet_by_mpi(place: Place) -> Meeting:
    world = _mpi_world()
    if place.rank:
        return Meeting(*world.bcast(None))
    alone = place.local_size == place.size
    listener = _listen(LOOPBACK if alone else "", 0)
    addresses = (LOOPBACK,) if alone else _own_addresses()
    meeting = Meeting(addresses, int(listener.getsockname()[1]), secrets.token_bytes(32))
    world.bcast((meeting.addresses, meeting.port, meeting.key))
    return meeting._replace(listener=listener)


def _own_addresses() -> tuple[str, ...]:
    """This host's name, and the address from which it reaches others."""
    addresses = [socket.gethostname()]
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing: it only looks up the route
        addresses.insert(0, probe.getsockname()[0])
    return tuple(addresses)


# ---- children of --gpus -------------------------------------------------------------------------------------------


def _start(size: int) -> Meeting:
    listener = _listen(LOOPBACK, 0)
    port, key = int(listener.getsockname()[1]), secrets.token_bytes(32)
    children = _start_children(size, port, key)
    _pause_together(children)
    return Meeting((LOOPBACK,), port, key, listener, tuple(children))


def _meet_parent(environ: Mapping[str, str]) -> Meeting:
    return Meeting((environ["MASTER_ADDR"],), _number(environ, "MASTER_PORT"), bytes.fromhex(environ[GPUS_KEY]))


def _start_children(size: int, port: int, key: bytes) -> list[subprocess.Popen[bytes]]:
    """Start ranks 1 … size - 1, each with the command line of this process. They meet at a port of this host.

    Each is in a session of its own, so that Ctrl-C of the terminal reaches the first rank alone.
    """
    children: list[subprocess.Popen[bytes]] = []
    for rank in range(1, size):
        places = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
        environ = {
            **os.environ, **{name: str(value) for name, value in places.items()},
            "MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(port), GPUS_KEY: key.hex(),
        }  # fmt: skip
        try:
            children.append(
                subprocess.Popen(
                    [sys.executable, *sys.orig_argv[1:]], env=environ, stdin=subprocess.DEVNULL, start_new_session=True
                )
            )
        except OSError as error:
            for child in children:
                child.kill()
                child.wait()
            raise UserError(f"cannot start rank {rank} of {size}: {error.strerror}") from None
    return children


def _pause_together(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Let Ctrl-Z of the terminal, which reaches the first rank alone, stop its children too. They go on with it."""
    if not hasattr(signal, "SIGTSTP") or threading.current_thread() is not threading.main_thread():
        return

    def pause(_number: int, _frame: object) -> None:
        for child in children:
            child.send_signal(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)  # returns when this process goes on
        for child in children:
            child.send_signal(signal.SIGCONT)

    if signal.getsignal(signal.SIGTSTP) == signal.SIG_DFL:
        signal.signal(signal.SIGTSTP, pause)
