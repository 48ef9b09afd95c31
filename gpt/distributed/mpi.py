"""Collectives of ranks on CPUs, by MPI."""

from collections.abc import Sequence
from itertools import pairwise

from gpt.distributed.collectives import Collectives, Exchange


class MpiCollectives(Collectives):
    """Exchanges of NumPy arrays among all processes that mpirun has started. Each call returns when it is done."""

    def __init__(self) -> None:
        from mpi4py import MPI

        self._communicator, self._in_place = MPI.COMM_WORLD, MPI.IN_PLACE

    def reduce(self, exchanges: Sequence[Exchange]) -> None:
        for whole, bounds, own in exchanges:
            if bounds:
                self._communicator.Reduce_scatter(whole, own, recvcounts=_counts(bounds))
            else:
                self._communicator.Allreduce(self._in_place, whole)

    def gather(self, exchanges: Sequence[Exchange]) -> None:
        for whole, bounds, own in exchanges:
            self._communicator.Allgatherv(own, [whole, _counts(bounds)])

    def wait(self) -> None:
        pass


def _counts(bounds: tuple[int, ...]) -> list[int]:
    return [stop - start for start, stop in pairwise(bounds)]
