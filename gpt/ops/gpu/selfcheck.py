"""The check of the vendor's matrix products at the start of a command, on the shapes of the model that it runs.

Some versions of hipBLASLt compute wrong numbers on some cards, without an error. So a model on ROCm relies on it only
after its products have been compared with those of matmul.hip: all shapes, transposes and epilogues of that model.

Operands are random whole numbers from -2 to 2 times a power of two. Then every sum is exact in float32, in whatever
order it is added up, and so the library may differ by the rounding of its result alone. GELU is the exception, because
libraries approximate it. A single wrong element is found if it is compared: of a large result that are the first, the
middle and the last rows.

For example, sums of 768 products of such numbers have a standard deviation of 2 sqrt(768) = 55. With a power of 2^-6
they are about 1, which is where GELU bends.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt.arithmetic import round_up
from gpt.config import ModelConfig
from gpt.constants import GELU_CUBIC, GELU_SCALE
from gpt.errors import UserError, first_line
from gpt.ops.gpu import muon
from gpt.ops.gpu.blas import NO_EPILOGUE, PLAIN, Blas, Epilogue, Sum, is_transposed
from gpt.ops.gpu.products import Products
from gpt.ops.gpu.verdict import Verdict, given_up
from gpt.ops.interface import ALIGNMENT, Array, Operations, StackShape

PERIOD = 131_101  # random numbers of an operand before they repeat; a prime, so that rows begin at different ones
COMPARED = 2**19  # elements of a result, about, that are compared
ROUNDING = {2: 2.0**-8, 4: 2.0**-23}  # relative error of a result: one rounding, even if it is towards 0; by itemsize
GELU_ERROR = 2.0**-10  # of the library's tanh, relative to tanh's factor; hardware's own has 2^-11

Values = Callable[[int], np.ndarray]  # so many numbers, float32


class Case(NamedTuple):
    """A product out [m, n] = a [m, k] @ b [k, n] that a model asks for, or a stack of `matrices` of them."""

    m: int
    k: int
    n: int
    a_transposed: bool = False
    b_transposed: bool = False
    epilogue: str = "none"  # a key of blas.EPILOGUES
    adds: bool = False  # to `out`; in a stack, to another array
    exact: bool = False  # `out` is float32, whatever type the operands have
    matrices: int = 0  # 0: not a stack

    def __str__(self) -> str:
        left, right = ("ᵀ" if turned else "" for turned in (self.a_transposed, self.b_transposed))
        stack = f"{self.matrices} x " if self.matrices else ""
        steps = [f" with {self.epilogue}"] * (self.epilogue != "none") + [" with addition"] * self.adds
        return f"{stack}[{self.m}, {self.k}]{left} [{self.k}, {self.n}]{right}{''.join(steps)}"


def model_cases(
    config: ModelConfig, rows: int, head_rows: int, vocab: int, training: bool, fused: bool, lora: int | None = None
) -> Iterator[Case]:
    """The products of a model over `rows` rows, and of a head of `vocab` columns over `head_rows` of them at a time.

    `fused` says whether the library also applies the activation. Without `training` they are those of a prompt. With
    `lora` only adapters of that rank learn, and the activation is applied to their sums.
    """
    d, f = config.embed_dim, config.ff_hidden_dim
    layers = ((d, 3 * d), (d, d), (d, f), (f, d))
    if not training:
        for k, n in layers:
            yield Case(rows, k, n, epilogue="bias")
        if fused:
            yield Case(rows, d, f, epilogue="gelu")
        # One position of a sequence, if its rows are no whole vectors and no kernel of hipgpt's own takes them
        for k, n in layers[0::2]:
            yield Case(1, k, n, epilogue="bias")
        for k, n in layers[1::2]:
            yield Case(1, k, n, adds=True)
        return
    for k, n in layers:
        yield Case(rows, k, n, epilogue="bias")
        yield Case(rows, n, k, b_transposed=True)
        if lora:
            yield from _adapter_cases(rows, k, n, lora)
        else:
            yield from (Case(k, rows, n, a_transposed=True, adds=adds, exact=True) for adds in (False, True))
    if fused and not lora:
        yield Case(rows, d, f, epilogue="gelu")
        yield Case(rows, d, f, b_transposed=True, epilogue="dgelu")
    most = min(rows, head_rows)
    for chunk in sorted({most, rows % head_rows or most}):
        yield Case(chunk, d, vocab, b_transposed=True)
        yield Case(chunk, vocab, d)
        if not lora:
            yield from (Case(vocab, chunk, d, a_transposed=True, adds=adds, exact=True) for adds in (False, True))


def _adapter_cases(rows: int, k: int, n: int, lora: int) -> Iterator[Case]:
    """The products of an adapter beside a layer [k, n], of both passes, and of merging it for a sample."""
    yield Case(rows, k, lora, b_transposed=True)
    yield Case(rows, lora, n, b_transposed=True, adds=True)
    yield Case(rows, n, lora)
    yield Case(rows, lora, k, adds=True)
    for adds in (False, True):
        yield Case(n, rows, lora, a_transposed=True, adds=adds, exact=True)
        yield Case(lora, rows, k, a_transposed=True, adds=adds, exact=True)
    yield Case(k, lora, n, a_transposed=True, b_transposed=True, adds=True)


def muon_cases(shapes: Sequence[StackShape]) -> Iterator[Case]:
    """The products of a step of Muon for stacks of these shapes; `GpuMuon` asks for them."""
    for layers, few in muon.together(shapes):
        count = layers.stop - layers.start
        for _, rows, columns in (shapes[i] for i in few):
            side, tall = min(rows, columns), rows > columns
            yield Case(side, max(rows, columns), side, tall, not tall, matrices=count)
            yield Case(rows, side, columns, adds=True, matrices=count)
        side = min(shapes[few[0]][1:])
        yield Case(side, side, side, adds=True, matrices=count * len(few))


def check(ops: Operations, products: Products, cases: Iterable[Case]) -> None:
    """Give up the vendor's library, with a note, if it computes one of these products wrongly.

    The verdict is remembered for the card, the library, the precision and the products. A check that ended the
    program is a fault, too. A device that needs no check has no `blas_card`. If the user insists on
    the library (`--blas vendor`), only a library without any kernel for this GPU is refused, by a UserError.
    """
    device = products.device
    if device.blas is None or not device.blas_card:
        return
    cases = list(dict.fromkeys(cases))
    insists = device.blas_choice == "vendor"
    compare = partial(_Check(ops, products, device.blas).fault, cases, compares=not insists)
    verdict = Verdict(Path(device.cache), "check", [device.blas_card, ops.precision, cases])
    try:
        fault = compare() if insists else verdict.fault(compare)
    except RuntimeError as error:  # it may have other reasons than the library, so the next start tries again
        fault = f"hipBLASLt fails on this GPU: {error}"
    if not fault:
        return
    if insists:
        raise UserError(f"--blas vendor: {fault}; use --blas own")
    device.blas = None
    device.notes.append(given_up(fault))


class _Check:
    """A comparison of the products of `blas`, the vendor's library, with those of matmul.hip."""

    def __init__(self, ops: Operations, products: Products, blas: Blas) -> None:
        self._ops, self._products, self._device, self._blas = ops, products, products.device, blas
        self._dtype = ops.empty(1).dtype  # of operands
        self._rng = np.random.default_rng(0)

    def fault(self, cases: Iterable[Case], compares: bool) -> str:
        """The first thing that is wrong with the library, in a few words, or "". Raises RuntimeError if it fails.

        Without `compares` only a library that accepts no product has a fault.
        """
        accepted, waiting = False, list(cases)
        while waiting:
            case = waiting.pop(0)
            try:
                off = self._difference(case, compares)
            except RuntimeError as error:  # BlasError, or one of CuPy's
                raise RuntimeError(f"{first_line(error)} in {case}") from None
            if off:
                return f"hipBLASLt computes wrong products on this GPU: {off} in {case}"
            if off is None and case.epilogue == "bias":
                waiting.insert(0, case._replace(epilogue="none"))  # a kernel then adds the bias
            accepted = accepted or off is not None
        return "" if accepted else f"hipBLASLt has no kernels for {self._device.description}"

    def _difference(self, case: Case, compares: bool) -> str | None:
        """The largest difference to matmul.hip's product, as text, or "" if none is too large.

        None if the library does not have this product.
        """
        a, b, out, epilogue, into = self._arrays_of(case)
        places = [(number, rows) for number in _compared_matrices(case) for rows in _compared_rows(case)]
        before = [self._host(_part(into.addend, number, rows)) if case.adds else 0 for number, rows in places]
        if not self._blas.product(a, b, out, stream=self._device.stream, epilogue=epilogue, into=into):
            return None
        if not compares:
            return ""
        offset = 0 if epilogue.bias is None else self._host(epilogue.bias)
        for (number, rows), old in zip(places, before, strict=True):
            exact = into.alpha * self._own(_part(a, number), _part(b, number), rows) + into.beta * old + offset
            for name, array, expected, bound in self._expected(exact, rows, out, epilogue):
                if text := _worst(self._host(_part(array, number, rows)), expected, bound, rows.start):
                    return name + text
        return ""

    def _arrays_of(self, case: Case) -> tuple[Array, Array, Array, Epilogue, Sum]:
        """The arrays of a case: factors a and b, the result, the epilogue with its arrays, and the addend of the sum.

        a and b are random. `out` is NaN, so that an element that is not written shows, unless the product adds to it.
        """
        dtype = np.dtype(np.float32) if case.exact else self._dtype
        a = self._operand(case.m, case.k, case.a_transposed, case.matrices, 2.0 ** -round(math.log2(2 * case.k**0.5)))
        b = self._operand(case.k, case.n, case.b_transposed, case.matrices)
        into = PLAIN
        if case.adds:
            addend = self._array(case.m, case.n, case.matrices, dtype, _wholes(self._rng))
            into = Sum(0.5, 2.0, addend) if case.matrices else Sum(addend=addend)
        in_place = case.adds and not case.matrices
        out = into.addend if in_place else self._array(case.m, case.n, case.matrices, dtype, _poison)
        bias: Array = None
        pre_activation: Array = None
        if case.epilogue in ("bias", "gelu"):
            bias = self._array(1, case.n, 0, dtype, _wholes(self._rng))[0]
        if case.epilogue in ("gelu", "dgelu"):
            values = _poison if case.epilogue == "gelu" else _wholes(self._rng, 12, 0.25)
            pre_activation = self._array(case.m, case.n, 0, dtype, values)
        epilogue = NO_EPILOGUE if case.epilogue == "none" else Epilogue(case.epilogue, bias, pre_activation)
        return a, b, out, epilogue, into

    def _expected(
        self, exact: np.ndarray, rows: slice, out: Array, epilogue: Epilogue
    ) -> Iterator[tuple[str, Array, np.ndarray, np.ndarray]]:
        """Each array that the library has written, with its name, its value in these rows, and the bound of its error.

        `exact` are these rows of the product with its bias and all that is added, before GELU.
        """
        rounding = ROUNDING[out.dtype.itemsize]
        if epilogue.name == "dgelu":
            yield "", out, *_dgelu(exact, self._host(epilogue.pre_activation[rows]), rounding)
        elif epilogue.name == "gelu":
            yield "", out, *_gelu(exact, rounding)
            yield "before GELU, ", epilogue.pre_activation, exact, rounding * np.abs(exact)
        else:
            yield "", out, exact, rounding * np.abs(exact)

    def _operand(self, rows: int, columns: int, transposed: bool, count: int, unit: float = 1.0) -> Array:
        shape = (columns, rows) if transposed else (rows, columns)
        array = self._array(*shape, count, self._dtype, _wholes(self._rng, unit=unit))
        return array.swapaxes(-1, -2) if transposed else array

    def _array(self, rows: int, columns: int, count: int, dtype: np.dtype, values: Values) -> Array:
        """An array [rows, columns], or [count, rows, columns] as Muon's stacks lie, with numbers that repeat."""
        size = rows * columns
        stride = round_up(size, ALIGNMENT) if count else size
        memory = self._ops.empty(max(1, count) * stride, dtype.name)
        filled = min(memory.size, PERIOD)
        self._ops.copy(values(filled), out=memory[:filled])
        while filled < memory.size:
            more = min(filled, memory.size - filled)
            self._ops.copy(memory[:more], out=memory[filled : filled + more])
            filled += more
        if not count:
            return memory.reshape(rows, columns)
        return memory.reshape(count, stride)[:, :size].reshape(count, rows, columns)

    def _own(self, a: Array, b: Array, rows: slice) -> np.ndarray:
        """These rows of matmul.hip's product, float32, on the host."""
        if is_transposed(a):  # a part of its rows is not a matrix that the kernel takes
            return self._host(self._own_whole(a, b)[rows])
        return self._host(self._own_whole(a[rows], b))

    def _own_whole(self, a: Array, b: Array) -> Array:
        out = self._ops.empty((a.shape[0], b.shape[1]), "float32")
        self._products.by_kernel(a, b, out, "STORE")
        return out

    def _host(self, array: Array) -> np.ndarray:
        return self._ops.to_host(array)


