"""The types that the operations of every device share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

Array = Any  # NumPy's on the CPU, CuPy's on a GPU
Fields = Mapping[str, tuple[tuple[int, ...], str]]  # name → shape and dtype


@dataclass(frozen=True)
class Dropout:
    """One place where elements are zeroed with probability `rate` and the rest scaled by 1 / (1 - rate).

    The mask is a pure function of key, site, and the element's row and column, so backward draws it again instead of
    storing it and a resumed run replays it. `key` is a uint32 [2] array (seed, counter) in the device's memory;
    `site` numbers the places within one model. `first` is the row of the mask that belongs to an array's first row,
    above 0 only on devices that take a batch in parts.
    """

    rate: float
    key: Array
    site: int
    first: int = 0


class Stack(NamedTuple):
    """Matrices of one shape with all that an optimizer has of them; every array is [matrices, rows, columns]."""

    weights: Array  # float32
    gradients: Array  # float32
    momentum: Array  # float32
    copy: Array | None  # of the weights, in the type that products read, if that is another


def moderate(factor: float) -> float:
    """The nearest number that float32 holds together with its inverse: every device then draws the same token."""
    return min(max(factor, 1e-37), 1e37)
