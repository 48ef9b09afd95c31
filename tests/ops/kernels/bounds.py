"""The reference, and how far a result may be from it.

The reference is NumPy's operations in float64. Inputs are rounded to the type of activations first, so that both sides
see the same numbers. Outputs are NaN before the call and lie between guard bands.

Bounds follow from the arithmetic. u = 2^-24 is the relative error of one rounding to float32, and U = 2^-8 that of one
rounding to bf16 (U = u in fp32 mode). A sum of n terms, added in any order, is off by at most n u times the sum of the
absolute values. The GPU's exp2 has a relative error of at most EXP = 2^-21, not counting the rounding of its argument.
"""

import numpy as np

from gpt.ops.cpu.operations import CpuOps
from gpt.ops.interface import Dropout
from tests.support.amd import errors

u, EXP = 2.0**-24, 2.0**-21
TF32 = 2.0**-10  # relative error of a product whose operands are rounded to tf32: each rounding adds half of it
REFERENCE = CpuOps(threads=1, dtype="float64")


def near(ops, ours, reference, bound):
    """Assert that `ours` is finite and |ours - reference| <= bound for every element."""
    ours = ops.to_host(ours).astype(np.float64)
    assert np.isfinite(ours).all(), "an element was not written, or is not finite"
    off = np.abs(ours - reference)
    errors.note(ops, off, np.broadcast_to(bound, off.shape))
    worst = np.unravel_index(np.argmax(off - bound), off.shape)
    assert (off <= bound).all(), f"{ours[worst]} for {reference[worst]} at {worst}, off by more than the bound"


def dropout(ops, rate, site=3):
    key = np.array([17, 4], np.uint32)
    mine = Dropout(rate, ops.from_host(key), site) if rate else None
    return mine, Dropout(rate, key, site) if rate else None


class Sums:
    """Room for a vector's partial sums over `rows` rows, between columns that belong to others."""

    def __init__(self, ops, arrays, rows, n):
        self.ops, self.n = ops, n
        self.whole = arrays.poisoned(ops.partial_sums(rows), n + 256, dtype="float32")
        self.partials = self.whole[:, 128 : 128 + n]

    def total(self):
        host = self.ops.to_host(self.whole).astype(np.float64)
        assert np.isnan(host[:, :128]).all(), "a kernel wrote into another vector's sums"
        assert np.isnan(host[:, 128 + self.n :]).all(), "a kernel wrote into another vector's sums"
        return host[:, 128 : 128 + self.n].sum(0)


def norm_bound(x, weight, bias, mean, rstd, U):
    """How far layer norm may be off, for n = (x - mean) rstd.

    The mean is off by d u mean|x|, each difference by that and its own rounding, and rstd by d u relative.
    """
    d = x.shape[1]
    off = (d + 4) * u * (np.abs(x).mean(1, keepdims=True) + np.abs(x)) * rstd[:, None]
    n = np.abs(x - mean[:, None]) * rstd[:, None]
    spread = off * (1 + n * n.mean(1, keepdims=True))  # the mean's error also enters rstd
    return (spread + (2 * d + 8) * u * n) * np.abs(weight) + (U + 4 * u) * (np.abs(n * weight) + np.abs(bias)) + 1e-30
