"""Embedding, layer norm and dropout on every device, by kernels and by numba's loops, against the reference."""

import numpy as np
import pytest

from gpt.batches import token_order
from gpt.ops.interface import Affine, Branch, Normed
from tests.ops.kernels.bounds import REFERENCE, Sums, dropout, near, norm_bound, u

# ---- embedding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "seq", "d", "start"), [(1, 1, 1, 0), (2, 7, 24, 3), (3, 5, 30, 0), (2, 33, 136, 0)])
@pytest.mark.parametrize("rate", [0, 0.3])
def test_embedding(ops, arrays, rng, U, batch, seq, d, start, rate):
    wte, wpe = (arrays.rounded(rng.standard_normal((n, d))) for n in (11, seq + start))
    ids = rng.integers(0, 11, (batch, seq)).astype(np.int32)
    mine, theirs = dropout(ops, rate)
    expected = np.empty((batch * seq, d))
    place = np.array([start], np.int32) if start else None
    REFERENCE.embedding(ids, wte, wpe, expected, place, theirs)
    out = arrays.poisoned(batch * seq, d)
    start = None if place is None else arrays.of(place)
    ops.embedding(arrays.of(ids), arrays.of(wte), arrays.of(wpe), out, start, mine)
    near(ops, out, expected, (U + 4 * u) * (np.abs(expected) + 1e-6))


def test_an_id_outside_of_the_vocabulary_makes_its_row_nan(ops, arrays, rng):
    ids, out = np.array([[1, 4, -1]], np.int32), arrays.of(np.zeros((3, 8)))
    inputs = arrays.of(ids), arrays.of(np.ones((4, 8))), arrays.of(np.ones((3, 8)))
    if ops.is_cpu:
        with pytest.raises(IndexError):
            ops.embedding(*inputs, out)
        return
    ops.embedding(*inputs, out)
    assert np.isnan(ops.to_host(out)).all(axis=1).tolist() == [False, True, True]


@pytest.mark.parametrize(("batch", "seq", "d"), [(1, 1, 1), (2, 7, 24), (3, 5, 30), (4, 33, 136)])
@pytest.mark.parametrize("rate", [0, 0.3])
def test_embedding_backward_adds(ops, arrays, rng, U, batch, seq, d, rate):
    dout = arrays.rounded(rng.standard_normal((batch * seq, d)))
    ids = rng.integers(0, 5, (batch, seq)).astype(np.int32)
    before = [rng.standard_normal((n, d)).astype(np.float32).astype(np.float64) for n in (9, seq + 2)]
    mine, theirs = dropout(ops, rate)
    expected, size = [x.copy() for x in before], [np.abs(x) for x in before]
    REFERENCE.embedding_backward(dout.copy(), ids, token_order(ids), *expected, theirs)
    REFERENCE.embedding_backward(np.abs(dout), ids, token_order(ids), *size, theirs)
    outs = [arrays.of(x, "float32") for x in before]
    ops.embedding_backward(arrays.of(dout), arrays.of(ids), arrays.of(token_order(ids)), *outs, mine)
    rounding = (U + 2 * u if rate else 0) + batch * seq * u
    for out, wanted, scale in zip(outs, expected, size, strict=True):
        near(ops, out, wanted, rounding * scale)


# ---- layer norm ------------------------------------------------------------------------------------------------------


ROWS = [(1, 1), (5, 7), (9, 24), (3, 64), (67, 136), (4, 768), (3, 1030), (2, 1600)]


def offset_rows(rng, rows, d, offset, scale):
    return offset + scale * rng.standard_normal((rows, d))


@pytest.mark.parametrize(("rows", "d"), ROWS)
@pytest.mark.parametrize(("offset", "scale"), [(0, 1), (1e4, 1), (0, 1e-3), (-3, 1e4)])
def test_layernorm(ops, arrays, rng, U, rows, d, offset, scale):
    x = arrays.rounded(offset_rows(rng, rows, d, offset, scale))
    weight, bias = (arrays.rounded(rng.standard_normal(d)) for _ in range(2))
    expected, mean, rstd = np.empty((rows, d)), np.empty(rows), np.empty(rows)
    REFERENCE.layernorm(Normed(x, expected, mean, rstd), Affine(weight, bias))
    out, m, r = arrays.poisoned(rows, d), *(arrays.poisoned(rows, dtype="float32") for _ in range(2))
    ops.layernorm(Normed(arrays.of(x), out, m, r), Affine(arrays.of(weight), arrays.of(bias)))
    near(ops, out, expected, norm_bound(x, weight, bias, mean, rstd, U))
    near(ops, m, mean, (d + 2) * u * np.abs(x).mean(1))
    relative = (2 * d + 8) * u + 2 * (d + 4) * u * np.abs(x).mean(1) * rstd
    near(ops, r, rstd, relative * rstd)


