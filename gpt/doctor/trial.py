"""A trial: one call of an operation on a device, and the comparison of everything that it wrote with the reference."""

from typing import Any

import numpy as np

from gpt.doctor.bounds import ROUNDING, TF32
from gpt.ops.cpu.operations import CpuOps
from gpt.ops.interface import Array, Dropout, Operations

REFERENCE = CpuOps(threads=1, dtype="float64")

GUARD = 64  # elements before and after a guarded array: a multiple of the length of every vector
# The values of guard bands, by the dtype's kind, or by its kind and size in bytes.
UNTOUCHED = {"f": 12345.0, "u": 54321, "i": 54321, "u1": 77}
KEY, SITE = np.array([17, 4], np.uint32), 3  # of dropout
SEED = 7  # of random inputs


def untouched(dtype: np.dtype) -> float:
    """The value of guard bands of this type."""
    return UNTOUCHED.get(dtype.str[1:], UNTOUCHED[dtype.kind])


class Arrays:
    """Makes arrays on the device of `ops`. `damaged` says whether something was written outside of them."""

    def __init__(self, ops: Operations) -> None:
        self.ops = ops
        self._guarded: list[tuple[Array, int]] = []

    def of(self, value: np.ndarray, dtype: str = "") -> Array:
        """`value` on the device, between guard bands.

        Its type is `dtype`, or by default that of activations for floats and its own for integers.
        """
        value = np.asarray(value)
        whole = self.ops.empty(value.size + 2 * GUARD, dtype or (str(value.dtype) if value.dtype.kind in "iu" else ""))
        self.ops.copy(np.full(whole.shape, untouched(whole.dtype), whole.dtype), out=whole)
        view = whole[GUARD : GUARD + value.size].reshape(value.shape)
        if value.dtype.kind == "f":
            value = value.astype(dtype or np.float32)
        self.ops.copy(value, out=view)
        self._guarded.append((whole, value.size))
        return view

    def poisoned(self, *shape: int, dtype: str = "") -> Array:
        """An array of NaN, for a kernel to overwrite."""
        return self.of(np.full(shape, np.nan), dtype)

    def rounded(self, value: np.ndarray) -> np.ndarray:
        """`value` as float64 after a trip through the type of activations."""
        array = self.ops.empty(value.shape)
        self.ops.copy(value.astype(np.float32), out=array)
        return self.ops.to_host(array).astype(np.float64)

    def damaged(self) -> bool:
        """Whether a guard band has changed."""
        for whole, size in self._guarded:
            host, band = self.ops.to_host(whole), np.array([untouched(whole.dtype)], whole.dtype)
            if host.dtype != whole.dtype:  # bf16 comes as float32
                band = (band.astype(np.uint32) << 16).view(np.float32)
            if (host[:GUARD] != band).any() or (host[GUARD + size :] != band).any():
                return True
        return False


def difference(ours: np.ndarray, reference: np.ndarray, bound: Any) -> str:
    """What is wrong with `ours`, "" if it is finite and |ours - reference| <= bound everywhere.

    Example:
        >>> difference(np.array([1.0, 2.5]), np.array([1.0, 2.0]), 0.1)
        '2.5 for 2 at (1,), off by 5 times the bound'
    """
    ours = ours.astype(np.float64)
    finite = np.isfinite(ours)
    if not finite.all():
        return f"{np.sum(~finite)} of {ours.size} elements are not finite, or were not written"
    off, bound = np.abs(ours - reference), np.broadcast_to(bound, ours.shape)
    if (off <= bound).all():
        return ""
    worst = np.unravel_index(np.argmax(off - bound), off.shape)
    times = off[worst] / bound[worst] if bound[worst] else np.inf
    place = tuple(map(int, worst))
    return f"{ours[worst]:.6g} for {np.asarray(reference)[worst]:.6g} at {place}, off by {times:.3g} times the bound"


class Trial:
    """Arrays, random numbers and comparisons for a call of one operation of `ops`. `findings` says what is wrong.

    Inputs are rounded to the type of activations first, so that both sides see the same numbers. Outputs are NaN before
    the call and lie between guard bands.
    """

    def __init__(self, ops: Operations) -> None:
        self.ops, self.rng, self.U = ops, np.random.default_rng(SEED), ROUNDING[ops.precision]
        # The vendor's products in tf32 may cut operands instead of rounding them, which doubles the error.
        self.product_U = 2 * TF32 if ops.precision == "tf32" else self.U
        self.arrays = Arrays(ops)
        self.of, self.poisoned, self.rounded = self.arrays.of, self.arrays.poisoned, self.arrays.rounded
        self.findings: list[str] = []

    def near(self, name: str, ours: Array, reference: np.ndarray, bound: Any) -> None:
        """Compare an array of the device with the reference, within the bound."""
        if found := difference(self.ops.to_host(ours), reference, bound):
            self.findings.append(f"{name} is {found}")

    def require(self, holds: object, complaint: str) -> None:
        if not holds:
            self.findings.append(complaint)

    def finish(self) -> None:
        """Look at the guard bands."""
        self.require(not self.arrays.damaged(), "something was written outside of an array")

    def normal(self, *shape: int) -> np.ndarray:
        """Normal random numbers, rounded to the type of activations."""
        return self.rounded(self.rng.standard_normal(shape))

    def exact(self, *shape: int) -> np.ndarray:
        """Normal random numbers of float32, as float64."""
        return self.rng.standard_normal(shape).astype(np.float32).astype(np.float64)

    def dropout(self, rate: float) -> tuple[Dropout | None, Dropout | None]:
        """The dropout for the device and for the reference; None without a rate."""
        mine = Dropout(rate, self.ops.from_host(KEY), SITE) if rate else None
        return mine, Dropout(rate, KEY, SITE) if rate else None

    def sums(self, rows: int, n: int) -> "Sums":
        return Sums(self, rows, n)


class Sums:
    """Room for a vector's partial sums over `rows` rows, between columns that belong to others."""

    def __init__(self, trial: Trial, rows: int, n: int) -> None:
        self._trial, self._n = trial, n
        self._whole = trial.poisoned(trial.ops.partial_sums(rows), n + 256, dtype="float32")
        self.partials = self._whole[:, 128 : 128 + n]

    def total(self) -> np.ndarray:
        host = self._trial.ops.to_host(self._whole).astype(np.float64)
        others = np.isnan(host[:, :128]).all() and np.isnan(host[:, 128 + self._n :]).all()
        self._trial.require(others, "something was written into another vector's sums")
        return np.asarray(host[:, 128 : 128 + self._n].sum(0))
