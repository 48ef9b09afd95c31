"""Dropout masks that are computed instead of stored: a hash of the key, the site, and the element's row and column.

With mix(x) the 32-bit finalizer "lowbias32" (Wellons, "Prospecting for Hash Functions", 2018) and ^ exclusive or:

    k0, k1   = mix(mix(mix(seed) ^ counter) ^ site), mix(mix(mix(seed + 0x9E3779B9) ^ counter) ^ site)
    row_hash = mix(mix(row ^ k0) ^ k1)
    bits     = mix((column & ~8) · 0x9E3779B9 ^ row_hash)

and an element is kept if its half of the bits, the upper one if column & 8, is at least round(rate · 2¹⁶), which is at
most 2¹⁶ - 1. So two elements share a hash, for example those of columns 3 and 11, or 20 and 28: on NVIDIA's matrix unit
a lane has both, whether the columns are those of its tile or the rows. All arithmetic is modulo 2³². Rows and columns
are those of the array seen as a matrix, [product of all axes but the last, last axis], so up to 2³² of each work, and
each device gets the same mask however it tiles the array.
"""

import numpy as np

from gpt.arithmetic import ceil_div, round_up
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
        # Columns 0 to 7, 16 to 23, 32 to 39 …, in groups of eight: [groups, 8]
        lower = np.arange(round_up(columns, 16), dtype=np.uint32).reshape(-1, 2, 8)[:, 0]
        self._lower_columns = lower * np.uint32(_GOLDEN)
        self._threshold = np.uint32(dropout.threshold << 16)
        self._scale, self._first = 1 / (1 - dropout.rate), np.uint32(dropout.first % 2**32)

    def draw(self, rows: np.ndarray, columns: int, scratch: Scratch, dtype: np.dtype) -> np.ndarray:
        """For uint32 [...] row numbers: [..., columns] of 0 (drop) or 1 / (1 - rate), in the thread's scratch."""
        row_hashes = mix(mix(rows + self._first ^ self._key0) ^ self._key1)
        groups = ceil_div(columns, 16)
        shape = (*rows.shape, groups, 8)
        bits, spare = scratch("mask bits", shape, _UINT32), scratch("mask spare", shape, _UINT32)
        np.bitwise_xor(self._lower_columns[:groups], row_hashes[..., None, None], out=bits)
        mix(bits, spare)
        # [..., group, half, 8]: the lower halves of a group's hashes are for its first eight columns.
        factors = scratch("mask", (*rows.shape, groups, 2, 8), dtype)
        np.greater_equal(bits, self._threshold, out=factors[..., 1, :], casting="unsafe")
        np.left_shift(bits, np.uint32(16), out=bits)
        np.greater_equal(bits, self._threshold, out=factors[..., 0, :], casting="unsafe")
        factors *= self._scale
        return factors.reshape(*rows.shape, 16 * groups)[..., :columns]
