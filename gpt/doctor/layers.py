"""Checks of the operations of a model's layers, forward and backward: call one on some shape, compare all it wrote.

Each takes a Trial and the shape of the case. `hipgpt doctor` runs them on a few shapes (gpt/doctor/selftest.py), the
tests on many. gpt/doctor/bounds.py says how the bounds are derived.
"""

from typing import Any

import numpy as np

from gpt.batches import token_order
from gpt.doctor.bounds import EXP, LEAST, TF32, TF32X3, AttentionBounds, activation_bound, norm_bound, product_bound, u
from gpt.doctor.trial import REFERENCE, Trial, difference
from gpt.ops.interface import Activation, Affine, Array, Branch, Dropout, Normed

# ---- embedding -------------------------------------------------------------------------------------------------------


def embedding(trial: Trial, batch: int, seq: int, d: int, start: int, rate: float) -> None:
    wte, wpe = trial.normal(11, d), trial.normal(seq + start + batch, d)
    ids = trial.rng.integers(0, 11, (batch, seq)).astype(np.int32)
    mine, theirs = trial.dropout(rate)
    expected = np.empty((batch * seq, d))
    place = np.arange(start, start + batch, dtype=np.int32) if start else None
    REFERENCE.embedding(ids, wte, wpe, expected, place, theirs)
    out = trial.poisoned(batch * seq, d)
    shape = trial.ops.stream(out, d).shape
    for array in [out] if shape == out.shape else [out, trial.poisoned(*shape, dtype="float32")]:
        start_of = None if place is None else trial.of(place)
        trial.ops.embedding(trial.of(ids), trial.of(wte), trial.of(wpe), array, start_of, mine)
        _near_stream(trial, array, expected, (trial.U + 4 * u) * (np.abs(expected) + 1e-6))


def embedding_backward(trial: Trial, batch: int, seq: int, d: int, rate: float) -> None:
    dout = trial.normal(batch * seq, d)
    ids = trial.rng.integers(0, 5, (batch, seq)).astype(np.int32)
    order = token_order(ids)
    dwte, dwpe = trial.exact(9, d), trial.exact(seq + 2, d)
    outs = trial.of(dwte, "float32"), trial.of(dwpe, "float32")
    mine, theirs = trial.dropout(rate)
    wte_size, wpe_size = np.abs(dwte), np.abs(dwpe)
    REFERENCE.embedding_backward(dout.copy(), ids, order, dwte, dwpe, theirs)
    REFERENCE.embedding_backward(np.abs(dout), ids, order, wte_size, wpe_size, theirs)
    trial.ops.embedding_backward(trial.of(dout), trial.of(ids), trial.of(order), *outs, mine)
    rounding = (trial.U + 2 * u if rate else 0) + batch * seq * u
    trial.near("dwte", outs[0], dwte, rounding * wte_size)
    trial.near("dwpe", outs[1], dwpe, rounding * wpe_size)


# ---- layer norm ------------------------------------------------------------------------------------------------------


def layernorm(trial: Trial, rows: int, d: int, offset: float = 0, scale: float = 1) -> None:
    """`offset` and `scale` are those of the rows: mean and spread."""
    x = trial.rounded(offset + scale * trial.rng.standard_normal((rows, d)))
    weight, bias = trial.normal(d), trial.normal(d)
    expected, mean, rstd = np.empty((rows, d)), np.empty(rows), np.empty(rows)
    REFERENCE.layernorm(Normed(x, expected, mean, rstd), Affine(weight, bias))
    out, m, r = trial.poisoned(rows, d), *(trial.poisoned(rows, dtype="float32") for _ in range(2))
    trial.ops.layernorm(Normed(trial.of(x), out, m, r), Affine(trial.of(weight), trial.of(bias)))
    trial.near("out", out, expected, norm_bound(x, weight, bias, mean, rstd, trial.U))
    _statistics(trial, x, (m, mean), (r, rstd))


