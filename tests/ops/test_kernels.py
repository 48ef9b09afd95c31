"""Every kernel, and every loop for numba, against the NumPy reference in float64, on every device there is.

Inputs are rounded to the type of activations first, so that both sides see the same numbers. Outputs are NaN before
the call and lie between guard bands. Bounds follow from the arithmetic: u = 2^-24 is a rounding of float32 and
U = 2^-8 one of bf16 (u in fp32 mode); a sum of n terms, in whatever order, is off by at most n u times the sum of the
absolute values; the GPU's exp2 is good to 2^-21 relative, which stands for exp2, its argument's rounding not counted.
"""

import math

import numpy as np
import pytest

from gpt.batches import token_order
from gpt.ops.cpu.operations import CpuOps
from gpt.ops.gpu import muon as gpu_muon
from gpt.ops.interface import Dropout, Stack
from gpt.optim import NEWTON_SCHULZ
from tests.support.amd import errors
from tests.support.devices import DEVICES, GPUS, NUMBA, Arrays, operations

u, EXP = 2.0**-24, 2.0**-21
TF32 = 2.0**-10  # of a product whose two operands are rounded to tf32, half of it each
REFERENCE = CpuOps(threads=1, dtype="float64")


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param()


@pytest.fixture(params=["fp32", "bf16"])
def ops(request, device):
    return operations(device, request.param)


@pytest.fixture
def arrays(ops):
    made = Arrays(ops)
    yield made
    made.check()


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def U(ops):
    return {"fp32": u, "tf32": TF32, "bf16": 2.0**-8}[ops.precision]


def near(ops, ours, reference, bound):
    """|ours - reference| <= bound everywhere, and ours is finite."""
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
        self.whole = arrays.poisoned(ops.parts(rows), n + 256, dtype="float32")
        self.partials = self.whole[:, 128 : 128 + n]

    def total(self):
        host = self.ops.to_host(self.whole).astype(np.float64)
        assert np.isnan(host[:, :128]).all(), "a kernel wrote into another vector's sums"
        assert np.isnan(host[:, 128 + self.n :]).all(), "a kernel wrote into another vector's sums"
        return host[:, 128 : 128 + self.n].sum(0)


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


def norm_bound(x, weight, bias, mean, rstd, U):
    """n = (x - mean) rstd: the mean is off by d u mean|x|, each difference by that and its rounding; rstd by d u."""
    d = x.shape[1]
    off = (d + 4) * u * (np.abs(x).mean(1, keepdims=True) + np.abs(x)) * rstd[:, None]
    n = np.abs(x - mean[:, None]) * rstd[:, None]
    spread = off * (1 + n * n.mean(1, keepdims=True))  # the mean's error goes into rstd too
    return (spread + (2 * d + 8) * u * n) * np.abs(weight) + (U + 4 * u) * (np.abs(n * weight) + np.abs(bias)) + 1e-30


def offset_rows(rng, rows, d, offset, scale):
    return offset + scale * rng.standard_normal((rows, d))


@pytest.mark.parametrize(("rows", "d"), ROWS)
@pytest.mark.parametrize(("offset", "scale"), [(0, 1), (1e4, 1), (0, 1e-3), (-3, 1e4)])
def test_layernorm(ops, arrays, rng, U, rows, d, offset, scale):
    x = arrays.rounded(offset_rows(rng, rows, d, offset, scale))
    weight, bias = (arrays.rounded(rng.standard_normal(d)) for _ in range(2))
    expected, mean, rstd = np.empty((rows, d)), np.empty(rows), np.empty(rows)
    REFERENCE.layernorm(x, weight, bias, expected, mean, rstd)
    out, m, r = arrays.poisoned(rows, d), *(arrays.poisoned(rows, dtype="float32") for _ in range(2))
    ops.layernorm(arrays.of(x), arrays.of(weight), arrays.of(bias), out, m, r)
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
    REFERENCE.add_layernorm(x, branch, weight, bias, summed, expected, mean, rstd, theirs)
    x_out, out, m, r = (
        arrays.poisoned(rows, d), arrays.poisoned(rows, d), *(arrays.poisoned(rows, dtype="float32") for _ in range(2))
    )  # fmt: skip
    ops.add_layernorm(arrays.of(x), arrays.of(branch), arrays.of(weight), arrays.of(bias), x_out, out, m, r, mine)
    near(ops, x_out, summed, U * np.abs(summed) + 3 * u * (np.abs(x) + 1.5 * np.abs(branch)))
    stored = ops.to_host(x_out).astype(np.float64)  # the norm is that of what was stored
    REFERENCE.layernorm(stored, weight, bias, expected, mean, rstd)
    near(ops, out, expected, norm_bound(stored, weight, bias, mean, rstd, U))


