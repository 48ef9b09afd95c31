"""The slowest operations of a training step on a CPU, as loops that numba compiles; numba_operations.py calls them.

gpt/ops/interface.py defines the operations. How the loops are built:

- A `parallel` function cuts its rows into `shares` for OpenMP's threads. Those wait some 50 µs for the next share
  before they sleep, so handing shares out takes 2 µs. Results depend on the number of shares, but not on which thread
  is faster. Shares are slices of arrays, so these functions take arrays and numbers, not bundles.
- A `loop` goes over one share. The innermost loops start at 0 and run over contiguous arrays: else LLVM would not take
  8 or 16 elements at a time. That is why shares are slices, and why sums over rows go into arrays of their own.
- A `parallel` function does nothing but call loops: numba would turn each of its assignments to a slice into one more
  parallel function, and compile that for seconds.
- LLVM may reorder the terms of a `reduction` and fuse those of a `polynomial`; everything else it must do as written.
  With more freedom, fresh code and code from numba's cache, which is optimized once more, would round differently, and
  the same run twice would not give the same bits.

All numbers are float32: one that is not would make its whole expression float64. numba's cache does not notice when
another file changes. So all loops are in this one, and the constants that it imports are those of GPT-2, which never
change.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  numba's BLAS; loaded here, before BLAS is told to use one thread
from numba import njit, prange, types

from gpt.constants import GELU_CUBIC as CUBIC
from gpt.constants import GELU_SCALE as SCALE
from gpt.constants import NORM_EPS as EPS

f4 = np.float32
ZERO, ONE, INFINITY = f4(0), f4(1), f4(np.inf)
IDENTITY, RELU, GELU = range(3)  # activations
PRODUCT_ROWS = 512  # rows of a product at a time: the next loop then finds them in the cache
QUERIES, KEYS = 64, 256  # a tile of attention; KEYS is a multiple of QUERIES, so every query sees the tile's first key

F = TypeVar("F", bound=Callable[..., Any])


def compiled(**options: Any) -> Callable[[F], F]:
    """numba.njit with these options. To a type checker, a compiled function has the type that it had before."""
    decorator: Callable[[F], F] = njit(cache=True, error_model="numpy", **options)
    return decorator


loop = compiled()
polynomial = compiled(fastmath={"contract"})
reduction = compiled(fastmath={"contract", "reassoc"})

VECTOR, MATRIX = types.float32[::1], types.float32[:, ::1]  # contiguous
STRIDED = types.float32[:, :]  # a matrix, a transposed one or a part of one: for `matmul`, `put` and `clear`
NUMBER, WHOLE = types.float32, types.int64


class Parallel:
    """A parallel function, which numba compiles for these parameters alone, at its first call.

    Left to itself, numba would compile it for every combination of layouts that it is called with; `linear_backward`
    has four of them, at four seconds each. Arguments of other types are a TypeError.
    """

    def __init__(self, function: Callable[..., None], parameters: Sequence[types.Type]) -> None:
        self.dispatcher: Any = compiled(nogil=True, parallel=True)(function)
        self._signature = types.void(*parameters)

    def __call__(self, *arguments: object) -> None:
        if not self.dispatcher.signatures:
            self.dispatcher.compile(self._signature)
            self.dispatcher.disable_compile()  # from now on numba converts contiguous arrays to STRIDED
        self.dispatcher(*arguments)


def parallel(*parameters: types.Type) -> Callable[[Callable[..., None]], Parallel]:
    """A decorator that makes a `Parallel` of a function."""
    return partial(Parallel, parameters=parameters)


@loop
def share(size: int, shares: int, number: int) -> tuple[int, int]:
    """The begin and the end of share `number` of `shares`."""
    return size * number // shares, size * (number + 1) // shares


# ---- products --------------------------------------------------------------------------------------------------------

_POINTER, _INT = types.CPointer(types.float32), types.intp
_gemm = types.ExternalFunction(  # called by numba's own np.dot, which wants contiguous arrays and cannot add
    "numba_xxgemm",
    types.intc(
        types.char, types.char, types.char, _INT, _INT, _INT, _POINTER, _POINTER, _INT, _POINTER, _INT, _POINTER,
        _POINTER, _INT,
    ),
)  # fmt: skip
_FACTORS = np.array([0, 1], np.float32)  # BLAS wants the address of its alpha, here 1, and its beta


@loop
def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray, accumulate: int) -> None:
    """out [M, N] = a [M, K] @ b [K, N] if accumulate is 0; if it is 1 the product is added to out.

    The rows of out are contiguous. So are the rows of a and b, or else their columns.
    """
    (m, k), n = a.shape, b.shape[1]
    if m and n:
        (a_order, a_stride), (b_order, b_stride) = _layout(a), _layout(b)
        _gemm(  # BLAS thinks in columns: outᵀ = bᵀ aᵀ
            ord("s"), b_order, a_order, n, m, k, _FACTORS[1:].ctypes, b.ctypes, b_stride, a.ctypes, a_stride,
            _FACTORS[accumulate:].ctypes, out.ctypes, max(n, out.strides[0] // 4),
        )  # fmt: skip


@loop
def _layout(x: np.ndarray) -> tuple[int, int]:
    """BLAS's letter for x as it is ("n") or transposed ("t"), and the elements from one row, or column, to the next."""
    if x.strides[1] == 4:
        return ord("n"), max(x.shape[1], x.strides[0] // 4)
    return ord("t"), max(x.shape[0], x.strides[1] // 4)


# ---- functions of one element, and sums ------------------------------------------------------------------------------

LOG2_E = f4(1 / math.log(2))
LN_2_HIGH = f4(355 / 512)  # nine bits: its product with a whole number below 2^15 is exact
LN_2_LOW = f4(math.log(2) - 355 / 512)
C2, C3, C4, C5, C6, C7 = (f4(1 / math.factorial(power)) for power in range(2, 8))
LEAST, MOST = f4(-87.3), f4(88.3)  # between which e^x is a normal number


@polynomial
def exp(x: f4) -> f4:
    """e^x to 2^-22 relative; 0 below 1e-38, infinite above 2e38.

    2^n e^f with |f| <= ln(2) / 2, for which Taylor's next term is below 2^-27.
    """
    n = np.floor(x * LOG2_E + f4(0.5))
    f = (x - n * LN_2_HIGH) - n * LN_2_LOW
    series = (((((C7 * f + C6) * f + C5) * f + C4) * f + C3) * f + C2) * f * f + f + ONE
    result = series * np.int32((np.int32(n) + 127) << 23).view(np.float32)
    return ZERO if x < LEAST else INFINITY if x > MOST else result


@loop
def sigmoid_2u(x: f4) -> f4:
    """σ(2u) = (1 + tanh(u)) / 2, with the u of the GELU of x."""
    return ONE / (ONE + exp(f4(-2 * SCALE) * x * (ONE + f4(CUBIC) * x * x)))


@loop
def largest(x: np.ndarray) -> f4:
    """The largest of x [n], n at least 1; undefined if one is NaN.

    Compares the bits as integers of the same order, because LLVM vectorizes the maximum of integers, but not of floats.
    """
    most, bits = np.int32(-(2**31)), x.view(np.int32)
    for j in range(x.size):
        most = max(most, np.int32(bits[j] ^ ((bits[j] >> 31) & 0x7FFFFFFF)))
    return np.int32(most ^ ((most >> 31) & 0x7FFFFFFF)).view(np.float32)


@reduction
def total(x: np.ndarray) -> f4:
    """Σ x, [n]."""
    result = ZERO
    for j in range(x.size):
        result += x[j]
    return result


@reduction
def dot(x: np.ndarray, y: np.ndarray) -> f4:
    """Σ x y, both [n]."""
    result = ZERO
    for j in range(x.size):
        result += x[j] * y[j]
    return result


@loop
def add(x: np.ndarray, out: np.ndarray) -> None:
    """out += x, both [n]."""
    for j in range(x.size):
        out[j] += x[j]


@loop
def put(x: np.ndarray, out: np.ndarray) -> None:
    """out = x, both [n]."""
    for j in range(x.size):
        out[j] = x[j]


@loop
def scale(x: np.ndarray, factor: f4) -> None:
    """x *= factor, [n]."""
    for j in range(x.size):
        x[j] *= factor


# ---- embedding -------------------------------------------------------------------------------------------------------


@parallel(MATRIX, types.int32[:, ::1], MATRIX, MATRIX, WHOLE)
def embedding_backward(dout: np.ndarray, ids: np.ndarray, dwte: np.ndarray, dwpe: np.ndarray, shares: int) -> None:
    """Shares of columns: no two threads ever add to the same element."""
    batch, seq = ids.shape
    for number in prange(shares):
        begin, end = share(dwte.shape[1], shares, number)
        for row in range(batch * seq):
            b, s = row // seq, row % seq
            add(dout[row, begin:end], dwte[ids[b, s], begin:end])
            add(dout[row, begin:end], dwpe[s, begin:end])


# ---- layer norm ------------------------------------------------------------------------------------------------------


@loop
def _layernorm(
    x: np.ndarray,
    branch: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    x_out: np.ndarray,
    out: np.ndarray,
    mean: np.ndarray,
    rstd: np.ndarray,
) -> None:
    """x, branch, x_out and out [rows, D], weight and bias [D], mean and rstd [rows]."""
    rows, d = x.shape
    for r in range(rows):
        if branch.size:
            for j in range(d):
                x_out[r, j] = x[r, j] + branch[r, j]
        mean[r] = total(x_out[r]) / f4(d)
        for j in range(d):
            out[r, j] = x_out[r, j] - mean[r]
        rstd[r] = ONE / np.sqrt(dot(out[r], out[r]) / f4(d) + f4(EPS))
        for j in range(d):
            out[r, j] = out[r, j] * rstd[r] * weight[j] + bias[j]


@parallel(MATRIX, MATRIX, VECTOR, VECTOR, MATRIX, MATRIX, VECTOR, VECTOR, WHOLE)
def layernorm(
    x: np.ndarray, branch: np.ndarray, weight: np.ndarray, bias: np.ndarray, x_out: np.ndarray, out: np.ndarray,
    mean: np.ndarray, rstd: np.ndarray, shares: int,
) -> None:  # fmt: skip
    """The norm of x_out = x + branch; with an empty branch x_out must be x."""
    for number in prange(shares):
        begin, end = share(len(x), shares, number)
        r = slice(begin, end)
        _layernorm(x[r], branch[r], weight, bias, x_out[r], out[r], mean[r], rstd[r])


@loop
def _layernorm_backward(
    x: np.ndarray,
    out: np.ndarray,
    mean: np.ndarray,
    rstd: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    dx: np.ndarray,
    dweight: np.ndarray,
    dbias: np.ndarray,
    dx_sums: np.ndarray,
) -> None:
    """x, out and dx [rows, D], mean and rstd [rows], the others [D]; out is its gradient at first; dx is added to."""
    rows, d = x.shape
    n, g = np.empty(d, np.float32), np.empty(d, np.float32)
    sums = np.zeros((3, d), np.float32)
    for r in range(rows):
        for j in range(d):
            n[j] = (x[r, j] - mean[r]) * rstd[r]
            g[j] = out[r, j] * weight[j]
            sums[0, j] += out[r, j] * n[j]
            sums[1, j] += out[r, j]
        g_mean, gn_mean = total(g) / f4(d), dot(g, n) / f4(d)
        for j in range(d):
            dx[r, j] += rstd[r] * (g[j] - g_mean - n[j] * gn_mean)
            sums[2, j] += dx[r, j]
            out[r, j] = n[j] * weight[j] + bias[j]
    put(sums[0], dweight)
    put(sums[1], dbias)
    put(sums[2], dx_sums)


@parallel(MATRIX, MATRIX, VECTOR, VECTOR, VECTOR, VECTOR, MATRIX, STRIDED, STRIDED, STRIDED, WHOLE)
def layernorm_backward(
    x: np.ndarray, out: np.ndarray, mean: np.ndarray, rstd: np.ndarray, weight: np.ndarray, bias: np.ndarray,
    dx: np.ndarray, dweight: np.ndarray, dbias: np.ndarray, dx_sums: np.ndarray, shares: int,
) -> None:  # fmt: skip
    """The three sums are partial ones, [shares, D]."""
    for number in prange(shares):
        begin, end = share(len(x), shares, number)
        r = slice(begin, end)
        _layernorm_backward(
            x[r], out[r], mean[r], rstd[r], weight, bias, dx[r], dweight[number], dbias[number], dx_sums[number]
        )


# ---- linear ----------------------------------------------------------------------------------------------------------


@loop
def _activate(pre_activation: np.ndarray, bias: np.ndarray, out: np.ndarray, activation: int) -> None:
    """pre_activation += bias, then out = activation(pre_activation), both [rows, n]; an empty bias is none."""
    rows, columns = pre_activation.shape
    for r in range(rows):
        if bias.size:
            add(bias, pre_activation[r])
        if activation == RELU:
            for j in range(columns):
                out[r, j] = ZERO if pre_activation[r, j] < ZERO else pre_activation[r, j]  # keeps NaN
        elif activation == GELU:
            for j in range(columns):
                out[r, j] = pre_activation[r, j] * sigmoid_2u(pre_activation[r, j])


@loop
def _activate_backward(pre_activation: np.ndarray, dx: np.ndarray, activation: int, dx_sums: np.ndarray) -> None:
    """dx *= activation'(pre_activation), both [rows, n]; dx_sums [n] += its rows."""
    rows, columns = pre_activation.shape
    for r in range(rows):
        if activation == RELU:
            for j in range(columns):
                dx[r, j] = dx[r, j] if pre_activation[r, j] > ZERO else ZERO
        else:
            for j in range(columns):
                x = pre_activation[r, j]
                s = sigmoid_2u(x)
                twice_du = f4(2 * SCALE) * (ONE + f4(3 * CUBIC) * x * x)
                dx[r, j] *= s + x * s * (ONE - s) * twice_du
        add(dx[r], dx_sums)


@loop
def _linear(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    pre_activation: np.ndarray,
    out: np.ndarray,
    activation: int,
) -> None:
    """A share of `linear`."""
    for first in range(0, len(x), PRODUCT_ROWS):
        r = slice(first, min(first + PRODUCT_ROWS, len(x)))
        matmul(x[r], weight, pre_activation[r], 0)
        _activate(pre_activation[r], bias, out[r], activation)


@parallel(MATRIX, STRIDED, VECTOR, MATRIX, MATRIX, WHOLE, WHOLE)
def linear(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, pre_activation: np.ndarray, out: np.ndarray, activation: int,
    shares: int,
) -> None:  # fmt: skip
    """out = activation(pre_activation), pre_activation = x @ weight + bias; an empty bias is none.

    With IDENTITY pre_activation must be out.
    """
    for number in prange(shares):
        begin, end = share(len(x), shares, number)
        r = slice(begin, end)
        _linear(x[r], weight, bias, pre_activation[r], out[r], activation)


@loop
def _linear_backward(
    dout: np.ndarray,
    weight: np.ndarray,
    dx: np.ndarray,
    dbias: np.ndarray,
    pre_activation: np.ndarray,
    dx_sums: np.ndarray,
    activation: int,
    number: int,
) -> None:
    """Share `number` of dx and of the sums over rows; dout, dx and pre_activation are the share's rows."""
    sums = np.zeros(dx.shape[1], np.float32)
    for first in range(0, len(dx), PRODUCT_ROWS):
        r = slice(first, min(first + PRODUCT_ROWS, len(dx)))
        matmul(dout[r], weight.T, dx[r], 0)
        if activation:
            _activate_backward(pre_activation[r], dx[r], activation, sums)
    if activation:
        put(sums, dx_sums[number])
    if dbias.size:
        sums = np.zeros(dout.shape[1], np.float32)
        for row in range(len(dout)):
            add(dout[row], sums)
        put(sums, dbias[number])


@parallel(MATRIX, STRIDED, MATRIX, STRIDED, MATRIX, STRIDED, WHOLE, WHOLE)
def linear_backward(
    dout: np.ndarray, weight: np.ndarray, dx: np.ndarray, dbias: np.ndarray, pre_activation: np.ndarray,
    dx_sums: np.ndarray, activation: int, shares: int,
) -> None:  # fmt: skip
    """dx = (dout @ weightᵀ) · activation'(pre_activation).

    Partial sums over rows [shares, n]: dbias, unless that is empty, of dout; dx_sums of dx, unless with IDENTITY.
    """
    for number in prange(shares):
        begin, end = share(len(dout), shares, number)
        r = slice(begin, end)
        _linear_backward(dout[r], weight, dx[r], dbias, pre_activation[r], dx_sums, activation, number)


@parallel(STRIDED, STRIDED, STRIDED, WHOLE, WHOLE)
def weight_gradient(left: np.ndarray, right: np.ndarray, dweight: np.ndarray, accumulate: int, shares: int) -> None:
    """dweight = leftᵀ @ right, or += if accumulate is 1; threads share out its rows."""
    for number in prange(shares):
        begin, end = share(len(dweight), shares, number)
        matmul(left[:, begin:end].T, right, dweight[begin:end], accumulate)


# ---- attention -------------------------------------------------------------------------------------------------------


@loop
def _columns(d: int, heads: int, h: int) -> tuple[slice, slice, slice]:
    """The columns of head h's queries, keys and values in a row of qkv; its results have the columns of its queries."""
    hd = d // heads
    return slice(h * hd, (h + 1) * hd), slice(d + h * hd, d + (h + 1) * hd), slice(2 * d + h * hd, 2 * d + (h + 1) * hd)


@loop
def _attend(qkv: np.ndarray, heads: int, h: int, out: np.ndarray, lse: np.ndarray, scores: np.ndarray) -> None:
    """One head of one sequence; qkv [seq, 3 D], out [seq, D], lse [seq], scores [QUERIES, KEYS].

    A tile of scores at a time, with the maximum of all before it (FlashAttention, Dao 2023).
    """
    seq, d = out.shape
    q, k, v = _columns(d, heads, h)
    factor = f4(1 / math.sqrt(d // heads))
    most, totals = np.empty(QUERIES, np.float32), np.empty(QUERIES, np.float32)
    for i in range(0, seq, QUERIES):
        queries = min(QUERIES, seq - i)
        for key in range(0, i + queries, KEYS):
            keys = min(KEYS, i + queries - key)
            p = scores[:queries, :keys]
            matmul(qkv[i : i + queries, q], qkv[key : key + keys, k].T, p, 0)
            for r in range(queries):
                seen = min(keys, i + r + 1 - key)  # keys that are not in the future
                row = scores[r, :seen]
                new, past = largest(row) * factor, ZERO
                if key:
                    new = max(new, most[r])
                    past = exp(most[r] - new) * totals[r]
                    scale(out[i + r, q], exp(most[r] - new))
                for j in range(seen):
                    row[j] = exp(row[j] * factor - new)
                scores[r, seen:keys] = ZERO
                most[r], totals[r] = new, past + total(row)
            matmul(p, qkv[key : key + keys, v], out[i : i + queries, q], min(key, 1))
        for r in range(queries):
            scale(out[i + r, q], ONE / totals[r])
            lse[i + r] = most[r] + np.log(totals[r])


@parallel(MATRIX, MATRIX, types.float32[:, :, ::1], WHOLE)
def attention(qkv: np.ndarray, out: np.ndarray, lse: np.ndarray, shares: int) -> None:
    """Shares of heads."""
    batch, heads, seq = lse.shape
    for number in prange(shares):
        scores = np.empty((QUERIES, KEYS), np.float32)
        begin, end = share(batch * heads, shares, number)
        for head in range(begin, end):
            b, h = head // heads, head % heads
            rows = slice(b * seq, (b + 1) * seq)
            _attend(qkv[rows], heads, h, out[rows], lse[b, h], scores)


@loop
def _attend_backward(
    dout: np.ndarray,
    qkv: np.ndarray,
    heads: int,
    h: int,
    out: np.ndarray,
    lse: np.ndarray,
    dqkv: np.ndarray,
    scores: np.ndarray,
    gradients: np.ndarray,
) -> None:
    """As `_attend`; dqkv [seq, 3 D], gradients [QUERIES, KEYS]. Names are those of `attend_backward` in NumPy."""
    seq, d = out.shape
    q, k, v = _columns(d, heads, h)
    factor = f4(1 / math.sqrt(d // heads))
    last = (seq - 1) // QUERIES * QUERIES
    for i in range(last, -1, -QUERIES):  # the last queries see all keys: they overwrite dk and dv, the others add
        queries = min(QUERIES, seq - i)
        for key in range(0, i + queries, KEYS):
            keys = min(KEYS, i + queries - key)
            rows, columns = slice(i, i + queries), slice(key, key + keys)
            p, ds = scores[:queries, :keys], gradients[:queries, :keys]
            matmul(qkv[rows, q], qkv[columns, k].T, p, 0)
            matmul(dout[rows, q], qkv[columns, v].T, ds, 0)
            for r in range(queries):
                delta = dot(dout[i + r, q], out[i + r, q])
                seen = min(keys, i + r + 1 - key)
                p_row, ds_row, row_lse = scores[r, :seen], gradients[r, :seen], lse[i + r]
                for j in range(seen):
                    p_row[j] = exp(p_row[j] * factor - row_lse)
                    ds_row[j] = p_row[j] * (ds_row[j] - delta) * factor
                scores[r, seen:keys] = ZERO
                gradients[r, seen:keys] = ZERO
            more = 0 if i == last else 1
            matmul(p.T, dout[rows, q], dqkv[columns, v], more)
            matmul(ds.T, qkv[rows, q], dqkv[columns, k], more)
            matmul(ds, qkv[columns, k], dqkv[rows, q], min(key, 1))


@parallel(MATRIX, MATRIX, MATRIX, types.float32[:, :, ::1], MATRIX, WHOLE)
def attention_backward(
    dout: np.ndarray, qkv: np.ndarray, out: np.ndarray, lse: np.ndarray, dqkv: np.ndarray, shares: int,
) -> None:  # fmt: skip
    """Shares of heads."""
    batch, heads, seq = lse.shape
    for number in prange(shares):
        tiles = np.empty((2, QUERIES, KEYS), np.float32)
        begin, end = share(batch * heads, shares, number)
        for head in range(begin, end):
            b, h = head // heads, head % heads
            rows = slice(b * seq, (b + 1) * seq)
            _attend_backward(dout[rows], qkv[rows], heads, h, out[rows], lse[b, h], dqkv[rows], tiles[0], tiles[1])


# ---- loss ------------------------------------------------------------------------------------------------------------


@loop
def _softmax_cross_entropy(
    logits: np.ndarray, labels: np.ndarray, losses: np.ndarray, hits: np.ndarray, vocab: int, gradient_scale: f4
) -> None:
    """logits [rows, V], the others [rows]."""
    e = np.empty(vocab, np.float32)
    for r in range(len(logits)):
        x, label = logits[r, :vocab], labels[r]
        if label < 0:
            losses[r] = hits[r] = ZERO
            if gradient_scale:
                logits[r, :] = ZERO
            continue
        most, wanted = largest(x), x[label]
        hit = wanted == most
        if hit:
            for j in range(label):  # among equal logits the first counts
                hit = hit and x[j] != most
        hits[r] = ONE if hit else ZERO
        for j in range(vocab):
            e[j] = exp(x[j] - most)
        denominator = total(e)
        losses[r] = np.log(denominator) - (wanted - most)
        if gradient_scale:
            for j in range(vocab):
                x[j] = e[j] * (gradient_scale / denominator)
            x[label] -= gradient_scale
            logits[r, vocab:] = ZERO


@parallel(MATRIX, types.int32[::1], VECTOR, VECTOR, WHOLE, NUMBER, WHOLE)
def softmax_cross_entropy(
    logits: np.ndarray, labels: np.ndarray, losses: np.ndarray, hits: np.ndarray, vocab: int, gradient_scale: f4,
    shares: int,
) -> None:  # fmt: skip
    """A gradient_scale of 0 leaves the logits as they are."""
    for number in prange(shares):
        begin, end = share(len(logits), shares, number)
        r = slice(begin, end)
        _softmax_cross_entropy(logits[r], labels[r], losses[r], hits[r], vocab, gradient_scale)


# ---- optimizer -------------------------------------------------------------------------------------------------------


@reduction
def _sum_of_squares(x: np.ndarray) -> float:
    result = 0.0
    for i in range(x.size):
        result += np.float64(x[i]) * np.float64(x[i])
    return result


@parallel(VECTOR, types.float64[::1])
def sums_of_squares(x: np.ndarray, sums: np.ndarray) -> None:
    """sums [shares] = the sum of squares of each share of x [n], in float64."""
    for number in prange(sums.size):
        begin, end = share(x.size, sums.size, number)
        sums[number] = _sum_of_squares(x[begin:end])


@loop
def _adamw(
    w: np.ndarray,
    g: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    beta1: f4,
    beta2: f4,
    factor: f4,
    root: f4,
    eps: f4,
    keep: f4,
    step_size: f4,
) -> None:
    for i in range(w.size):
        m[i] = beta1 * m[i] + factor * g[i]
        v[i] = beta2 * v[i] + (root * g[i]) * (root * g[i])
        w[i] = keep * w[i] - step_size * (m[i] / (np.sqrt(v[i]) + eps))


@parallel(VECTOR, VECTOR, VECTOR, VECTOR, NUMBER, NUMBER, NUMBER, NUMBER, NUMBER, NUMBER, NUMBER, WHOLE, WHOLE)
def adamw(
    w: np.ndarray, g: np.ndarray, m: np.ndarray, v: np.ndarray, beta1: f4, beta2: f4, factor: f4,
    root: f4, eps: f4, keep: f4, step_size: f4, decayed: int, shares: int,
) -> None:  # fmt: skip
    """m = beta1 m + factor g, v = beta2 v + (root g)², w = keep w - step_size m / (√v + eps), each [n].

    From `decayed` on, all of w is kept.
    """
    for number in prange(shares):
        begin, end = share(w.size, shares, number)
        middle = max(begin, min(end, decayed))
        for r, kept in ((slice(begin, middle), keep), (slice(middle, end), ONE)):
            _adamw(w[r], g[r], m[r], v[r], beta1, beta2, factor, root, eps, kept, step_size)