def _statistics(trial: Trial, x: np.ndarray, means: tuple[Array, np.ndarray], rstds: tuple[Array, np.ndarray]) -> None:
    """Compare the device's mean and rstd of the rows of x with the reference's."""
    d, (mine, mean), (its, rstd) = x.shape[1], means, rstds
    trial.near("mean", mine, mean, (d + 2) * u * np.abs(x).mean(1) + LEAST)
    relative = (2 * d + 8) * u + 2 * (d + 4) * u * np.abs(x).mean(1) * rstd
    trial.near("rstd", its, rstd, relative * rstd)


def add_layernorm(trial: Trial, rows: int, d: int, rate: float) -> None:
    x, branch, weight, bias = trial.normal(rows, d), trial.normal(rows, d), trial.normal(d), trial.normal(d)
    mine, theirs = trial.dropout(rate)
    summed, expected, mean, rstd = np.empty((rows, d)), np.empty((rows, d)), np.empty(rows), np.empty(rows)
    norm = Affine(weight, bias)
    REFERENCE.add_layernorm(x, branch, norm, Normed(summed, expected, mean, rstd), theirs)
    x_out, out = trial.poisoned(rows, d), trial.poisoned(rows, d)
    m, r = trial.poisoned(rows, dtype="float32"), trial.poisoned(rows, dtype="float32")
    its_norm = Affine(trial.of(weight), trial.of(bias))
    trial.ops.add_layernorm(trial.of(x), trial.of(branch), its_norm, Normed(x_out, out, m, r), mine)
    trial.near("x", x_out, summed, trial.U * np.abs(summed) + 3 * u * (np.abs(x) + 1.5 * np.abs(branch)))
    stored = trial.ops.to_host(x_out).astype(np.float64)  # the norm is taken of the sum as it was stored
    REFERENCE.layernorm(Normed(stored, expected, mean, rstd), norm)
    trial.near("out", out, expected, norm_bound(stored, weight, bias, mean, rstd, trial.U))
    _statistics(trial, stored, (m, mean), (r, rstd))


def layernorm_backward(trial: Trial, rows: int, d: int) -> None:
    _layernorm_backward(trial, rows, d, None)


def add_layernorm_backward(trial: Trial, rows: int, d: int, rate: float) -> None:
    _layernorm_backward(trial, rows, d, rate)


def _layernorm_backward(trial: Trial, rows: int, d: int, branch: float | None) -> None:
    """`branch` is None for a norm alone, else the dropout rate of the branch that was added before it."""
    ops, U = trial.ops, trial.U
    x, dout, dx, weight, bias = *(trial.normal(rows, d) for _ in range(3)), trial.normal(d), trial.normal(d)
    mine, dweight, dbias = trial.of(dx), trial.sums(rows, d), trial.sums(rows, d)
    norm, grads = Affine(trial.of(weight), trial.of(bias)), Affine(dweight.partials, dbias.partials)
    statistics = (trial.poisoned(rows, dtype="float32") for _ in range(2))
    normed = Normed(trial.of(x), trial.poisoned(rows, d), *statistics)
    ops.layernorm(normed, norm)
    forward = ops.to_host(normed.out).copy()
    mean, rstd = (ops.to_host(each).astype(np.float64) for each in (normed.mean, normed.rstd))
    ops.copy(trial.of(dout), out=normed.out)
    its_mask: Dropout | None = None
    if branch is None:
        ops.layernorm_backward(normed, norm, mine, grads)
    else:
        dbranch, dbranch_sums = trial.poisoned(rows, d) if branch else mine, trial.sums(rows, d)
        mask, its_mask = trial.dropout(branch)
        ops.add_layernorm_backward(normed, norm, mine, grads, Branch(dbranch, dbranch_sums.partials, mask))
    trial.require(np.array_equal(ops.to_host(normed.out), forward), "the norm has other bits than forward")

    # dx grows by rstd (g - mean(g) - n mean(g n)). `each` is how far the terms in parentheses may be off.
    n, g = (x - mean[:, None]) * rstd[:, None], dout * weight
    n_error = 3 * u * np.abs(n) + 2 * u * np.abs(x) * rstd[:, None]
    g_mean, gn_mean = np.abs(g).mean(1, keepdims=True), np.abs(g * n).mean(1, keepdims=True)
    each = (np.abs(g) + g_mean + np.abs(n) * gn_mean) * (d + 6) * u
    each += n_error * gn_mean + np.abs(n) * (np.abs(g) * n_error).mean(1, keepdims=True)
    weight_error = (rows * u + 3 * u) * np.abs(dout * n).sum(0) + (np.abs(dout) * n_error).sum(0)
    before, expected, affine = np.abs(dx), np.empty((2, 1, d)), Affine(weight, bias)
    REFERENCE.layernorm_backward(Normed(x, dout.copy(), mean, rstd), affine, dx, Affine(*expected))
    trial.near("dx", mine, dx, rstd[:, None] * each + (U + 2 * u) * (np.abs(dx) + before) + LEAST)
    trial.near("dweight", dweight.total(), expected[0, 0], weight_error + LEAST)
    trial.near("dbias", dbias.total(), expected[1, 0], rows * u * np.abs(dout).sum(0) + LEAST)
    # The branch's gradient is computed from dx as it was stored, and its sums from that gradient as it was stored.
    if branch is not None:
        if its_mask:
            branch_gradient = np.empty((rows, d))
            REFERENCE.dropout(ops.to_host(mine).astype(np.float64), branch_gradient, its_mask)
            trial.near("the branch's gradient", dbranch, branch_gradient, (U + 2 * u) * np.abs(branch_gradient))
        _stored_sums(trial, "the branch's dbias", dbranch_sums.total(), dbranch)