@pytest.mark.parametrize(("rows", "d"), [*ROWS, (300, 64), (70, 800)])
@pytest.mark.parametrize("branch", [None, 0, 0.3])  # none, or one with this dropout
def test_layernorm_backward(ops, arrays, rng, U, rows, d, branch):
    x, dout, dx = (arrays.rounded(rng.standard_normal((rows, d))) for _ in range(3))
    weight = arrays.rounded(rng.standard_normal(d))
    mean, rstd = np.empty(rows), np.empty(rows)
    REFERENCE.layernorm(x, weight, weight, np.empty((rows, d)), mean, rstd)
    mean, rstd = (a.astype(np.float32).astype(np.float64) for a in (mean, rstd))
    mine, dweight, dbias = arrays.of(dx), Sums(ops, arrays, rows, d), Sums(ops, arrays, rows, d)
    statistics = arrays.of(mean, "float32"), arrays.of(rstd, "float32")
    sums = dweight.partials, dbias.partials
    inputs = arrays.of(dout), arrays.of(x), arrays.of(weight), *statistics
    if branch is None:
        ops.layernorm_backward(*inputs, mine, *sums)
    else:
        dbranch, dbranch_sums = arrays.poisoned(rows, d) if branch else mine, Sums(ops, arrays, rows, d)
        mask, its_mask = dropout(ops, branch)
        ops.add_layernorm_backward(*inputs, mine, dbranch, *sums, dbranch_sums.partials, mask)

    n, g = (x - mean[:, None]) * rstd[:, None], dout * weight
    n_error = 3 * u * np.abs(n) + 2 * u * np.abs(x) * rstd[:, None]
    g_mean, gn_mean = np.abs(g).mean(1, keepdims=True), np.abs(g * n).mean(1, keepdims=True)
    each = (np.abs(g) + g_mean + np.abs(n) * gn_mean) * (d + 6) * u
    each += n_error * gn_mean + np.abs(n) * (np.abs(g) * n_error).mean(1, keepdims=True)
    weight_error = (rows * u + 3 * u) * np.abs(dout * n).sum(0) + (np.abs(dout) * n_error).sum(0)
    before, expected = np.abs(dx), np.empty((2, 1, d))
    REFERENCE.layernorm_backward(dout, x, weight, mean, rstd, dx, *expected)
    near(ops, mine, dx, rstd[:, None] * each + (U + 2 * u) * (np.abs(dx) + before) + 1e-30)
    near(ops, dweight.total(), expected[0, 0], weight_error + 1e-30)
    near(ops, dbias.total(), expected[1, 0], rows * u * np.abs(dout).sum(0) + 1e-30)
    if branch is not None:  # its gradient is that of the dx that was stored, and its sums those of what was stored
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


# ---- linear ----------------------------------------------------------------------------------------------------------

LAYERS = [(False, None), (False, "gelu"), (False, "relu"), (True, None)]  # the last is the head: wte.T, no bias
SIZES = [
    (1, 1, 1), (3, 5, 7), (16, 16, 16), (65, 24, 40), (67, 129, 71), (130, 64, 200), (1, 24, 40),
    (1, 24, 20), (1, 24, 7),
]  # rows, in, out  # fmt: skip
# One row of whole vectors, for blocks of each size, that a thread reads at once or not, or that is too long for them.
ROW_SIZES = [(1, 776, 264), (1, 1288, 24), (1, 3080, 40), (1, 4504, 24), (1, 10_008, 16)]


def product_bound(a, b, U, extra=0.0):
    """An element of a @ b is off by its terms' sum and its own rounding; `extra` is added before that."""
    size = np.abs(a) @ np.abs(b) + extra
    return (a.shape[1] + 3) * u * size + U * size + 1e-30


def activation_bound(x, error, U):
    """gelu' is at most 1.13; its tanh form's own error is below 16 u |x| plus exp2's."""
    return 1.13 * error + (16 * u + EXP + U) * np.abs(x) + 1e-30


@pytest.mark.parametrize(("rows", "d_in", "d_out"), SIZES)
@pytest.mark.parametrize(("transposed", "activation"), LAYERS)
def test_linear(ops, arrays, rng, U, rows, d_in, d_out, transposed, activation):
    x, weight = (arrays.rounded(rng.standard_normal(s)) for s in ((rows, d_in), (d_in, d_out)))
    bias = None if transposed else arrays.rounded(rng.standard_normal(d_out))
    expected, before = np.empty((rows, d_out)), np.empty((rows, d_out))
    REFERENCE.linear(x, weight, bias, expected, before, activation)
    out, mine = arrays.poisoned(rows, d_out), arrays.poisoned(rows, d_out)
    w = arrays.of(weight.T).T if transposed else arrays.of(weight)
    ops.linear(arrays.of(x), w, None if bias is None else arrays.of(bias), out, mine, activation)
    error = product_bound(x, weight, U, 0 if bias is None else np.abs(bias))
    if activation:
        near(ops, mine, before, error)
        near(ops, out, expected, activation_bound(before, error, U))
    else:
        near(ops, out, expected, error)


@pytest.mark.parametrize(("rows", "d_in", "d_out"), [*SIZES, *ROW_SIZES])
@pytest.mark.parametrize(("transposed", "activation"), LAYERS)
def test_norm_linear(ops, arrays, rng, U, rows, d_in, d_out, transposed, activation):
    """The norm may be rounded before the product, and the product before the activation."""
    x, weight = (arrays.rounded(rng.standard_normal(s)) for s in ((rows, d_in), (d_in, d_out)))
    norm_weight, norm_bias = (arrays.rounded(rng.standard_normal(d_in)) for _ in range(2))
    bias = None if transposed else arrays.rounded(rng.standard_normal(d_out))
    normed, mean, rstd = np.empty((rows, d_in)), np.empty(rows), np.empty(rows)
    REFERENCE.layernorm(x, norm_weight, norm_bias, normed, mean, rstd)
    expected, before = np.empty((rows, d_out)), np.empty((rows, d_out))
    REFERENCE.linear(normed, weight, bias, expected, before, activation)
    out = arrays.poisoned(rows, d_out)
    w = arrays.of(weight.T).T if transposed else arrays.of(weight)
    norm = arrays.of(norm_weight), arrays.of(norm_bias)
    ops.norm_linear(arrays.of(x), *norm, w, None if bias is None else arrays.of(bias), out, activation)
    error = product_bound(normed, weight, U, 0 if bias is None else np.abs(bias))
    error += norm_bound(x, norm_weight, norm_bias, mean, rstd, U) @ np.abs(weight)
    near(ops, out, expected, activation_bound(before, error, U) if activation else error)


