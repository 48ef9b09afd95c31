"""Sums and exchanges of arrays among ranks: the contract, which mpi.py and nccl.py fulfill."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from gpt.ops.interface import Array


class Exchange(NamedTuple):
    """An array that all ranks have, and this rank's part of it.

    Rank r's part is whole[bounds[r] : bounds[r + 1]], and `own` is a buffer of that size. Without bounds there are no
    parts. Arrays are contiguous.
    """

    whole: Array
    bounds: tuple[int, ...] = ()
    own: Array = None


class Collectives(Protocol):
    """Work that all ranks do together. Each rank must ask for the same, in the same order.

    On a GPU the work goes on beside the work that is asked for later, until `wait`.
    """

    def reduce(self, exchanges: Sequence[Exchange]) -> None:
        """Sum over the ranks: own = Σ whole[bounds[rank] : bounds[rank + 1]]; without bounds, whole = Σ whole.

        Every rank gets the same bits.
        """

    def gather(self, exchanges: Sequence[Exchange]) -> None:
        """whole[bounds[r] : bounds[r + 1]] = the `own` of rank r, for every r."""

    def wait(self) -> None:
        """Later work sees the results of all exchanges so far."""
