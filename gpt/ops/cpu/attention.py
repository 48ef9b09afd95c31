"""Causal attention in NumPy, one tile of probabilities at a time (after FlashAttention, Dao 2023).

A tile is some rows of queries against all keys up to the last of them, for as many heads at once as fit the cache;
the keys after it are never looked at. The backward pass computes each tile of probabilities again. Memory is linear
in the sequence's length. All arrays are views [batch, heads, positions, head_dim].

For example, a tile of 1,024 positions has 64 queries of 4 heads. The first of the 16 tiles of these heads has their
first 64 keys, [4, 64, 64], the last one all keys, [4, 64, 1024].
"""

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from gpt.arithmetic import ceil_div
from gpt.ops.cpu.masks import Mask
from gpt.ops.cpu.sums import ones
from gpt.system.threads import Threads

TILE = 2**18  # elements of a tile, at most: 1 MiB of float32
LEAST_TILE = 2**17  # elements below which another thread does not pay
LEAST_TOTAL = 1e-9  # least sum of a row's exponentials: the largest is then above 1e-9 / keys, not denormal
QUERIES = 64  # rows of a tile: few enough to skip most of the upper triangle

HeadGroup = tuple[slice, slice]  # sequences of the batch, and heads of each, that one tile holds


class Heads(NamedTuple):
    """Queries, keys and values of all heads, or their gradients."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray


class Attended(NamedTuple):
    """The results of `attend` that `attend_backward` reads."""

    out: np.ndarray
    lse: np.ndarray  # [batch, heads, queries]


def attend(threads: Threads, inputs: Heads, out: np.ndarray, lse: np.ndarray, mask: Mask | None = None) -> None:
    """out = dropout(softmax(q kᵀ / sqrt(head_dim))) v, causally.

    lse [batch, heads, queries] receives log Σ exp of each row's scores.
    """
    q, k, v = inputs
    tiles = _Tiles(threads, q)

    def task(group: HeadGroup) -> None:
        for i in tiles.queries():
            p, shift, total = tiles.exponentials(q[group][..., i, :], k[group], i)
            np.add(np.log(total), shift, out=lse[group][..., i, None])
            if mask:
                p *= tiles.mask(mask, group, i)
            o = out[group][..., i, :]
            np.matmul(p, v[group][..., : i.stop, :], out=o)
            o /= total

    tiles.run(task)


def attend_backward(
    threads: Threads,
    dout: np.ndarray,
    inputs: Heads,
    attended: Attended,
    gradients: Heads,
    mask: Mask | None = None,
) -> None:
    """Write the gradients of q, k and v, given dout, the gradient of attended.out; as many queries as keys.

    With p the probabilities, dp = dout vᵀ (both after dropout) and delta = Σ dout · out per query:
    ds = p · (dp - delta), dq = ds k, dk = dsᵀ q (both / sqrt(head_dim)), dv = pᵀ dout.
    """
    (q, k, v), (dq, dk, dv), (out, lse) = inputs, gradients, attended
    tiles = _Tiles(threads, q)

    def task(group: HeadGroup) -> None:
        delta = np.einsum("bhsd,bhsd->bhs", dout[group], out[group])
        for i in reversed(tiles.queries()):  # the last reaches all keys: it overwrites dk and dv, the others add
            keys = slice(0, i.stop)
            p, scaled_q = tiles.scores(q[group][..., i, :], k[group], i)
            p -= lse[group][..., i, None]
            np.exp(p, out=p)
            dout_i = dout[group][..., i, :]
            ds = np.matmul(dout_i, v[group][..., keys, :].swapaxes(-1, -2), out=threads.scratch("ds", p.shape, p.dtype))
            dropped = p
            if mask:
                factors = tiles.mask(mask, group, i)
                ds *= factors
                dropped = np.multiply(p, factors, out=factors)
            tiles.add_product(dropped, dout_i, dv[group][..., keys, :], i)
            ds -= delta[..., i, None]
            ds *= p
            tiles.add_product(ds, scaled_q, dk[group][..., keys, :], i)
            dq_i = dq[group][..., i, :]
            np.matmul(ds, k[group][..., keys, :], out=dq_i)
            dq_i *= tiles.scale

    tiles.run(task)


@lru_cache
def _future(rows: int, dtype: np.dtype) -> np.ndarray:
    """[rows, rows] to be added to scores: -inf if the key comes after the query, else 0. Not to be written to."""
    return np.triu(np.full((rows, rows), -np.inf, dtype), 1)


class _Tiles:
    """The tiles of one attention, and the steps that forward and backward share."""

    def __init__(self, threads: Threads, q: np.ndarray) -> None:
        self._batch, self._heads, self._seq, head_dim = q.shape
        self.scale = 1 / math.sqrt(head_dim)
        self._threads, self._scratch = threads, threads.scratch
        self._rows = min(self._seq, max(16, min(QUERIES, TILE // self._seq)))
        share = max(ceil_div(self._batch * self._heads, threads.count), ceil_div(LEAST_TILE, self._rows * self._seq))
        self._fit = min(share, max(1, TILE // (self._rows * self._seq)))  # heads in one tile
        self._future = _future(self._rows, q.dtype)

    def run(self, task: Callable[[HeadGroup], None]) -> None:
        """Call task(group) for all groups of heads that fit one tile."""
        groups = list(self._groups())
        self._threads.run(lambda number: task(groups[number]), len(groups))

    def _groups(self) -> Iterator[HeadGroup]:
        heads = min(self._heads, self._fit)
        batch = max(1, self._fit // self._heads)
        for b in range(0, self._batch, batch):
            for h in range(0, self._heads, heads):
                yield slice(b, min(self._batch, b + batch)), slice(h, min(self._heads, h + heads))

    def queries(self) -> list[slice]:
        return [slice(i, min(self._seq, i + self._rows)) for i in range(0, self._seq, self._rows)]

    def scores(self, q: np.ndarray, k: np.ndarray, i: slice) -> tuple[np.ndarray, np.ndarray]:
        """q kᵀ / sqrt(head_dim) of queries i and all keys up to their last, -inf if a key comes after the query.

        Also q / sqrt(head_dim).
        """
        rows = i.stop - i.start
        scaled_q = np.multiply(q, self.scale, out=self._scratch("scaled q", q.shape, q.dtype))
        scores = self._scratch("scores", (*q.shape[:2], rows, i.stop), q.dtype)
        np.matmul(scaled_q, k[..., : i.stop, :].swapaxes(-1, -2), out=scores)
        if rows > 1:
            scores[..., i.start :] += self._future[:rows, :rows]
        return scores, scaled_q

    def exponentials(self, q: np.ndarray, k: np.ndarray, i: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """exp(scores - shift), shift, and the sum of each row of exponentials.

        The shift, which keeps exp from overflow, is a head's largest score. If that leaves next to nothing of a row,
        the shift is each row's own largest score, which takes ten times as long to find.
        """
        for axes in ((-2, -1), -1):
            p, _ = self.scores(q, k, i)
            shift = np.maximum.reduce(p, axis=axes, keepdims=True)
            p -= shift
            np.exp(p, out=p)
            total = np.matmul(p, ones(p.shape[-1], p.dtype)[:, None])
            if np.minimum.reduce(total, axis=None) > LEAST_TOTAL:
                break
        return p, shift, total

    def mask(self, mask: Mask, group: HeadGroup, i: slice) -> np.ndarray:
        """The dropout factors of a tile: rows are numbered through [batch, heads, seq]."""
        b, h, s = (np.arange(axis.start, axis.stop, dtype=np.uint32) for axis in (*group, i))
        rows = (b[:, None, None] * np.uint32(self._heads) + h[:, None]) * np.uint32(self._seq) + s
        return mask.draw(rows, i.stop, self._scratch, self._future.dtype)

    def add_product(self, a: np.ndarray, b: np.ndarray, out: np.ndarray, i: slice) -> None:
        """out += aᵀ b, or = for the last queries."""
        if i.stop == self._seq:
            np.matmul(a.swapaxes(-1, -2), b, out=out)
        else:
            out += np.matmul(a.swapaxes(-1, -2), b, out=self._scratch("keys' product", out.shape, out.dtype))
