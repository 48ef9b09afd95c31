"""Linear layers and sums over rows on every device, by kernels and by numba's loops, against the reference."""

import numpy as np
import pytest

from gpt.ops.interface import Activation, Affine, Normed
from tests.ops.kernels.bounds import EXP, REFERENCE, Sums, near, norm_bound, u

LAYERS = [(False, None), (False, "gelu"), (False, "relu"), (True, None)]  # the last is the head: wte.T, no bias
SIZES = [
    (1, 1, 1), (3, 5, 7), (16, 16, 16), (65, 24, 40), (67, 129, 71), (130, 64, 200), (1, 24, 40),
    (1, 24, 20), (1, 24, 7),
]  # rows, in, out  # fmt: skip
# A single row that consists of whole vectors. The lengths call for blocks of each size: a thread reads its share of the
# row at once or in several turns, and the last row is too long for any of the blocks.
ROW_SIZES = [(1, 776, 264), (1, 1288, 24), (1, 3080, 40), (1, 4504, 24), (1, 10_008, 16)]


def layer_of(arrays, weight, bias):
    """The layer on the device. Without a bias it is the head, whose weight is a transposed view."""
    if bias is None:
        return Affine(arrays.of(weight.T).T, None)
    return Affine(arrays.of(weight), arrays.of(bias))


def through(activation, pre_activation, dbias=None):
    return Activation(activation, pre_activation, dbias) if activation else None


def product_bound(a, b, U, extra=0.0):
    """How far an element of a @ b may be off: by the roundings of its sum and by its own.

    `extra` is the size of a term, such as the bias, that is added before the result is rounded.
    """
    size = np.abs(a) @ np.abs(b) + extra
    return (a.shape[1] + 3) * u * size + U * size + 1e-30


def activation_bound(x, error, U):
    """How far an activation of x may be off if x is off by `error`.

    The derivative of GELU is at most 1.13. Its tanh form has an error below 16 u |x| of its own, plus that of exp2.
    """
    return 1.13 * error + (16 * u + EXP + U) * np.abs(x) + 1e-30


@pytest.mark.parametrize(("rows", "d_in", "d_out"), SIZES)
@pytest.mark.parametrize(("transposed", "activation"), LAYERS)
def test_linear(ops, arrays, rng, U, rows, d_in, d_out, transposed, activation):
    x, weight = (arrays.rounded(rng.standard_normal(s)) for s in ((rows, d_in), (d_in, d_out)))
    bias = None if transposed else arrays.rounded(rng.standard_normal(d_out))
    expected, pre_activation = np.empty((rows, d_out)), np.empty((rows, d_out))
    REFERENCE.linear(x, Affine(weight, bias), expected, through(activation, pre_activation))
    out, mine = arrays.poisoned(rows, d_out), arrays.poisoned(rows, d_out)
    ops.linear(arrays.of(x), layer_of(arrays, weight, bias), out, through(activation, mine))
    error = product_bound(x, weight, U, 0 if bias is None else np.abs(bias))
    if activation:
        near(ops, mine, pre_activation, error)
        near(ops, out, expected, activation_bound(pre_activation, error, U))
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
    REFERENCE.layernorm(Normed(x, normed, mean, rstd), Affine(norm_weight, norm_bias))
    expected, pre_activation = np.empty((rows, d_out)), np.empty((rows, d_out))
    REFERENCE.linear(normed, Affine(weight, bias), expected, through(activation, pre_activation))
    out = arrays.poisoned(rows, d_out)
    norm = Affine(arrays.of(norm_weight), arrays.of(norm_bias))
    ops.norm_linear(arrays.of(x), norm, layer_of(arrays, weight, bias), out, activation)
    error = product_bound(normed, weight, U, 0 if bias is None else np.abs(bias))
    error += norm_bound(x, norm_weight, norm_bias, mean, rstd, U) @ np.abs(weight)
    near(ops, out, expected, activation_bound(pre_activation, error, U) if activation else error)


