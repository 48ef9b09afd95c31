"""Sums as products with ones: BLAS takes a fifth of the time of NumPy's reductions of a matrix along one axis."""

from functools import lru_cache

import numpy as np


@lru_cache
def ones(size: int, dtype: np.dtype) -> np.ndarray:
    """[size] ones, which everybody shares and nobody may write to."""
    array = np.ones(size, dtype)
    array.flags.writeable = False
    return array


def sum_rows(x: np.ndarray, out: np.ndarray) -> None:
    """out [D] = the sum of the rows of x [rows, D]."""
    np.matmul(ones(len(x), x.dtype), x, out=out)