@pytest.mark.parametrize(("rows", "d_in", "d_out"), [*SIZES, *ROW_SIZES])
def test_linear_adds(ops, arrays, rng, U, rows, d_in, d_out):
    """The sum may be rounded once before the bias is added."""
    x, weight, stream = (arrays.rounded(rng.standard_normal(s)) for s in ((rows, d_in), (d_in, d_out), (rows, d_out)))
    bias = arrays.rounded(rng.standard_normal(d_out))
    size = np.abs(stream) + np.abs(bias)
    out, expected = arrays.of(stream), stream.copy()
    REFERENCE.linear_add(x, weight, bias, expected)
    ops.linear_add(arrays.of(x), arrays.of(weight), arrays.of(bias), out)
    near(ops, out, expected, product_bound(x, weight, U, size) + U * (np.abs(x) @ np.abs(weight) + size))


@pytest.mark.parametrize(("rows", "d_in", "d_out"), SIZES)
@pytest.mark.parametrize(("transposed", "activation"), LAYERS)
def test_linear_backward(ops, arrays, rng, U, rows, d_in, d_out, transposed, activation):
    x, before = (arrays.rounded(rng.standard_normal((rows, d_in))) for _ in range(2))
    dout, weight = (arrays.rounded(rng.standard_normal(s)) for s in ((rows, d_out), (d_in, d_out)))
    dweight = rng.standard_normal(weight.shape).astype(np.float32).astype(np.float64)
    dx, dbias = arrays.poisoned(rows, d_in), None if transposed else Sums(ops, arrays, rows, d_out)
    if transposed:
        w, dw = arrays.of(weight.T).T, arrays.of(dweight.T, "float32").T
    else:
        w, dw = arrays.of(weight), arrays.of(dweight, "float32")
    sums, dx_sums = dbias.partials if dbias else None, Sums(ops, arrays, rows, d_in)
    inputs = arrays.of(dout), arrays.of(x), w
    ops.linear_backward(*inputs, dx, dw, sums, arrays.of(before), activation, dx_sums.partials)
    dx_, size_w, dbias_ = np.empty((rows, d_in)), np.abs(dweight), np.empty((1, d_out))
    REFERENCE.linear_backward(dout, x, weight, dx_, dweight, dbias_, before, activation, np.empty((1, d_in)))
    size = np.abs(dout) @ np.abs(weight.T)  # gelu' is at most 1.13, and off by less than 64 u + 4 EXP
    near(ops, dx, dx_, 1.13 * product_bound(dout, weight.T, U) + (64 * u + 4 * EXP + 2 * U if activation else 0) * size)
    near(ops, dw, dweight, (rows + 3) * u * (np.abs(x.T) @ np.abs(dout) + size_w))
    if dbias:
        near(ops, dbias.total(), dbias_[0], rows * u * np.abs(dout).sum(0) + 1e-30)
    if activation:  # the sums are those of the dx that was stored
        stored = ops.to_host(dx).astype(np.float64)
        near(ops, dx_sums.total(), stored.sum(0), rows * u * np.abs(stored).sum(0) + 1e-30)


@pytest.mark.parametrize(("parts", "n"), [(1, 1), (7, 30), (9, 128), (256, 640)])
def test_partial_sums_are_added(ops, arrays, rng, parts, n):
    partials, before = (rng.standard_normal(s).astype(np.float32).astype(np.float64) for s in ((parts, n), n))
    out, expected = arrays.of(before, "float32"), before.copy()
    ops.add_partials(arrays.of(partials, "float32"), out)
    REFERENCE.add_partials(partials, expected)
    near(ops, out, expected, (parts + 1) * u * (np.abs(partials).sum(0) + np.abs(before)))


# ---- attention -------------------------------------------------------------------------------------------------------

HEADS = [
    (1, 1, 1, 16), (2, 3, 5, 32), (1, 2, 64, 64), (1, 1, 67, 80), (1, 1, 33, 96), (1, 1, 130, 128), (2, 1, 97, 15),
    (1, 2, 16, 8), (1, 1, 200, 24), (1, 1, 135, 80),
]  # batch, heads, seq, head_dim  # fmt: skip


