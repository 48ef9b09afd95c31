"""Sums over rows: of a block as a product with ones, and of all blocks in their order.

For a product BLAS takes a fifth of the time of NumPy's reductions of a matrix along one axis.
"""

from functools import lru_cache

import numpy as np

from gpt.system.threads import QUIET


@lru_cache
def ones(size: int, dtype: np.dtype) -> np.ndarray:
    """[size] ones, which everybody shares and nobody may write to."""
    array = np.ones(size, dtype)
    array.flags.writeable = False
    return array


def sum_rows(x: np.ndarray, out: np.ndarray) -> None:
    """out [D] = the sum of the rows of x [rows, D]."""
    np.matmul(ones(len(x), x.dtype), x, out=out)


def leave_total(sums: np.ndarray, out: np.ndarray) -> None:
    """Leave the sum of the blocks' sums [blocks, D] in out [partial sums, D]: all of it in the first row."""
    with QUIET():
        np.add.reduce(sums, axis=0, out=out[0])
    out[1:] = 0
