"""Attention and a matrix product in Triton's language, the peers of attention.hip and matmul.hip.

They are written as Triton's users would write them: flash attention (Dao, arXiv:2307.08691) with causal masks, in bf16
with sums in float32, and a product whose blocks go through the result in groups of rows. Arrays are contiguous, and
every size is a multiple of the block's, so only blocks on the diagonal have a mask. triton_peer.py compiles them.
"""

import triton
import triton.language as tl


@triton.jit
def _square(rows, DIM: tl.constexpr):
    """Offsets of some rows of an array of rows of DIM."""
    return rows[:, None] * DIM + tl.arange(0, DIM)[None, :]


@triton.jit
def _turned(rows, DIM: tl.constexpr):
    """Offsets of the same elements as a matrix with a column for each row."""
    return tl.arange(0, DIM)[:, None] + rows[None, :] * DIM


@triton.jit
def _attend(
    rows, q, k, v, total, largest, out, first, end, scale, COLUMNS: tl.constexpr, DIM: tl.constexpr, MASK: tl.constexpr
):
    """Goes on with the softmax over keys [first, end): the sum of weights, the largest score, the weighted values."""
    for start in range(first, end, COLUMNS):
        keys = start + tl.arange(0, COLUMNS)
        scores = tl.dot(q, tl.load(k + _turned(keys, DIM))) * scale
        if MASK:
            scores = tl.where(keys[None, :] <= rows[:, None], scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp2(scores - larger[:, None])
        shrink = tl.exp2(largest - larger)
        total = total * shrink + tl.sum(weights, 1)
        out = tl.dot(weights.to(tl.bfloat16), tl.load(v + _square(keys, DIM)), out * shrink[:, None])
        largest = larger
    return total, largest, out


@triton.jit
def attention(q, k, v, out, lse, seq, scale, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DIM: tl.constexpr):
    """q, k, v, out bf16 [heads, seq, DIM], lse float32 [heads, seq] to base 2; scale includes log2(e)."""
    block, head = tl.program_id(0), tl.program_id(1)
    first = block * ROWS
    rows = first + tl.arange(0, ROWS)
    base = head * seq * DIM
    square = base + _square(rows, DIM)
    own = tl.load(q + square)
    total = tl.zeros([ROWS], tl.float32)
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    sums = tl.zeros([ROWS, DIM], tl.float32)
    k += base
    v += base
    total, largest, sums = _attend(rows, own, k, v, total, largest, sums, 0, first, scale, COLUMNS, DIM, False)
    total, largest, sums = _attend(
        rows, own, k, v, total, largest, sums, first, first + ROWS, scale, COLUMNS, DIM, True
    )
    tl.store(out + square, (sums / total[:, None]).to(tl.bfloat16))
    tl.store(lse + head * seq + rows, largest + tl.log2(total))


@triton.jit
def _gradient_of_queries(
    rows, q, dout, k, v, lse, delta, sums, first, end, scale, COLUMNS: tl.constexpr, DIM: tl.constexpr,
    MASK: tl.constexpr,
):  # fmt: skip
    for start in range(first, end, COLUMNS):
        keys = start + tl.arange(0, COLUMNS)
        others = tl.load(k + _turned(keys, DIM))
        weights = tl.exp2(tl.dot(q, others) * scale - lse[:, None])
        if MASK:
            weights = tl.where(keys[None, :] <= rows[:, None], weights, 0.0)
        change = weights * (tl.dot(dout, tl.load(v + _turned(keys, DIM))) - delta[:, None])
        sums = tl.dot(change.to(tl.bfloat16), tl.trans(others), sums)
    return sums


@triton.jit
def attention_backward_queries(
    dout, q, k, v, out, lse, delta, dq, seq, scale, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DIM: tl.constexpr
):
    """dq bf16 [heads, seq, DIM], and delta float32 [heads, seq], each row's sum of out * dout."""
    block, head = tl.program_id(0), tl.program_id(1)
    first = block * ROWS
    rows = first + tl.arange(0, ROWS)
    base = head * seq * DIM
    square = base + _square(rows, DIM)
    own, gradient = tl.load(q + square), tl.load(dout + square)
    deltas = tl.sum(tl.load(out + square).to(tl.float32) * gradient.to(tl.float32), 1)
    tl.store(delta + head * seq + rows, deltas)
    lses = tl.load(lse + head * seq + rows)
    sums = tl.zeros([ROWS, DIM], tl.float32)
    k += base
    v += base
    sums = _gradient_of_queries(rows, own, gradient, k, v, lses, deltas, sums, 0, first, scale, COLUMNS, DIM, False)
    sums = _gradient_of_queries(
        rows, own, gradient, k, v, lses, deltas, sums, first, first + ROWS, scale, COLUMNS, DIM, True
    )
    tl.store(dq + square, (sums * (scale * 0.6931471805599453)).to(tl.bfloat16))


@triton.jit
def _gradients_of_keys(
    rows, k, v, q, dout, lse, delta, dk, dv, first, end, scale, COLUMNS: tl.constexpr, DIM: tl.constexpr,
    MASK: tl.constexpr,
):  # fmt: skip
    for start in range(first, end, COLUMNS):
        queries = start + tl.arange(0, COLUMNS)
        others, gradients = tl.load(q + _turned(queries, DIM)), tl.load(dout + _square(queries, DIM))
        weights = tl.exp2(tl.dot(k, others) * scale - tl.load(lse + queries)[None, :])
        if MASK:
            weights = tl.where(rows[:, None] <= queries[None, :], weights, 0.0)
        dv = tl.dot(weights.to(tl.bfloat16), gradients, dv)
        change = weights * (tl.dot(v, tl.trans(gradients)) - tl.load(delta + queries)[None, :])
        dk = tl.dot(change.to(tl.bfloat16), tl.trans(others), dk)
    return dk, dv


@triton.jit
def attention_backward_keys(
    dout, q, k, v, lse, delta, dk, dv, seq, scale, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DIM: tl.constexpr
):
    """dk and dv bf16 [heads, seq, DIM]. A block has ROWS keys, and goes through the queries COLUMNS at a time."""
    block, head = tl.program_id(0), tl.program_id(1)
    first = block * ROWS
    rows = first + tl.arange(0, ROWS)
    base = head * seq * DIM
    square = base + _square(rows, DIM)
    key, value = tl.load(k + square), tl.load(v + square)
    sums, values = tl.zeros([ROWS, DIM], tl.float32), tl.zeros([ROWS, DIM], tl.float32)
    q += base
    dout += base
    lse += head * seq
    delta += head * seq
    after = first + ROWS
    sums, values = _gradients_of_keys(
        rows, key, value, q, dout, lse, delta, sums, values, first, after, scale, COLUMNS, DIM, True
    )
    sums, values = _gradients_of_keys(
        rows, key, value, q, dout, lse, delta, sums, values, after, seq, scale, COLUMNS, DIM, False
    )
    tl.store(dk + square, (sums * (scale * 0.6931471805599453)).to(tl.bfloat16))
    tl.store(dv + square, values.to(tl.bfloat16))


@triton.jit
def matmul(
    a, b, out, m, n, inner, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
    A_TRANSPOSED: tl.constexpr, B_TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """out [m, n] = a [m, inner] @ b [inner, n], bf16. In memory, transposed ones are [inner, m] and [n, inner]."""
    group_size = GROUP * tl.cdiv(n, COLUMNS)
    number = tl.program_id(0)
    row_block = number // group_size * GROUP + number % group_size % GROUP
    column_block = number % group_size // GROUP
    rows = row_block * ROWS + tl.arange(0, ROWS)
    columns = column_block * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    if A_TRANSPOSED:
        left = a + rows[:, None] + depth[None, :] * m
        left_step = DEPTH * m
    else:
        left = a + rows[:, None] * inner + depth[None, :]
        left_step = DEPTH
    if B_TRANSPOSED:
        right = b + depth[:, None] + columns[None, :] * inner
        right_step = DEPTH
    else:
        right = b + depth[:, None] * n + columns[None, :]
        right_step = DEPTH * n
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for _ in range(0, inner, DEPTH):
        sums = tl.dot(tl.load(left), tl.load(right), sums)
        left += left_step
        right += right_step
    tl.store(out + rows[:, None] * n + columns[None, :], sums.to(tl.bfloat16))
