"""Dropout masks that are computed instead of stored: a hash of the key, the site, and the element's row and column.

With mix(x) the 32-bit finalizer "lowbias32" (Wellons, "Prospecting for Hash Functions", 2018) and ^ exclusive or:

    k0, k1   = mix(mix(mix(seed) ^ counter) ^ site), mix(mix(mix(seed + 0x9E3779B9) ^ counter) ^ site)
    row_hash = mix(mix(row ^ k0) ^ k1)
    bits     = mix(mix(column) ^ row_hash)

and an element is kept if bits >= floor(rate · 2³²). All arithmetic is modulo 2³². Rows and columns are those of the
array seen as a matrix, [product of all axes but the last, last axis], so up to 2³² of each work, and each device gets
the same mask however it tiles the array.
"""

import numpy as np

from gpt.ops.interface import Dropout
from gpt.system.threads import Scratch

_UINT32 = np.dtype(np.uint32)
_GOLDEN = 0x9E3779B9


def mix(x: np.ndarray, spare: np.ndarray | None = None) -> np.ndarray:
    """Replace uint32 `x` by its hash, a bijection, and return it; `spare` is overwritten."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        spare = np.right_shift(x, np.uint32(shift), out=spare)
        np.bitwise_xor(x, spare, out=x)
        np.multiply(x, np.uint32(factor), out=x)
    spare = np.right_shift(x, np.uint32(16), out=spare)
    np.bitwise_xor(x, spare, out=x)
    return x


class Mask:
    """The mask of one Dropout over a matrix of `columns` columns."""

    def __init__(self, dropout: Dropout, columns: int) -> None:
        seed, counter = dropout.key
        key = mix(np.array([seed, (int(seed) + _GOLDEN) % 2**32], np.uint32))
        key = mix(mix(key ^ counter) ^ np.uint32(dropout.site))
        self._key0, self._key1 = key
        self._column_hashes = mix(np.arange(columns, dtype=np.uint32))
        self._threshold = np.uint32(int(dropout.rate * 2**32))
        self._scale, self._first = 1 / (1 - dropout.rate), np.uint32(dropout.first % 2**32)

    def draw(self, rows: np.ndarray, columns: int, scratch: Scratch, dtype: np.dtype) -> np.ndarray:
        """For uint32 [...] row numbers: [..., columns] of 0 (drop) or 1 / (1 - rate), in the thread's scratch."""
        row_hashes = mix(mix(rows + self._first ^ self._key0) ^ self._key1)
        shape = (*rows.shape, columns)
        bits, spare = scratch("mask bits", shape, _UINT32), scratch("mask spare", shape, _UINT32)
        np.bitwise_xor(self._column_hashes[:columns], row_hashes[..., None], out=bits)
        factors = scratch("mask", shape, dtype)
        np.greater_equal(mix(bits, spare), self._threshold, out=factors, casting="unsafe")
        factors *= self._scale
        return factors
