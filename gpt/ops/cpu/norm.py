"""The layer norm of a block of rows in NumPy, forward and backward."""

import numpy as np

from gpt.constants import NORM_EPS
from gpt.ops.cpu.sums import ones, sum_rows
from gpt.ops.interface import Affine, Normed
from gpt.system.threads import Scratch


def normalize(normed: Normed, norm: Affine) -> None:
    """As `Operations.layernorm`; x may also be [rows, 1, D], and each row then has bits of its own."""
    x, out, mean, rstd = normed
    np.matmul(x, ones(x.shape[-1], x.dtype), out=mean)
    mean /= x.shape[-1]
    np.subtract(x, mean[..., None], out=out)
    np.einsum("...j,...j->...", out, out, out=rstd)
    rstd /= x.shape[-1]
    rstd += NORM_EPS
    np.divide(1, np.sqrt(rstd, out=rstd), out=rstd)
    out *= rstd[..., None]
    out *= norm.weight
    out += norm.bias


def normalize_backward(normed: Normed, norm: Affine, dx: np.ndarray, sums: Affine, scratch: Scratch) -> None:
    """As `Operations.layernorm_backward`. `sums`, both [D], get the sums over these rows of dout · n and of dout."""
    x, out, mean, rstd = normed
    dout, d = out, x.shape[1]
    centered = scratch("layernorm centered", x.shape, x.dtype)
    g = scratch("layernorm g", x.shape, x.dtype)
    # With n = centered · rstd: the sums over rows of dout · n and of dout, and over columns of g · n / rstd and of g
    np.subtract(x, mean[:, None], out=centered)
    dout_centered = np.multiply(dout, centered, out=g)
    np.matmul(rstd, dout_centered, out=sums.weight)
    sum_rows(dout, out=sums.bias)
    g_centered_sums, g_sums = np.matmul(dout_centered, norm.weight), np.matmul(dout, norm.weight)
    np.multiply(dout, norm.weight, out=g)
    # dout is not needed any more: out = n · weight + bias, rounded as in `normalize`
    np.multiply(centered, rstd[:, None], out=out)
    out *= norm.weight
    out += norm.bias
    # dx += rstd · (g - mean(g) - n · mean(g · n))
    centered *= (g_centered_sums * (rstd**2 / d))[:, None]
    g -= (g_sums / d)[:, None]
    g -= centered
    g *= rstd[:, None]
    dx += g