def dropout(trial: Trial, rows: int, d: int) -> None:
    x = trial.normal(rows, d)
    mine, theirs = trial.dropout(0.3)
    assert mine
    assert theirs
    expected, out = np.empty((rows, d)), trial.poisoned(rows, d)
    REFERENCE.dropout(x, expected, theirs)
    trial.ops.dropout(trial.of(x), out, mine)
    trial.require(np.array_equal(trial.ops.to_host(out) == 0, expected == 0), "other elements are dropped")
    trial.near("out", out, expected, (trial.U + 2 * u) * np.abs(expected))


# ---- linear ----------------------------------------------------------------------------------------------------------


def _layer(trial: Trial, weight: np.ndarray, bias: np.ndarray | None) -> Affine:
    """The layer on the device. Without a bias it is the head, whose weight is a transposed view."""
    if bias is None:
        return Affine(trial.of(weight.T).T, None)
    return Affine(trial.of(weight), trial.of(bias))


def _through(activation: str | None, pre_activation: Array, dbias: Array = None) -> Activation | None:
    return Activation(activation, pre_activation, dbias) if activation else None


def _size(bias: np.ndarray | None) -> np.ndarray | float:
    return 0.0 if bias is None else np.abs(bias)


def _stored_sums(trial: Trial, name: str, total: np.ndarray, array: Array) -> None:
    """Compare sums over rows with those of the array as it was stored."""
    stored = trial.ops.to_host(array).astype(np.float64)
    trial.near(name, total, stored.sum(0), len(stored) * u * np.abs(stored).sum(0) + LEAST)


def linear(
    trial: Trial, rows: int, d_in: int, d_out: int, transposed: bool, activation: str | None, adds: bool = False
) -> None:
    """With `adds` the sum may be rounded once before the bias is added."""
    x, weight, before = trial.normal(rows, d_in), trial.normal(d_in, d_out), trial.normal(rows, d_out)
    bias = None if transposed else trial.normal(d_out)
    expected, pre_activation = before.copy(), before.copy()
    REFERENCE.linear(x, Affine(weight, bias), expected, _through(activation, pre_activation), adds=adds)
    out, mine = (trial.of(before) if adds else trial.poisoned(rows, d_out) for _ in range(2))
    trial.ops.linear(trial.of(x), _layer(trial, weight, bias), out, _through(activation, mine), adds=adds)
    size = _size(bias) + (np.abs(before) if adds else 0)
    error = product_bound(x, weight, trial.product_U, size)
    if adds:
        error += trial.U * (np.abs(x) @ np.abs(weight) + size)
    if activation:
        trial.near("pre_activation", mine, pre_activation, error)
        error = activation_bound(pre_activation, error, trial.U)
    trial.near("out", out, expected, error)