class AttentionBounds:
    """All that attention computes, [batch, heads, seq, …] in float64, and how far off each may be."""

    def __init__(self, qkv, heads, batch, U, mask, product=0.0):
        seq, d = len(qkv) // batch, qkv.shape[1] // 3
        self.q, self.k, self.v = qkv.reshape(batch, seq, 3, heads, -1).transpose(2, 0, 3, 1, 4)
        self.scale, hd = 1 / math.sqrt(d // heads), d // heads
        future = np.triu(np.full((seq, seq), -np.inf), 1)
        scores = self.q @ self.k.swapaxes(-1, -2) * self.scale + future
        self.p = np.exp(scores - scores.max(-1, keepdims=True))
        self.p /= self.p.sum(-1, keepdims=True)
        size = np.abs(self.q) @ np.abs(self.k).swapaxes(-1, -2) * self.scale
        self.score_error = ((hd + 4) * u + product) * size  # of the product, its scaling and log2(e)
        self.p_error = self.p * (2 * self.score_error.max(-1, keepdims=True) + (seq + 4) * u + 2 * EXP)
        self.mask, self.U, self.product, self.seq, self.hd = mask, U, product, seq, hd

    def rows(self, x):
        """[batch, heads, seq, head_dim] as [rows, D]."""
        return x.transpose(0, 2, 1, 3).reshape(-1, x.shape[1] * x.shape[3])

    def heads(self, x):
        return x.reshape(self.p.shape[0], self.seq, self.p.shape[1], -1).transpose(0, 2, 1, 3)

    def out(self):
        p = self.p * self.mask
        off = (self.p_error * self.mask + (self.U + self.seq * u) * p) @ np.abs(self.v)
        return self.rows(off + self.U * np.abs(p @ self.v)) + 1e-30

    def gradients(self, dout, delta):
        do = self.heads(dout)
        p, U = self.p * self.mask, self.U
        dp = do @ self.v.swapaxes(-1, -2) * self.mask
        dp_error = ((self.hd + 3) * u + self.product) * (np.abs(do) @ np.abs(self.v).swapaxes(-1, -2)) * self.mask
        ds = self.p * (dp - delta)
        ds_error = self.p * (dp_error + 2 * u * np.abs(dp)) + self.p_error * np.abs(dp - delta) + U * np.abs(ds)
        ds_error += self.p * (self.hd + 3) * u * np.abs(self.delta_size(do, dout))[..., None]
        dv = (self.p_error * self.mask + (U + self.seq * u) * p).swapaxes(-1, -2) @ np.abs(do)
        ds_error += self.seq * u * np.abs(ds)
        dq, dk = ds_error @ np.abs(self.k) * self.scale, ds_error.swapaxes(-1, -2) @ np.abs(self.q) * self.scale
        exact = ds @ self.k * self.scale, ds.swapaxes(-1, -2) @ self.q * self.scale, p.swapaxes(-1, -2) @ do
        return [self.rows(off + (U + 4 * u) * np.abs(x)) + 1e-30 for off, x in zip((dq, dk, dv), exact, strict=True)]

    def delta_size(self, do, dout):
        return np.sum(np.abs(do * self.attended), -1)


def attention_case(ops, arrays, rng, U, shape, rate, magnitude=1.0):
    batch, heads, seq, hd = shape
    d = heads * hd
    qkv = arrays.rounded(rng.standard_normal((batch * seq, 3 * d)) * magnitude)
    mine, theirs = dropout(ops, rate)
    mask = np.ones((batch * heads * seq, seq))
    if theirs:
        REFERENCE.dropout(np.ones((batch * heads * seq, seq)), mask, theirs)
    product = TF32 if ops.precision == "tf32" else 0.0  # bf16's operands are what they are rounded to
    bounds = AttentionBounds(qkv, heads, batch, U, mask.reshape(batch, heads, seq, seq), product)
    out, lse = np.empty((batch * seq, d)), np.empty((batch, heads, seq))
    REFERENCE.attention(qkv, out, lse, theirs)
    return qkv, out, lse, bounds, mine, theirs


@pytest.mark.parametrize("ops", ["fp32", "tf32", "bf16"], indirect=True)
@pytest.mark.parametrize("shape", HEADS)
@pytest.mark.parametrize("rate", [0, 0.3])
def test_attention(ops, arrays, rng, U, shape, rate):
    qkv, expected, expected_lse, bounds, mine, _ = attention_case(ops, arrays, rng, U, shape, rate)
    out, lse = arrays.poisoned(*expected.shape), arrays.poisoned(*expected_lse.shape, dtype="float32")
    ops.attention(arrays.of(qkv), out, lse, mine)
    near(ops, out, expected, bounds.out())
    off = 2 * bounds.score_error.max(-1) + (bounds.seq + 4) * u + 2 * EXP + 4 * u * np.abs(expected_lse)
    near(ops, lse, expected_lse, off)


@pytest.mark.parametrize("magnitude", [1e-3, 30.0])
def test_attention_of_large_and_tiny_scores(ops, arrays, rng, U, magnitude):
    qkv, expected, lse, bounds, mine, _ = attention_case(ops, arrays, rng, U, (1, 2, 37, 32), 0, magnitude)
    out = arrays.poisoned(*expected.shape)
    ops.attention(arrays.of(qkv), out, arrays.poisoned(*lse.shape, dtype="float32"), mine)
    near(ops, out, expected, bounds.out())


@pytest.mark.parametrize("ops", ["fp32", "tf32", "bf16"], indirect=True)
@pytest.mark.parametrize("shape", HEADS)
@pytest.mark.parametrize("rate", [0, 0.3])
def test_attention_backward(ops, arrays, rng, U, shape, rate):
    qkv, out, lse, bounds, mine, theirs = attention_case(ops, arrays, rng, U, shape, rate)
    dout, out = arrays.rounded(rng.standard_normal(out.shape)), arrays.rounded(out)
    expected = np.empty_like(qkv)
    REFERENCE.attention_backward(dout, qkv, out, lse, expected, theirs)
    dqkv = arrays.poisoned(*qkv.shape)
    ops.attention_backward(arrays.of(dout), arrays.of(qkv), arrays.of(out), arrays.of(lse, "float32"), dqkv, mine)
    bounds.attended = bounds.heads(out)
    delta = np.sum(bounds.heads(dout) * bounds.attended, -1, keepdims=True)
    near(ops, dqkv, expected, np.concatenate(bounds.gradients(dout, delta), axis=1))


@pytest.mark.parametrize("device", [GPUS[0], NUMBA], indirect=True)  # elsewhere it takes minutes
@pytest.mark.parametrize("shape", [(1, 2, 1023, 64), (1, 1, 2048, 32), (1, 1, 2048, 128)])
@pytest.mark.parametrize("rate", [0, 0.3])
def test_attention_of_long_sequences(ops, arrays, rng, U, shape, rate):
    test_attention(ops, arrays, rng, U, shape, rate)
    test_attention_backward(ops, arrays, rng, U, shape, rate)


@pytest.mark.parametrize(
    ("n", "start", "heads", "hd"),
    [
        (1, 0, 1, 16), (5, 0, 2, 32), (1, 300, 2, 64), (3, 40, 1, 15), (1, 130, 1, 128), (40, 3, 1, 24),
        (1, 600, 1, 127), (2, 1100, 1, 16), (1, 0, 3, 8),
    ],
)  # fmt: skip
def test_attention_of_new_positions_against_a_cache(ops, arrays, rng, U, n, start, heads, hd):
    past = start + n
    qkv = arrays.rounded(rng.standard_normal((past, 3 * heads * hd)))
    keys, values = (np.zeros((heads, past + 3, hd)) for _ in range(2))
    keys[:, :start], values[:, :start] = (
        qkv[:start].reshape(start, 3, heads, hd)[:, part].swapaxes(0, 1) for part in (1, 2)
    )
    mine = arrays.of(keys), arrays.of(values)
    expected, out = np.empty((n, heads * hd)), arrays.poisoned(n, heads * hd)
    place = np.array([start], np.int32)
    REFERENCE.attention_cached(qkv[start:], keys, values, place, expected)
    ops.attention_cached(arrays.of(qkv[start:]), *mine, arrays.of(place), out)
    for cache, wanted in zip(mine, (keys, values), strict=True):
        assert np.array_equal(ops.to_host(cache), wanted)
    bounds = AttentionBounds(qkv, heads, 1, U, 1.0)
    near(ops, out, expected, bounds.out()[start:])


# ---- loss ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "vocab"), [(1, 1), (3, 7), (5, 256), (4, 1000), (2, 8199), (2, 50257), (1, 2**17)])
@pytest.mark.parametrize("magnitude", [1e-3, 3.0, 1e4])
@pytest.mark.parametrize("scale", [None, 0.25])
def test_cross_entropy_and_its_gradient(ops, arrays, rng, U, rows, vocab, magnitude, scale):
    padded = -(-vocab // 128) * 128
    logits = arrays.rounded(rng.standard_normal((rows, padded)) * magnitude)
    logits[:, vocab:] = 1e30  # padding must not count, whatever it holds
    labels = rng.integers(0, vocab, rows).astype(np.int32)
    labels[0] = np.argmax(logits[0, :vocab])
    mine = arrays.of(logits), arrays.of(labels), *(arrays.poisoned(rows, dtype="float32") for _ in range(2))
    ops.softmax_cross_entropy(*mine, vocab, scale)
    losses, hits, p = np.empty(rows), np.empty(rows), logits.copy()
    REFERENCE.softmax_cross_entropy(p, labels, losses, hits, vocab, scale)
    largest = np.abs(logits[:, :vocab]).max(1)
    exponent = 4 * u * largest  # the rounding of (x - max) log2 e
    near(ops, mine[2], losses, (vocab + 4) * u + 2 * EXP + 2 * exponent + 4 * u * np.abs(losses))
    assert np.array_equal(ops.to_host(mine[3]), hits)
    if scale is None:
        assert np.array_equal(ops.to_host(mine[0])[:, :vocab], logits[:, :vocab]), "nothing may change"
    else:
        size = np.abs(p) + 2 * scale * (np.arange(padded) == labels[:, None])
        near(ops, mine[0], p, ((vocab + 4) * u + 2 * EXP + 2 * exponent[:, None] + U) * size + 1e-30)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_logit_that_is_not_finite_makes_the_loss_not_finite(ops, arrays, poison):
    logits = np.zeros((1, 128))
    logits[0, 3] = poison
    losses, hits = (arrays.of(np.zeros(1), "float32") for _ in range(2))
    ops.softmax_cross_entropy(arrays.of(logits), arrays.of(np.array([1], np.int32)), losses, hits, 5)
    assert not np.isfinite(ops.to_host(losses)).any()


@pytest.mark.parametrize("rows", [1, 255, 1000])
def test_the_metrics_are_sums_in_float64(ops, arrays, rng, rows):
    losses, hits = rng.standard_normal(rows).astype(np.float32), rng.integers(0, 2, rows).astype(np.float32)
    out = arrays.of(np.array([10.0, 20.0]), "float64")
    ops.add_sums(arrays.of(losses, "float32"), arrays.of(hits, "float32"), out)
    expected = np.array([10 + losses.sum(dtype=np.float64), 20 + hits.sum(dtype=np.float64)])
    near(ops, out, expected, rows * 2.0**-52 * (np.abs(losses).sum(dtype=np.float64) + 20))


def sampled(ops, arrays, logits, seen, uniform, **options):
    """The id that `ops` draw; they must mark it, and no other."""
    marks, out = arrays.of(seen), arrays.of(np.array([-7], np.int32))
    ops.sample(arrays.of(logits), marks, arrays.of(np.array([uniform]), "float64"), out, **options)
    (id,) = ops.to_host(out).tolist()
    assert np.array_equal(ops.to_host(marks), seen | (np.arange(seen.size) == id))
    return id


@pytest.mark.parametrize("vocab", [1, 7, 1000, 2100, 60_000])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(0, 0, 1), (1, 0, 1), (0.7, 5, 1), (1, 0, 0.8), (2, 50, 0.6), (1, 300, 0.9), (1, 1500, 0.9)],
)
def test_sampling_draws_what_the_reference_draws(ops, arrays, rng, vocab, temperature, top_k, top_p):
    """Sums of weights are off by 1e-4 of their total at most; where a draw is nearer to a boundary either may be."""
    logits = arrays.rounded(rng.standard_normal(vocab) * 2)
    logits[rng.integers(0, vocab, vocab // 4)] = logits[0]  # equal ones
    seen = np.isin(np.arange(vocab), rng.integers(0, vocab, 9)).astype(np.uint8)
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": 1.3}
    for uniform in np.append(rng.random(8), [0, 1 - 2**-24]):
        near_by = {
            sampled(REFERENCE, Arrays(REFERENCE), logits, seen, np.clip(uniform + shift, 0, 1 - 2**-40), **options)
            for shift in (-1e-4, 0, 1e-4)
        }
        if top_p < 1:
            near_by |= {
                sampled(REFERENCE, Arrays(REFERENCE), logits, seen, uniform, **{**options, "top_p": top_p + shift})
                for shift in (-1e-4, 1e-4)
            }
        assert sampled(ops, arrays, logits, seen, uniform, **options) in near_by


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(0, 0, 1), (1, 5, 0.5), (1, 50, 1), (1, 1100, 0.9)])
def test_sampling_among_more_equal_logits_than_there_are_threads(ops, arrays, temperature, top_k, top_p):
    logits, seen = np.where(np.arange(3000) < 5, 0, 1.5), (np.arange(3000) // 4 == 2).astype(np.uint8)
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": 1.2}
    for uniform in (0, 0.3, 0.77, 0.999):
        expected = sampled(REFERENCE, Arrays(REFERENCE), logits, seen, uniform, **options)
        assert sampled(ops, arrays, logits, seen, uniform, **options) == expected


@pytest.mark.parametrize("vocab", [9, 3000])
def test_sampling_knows_no_order_of_the_two_zeros(ops, arrays, vocab):
    logits = np.where(np.arange(vocab) % 2, 0.0, -0.0)
    greedy = {"temperature": 0, "top_k": 0, "top_p": 1, "repetition_penalty": 1}
    assert sampled(ops, arrays, logits, np.zeros(vocab, np.uint8), 0.9, **greedy) == 0


def test_a_penalty_beyond_float32_leaves_a_logit_of_0_as_it_is(ops, arrays):
    options = {"temperature": 0, "top_k": 0, "top_p": 1, "repetition_penalty": 1e300}
    assert sampled(ops, arrays, np.array([0.0, 1.0]), np.array([1, 0], np.uint8), 0.5, **options) == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("penalty", [5e-324, 1e-320, 1e-45, 1e-38, 1e38, 1e308])
@pytest.mark.parametrize("temperature", [0, 5e-324, 1e-320, 1e-38, 1, 1e308])
def test_sampling_draws_the_same_with_the_most_extreme_settings_and_no_warning(ops, arrays, penalty, temperature):
    logits = np.array([2.0, 0.5, -3.0, 0.0, -0.25, 1.0])
    for seen in np.uint8([[1, 1, 1, 1, 1, 1], [0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 1, 0]]):
        for top_k in (0, 3):
            options = {"temperature": temperature, "top_k": top_k, "top_p": 1, "repetition_penalty": penalty}
            drawn = {sampled(each, Arrays(each), logits, seen, 0.4, **options) for each in (ops, REFERENCE)}
            assert len(drawn) == 1


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_sampling_says_where_a_logit_is_not_finite(ops, arrays, poison):
    options = {"temperature": 1, "top_k": 0, "top_p": 1, "repetition_penalty": 1}
    logits, seen = np.array([1.0, poison, 2.0]), np.zeros(3, np.uint8)
    assert sampled(ops, arrays, logits, seen, 0.5, **options) == -1


# ---- optimizer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 1024, 70_000])
@pytest.mark.parametrize("magnitude", [1e-30, 1.0, 1e30])
def test_the_global_norm_over_and_underflows_nowhere(ops, arrays, rng, n, magnitude):
    x = (rng.standard_normal(n) * magnitude).astype(np.float32)
    out = arrays.poisoned(1, dtype="float64")
    ops.global_norm(arrays.of(x, "float32"), out)
    expected = np.linalg.norm(x.astype(np.float64))
    near(ops, out, np.array([expected]), n * 2.0**-52 * expected)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 4, 6])
