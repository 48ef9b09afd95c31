"""The ranks: the processes that train one model together, as the rest of the program sees them."""

import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from gpt.config import ModelConfig
from gpt.distributed.collectives import Collectives
from gpt.distributed.shares import Shares
from gpt.errors import UserError, shown
from gpt.ops.interface import Operations
from gpt.system.limits import usable_cpus

if TYPE_CHECKING:
    from gpt.distributed.control import Control
    from gpt.distributed.launch import Place


# Of one machine: eight MI300X in eight partitions each are 64. Processes start before GPUs are counted, and a mistyped
# number must not start thousands.
MOST_GPUS = 128


class Ranks:
    """This process, rank number `rank` of `size`. Rank 0, the first one, alone prints and writes.

    A process on its own is `ALONE`, for which all of this does nothing.
    """

    rank = 0
    size = 1
    neighbors = 1  # ranks on this machine, this one included
    sharing_cpus = 1  # those of them that may use the same CPUs
    collectives: Collectives  # after `connect`, if there are several ranks
    _sharded = False

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, value: Any = None) -> Any:
        """The first rank's `value`, which JSON can write, on every rank."""
        return value

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, in the order of the ranks, on the first one; [] on the others."""
        return [value]

    @contextmanager
    def first_goes_ahead(self) -> Iterator[None]:
        """The first rank does the work in the `with` before the others begin it.

        So a mistake that all would find is told once, by the first one: it ends the others while they wait.
        """
        if not self.is_first:
            self.share()
        yield
        if self.is_first:
            self.share()

    def device(self, wanted: str) -> str:
        """The `--device` of this rank, if `wanted` is the user's: each rank of a machine has a GPU of its own."""
        return wanted

    def connect(self, ops: Operations, sharded: bool) -> None:
        """Connect the devices of all ranks. With `sharded`, they share out all moments. Raises UserError."""

    def shares(self, config: ModelConfig, vocab_multiple: int, optimizer: str, lora: int | None) -> Shares:
        return Shares(config, vocab_multiple, optimizer, self.rank, self.size, sharded=self._sharded, lora=lora)

    def listen(self, received: Callable[[], int | None]) -> None:
        """`received()` is the number of a signal that asks this rank to stop, or None. All ranks then stop together."""

    def may_begin(self, step: int) -> bool:
        """Whether this step comes before the one that all ranks have agreed to stop at."""
        return True

    @property
    def stopped_by(self) -> int | None:
        """The number of the signal that all ranks have agreed to stop for."""
        return None


ALONE = Ranks()


class ManyRanks(Ranks):
    """One of several ranks."""

    def __init__(self, place: "Place", control: "Control") -> None:
        self.rank, self.size = place.rank, place.size
        self._place, self._control = place, control
        host, cpus = socket.gethostname(), usable_cpus()
        everyone = self.share(self.gather([host, cpus]))
        self.neighbors = sum(there == host for there, _ in everyone)
        self.sharing_cpus = sum(there == host and not set(cpus).isdisjoint(theirs) for there, theirs in everyone)

    def share(self, value: Any = None) -> Any:
        return self._control.share(value)

    def gather(self, value: Any) -> list[Any]:
        return self._control.gather(value)

    def listen(self, received: Callable[[], int | None]) -> None:
        self._control.listen(received)

    def may_begin(self, step: int) -> bool:
        return self._control.may_begin(step)

    @property
    def stopped_by(self) -> int | None:
        return self._control.stopped_by

    def device(self, wanted: str) -> str:
        if wanted not in ("auto", "gpu") or (wanted == "auto" and self._place.launcher == "mpi" and not _has_gpu()):
            return wanted
        from gpt.ops.gpu.installation import count_gpus

        there, local_rank = count_gpus(), self._place.local_rank
        return "gpu:0" if there == 1 else f"gpu:{local_rank}"  # some launchers show each rank its own GPU alone

    def connect(self, ops: Operations, sharded: bool) -> None:
        self._sharded = sharded
        self.collectives = self._of_cpus() if ops.is_cpu else self._of_gpus()

    def _of_cpus(self) -> Collectives:
        from gpt.distributed.mpi import MpiCollectives

        if self._place.launcher == "gpus":
            raise UserError("--gpus puts each rank on a GPU, not on --device cpu: for ranks on CPUs use mpirun -n N")
        if self._place.launcher != "mpi":
            raise UserError("several ranks on CPUs need MPI: start them with mpirun -n N hipgpt train …")
        return MpiCollectives()

    def _of_gpus(self) -> Collectives:
        from gpt.distributed.nccl import NcclCollectives, bus_id, unique_id

        everyone = self.share(self.gather([socket.gethostname(), bus_id()]))
        for rank, (host, gpu) in enumerate(everyone):
            if (first := everyone.index([host, gpu])) != rank:
                raise UserError(f"ranks {first} and {rank} both use GPU {gpu} of {host}: start one rank for each GPU")
        return NcclCollectives(self.rank, self.size, self.share(unique_id() if self.is_first else None))


def _check_gpus(wanted: int) -> None:
    """Raise UserError if there are not so many GPUs.

    It imports CuPy, which takes a while. All ranks do so at once, before they wait for each other.
    """
    from gpt.ops.gpu.installation import count_gpus

    if (there := count_gpus()) < wanted:
        raise UserError(f"--gpus is {wanted}, but there {'is' if there == 1 else 'are'} only {there} here")


def _has_gpu() -> bool:
    from gpt.ops.gpu.installation import count_gpus

    with suppress(UserError):
        return count_gpus() > 0
    return False


@contextmanager
def joined(gpus: str | None = None) -> Iterator[Ranks]:
    """Inside the `with`, this process is one of the ranks that were started together, or `ALONE`.

    `gpus` is the number of GPUs of this machine to use, or "all": this process then starts the other ranks itself.
    Raises UserError if the ranks do not find each other. An error in one rank ends all of them.
    """
    place = _place(gpus)
    if place is None:
        yield ALONE
        return
    from gpt.distributed.control import Control

    control = Control(place)
    if place.launcher == "gpus":
        _check_gpus(place.size)
    yield ManyRanks(place, control)
    control.close()


def meet() -> None:
    """Meet the ranks that were started together, if there are any, to tell them of an error (gpt/system/ending.py).

    Does nothing if the ranks cannot meet.
    """
    with suppress(UserError):
        place = _place(None)
        if place is not None:
            from gpt.distributed.control import Control

            Control(place)


def _place(gpus: str | None) -> "Place | None":
    """The place of this process among the ranks, by the environment and by `--gpus`; None if it works alone."""
    from gpt.distributed.launch import Place, find

    place = find(os.environ)
    if gpus is None or (place and place.launcher == "gpus"):
        return place
    if place:
        raise UserError(f"--gpus {gpus} starts the ranks itself, but {place.size} were started already: leave it out")
    if gpus == "all":
        from gpt.ops.gpu.installation import count_gpus

        size = count_gpus()
    else:  # the others start at once; `_check_gpus` counts
        size = int(gpus) if re.fullmatch(r"[0-9]{1,9}", gpus) else 0
        if not 1 <= size <= MOST_GPUS:
            raise UserError(f"--gpus is {shown(gpus)}, but must be a number from 1 to {MOST_GPUS}, or all")
    return Place(0, size, 0, size, "gpus") if size > 1 else None