def norm_linear(trial: Trial, rows: int, d_in: int, d_out: int, transposed: bool, activation: str | None) -> None:
    """The norm may be rounded before the product, and the product before the activation."""
    x, weight = trial.normal(rows, d_in), trial.normal(d_in, d_out)
    norm = Affine(trial.normal(d_in), trial.normal(d_in))
    bias = None if transposed else trial.normal(d_out)
    normed, mean, rstd = np.empty((rows, d_in)), np.empty(rows), np.empty(rows)
    REFERENCE.layernorm(Normed(x, normed, mean, rstd), norm)
    expected, pre_activation = np.empty((rows, d_out)), np.empty((rows, d_out))
    REFERENCE.linear(normed, Affine(weight, bias), expected, _through(activation, pre_activation))
    out, stream = trial.poisoned(rows, d_out), _stream(trial, x, d_out)
    its_norm, layer = Affine(trial.of(norm.weight), trial.of(norm.bias)), _layer(trial, weight, bias)
    trial.ops.norm_linear(stream, its_norm, layer, out, activation)
    error = product_bound(normed, weight, trial.product_U, _size(bias))
    error += norm_bound(x, *norm, mean, rstd, trial.U) @ np.abs(weight)
    trial.near("out", out, expected, activation_bound(pre_activation, error, trial.U) if activation else error)
    alone = trial.poisoned(1, d_out)
    trial.ops.norm_linear(stream[-1:], its_norm, layer, alone, activation)
    _same_alone(trial, out, alone)


def linear_add(trial: Trial, rows: int, d_in: int, d_out: int) -> None:
    """The sum may be rounded once before the bias is added."""
    x, weight, stream = trial.normal(rows, d_in), trial.normal(d_in, d_out), trial.normal(rows, d_out)
    bias = trial.normal(d_out)
    size = np.abs(stream) + np.abs(bias)
    out, expected = _stream(trial, stream, d_in), stream.copy()
    alone = trial.ops.empty(out[-1:].shape, str(out.dtype))
    trial.ops.copy(out[-1:], out=alone)
    REFERENCE.linear_add(x, Affine(weight, bias), expected)
    layer, inputs = _layer(trial, weight, bias), trial.of(x)
    trial.ops.linear_add(inputs, layer, out)
    again = trial.U * (np.abs(x) @ np.abs(weight) + size)
    _near_stream(trial, out, expected, product_bound(x, weight, trial.product_U, size) + again)
    trial.ops.linear_add(inputs[-1:], layer, alone)
    _same_alone(trial, out, alone)


def _stream(trial: Trial, rows: np.ndarray, inner: int) -> Array:
    """A stream on the device that holds `rows` [sequences, D]: see `Operations.stream`.

    Its parts, if it has any, are random but for the first, which makes their sum the rows within float32's rounding.
    """
    shape = trial.ops.stream(trial.of(rows), inner).shape
    if len(shape) == 2:
        return trial.of(rows)
    parts = trial.exact(*shape)
    parts[:, 0] = rows - parts[:, 1:].sum(1)
    return trial.of(parts, "float32")


def _near_stream(trial: Trial, stream: Array, reference: np.ndarray, bound: Any) -> None:
    """Compare a stream with the rows that it should hold."""
    host = trial.ops.to_host(stream).astype(np.float64)
    found = difference(host.sum(1) if host.ndim == 3 else host, reference, bound)
    trial.require(not found, f"out is {found}")


def _same_alone(trial: Trial, out: Array, alone: Array) -> None:
    """Require that the last row has the same bits as without the others."""
    its = trial.ops.to_host(alone)[0]
    trial.require(np.array_equal(trial.ops.to_host(out)[-1], its), "a sequence's bits depend on the others")


