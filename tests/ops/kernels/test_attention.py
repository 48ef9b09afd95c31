"""Attention on every device, by kernels and by numba's loops, against the reference."""

import math

import numpy as np
import pytest

from tests.ops.kernels.bounds import EXP, REFERENCE, TF32, dropout, near, u
from tests.support.devices import GPUS, NUMBA

HEADS = [
    (1, 1, 1, 16), (2, 3, 5, 32), (1, 2, 64, 64), (1, 1, 67, 80), (1, 1, 33, 96), (1, 1, 130, 128), (2, 1, 97, 15),
    (1, 2, 16, 8), (1, 1, 200, 24), (1, 1, 135, 80),
]  # batch, heads, seq, head_dim  # fmt: skip


class AttentionBounds:
    """The intermediate results of attention, [batch, heads, seq, …] in float64, and how far off each may be."""

    def __init__(self, qkv, heads, batch, U, mask, product=0.0):
        seq, d = len(qkv) // batch, qkv.shape[1] // 3
        self.q, self.k, self.v = qkv.reshape(batch, seq, 3, heads, -1).transpose(2, 0, 3, 1, 4)
        self.scale, hd = 1 / math.sqrt(d // heads), d // heads
        future = np.triu(np.full((seq, seq), -np.inf), 1)
        scores = self.q @ self.k.swapaxes(-1, -2) * self.scale + future
        self.p = np.exp(scores - scores.max(-1, keepdims=True))
        self.p /= self.p.sum(-1, keepdims=True)
        size = np.abs(self.q) @ np.abs(self.k).swapaxes(-1, -2) * self.scale
        self.score_error = ((hd + 4) * u + product) * size  # from the product, its scaling and log2(e)
        self.p_error = self.p * (2 * self.score_error.max(-1, keepdims=True) + (seq + 4) * u + 2 * EXP)
        self.mask, self.U, self.product, self.seq, self.hd = mask, U, product, seq, hd

    def rows(self, x):
        """[batch, heads, seq, head_dim] as [rows, D]."""
        return x.transpose(0, 2, 1, 3).reshape(-1, x.shape[1] * x.shape[3])

    def heads(self, x):
        """[rows, D] as [batch, heads, seq, head_dim]."""
        return x.reshape(self.p.shape[0], self.seq, self.p.shape[1], -1).transpose(0, 2, 1, 3)

    def out(self):
        """How far each element of the output may be off, [rows, D]."""
        p = self.p * self.mask
        off = (self.p_error * self.mask + (self.U + self.seq * u) * p) @ np.abs(self.v)
        return self.rows(off + self.U * np.abs(p @ self.v)) + 1e-30

    def gradients(self, dout, delta):
        """How far each element of the gradients of q, k and v may be off, three arrays [rows, D].

        The head of kernels/attention.hip has the formulas. `delta` is the dot product of each row of dout and out.
        """
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
        """The sum of the absolute values of delta's terms, to which its error is relative."""
        return np.sum(np.abs(do * self.attended), -1)


def attention_case(ops, arrays, rng, U, shape, rate, magnitude=1.0):
    batch, heads, seq, hd = shape
    d = heads * hd
    qkv = arrays.rounded(rng.standard_normal((batch * seq, 3 * d)) * magnitude)
    mine, theirs = dropout(ops, rate)
    mask = np.ones((batch * heads * seq, seq))
    if theirs:
        REFERENCE.dropout(np.ones((batch * heads * seq, seq)), mask, theirs)
    product = TF32 if ops.precision == "tf32" else 0.0  # bf16 operands are exact: they are rounded already
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


@pytest.mark.parametrize("device", [GPUS[0], NUMBA], indirect=True)  # on emulated devices it takes minutes
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
