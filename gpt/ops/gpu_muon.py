"""The operations' step of Muon on a GPU: matrices of one shape go through every kernel and every product together.

An orthogonalized stack x [n, rows, columns] takes three products for each polynomial a x + b x³ + c x⁵: the Gram
matrices of the smaller side, their polynomial, and that times x. Their size decides how many matrices go at once.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from gpt.ops import Array, Stack
from gpt.ops.cpu import MUON_RMS

AT_ONCE = 2**25  # elements of a stack that are orthogonalized together: enough to fill a GPU, 64 MiB in bf16
PARTS = 64  # partial sums of a norm, `PARTS` in muon.hip
ALIGNMENT = 128  # elements: matrices of a stack begin at multiples

_long, _float = np.int64, np.float32


class GpuMuon:
    """Muon by way of a GPU's kernels: `kernel`, `product` and `scratch` are those of GpuOps; u has type `dtype`."""

    def __init__(self, kernel: Callable, product: Callable, scratch: Callable, dtype: np.dtype) -> None:
        self._kernel, self._product, self._scratch, self._dtype = kernel, product, scratch, dtype

    def step(
        self, stacks: Sequence[Stack], plan: Array, momentum: float, coefficients: Sequence[tuple[float, float, float]]
    ) -> None:
        for name, size in self._sizes([stack.weights.shape for stack in stacks]).items():
            self._scratch(name, size, self._dtype.name)  # the largest of all parts, so that none asks for more
        for stack in _in_parts(stacks):
            self._step(stack, plan, momentum, coefficients)

    def _step(self, stack: Stack, plan: Array, momentum: float, coefficients: Sequence) -> None:
        count, rows, columns = stack.weights.shape
        size, copy = rows * columns, stack.copy
        # A stack has gaps between its matrices if their size is not a multiple of the alignment. So kernels get the
        # first matrix and the distance to the next.
        weights, gradients, momenta = (array[0] for array in stack[:3])
        u, other = (self._stack(name, stack.weights.shape) for name in ("muon u", "muon other"))
        partials = self._scratch("muon norm", count * PARTS)
        defines = {"COPY": int(copy is not None), "WIDTH": 4 if size % 4 == 0 else 1}
        strides = _long(_stride(stack.weights)), _long(_stride(u))
        blocks = -(-size // (256 * defines["WIDTH"]))

        moved = (gradients, momenta, u[0], partials, plan, _float(momentum), _long(size), *strides)
        self._kernel("muon.hip", "muon_momentum", **defines)((PARTS, count), (256,), moved)
        normalized = (u[0], partials, plan, _long(size), strides[1])
        self._kernel("muon.hip", "muon_normalize", **defines)((blocks, count), (256,), normalized)
        u = self._orthogonalize(u, other, coefficients)
        factor = _float(MUON_RMS * math.sqrt(max(rows, columns)))
        updated = (weights, u[0], u[0] if copy is None else copy[0], plan, factor, _long(size), *strides)
        self._kernel("muon.hip", "muon_update", **defines)((blocks, count), (256,), updated)

    def _orthogonalize(self, u: Array, other: Array, coefficients: Sequence) -> Array:
        """Newton-Schulz steps on u; returns whichever of the two arrays holds the result."""
        count, rows, columns = u.shape
        tall, side = rows > columns, min(rows, columns)
        gram, factor = (self._stack(name, (count, side, side)) for name in ("muon gram", "muon factor"))
        for a, b, c in coefficients:
            turned = u.swapaxes(1, 2)
            self._product(*((turned, u) if tall else (u, turned)), gram)
            self._product(gram, gram, factor, alpha=c, beta=b, addend=gram)
            self._product(*((u, factor) if tall else (factor, u)), other, beta=a, addend=u)
            u, other = other, u
        return u

    def _stack(self, name: str, shape: tuple[int, int, int]) -> Array:
        count, rows, columns = shape
        stride = _aligned(rows * columns)
        memory = self._scratch(name, count * stride, self._dtype.name).reshape(count, stride)
        return memory[:, : rows * columns].reshape(shape)

    def bytes(self, shapes: Sequence[tuple[int, int, int]]) -> int:
        """Bytes of scratch memory that a step takes for stacks of these shapes."""
        return sum(self._sizes(shapes).values()) * self._dtype.itemsize

    def _sizes(self, shapes: Sequence[tuple[int, int, int]]) -> dict[str, int]:
        """Elements of each scratch array that stacks of these shapes need."""
        parts = [(_at_once(shape), *shape[1:]) for shape in shapes]
        whole = max(count * _aligned(rows * columns) for count, rows, columns in parts)
        square = max(count * _aligned(min(rows, columns) ** 2) for count, rows, columns in parts)
        return {"muon u": whole, "muon other": whole, "muon gram": square, "muon factor": square}


def _in_parts(stacks: Sequence[Stack]) -> Iterator[Stack]:
    """The stacks, those that are too large in pieces."""
    for stack in stacks:
        at_once = _at_once(stack.weights.shape)
        for start in range(0, len(stack.weights), at_once):
            part = slice(start, start + at_once)
            yield Stack(*(None if array is None else array[part] for array in stack))


def _at_once(shape: tuple[int, int, int]) -> int:
    """How many matrices of a stack are orthogonalized together: parts as equal as may be."""
    count, rows, columns = shape
    parts = -(-count * rows * columns // AT_ONCE)
    return -(-count // min(count, parts))


def _stride(stack: Array) -> int:
    """Elements from one matrix to the next."""
    return stack.strides[0] // stack.itemsize


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