@pytest.mark.parametrize(("rows", "d_in", "d_out"), [*SIZES, *ROW_SIZES])
def test_linear_adds(ops, arrays, rng, U, rows, d_in, d_out):
    """The sum may be rounded once before the bias is added."""
    x, weight, stream = (arrays.rounded(rng.standard_normal(s)) for s in ((rows, d_in), (d_in, d_out), (rows, d_out)))
    bias = arrays.rounded(rng.standard_normal(d_out))
    size = np.abs(stream) + np.abs(bias)
    out, expected = arrays.of(stream), stream.copy()
    REFERENCE.linear_add(x, Affine(weight, bias), expected)
    ops.linear_add(arrays.of(x), layer_of(arrays, weight, bias), out)
    near(ops, out, expected, product_bound(x, weight, U, size) + U * (np.abs(x) @ np.abs(weight) + size))


@pytest.mark.parametrize(("rows", "d_in", "d_out"), SIZES)
@pytest.mark.parametrize(("transposed", "activation"), LAYERS)
def test_linear_backward(ops, arrays, rng, U, rows, d_in, d_out, transposed, activation):
    x, pre_activation = (arrays.rounded(rng.standard_normal((rows, d_in))) for _ in range(2))
    dout, weight = (arrays.rounded(rng.standard_normal(s)) for s in ((rows, d_out), (d_in, d_out)))
    dweight = rng.standard_normal(weight.shape).astype(np.float32).astype(np.float64)
    dx, dbias = arrays.poisoned(rows, d_in), None if transposed else Sums(ops, arrays, rows, d_out)
    if transposed:
        w, dw = arrays.of(weight.T).T, arrays.of(dweight.T, "float32").T
    else:
        w, dw = arrays.of(weight), arrays.of(dweight, "float32")
    sums, dx_sums = dbias.partials if dbias else None, Sums(ops, arrays, rows, d_in)
    inputs = arrays.of(dout), arrays.of(x), w
    ops.linear_backward(*inputs, dx, Affine(dw, sums), through(activation, arrays.of(pre_activation), dx_sums.partials))
    dx_, size_w, dbias_ = np.empty((rows, d_in)), np.abs(dweight), np.empty((1, d_out))
    its_activation = through(activation, pre_activation, np.empty((1, d_in)))
    REFERENCE.linear_backward(dout, x, weight, dx_, Affine(dweight, dbias_), its_activation)
    size = np.abs(dout) @ np.abs(weight.T)  # GELU's derivative is at most 1.13, and off by less than 64 u + 4 EXP
    near(ops, dx, dx_, 1.13 * product_bound(dout, weight.T, U) + (64 * u + 4 * EXP + 2 * U if activation else 0) * size)
    near(ops, dw, dweight, (rows + 3) * u * (np.abs(x.T) @ np.abs(dout) + size_w))
    if dbias:
        near(ops, dbias.total(), dbias_[0], rows * u * np.abs(dout).sum(0) + 1e-30)
    if activation:  # the sums are taken over dx as it was stored
        stored = ops.to_host(dx).astype(np.float64)
        near(ops, dx_sums.total(), stored.sum(0), rows * u * np.abs(stored).sum(0) + 1e-30)


@pytest.mark.parametrize(("count", "n"), [(1, 1), (7, 30), (9, 128), (256, 640)])
def test_partial_sums_are_added(ops, arrays, rng, count, n):
    partials, before = (rng.standard_normal(s).astype(np.float32).astype(np.float64) for s in ((count, n), n))
    out, expected = arrays.of(before, "float32"), before.copy()
    ops.add_partials(arrays.of(partials, "float32"), out)
    REFERENCE.add_partials(partials, expected)
    near(ops, out, expected, (count + 1) * u * (np.abs(partials).sum(0) + np.abs(before)))
