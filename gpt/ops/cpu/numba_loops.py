"""The slowest operations of a training step on a CPU, as loops that numba compiles: numba_operations.py calls them.

`operations.py` says what each operation is. How these are built:

- A `parallel` function cuts its rows into `parts` shares for OpenMP's threads. Those wait some 50 µs for the next one
  before they sleep, so handing shares out takes 2 µs. Results depend on `parts`, but not on which thread is faster.
- A `loop` goes over one share. The innermost loops start at 0 and run over contiguous arrays: else LLVM would not take
  8 or 16 elements at a time. That is why shares are slices, and why sums over rows go into arrays of their own.
- LLVM may reorder the terms of a `reduction` and fuse those of a `polynomial`; all else it must do as it is written. If
  it might do more, what was just compiled and what comes from numba's cache, which is optimized once more, would round
  differently, and the same run twice would not give the same bits.

All numbers are float32: one that is not would make its whole expression float64. Constants of NumPy's operations stand
here once more, because numba does not see when another file changes.
"""

import math

import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  numba's BLAS; loaded here, before BLAS is told to use one thread
from numba import njit, prange, types

f4 = np.float32
ZERO, ONE, INFINITY = f4(0), f4(1), f4(np.inf)
EPS = 1e-5  # of a layer norm
CUBIC, SCALE = 0.044715, math.sqrt(2 / math.pi)  # of GELU
IDENTITY, RELU, GELU = range(3)  # activations
PRODUCT_ROWS = 512  # rows of a product at a time: what follows then finds them in the cache
QUERIES, KEYS = 64, 256  # of a tile of attention; KEYS is a multiple, so that every query sees the tile's first key

_OPTIONS = {"cache": True, "error_model": "numpy"}
loop = njit(**_OPTIONS)
polynomial = njit(**_OPTIONS, fastmath={"contract"})
reduction = njit(**_OPTIONS, fastmath={"contract", "reassoc"})
parallel = njit(**_OPTIONS, nogil=True, parallel=True)


@loop
def share(size: int, parts: int, number: int) -> tuple[int, int]:
    """Where share `number` of `parts` begins and ends."""
    return size * number // parts, size * (number + 1) // parts


# ---- products --------------------------------------------------------------------------------------------------------

_POINTER, _INT = types.CPointer(types.float32), types.intp
_gemm = types.ExternalFunction(  # what numba's own np.dot calls, which wants contiguous arrays and cannot add
    "numba_xxgemm",
    types.intc(
        types.char, types.char, types.char, _INT, _INT, _INT, _POINTER, _POINTER, _INT, _POINTER, _INT, _POINTER,
        _POINTER, _INT,
    ),
)  # fmt: skip
_FACTORS = np.array([0, 1], np.float32)  # BLAS wants the address of its alpha, here 1, and its beta


