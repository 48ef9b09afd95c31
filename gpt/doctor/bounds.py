"""How far a result may be from the reference, NumPy's operations in float64.

Bounds follow from the arithmetic. u = 2^-24 is the relative error of one rounding to float32, and U = 2^-8 that of one
rounding to bf16 (U = u in fp32 mode). A sum of n terms, added in any order, is off by at most n u times the sum of the
absolute values. So is that of a matrix unit: it cuts sums, which costs 2 u, but it adds several terms at a time. The
GPU's exp2 has a relative error of at most EXP = 2^-21, not counting the rounding of its argument.

For example a product of rows of 64 ones with columns of 64 ones is 64. In float32 it may be off by (64 + 3) u · 64 + u
· 64, which is 0.00026; in bf16, which rounds the result, by 0.25.
"""

import math

import numpy as np

u, EXP = 2.0**-24, 2.0**-21
TF32 = 2.0**-10  # relative error of a product whose operands are rounded to tf32: each rounding adds half of it
# The same if operands are the sums of two numbers of tf32 (Tile<tf32x3> in kernels/tile_float.h): each is off by 2 u,
# and the product of the two smaller parts, which is left out, is at most 4 u.
TF32X3 = 8 * u
ROUNDING = {"fp32": u, "tf32": TF32, "bf16": 2.0**-8}  # U, by precision

LEAST = 1e-30  # added to bounds that may be 0


def product_bound(a: np.ndarray, b: np.ndarray, U: float, extra: np.ndarray | float = 0.0) -> np.ndarray:
    """How far an element of a [M, K] @ b [K, N] may be off: by the roundings of its sum and by its own.

    `extra` is the size of a term, such as the bias, that is added before the result is rounded.
    """
    size = np.abs(a) @ np.abs(b) + extra
    return np.asarray((a.shape[1] + 3) * u * size + U * size + LEAST)


def activation_bound(x: np.ndarray, error: np.ndarray, U: float) -> np.ndarray:
    """How far an activation of x may be off if x is off by `error`.

    The derivative of GELU is at most 1.13. Its tanh form has an error below 16 u |x| of its own, plus that of exp2.
    """
    return np.asarray(1.13 * error + (16 * u + EXP + U) * np.abs(x) + LEAST)


def norm_bound(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, mean: np.ndarray, rstd: np.ndarray, U: float
) -> np.ndarray:
    """How far layer norm of x [rows, D] may be off, for n = (x - mean) rstd.

    The mean is off by d u mean|x|, each difference by that and its own rounding, and rstd by d u relative.
    """
    d = x.shape[1]
    off = (d + 4) * u * (np.abs(x).mean(1, keepdims=True) + np.abs(x)) * rstd[:, None]
    n = np.abs(x - mean[:, None]) * rstd[:, None]
    spread = off * (1 + n * n.mean(1, keepdims=True))  # the mean's error also enters rstd
    own = (U + 4 * u) * (np.abs(n * weight) + np.abs(bias))
    return np.asarray((spread + (2 * d + 8) * u * n) * np.abs(weight) + own + LEAST)


class AttentionBounds:
    """The intermediate results of attention, [batch, heads, seq, …] in float64, and how far off each may be.

    qkv is [rows, 3 D]. `mask` are dropout's factors of the probabilities. `product` is the relative error of products
    whose operands are rounded, and U has that of products of probabilities or of ds in it.
    """

    def __init__(
        self, qkv: np.ndarray, heads: int, batch: int, U: float, mask: np.ndarray | float, product: float = 0.0
    ) -> None:
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

    def rows(self, x: np.ndarray) -> np.ndarray:
        """[batch, heads, seq, head_dim] as [rows, D]."""
        return x.transpose(0, 2, 1, 3).reshape(-1, x.shape[1] * x.shape[3])

    def heads(self, x: np.ndarray) -> np.ndarray:
        """[rows, D] as [batch, heads, seq, head_dim]."""
        return x.reshape(self.p.shape[0], self.seq, self.p.shape[1], -1).transpose(0, 2, 1, 3)

    def out(self) -> np.ndarray:
        """How far each element of the output may be off, [rows, D]."""
        p = self.p * self.mask
        off = (self.p_error * self.mask + (self.U + self.seq * u) * p) @ np.abs(self.v)
        return self.rows(off + self.U * np.abs(p @ self.v)) + LEAST

    def lse(self, lse: np.ndarray) -> np.ndarray:
        """How far each log Σ exp of scores may be off, [batch, heads, seq]."""
        error = 2 * self.score_error.max(-1) + (self.seq + 4) * u + 2 * EXP
        return np.asarray(error + 4 * u * np.abs(lse))

    def gradients(self, dout: np.ndarray, out: np.ndarray) -> list[np.ndarray]:
        """How far each element of the gradients of q, k and v may be off, three arrays [rows, D].

        The head of kernels/attention.hip has the formulas. delta is the dot product of each row of dout and out.
        """
        do, attended = self.heads(dout), self.heads(out)
        p, U = self.p * self.mask, self.U
        delta = np.sum(do * attended, -1, keepdims=True)
        delta_size = np.sum(np.abs(do * attended), -1, keepdims=True)  # delta's error is relative to it
        dp = do @ self.v.swapaxes(-1, -2) * self.mask
        dp_error = ((self.hd + 3) * u + self.product) * (np.abs(do) @ np.abs(self.v).swapaxes(-1, -2)) * self.mask
        ds = self.p * (dp - delta)
        ds_error = self.p * (dp_error + 2 * u * np.abs(dp)) + self.p_error * np.abs(dp - delta) + U * np.abs(ds)
        ds_error += self.p * (self.hd + 3) * u * delta_size
        dv = (self.p_error * self.mask + (U + self.seq * u) * p).swapaxes(-1, -2) @ np.abs(do)
        ds_error += self.seq * u * np.abs(ds)
        dq, dk = ds_error @ np.abs(self.k) * self.scale, ds_error.swapaxes(-1, -2) @ np.abs(self.q) * self.scale
        exact = ds @ self.k * self.scale, ds.swapaxes(-1, -2) @ self.q * self.scale, p.swapaxes(-1, -2) @ do
        each = zip((dq, dk, dv), exact, strict=True)
        return [self.rows(off + (U + 4 * u) * np.abs(x)) + LEAST for off, x in each]