@pytest.mark.parametrize(("rows", "d"), ROWS)
@pytest.mark.parametrize("rate", [0, 0.3])
def test_add_layernorm(ops, arrays, rng, U, rows, d, rate):
    x, branch = (arrays.rounded(rng.standard_normal((rows, d))) for _ in range(2))
    weight, bias = (arrays.rounded(rng.standard_normal(d)) for _ in range(2))
    mine, theirs = dropout(ops, rate)
    summed, expected, mean, rstd = np.empty((rows, d)), np.empty((rows, d)), np.empty(rows), np.empty(rows)
    norm = Affine(weight, bias)
    REFERENCE.add_layernorm(x, branch, norm, Normed(summed, expected, mean, rstd), theirs)
    x_out, out, m, r = (
        arrays.poisoned(rows, d), arrays.poisoned(rows, d), *(arrays.poisoned(rows, dtype="float32") for _ in range(2))
    )  # fmt: skip
    norm_ = Affine(arrays.of(weight), arrays.of(bias))
    ops.add_layernorm(arrays.of(x), arrays.of(branch), norm_, Normed(x_out, out, m, r), mine)
    near(ops, x_out, summed, U * np.abs(summed) + 3 * u * (np.abs(x) + 1.5 * np.abs(branch)))
    stored = ops.to_host(x_out).astype(np.float64)  # the norm is taken of the sum as it was stored
    REFERENCE.layernorm(Normed(stored, expected, mean, rstd), norm)
    near(ops, out, expected, norm_bound(stored, weight, bias, mean, rstd, U))


@pytest.mark.parametrize(("rows", "d"), [*ROWS, (300, 64), (70, 800)])
@pytest.mark.parametrize("branch", [None, 0, 0.3])  # no branch, or one with this dropout rate
def test_layernorm_backward(ops, arrays, rng, U, rows, d, branch):
    x, dout, dx = (arrays.rounded(rng.standard_normal((rows, d))) for _ in range(3))
    weight = arrays.rounded(rng.standard_normal(d))
    mean, rstd = np.empty(rows), np.empty(rows)
    REFERENCE.layernorm(Normed(x, np.empty((rows, d)), mean, rstd), Affine(weight, weight))
    mean, rstd = (a.astype(np.float32).astype(np.float64) for a in (mean, rstd))
    mine, dweight, dbias = arrays.of(dx), Sums(ops, arrays, rows, d), Sums(ops, arrays, rows, d)
    normed = Normed(arrays.of(x), None, arrays.of(mean, "float32"), arrays.of(rstd, "float32"))
    grads = Affine(dweight.partials, dbias.partials)
    inputs = arrays.of(dout), normed, arrays.of(weight), mine, grads
    if branch is None:
        ops.layernorm_backward(*inputs)
    else:
        dbranch, dbranch_sums = arrays.poisoned(rows, d) if branch else mine, Sums(ops, arrays, rows, d)
        mask, its_mask = dropout(ops, branch)
        ops.add_layernorm_backward(*inputs, Branch(dbranch, dbranch_sums.partials, mask))

    # dx grows by rstd (g - mean(g) - n mean(g n)). `each` is how far the terms in parentheses may be off.
    n, g = (x - mean[:, None]) * rstd[:, None], dout * weight
    n_error = 3 * u * np.abs(n) + 2 * u * np.abs(x) * rstd[:, None]
    g_mean, gn_mean = np.abs(g).mean(1, keepdims=True), np.abs(g * n).mean(1, keepdims=True)
    each = (np.abs(g) + g_mean + np.abs(n) * gn_mean) * (d + 6) * u
    each += n_error * gn_mean + np.abs(n) * (np.abs(g) * n_error).mean(1, keepdims=True)
    weight_error = (rows * u + 3 * u) * np.abs(dout * n).sum(0) + (np.abs(dout) * n_error).sum(0)
    before, expected = np.abs(dx), np.empty((2, 1, d))
    REFERENCE.layernorm_backward(dout, Normed(x, None, mean, rstd), weight, dx, Affine(*expected))
    near(ops, mine, dx, rstd[:, None] * each + (U + 2 * u) * (np.abs(dx) + before) + 1e-30)
    near(ops, dweight.total(), expected[0, 0], weight_error + 1e-30)
    near(ops, dbias.total(), expected[1, 0], rows * u * np.abs(dout).sum(0) + 1e-30)
    # The branch's gradient is computed from dx as it was stored, and its sums from that gradient as it was stored.
    if branch is not None:
        dx, branch_gradient = ops.to_host(mine).astype(np.float64), np.empty((rows, d))
        if branch:
            REFERENCE.dropout(dx, branch_gradient, its_mask)
            near(ops, dbranch, branch_gradient, (U + 2 * u) * np.abs(branch_gradient))
        stored = ops.to_host(dbranch).astype(np.float64)
        near(ops, dbranch_sums.total(), stored.sum(0), rows * u * np.abs(stored).sum(0) + 1e-30)


@pytest.mark.parametrize(("rows", "d"), [(1, 1), (5, 7), (67, 136)])
def test_dropout_drops_the_same_elements_everywhere(ops, arrays, rng, U, rows, d):
    x = arrays.rounded(rng.standard_normal((rows, d)))
    mine, theirs = dropout(ops, 0.3)
    expected, out = np.empty((rows, d)), arrays.poisoned(rows, d)
    REFERENCE.dropout(x, expected, theirs)
    ops.dropout(arrays.of(x), out, mine)
    assert np.array_equal(ops.to_host(out) == 0, expected == 0)
    near(ops, out, expected, (U + 2 * u) * np.abs(expected))