def linear_backward(
    trial: Trial, rows: int, d_in: int, d_out: int, transposed: bool, activation: str | None, adds: bool = False
) -> None:
    ops, U, before = trial.ops, trial.product_U, trial.normal(rows, d_in)
    pre_activation, dout, weight = trial.normal(rows, d_in), trial.normal(rows, d_out), trial.normal(d_in, d_out)
    dx = trial.of(before) if adds else trial.poisoned(rows, d_in)
    dbias = None if transposed else trial.sums(rows, d_out)
    w = trial.of(weight.T).T if transposed else trial.of(weight)
    dx_sums = trial.sums(rows, d_in)
    its_activation = _through(activation, trial.of(pre_activation), dx_sums.partials)
    ops.linear_backward(trial.of(dout), w, dx, dbias.partials if dbias else None, its_activation, adds=adds)
    expected, expected_dbias = before.copy(), np.empty((1, d_out))
    activated = _through(activation, pre_activation, np.empty((1, d_in)))
    REFERENCE.linear_backward(dout, weight, expected, expected_dbias, activated, adds=adds)
    added = np.abs(before) if adds else 0.0
    size = np.abs(dout) @ np.abs(weight.T) + added  # GELU's derivative is at most 1.13, off by less than 64 u + 4 EXP
    error = 1.13 * product_bound(dout, weight.T, U, added) + (64 * u + 4 * EXP + 2 * U if activation else 0) * size
    trial.near("dx", dx, expected, error)
    if dbias:
        trial.near("dbias", dbias.total(), expected_dbias[0], rows * u * np.abs(dout).sum(0) + LEAST)
    if activation:  # the sums are taken over dx as it was stored
        _stored_sums(trial, "the activation's dbias", dx_sums.total(), dx)


def weight_gradient(trial: Trial, rows: int, d_in: int, d_out: int, transposed: bool, fresh: bool) -> None:
    """The gradient of a weight that is a transposed view is one, too."""
    x, dout, dweight = trial.normal(rows, d_in), trial.normal(rows, d_out), trial.exact(d_in, d_out)
    dw = trial.of(dweight.T, "float32").T if transposed else trial.of(dweight, "float32")
    trial.ops.weight_gradient(trial.of(x), trial.of(dout), dw, fresh=fresh)
    before = 0.0 if fresh else np.abs(dweight)
    REFERENCE.weight_gradient(x, dout, dweight, fresh=fresh)
    # Only tf32 rounds the operands: those in bf16 are exact, because they are rounded already.
    operands = trial.product_U if trial.ops.precision == "tf32" else 0.0
    trial.near("dweight", dw, dweight, ((rows + 3) * u + operands) * (np.abs(x.T) @ np.abs(dout) + before))


def add_partials(trial: Trial, count: int, n: int) -> None:
    partials, before = trial.exact(count, n), trial.exact(n)
    out, expected = trial.of(before, "float32"), before.copy()
    trial.ops.add_partials(trial.of(partials, "float32"), out)
    REFERENCE.add_partials(partials, expected)
    trial.near("out", out, expected, (count + 1) * u * (np.abs(partials).sum(0) + np.abs(before)))


# ---- attention -------------------------------------------------------------------------------------------------------


class _Attention:
    """Inputs of attention, what the reference computes from them, and the bounds."""

    def __init__(
        self, trial: Trial, batch: int, heads: int, seq: int, head_dim: int, rate: float, magnitude: float = 1.0,
        growth: float = 0.0,
    ) -> None:  # fmt: skip
        d = heads * head_dim
        qkv = trial.rng.standard_normal((batch * seq, 3 * d)) * magnitude
        if growth:
            first = qkv.reshape(batch, seq, 3, heads, head_dim)[..., 0]  # elements of each row
            first[:, :, 0] = 4
            first[:, :, 1] = growth / 4 * np.sqrt(head_dim) * np.arange(seq)[:, None]
        self.qkv = trial.rounded(qkv)
        self.mine, self.theirs = trial.dropout(rate)
        mask = np.ones((batch * heads * seq, seq))
        if self.theirs:
            REFERENCE.dropout(np.ones((batch * heads * seq, seq)), mask, self.theirs)
        # bf16 operands are exact: they are rounded already
        product = {"tf32": TF32, "tf32x3": TF32X3}.get(trial.ops.attention_type, 0.0)
        U = trial.U + product if trial.ops.attention_type == "tf32x3" else trial.U  # tf32's U is its products' error
        self.bounds = AttentionBounds(self.qkv, heads, batch, U, mask.reshape(batch, heads, seq, seq), product)
        self.out, self.lse = np.empty((batch * seq, d)), np.empty((batch, heads, seq))
        REFERENCE.attention(self.qkv, self.out, self.lse, self.theirs)