def test_a_gradient_that_is_not_finite_makes_the_norm_not_finite(ops, arrays, poison, place):
    x = np.zeros(7, np.float32)
    x[place] = poison
    out = arrays.of(np.zeros(1), "float64")
    ops.global_norm(arrays.of(x, "float32"), out)
    assert not np.isfinite(ops.to_host(out)).any()


def planned(ops, arrays, norm, loss, counters, lr, clip, weight_decay=0.1):
    """The plan of a step, float64 [6]; counters, on the host, are moved on."""
    plan, mine = arrays.poisoned(6, dtype="float64"), arrays.of(counters)
    ops.plan_update(
        arrays.of(np.array([norm]), "float64"), arrays.of(np.array(loss), "float64"), mine,
        arrays.of(np.array([lr]), "float32"), out=plan, betas=(0.9, 0.95), weight_decay=weight_decay, clip=clip,
    )  # fmt: skip
    counters[...] = ops.to_host(mine)
    return plan


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_adamw(ops, arrays, rng, U, clip):
    n, decayed = 1280, 512
    host = [rng.standard_normal(n).astype(np.float32).astype(np.float64) for _ in range(4)]
    host[3] **= 2
    mine = [arrays.of(x, "float32") for x in host]
    copy = arrays.poisoned(n)
    fixed = {"betas": (0.9, 0.95), "eps": 1e-8, "decayed": decayed}
    counters, theirs = np.array([6, 2, 1]), np.array([6, 2, 1])
    plan = planned(ops, arrays, 3.0, [1.0, 1.0], counters, 1e-3, clip)
    ops.adamw(*mine, copy=copy if ops.low_precision else None, plan=plan, **fixed)
    step = np.abs(host[0]).copy()
    plan_ = planned(REFERENCE, Arrays(REFERENCE), 3.0, [1.0, 1.0], theirs, 1e-3, clip)
    REFERENCE.adamw(*host, copy=None, plan=plan_, **fixed)
    near(ops, plan, plan_, 1e-12 * np.abs(plan_))
    assert counters.tolist() == theirs.tolist() == [7, 2, 0]
    near(ops, mine[0], host[0], 4 * u * step + 40 * u * 0.1)  # a step is below lr · 10 / (1 - 0.9^7) < 0.1
    near(ops, mine[2], host[2], 8 * u * (np.abs(host[2]) + np.abs(host[1])))
    near(ops, mine[3], host[3], 8 * u * np.abs(host[3]))
    if ops.low_precision:
        weights = ops.to_host(mine[0])
        near(ops, copy, weights, U * np.abs(weights))