@loop
def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray, accumulate: int) -> None:
    """out [M, N] = a [M, K] @ b [K, N] where accumulate is 0; where it is 1 the product is added to out.

    The rows of out are contiguous, and so are those of a and b, or else their columns.
    """
    (m, k), n = a.shape, b.shape[1]
    if m and n:
        (a_order, a_stride), (b_order, b_stride) = _layout(a), _layout(b)
        _gemm(  # BLAS thinks in columns: outᵀ = bᵀ aᵀ
            ord("s"), b_order, a_order, n, m, k, _FACTORS[1:].ctypes, b.ctypes, b_stride, a.ctypes, a_stride,
            _FACTORS[accumulate:].ctypes, out.ctypes, max(n, out.strides[0] // 4),
        )  # fmt: skip


@loop
def _layout(x):
    """Whether BLAS is to transpose x, and the number of elements from one of its rows, or columns, to the next."""
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
def exp(x: float) -> float:
    """e^x to 2^-22 relative; 0 below 1e-38, infinite above 2e38.

    2^n e^f with |f| <= ln(2) / 2, for which Taylor's next term is below 2^-27.
    """
    n = np.floor(x * LOG2_E + f4(0.5))
    f = (x - n * LN_2_HIGH) - n * LN_2_LOW
    series = (((((C7 * f + C6) * f + C5) * f + C4) * f + C3) * f + C2) * f * f + f + ONE
    result = series * np.int32((np.int32(n) + 127) << 23).view(np.float32)
    return ZERO if x < LEAST else INFINITY if x > MOST else result


@loop
def sigmoid_2u(x: float) -> float:
    """σ(2u) = (1 + tanh(u)) / 2, with the u of the GELU of x."""
    return ONE / (ONE + exp(f4(-2 * SCALE) * x * (ONE + f4(CUBIC) * x * x)))


@loop
def largest(x: np.ndarray) -> float:
    """The largest of x [n], n at least 1; undefined where one is NaN.

    Found by the bits as integers of the same order, for LLVM vectorizes the maximum of integers, but not of floats.
    """
    most, bits = np.int32(-(2**31)), x.view(np.int32)
    for j in range(x.size):
        most = max(most, np.int32(bits[j] ^ ((bits[j] >> 31) & 0x7FFFFFFF)))
    return np.int32(most ^ ((most >> 31) & 0x7FFFFFFF)).view(np.float32)


@reduction
def total(x: np.ndarray) -> float:
    """Σ x, [n]."""
    result = ZERO
    for j in range(x.size):
        result += x[j]
    return result


@reduction
def dot(x: np.ndarray, y: np.ndarray) -> float:
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
def scale(x: np.ndarray, factor: float) -> None:
    """x *= factor, [n]."""
    for j in range(x.size):
        x[j] *= factor


# ---- embedding -------------------------------------------------------------------------------------------------------


@parallel
def embedding_backward(dout: np.ndarray, ids: np.ndarray, dwte: np.ndarray, dwpe: np.ndarray, parts: int) -> None:
    """Shares of columns: no two threads ever add to the same element."""
    batch, seq = ids.shape
    for part in prange(parts):
        begin, end = share(dwte.shape[1], parts, part)
        for row in range(batch * seq):
            b, s = row // seq, row % seq
            add(dout[row, begin:end], dwte[ids[b, s], begin:end])
            add(dout[row, begin:end], dwpe[s, begin:end])


# ---- layer norm ------------------------------------------------------------------------------------------------------


@loop
def _layernorm(x, branch, weight, bias, x_out, out, mean, rstd):
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


@parallel
def layernorm(
    x: np.ndarray, branch: np.ndarray, weight: np.ndarray, bias: np.ndarray, x_out: np.ndarray, out: np.ndarray,
    mean: np.ndarray, rstd: np.ndarray, parts: int,
) -> None:  # fmt: skip
    """The norm of x_out = x + branch; with an empty branch x_out must be x."""
    for part in prange(parts):
        begin, end = share(len(x), parts, part)
        r = slice(begin, end)
        _layernorm(x[r], branch[r], weight, bias, x_out[r], out[r], mean[r], rstd[r])


@loop
def _layernorm_backward(dout, x, weight, mean, rstd, dx, dweight, dbias, dx_sums):
    """dout, x and dx [rows, D], mean and rstd [rows], the others [D]; dx and the last three are added to."""
    rows, d = x.shape
    n, g = np.empty(d, np.float32), np.empty(d, np.float32)
    for r in range(rows):
        for j in range(d):
            n[j] = (x[r, j] - mean[r]) * rstd[r]
            g[j] = dout[r, j] * weight[j]
            dweight[j] += dout[r, j] * n[j]
            dbias[j] += dout[r, j]
        g_mean, gn_mean = total(g) / f4(d), dot(g, n) / f4(d)
        for j in range(d):
            dx[r, j] += rstd[r] * (g[j] - g_mean - n[j] * gn_mean)
            dx_sums[j] += dx[r, j]


@parallel
def layernorm_backward(
    dout: np.ndarray, x: np.ndarray, weight: np.ndarray, mean: np.ndarray, rstd: np.ndarray, dx: np.ndarray,
    dweight: np.ndarray, dbias: np.ndarray, dx_sums: np.ndarray, parts: int,
) -> None:  # fmt: skip
    """The three sums are partial ones, [parts, D]."""
    for part in prange(parts):
        begin, end = share(len(x), parts, part)
        r = slice(begin, end)
        sums = np.zeros((3, x.shape[1]), np.float32)
        _layernorm_backward(dout[r], x[r], weight, mean[r], rstd[r], dx[r], sums[0], sums[1], sums[2])
        dweight[part], dbias[part], dx_sums[part] = sums[0], sums[1], sums[2]


# ---- linear ----------------------------------------------------------------------------------------------------------


@loop
def _activate(before, bias, out, activation):
    """before += bias, then out = activation(before), both [rows, n]; an empty bias is none."""
    rows, columns = before.shape
    for r in range(rows):
        if bias.size:
            add(bias, before[r])
        if activation == RELU:
            for j in range(columns):
                out[r, j] = ZERO if before[r, j] < ZERO else before[r, j]  # keeps NaN
        elif activation == GELU:
            for j in range(columns):
                out[r, j] = before[r, j] * sigmoid_2u(before[r, j])


@loop
def _activate_backward(before, dx, activation, dx_sums):
    """dx *= activation'(before), both [rows, n]; dx_sums [n] += its rows."""
    rows, columns = before.shape
    for r in range(rows):
        if activation == RELU:
            for j in range(columns):
                dx[r, j] = dx[r, j] if before[r, j] > ZERO else ZERO
        else:
            for j in range(columns):
                x = before[r, j]
                s = sigmoid_2u(x)
                twice_du = f4(2 * SCALE) * (ONE + f4(3 * CUBIC) * x * x)
                dx[r, j] *= s + x * s * (ONE - s) * twice_du
        add(dx[r], dx_sums)


@parallel
def linear(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, before: np.ndarray, out: np.ndarray, activation: int,
    parts: int,
) -> None:  # fmt: skip
    """out = activation(before), before = x @ weight + bias; an empty bias is none. With IDENTITY before must be out."""
    for part in prange(parts):
        begin, end = share(len(x), parts, part)
        for first in range(begin, end, PRODUCT_ROWS):
            r = slice(first, min(first + PRODUCT_ROWS, end))
            matmul(x[r], weight, before[r], 0)
            _activate(before[r], bias, out[r], activation)


@parallel
def linear_backward(
    dout: np.ndarray, weight: np.ndarray, dx: np.ndarray, left: np.ndarray, right: np.ndarray, dweight: np.ndarray,
    dbias: np.ndarray, before: np.ndarray, dx_sums: np.ndarray, activation: int, pieces: int,
) -> None:  # fmt: skip
    """dx = (dout @ weightᵀ) · activation'(before), dweight += leftᵀ @ right; even numbers are pieces of dx, odd ones of
    dweight, so that every thread gets some of both.

    Partial sums over rows [parts, n]: dbias, unless that is empty, of dout; dx_sums of dx, unless with IDENTITY.
    """
    dbias[pieces:], dx_sums[pieces:] = ZERO, ZERO
    for number in prange(2 * pieces):
        piece = number // 2
        if number % 2 == 0:
            begin, end = share(len(dout), pieces, piece)
            sums = np.zeros(dx.shape[1], np.float32)
            for first in range(begin, end, PRODUCT_ROWS):
                r = slice(first, min(first + PRODUCT_ROWS, end))
                matmul(dout[r], weight.T, dx[r], 0)
                if activation:
                    _activate_backward(before[r], dx[r], activation, sums)
            if activation:
                dx_sums[piece] = sums
            if dbias.size:
                sums = np.zeros(dout.shape[1], np.float32)
                for row in range(begin, end):
                    add(dout[row], sums)
                dbias[piece] = sums
        else:
            begin, end = share(len(dweight), pieces, piece)
            matmul(left[:, begin:end].T, right, dweight[begin:end], 1)


# ---- attention -------------------------------------------------------------------------------------------------------


@loop
def _columns(d, heads, h):
    """Where head h has its queries, keys and values in a row of qkv; its results lie where its queries do."""
    hd = d // heads
    return slice(h * hd, (h + 1) * hd), slice(d + h * hd, d + (h + 1) * hd), slice(2 * d + h * hd, 2 * d + (h + 1) * hd)


@loop
def _attend(qkv, heads, h, out, lse, scores):
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


@parallel
def attention(qkv: np.ndarray, out: np.ndarray, lse: np.ndarray, parts: int) -> None:
    """Shares of heads."""
    batch, heads, seq = lse.shape
    for part in prange(parts):
        scores = np.empty((QUERIES, KEYS), np.float32)
        begin, end = share(batch * heads, parts, part)
        for number in range(begin, end):
            b, h = number // heads, number % heads
            rows = slice(b * seq, (b + 1) * seq)
            _attend(qkv[rows], heads, h, out[rows], lse[b, h], scores)


@loop
def _attend_backward(dout, qkv, heads, h, out, lse, dqkv, scores, gradients):
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


@parallel
def attention_backward(
    dout: np.ndarray, qkv: np.ndarray, out: np.ndarray, lse: np.ndarray, dqkv: np.ndarray, parts: int,
) -> None:  # fmt: skip
    """Shares of heads."""
    batch, heads, seq = lse.shape
    for part in prange(parts):
        tiles = np.empty((2, QUERIES, KEYS), np.float32)
        begin, end = share(batch * heads, parts, part)
        for number in range(begin, end):
            b, h = number // heads, number % heads
            rows = slice(b * seq, (b + 1) * seq)
            _attend_backward(dout[rows], qkv[rows], heads, h, out[rows], lse[b, h], dqkv[rows], tiles[0], tiles[1])


# ---- loss ------------------------------------------------------------------------------------------------------------


@loop
def _softmax_cross_entropy(logits, labels, losses, hits, vocab, gradient_scale):
    """logits [rows, V], the others [rows]."""
    e = np.empty(vocab, np.float32)
    for r in range(len(logits)):
        x, label = logits[r, :vocab], labels[r]
        most, wanted = largest(x), x[label]
        hit = wanted == most
        if hit:
            for j in range(label):  # of equal ones the first counts
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


@parallel
def softmax_cross_entropy(
    logits: np.ndarray, labels: np.ndarray, losses: np.ndarray, hits: np.ndarray, vocab: int, gradient_scale: float,
    parts: int,
) -> None:  # fmt: skip
    """With a gradient_scale of 0 logits stay as they are."""
    for part in prange(parts):
        begin, end = share(len(logits), parts, part)
        r = slice(begin, end)
        _softmax_cross_entropy(logits[r], labels[r], losses[r], hits[r], vocab, gradient_scale)


# ---- optimizer -------------------------------------------------------------------------------------------------------


@reduction
def _sum_of_squares(x):
    result = 0.0
    for i in range(x.size):
        result += np.float64(x[i]) * np.float64(x[i])
    return result


@parallel
def sums_of_squares(x: np.ndarray, sums: np.ndarray) -> None:
    """sums [parts] = those of the parts of x [n], in float64."""
    for part in prange(sums.size):
        begin, end = share(x.size, sums.size, part)
        sums[part] = _sum_of_squares(x[begin:end])


@loop
def _adamw(w, g, m, v, beta1, beta2, factor, root, eps, keep, step_size):
    for i in range(w.size):
        m[i] = beta1 * m[i] + factor * g[i]
        v[i] = beta2 * v[i] + (root * g[i]) * (root * g[i])
        w[i] = keep * w[i] - step_size * (m[i] / (np.sqrt(v[i]) + eps))


@parallel
def adamw(
    w: np.ndarray, g: np.ndarray, m: np.ndarray, v: np.ndarray, beta1: float, beta2: float, factor: float,
    root: float, eps: float, keep: float, step_size: float, decayed: int, parts: int,
) -> None:  # fmt: skip
    """m = beta1 m + factor g, v = beta2 v + (root g)², w = keep w - step_size m / (√v + eps), each [n].

    From `decayed` on, all of w is kept.
    """
    for part in prange(parts):
        begin, end = share(w.size, parts, part)
        middle = max(begin, min(end, decayed))
        for r, kept in ((slice(begin, middle), keep), (slice(middle, end), ONE)):
            _adamw(w[r], g[r], m[r], v[r], beta1, beta2, factor, root, eps, kept, step_size)