def attention(
    trial: Trial, batch: int, heads: int, seq: int, head_dim: int, rate: float, magnitude: float = 1.0,
    growth: float = 0.0,
) -> None:  # fmt: skip
    """`magnitude` is that of queries, keys and values. Scores grow by `growth` from key to key, besides."""
    case = _Attention(trial, batch, heads, seq, head_dim, rate, magnitude, growth)
    out, lse = trial.poisoned(*case.out.shape), trial.poisoned(*case.lse.shape, dtype="float32")
    trial.ops.attention(trial.of(case.qkv), out, lse, case.mine)
    trial.near("out", out, case.out, case.bounds.out())
    trial.near("lse", lse, case.lse, case.bounds.lse(case.lse))


def attention_backward(trial: Trial, batch: int, heads: int, seq: int, head_dim: int, rate: float) -> None:
    case = _Attention(trial, batch, heads, seq, head_dim, rate)
    dout, out = trial.normal(*case.out.shape), trial.rounded(case.out)
    expected, dqkv = np.empty_like(case.qkv), trial.poisoned(*case.qkv.shape)
    REFERENCE.attention_backward(dout, case.qkv, out, case.lse, expected, case.theirs)
    lse = trial.of(case.lse, "float32")
    trial.ops.attention_backward(trial.of(dout), trial.of(case.qkv), trial.of(out), lse, dqkv, case.mine)
    trial.near("dqkv", dqkv, expected, np.concatenate(case.bounds.gradients(dout, out), axis=1))


def attention_cached(trial: Trial, batch: int, start: int, heads: int, head_dim: int) -> None:
    """`batch` sequences of different lengths: `start` is that of the first."""
    starts, d = [start // (1 + b) for b in range(batch)], heads * head_dim
    keys, values = (np.zeros((batch, heads, start + 4, head_dim)) for _ in range(2))
    whole = [trial.normal(first + 1, 3 * d) for first in starts]
    for b, (qkv, first) in enumerate(zip(whole, starts, strict=True)):
        past = qkv[:first].reshape(first, 3, heads, head_dim)
        keys[b, :, :first], values[b, :, :first] = past[:, 1].swapaxes(0, 1), past[:, 2].swapaxes(0, 1)
    mine, its_own = (trial.of(keys), trial.of(values)), (trial.of(keys[-1:]), trial.of(values[-1:]))
    new, places = np.stack([qkv[-1] for qkv in whole]), np.array(starts, np.int32)
    expected, out = np.empty((batch, d)), trial.poisoned(batch, d)
    REFERENCE.attention_cached(new, keys, values, places, expected)
    trial.ops.attention_cached(trial.of(new), *mine, trial.of(places), out)
    for name, cache, wanted in zip(("keys", "values"), mine, (keys, values), strict=True):
        trial.require(np.array_equal(trial.ops.to_host(cache), wanted), f"{name} of the new positions are not copies")
    bounds = [AttentionBounds(qkv, heads, 1, trial.U, 1.0).out()[-1:] for qkv in whole]
    trial.near("out", out, expected, np.concatenate(bounds))
    alone = trial.poisoned(1, d)
    trial.ops.attention_cached(trial.of(new[-1:]), *its_own, trial.of(places[-1:]), alone)
    _same_alone(trial, out, alone)


def fill_cache(trial: Trial, rows: int, heads: int, head_dim: int) -> None:
    """The second of three places gets the rows; nothing else changes."""
    qkv, place = trial.normal(rows, 3 * heads * head_dim), np.array([1], np.int32)
    keys, values = expected = [trial.normal(3, heads, rows + 3, head_dim) for _ in range(2)]
    its_keys, its_values = mine = [trial.of(each) for each in expected]
    REFERENCE.fill_cache(qkv, keys, values, place)
    trial.ops.fill_cache(trial.of(qkv), its_keys, its_values, trial.of(place))
    for name, cache, wanted in zip(("keys", "values"), mine, expected, strict=True):
        trial.require(np.array_equal(trial.ops.to_host(cache), wanted), f"{name} of the positions are not copies")