def _compared_matrices(case: Case) -> list[int]:
    """The matrices of a stack to compare: the first, one in the middle and the last."""
    return sorted({0, case.matrices // 2, case.matrices - 1}) if case.matrices else [0]


def _compared_rows(case: Case) -> list[slice]:
    """The rows to compare, a third each of COMPARED elements: the first, those in the middle and the last."""
    few = max(1, COMPARED // (3 * case.n))
    if case.m <= 3 * few:
        return [slice(0, case.m)]
    return [slice(start, start + few) for start in (0, (case.m - few) // 2, case.m - few)]


def _part(array: Array, number: int, rows: slice = slice(None)) -> Array:
    """Rows of a matrix, or of matrix `number` of a stack. All rows are the matrix itself, transposed as it is."""
    return (array[number] if array.ndim == 3 else array)[rows]


def _wholes(rng: np.random.Generator, largest: int = 2, unit: float = 1.0) -> Values:
    """A function that draws so many whole numbers of at most `largest`, times `unit`."""
    return lambda count: rng.integers(-largest, largest, count, np.int8, endpoint=True) * np.float32(unit)


def _poison(count: int) -> np.ndarray:
    return np.full(count, np.nan, np.float32)


def _gelu(x: np.ndarray, rounding: float) -> tuple[np.ndarray, np.ndarray]:
    """GELU, and how far the library's may be off. It may round x before, which a slope of up to 1.13 carries on."""
    result = x / 2 * (1 + np.tanh(GELU_SCALE * (x + GELU_CUBIC * x**3)))
    return result, rounding * (np.abs(result) + 1.13 * np.abs(x)) + GELU_ERROR * np.abs(x)


def _dgelu(product: np.ndarray, x: np.ndarray, rounding: float) -> tuple[np.ndarray, np.ndarray]:
    """The product times GELU's derivative at x, and how far the library's may be off; it may round the product."""
    inner = GELU_SCALE * (x + GELU_CUBIC * x**3)
    tanh, slope = np.tanh(inner), GELU_SCALE * (1 + 3 * GELU_CUBIC * x**2)
    result = product * ((1 + tanh) / 2 + x / 2 * (1 - tanh**2) * slope)
    return result, 2.26 * rounding * np.abs(product) + GELU_ERROR * np.abs(product) * (1 + np.abs(x * slope))


def _worst(ours: np.ndarray, expected: np.ndarray, bound: np.ndarray, first_row: int) -> str:
    """The element that is furthest beyond its bound, as text, or "" if none is."""
    with np.errstate(invalid="ignore"):
        off = np.abs(ours - expected)
        if (off <= bound).all():
            return ""
    beyond = np.where(np.isfinite(ours), off - bound, np.inf)
    row, column = np.unravel_index(np.argmax(beyond), beyond.shape)
    return f"{ours[row, column]:.6g} for {expected[row, column]:.6g} in row {first_row + row}, column {column},"