@pytest.mark.parametrize("ops", ["bf16"], indirect=True)
def test_what_products_read_is_the_nearest_bf16_and_of_two_the_even_one(ops, arrays):
    """Of weights of every kind (denormal, infinite, NaN and what becomes infinite), which a step of rate 0 leaves."""
    high = (np.arange(0, 2**16, 32, dtype=np.uint32)[:, None] + np.array([0, 1, 31], np.uint32)).ravel()
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    weights = (high[:, None] << 16 | low).ravel().view(np.float32)
    zeros, copy = np.zeros(weights.size), arrays.poisoned(weights.size)
    mine = arrays.of(weights, "float32"), *(arrays.of(zeros, "float32") for _ in range(3))
    plan = planned(ops, arrays, 1.0, [1.0, 1.0], np.zeros(3, np.int64), 0.0, clip=0.0)
    ops.adamw(*mine, copy=copy, plan=plan, betas=(0.9, 0.95), eps=1e-8, decayed=0)
    stored = ops.to_host(mine[0])  # AMD's take denormals for 0
    np.testing.assert_array_equal(ops.to_host(copy), ops.to_host(arrays.of(stored)))
    np.testing.assert_array_equal(np.isnan(stored), np.isnan(weights))


@pytest.mark.parametrize(("norm", "loss"), [(np.nan, 1), (np.inf, 1), (1, np.nan), (1, -np.inf)])
def test_a_step_that_is_not_finite_is_skipped_by_every_optimizer(ops, arrays, rng, norm, loss):
    host = [rng.standard_normal(256).astype(np.float32) for _ in range(4)]
    mine, counters = [arrays.of(x, "float32") for x in host], np.array([5, 2, 1])
    plan = planned(ops, arrays, norm, [1.0, loss], counters, 1.0, clip=1.0)
    ops.adamw(*mine, copy=None, plan=plan, betas=(0.9, 0.95), eps=1e-8, decayed=256)
    stack = Stack(*(x.reshape(2, 8, 16) for x in mine[:3]), copy=None)
    ops.muon([stack], plan, momentum=0.95, coefficients=NEWTON_SCHULZ)
    assert all(np.array_equal(ops.to_host(a), b) for a, b in zip(mine, host, strict=True))
    assert counters.tolist() == [5, 3, 2]


