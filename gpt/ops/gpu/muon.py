"""Muon's step on a GPU: matrices of one shape go through every kernel and every product together.

A polynomial a x + b x³ + c x⁵ of a stack x [n, rows, columns] takes three products: the Gram matrices of the smaller
side, their polynomial, and that times x. The second is one product for all stacks whose smaller side is the same, which
those of a GPT are: the more matrices a product has, the fewer multiprocessors wait for its last ones.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from gpt.arithmetic import ceil_div, round_up
from gpt.ops.gpu.blas import Sum
from gpt.ops.gpu.launch import MUON_BLOCKS, THREADS, Kernels
from gpt.ops.gpu.memory import Memory
from gpt.ops.gpu.products import Products
from gpt.ops.interface import ALIGNMENT, MUON_RMS, Array, Coefficients, Stack, StackShape

AT_ONCE = 2**27  # elements that are orthogonalized together: enough to fill a GPU, 2 x 256 MiB in bf16

_long, _float = np.int64, np.float32


class GpuMuon:
    """Steps of Muon on a GPU. The update u has the type that products read, that of `memory`."""

    def __init__(self, kernel: Kernels, products: Products, memory: Memory) -> None:
        self._kernel, self._product, self._memory = kernel, products.product, memory

    def step(self, stacks: Sequence[Stack], plan: Array, momentum: float, coefficients: Coefficients) -> None:
        """`Operations.muon` defines it."""
        for layers, few in together([stack.weights.shape for stack in stacks]):
            chunks = [Stack(*(None if array is None else array[layers] for array in stacks[i])) for i in few]
            shapes = [chunk.weights.shape for chunk in chunks]
            us, others = self._rooms("muon u", shapes), self._rooms("muon other", shapes)
            for chunk, u in zip(chunks, us, strict=True):
                self._move_momentum(chunk, u, plan, momentum)
            for chunk, u in zip(chunks, self._orthogonalize(us, others, coefficients), strict=True):
                self._update(chunk, u, plan)

    def _move_momentum(self, stack: Stack, u: Array, plan: Array, momentum: float) -> None:
        """Move the momentum, and leave u / ‖u‖ in u, to be orthogonalized."""
        count = len(u)
        size, strides, defines, grid = _launch(stack, u)
        partials = self._memory.scratch("muon norm", count * MUON_BLOCKS, "float32")
        # A stack has gaps between its matrices if their size is not a multiple of the alignment. So kernels get the
        # first matrix and the distance to the next.
        moved = (stack.gradients[0], stack.momentum[0], u[0], partials, plan, _float(momentum), size, *strides)
        blocks = min(MUON_BLOCKS, grid[0])
        self._kernel("muon.hip", "muon_momentum", **defines)((blocks, count), (THREADS,), moved)
        divided = (u[0], partials, plan, size, strides[1], np.int32(blocks))
        self._kernel("muon.hip", "muon_normalize", **defines)(grid, (THREADS,), divided)

    def _update(self, stack: Stack, u: Array, plan: Array) -> None:
        """Move the weights by the orthogonalized u."""
        size, strides, defines, grid = _launch(stack, u)
        factor = _float(MUON_RMS * math.sqrt(max(u.shape[1:])))
        copy = u if stack.copy is None else stack.copy
        updated = (stack.weights[0], u[0], copy[0], plan, factor, size, *strides)
        self._kernel("muon.hip", "muon_update", **defines)(grid, (THREADS,), updated)

    def _orthogonalize(self, us: list[Array], others: list[Array], coefficients: Coefficients) -> list[Array]:
        """Newton-Schulz steps on stacks of one smaller side; returns whichever arrays hold the result."""
        grams = [_gram(u.shape) for u in us]
        ends = np.cumsum([count for count, _, _ in grams]).tolist()
        all_shapes = [(ends[-1], *grams[0][1:])]
        (all_grams,), (all_factors,) = (self._rooms(name, all_shapes) for name in ("muon gram", "muon factor"))
        slices = [slice(end - gram[0], end) for end, gram in zip(ends, grams, strict=True)]
        for a, b, c in coefficients:
            for u, place in zip(us, slices, strict=True):
                turned = u.swapaxes(1, 2)
                self._product(*((turned, u) if _is_tall(u) else (u, turned)), all_grams[place])
            self._product(all_grams, all_grams, all_factors, Sum(alpha=c, beta=b, addend=all_grams))
            for u, other, place in zip(us, others, slices, strict=True):
                factor = all_factors[place]
                self._product(*((u, factor) if _is_tall(u) else (factor, u)), other, Sum(beta=a, addend=u))
            us, others = others, us
        return us

    def _rooms(self, name: str, shapes: Sequence[StackShape]) -> list[Array]:
        """Scratch arrays of these shapes, one behind the other."""
        memory, rooms, start = self._memory.scratch(name, _elements(shapes), self._memory.dtype.name), [], 0
        for count, rows, columns in shapes:
            stride = round_up(rows * columns, ALIGNMENT)
            room = memory[start : start + count * stride].reshape(count, stride)
            rooms.append(room[:, : rows * columns].reshape(count, rows, columns))
            start += count * stride
        return rooms


def scratch_elements(shapes: Sequence[StackShape]) -> int:
    """Elements of the products' type that a step takes as scratch memory for stacks of these shapes."""
    most = 0
    for layers, few in together(shapes):
        chunks = [(layers.stop - layers.start, *shapes[i][1:]) for i in few]
        most = max(most, 2 * (_elements(chunks) + _elements(map(_gram, chunks))))
    return most


def together(shapes: Sequence[StackShape]) -> Iterator[tuple[slice, list[int]]]:
    """Yields the chunks to orthogonalize together: a slice of the matrices, and the numbers of the stacks to slice.

    Chunks are as equal as possible, and the first is the largest. For example, if AT_ONCE is 1,000,
    [(4, 10, 30), (4, 10, 10), (4, 5, 5)] gives the matrices 0 to 1 and 2 to 3 of stacks 0 and 1, and 0 to 3 of stack 2.
    """
    sides: dict[tuple[int, int], list[int]] = {}
    for number, (count, rows, columns) in enumerate(shapes):
        sides.setdefault((min(rows, columns), count), []).append(number)
    for (_, count), few in sides.items():
        chunks = min(count, ceil_div(_elements(shapes[i] for i in few), AT_ONCE))
        at_once = ceil_div(count, chunks)
        for start in range(0, count, at_once):
            yield slice(start, min(start + at_once, count)), few


def _launch(stack: Stack, u: Array) -> tuple[np.int64, tuple[np.int64, np.int64], dict[str, int], tuple[int, int]]:
    """Arguments for kernels of muon.hip: elements of a matrix, distances to the next, macros, and a grid for u."""
    size = math.prod(u.shape[1:])
    width = 4 if size % 4 == 0 else 1
    strides = _long(_stride(stack.weights)), _long(_stride(u))
    defines = {"COPY": int(stack.copy is not None), "WIDTH": width}
    return _long(size), strides, defines, (ceil_div(size, THREADS * width), len(u))


def _is_tall(u: Array) -> bool:
    return bool(u.shape[1] > u.shape[2])


def _gram(shape: StackShape) -> StackShape:
    """The shape of a stack's Gram matrices."""
    side = min(shape[1:])
    return shape[0], side, side


def _elements(shapes: Iterable[StackShape]) -> int:
    return sum(count * round_up(rows * columns, ALIGNMENT) for count, rows, columns in shapes)


def _stride(stack: Array) -> int:
    """Elements from one matrix to the next."""
    return int(stack.strides[0] // stack.itemsize)