# Singular values of about 1 make elements of at most 1, and roundings of 2^-24 or 2^-9 of them are raised by some
# hundreds in fp32, where small singular values are small, and by a few in bf16, where those are lost anyway.
MUON_FP32, MUON_BF16 = 400 * u, 0.1
STACKS = [(1, 1, 1), (2, 16, 16), (3, 24, 72), (2, 96, 33), (2, 130, 64), (4, 7, 5)]  # matrices, rows, columns


def stack_of(arrays, ops, shape, rng):
    """Weights, gradients and momentum [matrices, rows, columns], and room for the copy, evenly apart with gaps."""
    count, rows, columns = shape
    stride = -(-rows * columns // 128) * 128
    host = [rng.standard_normal(shape).astype(np.float32).astype(np.float64) for _ in range(3)]

    def laid_out(value, dtype):
        whole = arrays.of(np.zeros((count, stride)), dtype)
        view = whole[:, : rows * columns].reshape(shape)
        ops.copy(value.astype(np.float32), out=view)
        return view

    copy = laid_out(np.full(shape, np.nan), "") if ops.low_precision else None
    return host, Stack(*(laid_out(x, "float32") for x in host), copy)


def roundings(x, size, rng):
    """x with every element off by up to `size` of it: one way in which arithmetic may round."""
    return x * (1 + size * rng.uniform(-1, 1, x.shape))


def rounded_orthogonalized(u, size, rng):
    """The orthogonalization that rounds every result of a product, stored in the type of products, at random."""
    x = roundings(u / np.linalg.norm(u, axis=(1, 2), keepdims=True), 2 * size, rng)
    tall = x.shape[1] > x.shape[2]
    for a, b, c in NEWTON_SCHULZ:
        turned = x.swapaxes(1, 2)
        gram = roundings(turned @ x if tall else x @ turned, size, rng)
        factor = roundings(b * gram + c * gram @ gram, size, rng)
        x = roundings(a * x + (x @ factor if tall else factor @ x), size, rng)
    return x


@pytest.mark.parametrize("shape", STACKS)
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_muon(ops, arrays, rng, U, shape, scale):
    """How far roundings take an orthogonalized matrix is seen from the reference with roundings drawn at random
    (Vignes 2004, stochastic arithmetic): no element may be further off than three times the furthest of 16 draws.
    In fp32 a product of n terms adds up to n roundings; on a CPU squares of singular values are multiplied.
    """
    (w, g, m), stack = stack_of(arrays, ops, shape, rng)
    plan = arrays.of(np.array([0, scale, 0.1, 0.99, 1, 1]), "float64")
    ops.muon([stack], plan, momentum=0.95, coefficients=NEWTON_SCHULZ)
    m_ = 0.95 * m + 0.05 * scale * g
    u_ = 0.05 * scale * g + 0.95 * m_
    near(ops, stack.momentum, m_, 8 * u * (np.abs(m) + np.abs(scale * g)))
    factor = 0.1 * 0.2 * math.sqrt(max(shape[1:]))
    exact = REFERENCE.zeros(shape)
    REFERENCE.muon(
        [Stack(exact, g, m, None)], np.array([0, scale, 1 / (0.2 * math.sqrt(max(shape[1:]))), 1, 1, 1]), momentum=0.95,
        coefficients=NEWTON_SCHULZ,
    )  # fmt: skip
    size = max(U / 2, u * max(shape[1:])) * (40 if ops.is_cpu else 1)
    draws = [rounded_orthogonalized(u_, size, rng) + exact for _ in range(16)]
    off = np.abs(draws).max()
    near(ops, stack.weights, 0.99 * w + factor * exact, 3 * factor * off + 4 * u * (np.abs(w) + factor))
    if ops.low_precision:
        weights = ops.to_host(stack.weights)
        near(ops, stack.copy, weights, U * np.abs(weights))


@pytest.mark.parametrize("device", GPUS, indirect=True)  # a CPU takes matrix by matrix
@pytest.mark.parametrize("tall", [False, True])
def test_matrices_that_do_not_fit_at_once_are_moved_in_parts(ops, arrays, rng, tall, monkeypatch):
    shape = (5, 32, 16) if tall else (5, 16, 32)
    _, stack = stack_of(arrays, ops, shape, rng)
    others = Stack(*(None if a is None else a.copy() for a in stack))
    plan = arrays.of(np.array([0, 1, 0.1, 0.99, 1, 1]), "float64")
    ops.muon([stack], plan, momentum=0.95, coefficients=NEWTON_SCHULZ)
    monkeypatch.setattr(gpu_muon, "AT_ONCE", 2 * 16 * 32)
    ops.muon([others], plan, momentum=0.95, coefficients=NEWTON_SCHULZ)
    weights = ops.to_host(stack.weights)  # a library may take another algorithm for another number of products
    tolerance = MUON_FP32 if ops.precision == "fp32" else MUON_BF16
    np.testing.assert_allclose(ops.to_host(others.weights), weights, rtol=0, atol=tolerance * 0.1 * 0.2 * math.sqrt(32))
    assert np.array_equal(ops.to_host(stack.momentum), ops.to_host(others.momentum))


@pytest.mark.parametrize("device", GPUS, indirect=True)
@pytest.mark.parametrize(("shape", "n"), [((3, 5, 7), 9), ((2, 64, 32), 70), ((1, 8, 8), 8)])
@pytest.mark.parametrize("transposed", [(False, False), (False, True), (True, False)])
def test_products_of_stacks(ops, arrays, rng, U, shape, n, transposed):
    count, m, k = shape

    def stack(rows, columns, turned=False):
        value = arrays.rounded(rng.standard_normal((count, columns, rows) if turned else (count, rows, columns)))
        mine = arrays.of(value)
        return (mine.swapaxes(1, 2), value.swapaxes(1, 2)) if turned else (mine, value)

    (a, a_), (b, b_), (addend, addend_) = stack(m, k, transposed[0]), stack(k, n, transposed[1]), stack(m, n)
    out, plain = arrays.poisoned(count, m, n), arrays.poisoned(count, m, n)
    ops._product(a, b, out, alpha=-0.5, beta=3.0, addend=addend)
    ops._product(a, b, plain)
    size = np.abs(a_) @ np.abs(b_)
    bound = (k + 4) * u * (size + 3 * np.abs(addend_))
    tf32 = (TF32 if ops.precision == "tf32" else 0) * size
    expected = 3 * addend_ - 0.5 * (a_ @ b_)
    near(ops, out, expected, bound + tf32 + U * np.abs(expected))
    near(ops, plain, a_ @ b_, bound + tf32 + U * np.abs(a_ @ b_))
