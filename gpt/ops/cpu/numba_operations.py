"""The operations on a CPU with numba: NumPy's, but the slowest ones of a training step are compiled.

Needs `pip install "hipgpt[numba]"`: numba, SciPy for its BLAS, and OpenMP, which Linux has. numba keeps compiled code
on disk (numba_cache.py).
"""

import math
import os
from contextlib import suppress
from pathlib import Path

from gpt.ops.cpu.operations import CpuOps
from gpt.system.threads import ALLOWED  # found before OpenMP is loaded, which may bind this thread to one CPU

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # some 50 µs; OpenMP looks when it is loaded, below

import llvmlite.binding
import numba
import numba.np.ufunc.omppool  # an ImportError if there is no OpenMP
import numpy as np

from gpt.ops.cpu import numba_loops as loops
from gpt.ops.cpu.numba_cache import cache_notes, forgive_failures
from gpt.ops.cpu.optimizer import AdamStep
from gpt.ops.interface import Activation, AdamBuffers, Affine, Branch, Dropout, Normed

if ALLOWED:  # again: threads that are started from here on inherit it
    with suppress(OSError):
        os.sched_setaffinity(0, ALLOWED)

ACTIVATIONS = {None: loops.IDENTITY, "relu": loops.RELU, "gelu": loops.GELU}

if numba.config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set")
if not llvmlite.binding.address_of_symbol("numba_xxgemm"):
    raise ImportError(f"numba {numba.__version__} has no numba_xxgemm")
numba.config.THREADING_LAYER = "omp"  # other layers let threads sleep at once

forgive_failures(loops)


class NumbaOps(CpuOps):
    """CpuOps in float32, faster. Operations that are not overridden here, and all with dropout, fall back to CpuOps."""

    def __init__(self, threads: int | None = None) -> None:
        super().__init__(threads)
        if self.threads.count < self.threads.wanted:
            raise RuntimeError("no more threads can be started")  # OpenMP would then end the process
        self.description += ", numba"
        self._shares = self.threads.count
        numba.set_num_threads(min(self._shares, numba.config.NUMBA_NUM_THREADS))
        self._no_vector, self._no_matrix = np.empty(0, np.float32), np.empty((0, 0), np.float32)
        self.notes = cache_notes(Path(loops.linear.dispatcher.stats.cache_path), Path(loops.__file__).stem)

    def partial_sums(self, rows: int) -> int:
        return self._shares

    def embedding_backward(
        self,
        dout: np.ndarray,
        ids: np.ndarray,
        order: np.ndarray,
        dwte: np.ndarray,
        dwpe: np.ndarray,
        dropout: Dropout | None = None,
    ) -> None:
        if dropout:
            self.dropout(dout, dout, dropout)
        loops.embedding_backward(dout, ids, dwte, dwpe, self._shares)

    def layernorm(self, normed: Normed, norm: Affine) -> None:
        loops.layernorm(normed.x, self._no_matrix, *norm, *normed, self._shares)

    def add_layernorm(
        self, x: np.ndarray, branch: np.ndarray, norm: Affine, out: Normed, dropout: Dropout | None = None
    ) -> None:
        if dropout:
            super().add_layernorm(x, branch, norm, out, dropout)
            self.layernorm(out, norm)  # the sums of NumPy's norm are in another order: the bits must be `layernorm`'s
        else:
            loops.layernorm(x, branch, *norm, *out, self._shares)

    def layernorm_backward(self, normed: Normed, norm: Affine, dx: np.ndarray, grads: Affine) -> None:
        dx_sums = self._scratch("dx sums", grads.weight.shape, self._dtype)
        loops.layernorm_backward(*normed, *norm, dx, *grads, dx_sums, self._shares)

    def add_layernorm_backward(
        self, normed: Normed, norm: Affine, dx: np.ndarray, grads: Affine, branch: Branch
    ) -> None:
        if branch.dropout:
            super().add_layernorm_backward(normed, norm, dx, grads, branch)
        else:
            loops.layernorm_backward(*normed, *norm, dx, *grads, branch.dbias, self._shares)

    def linear(
        self, x: np.ndarray, layer: Affine, out: np.ndarray, activation: Activation | None = None, *, adds: bool = False
    ) -> None:
        if adds or len(x) == 1:  # BLAS has a faster way for one row
            super().linear(x, layer, out, activation, adds=adds)
            return
        bias = self._no_vector if layer.bias is None else layer.bias
        pre_activation, name = (activation.pre_activation, activation.name) if activation else (out, None)
        loops.linear(x, layer.weight, bias, pre_activation, out, ACTIVATIONS[name], self._shares)

    def linear_backward(
        self,
        dout: np.ndarray,
        weight: np.ndarray,
        dx: np.ndarray,
        dbias: np.ndarray | None = None,
        activation: Activation | None = None,
        *,
        adds: bool = False,
    ) -> None:
        if adds:
            super().linear_backward(dout, weight, dx, dbias, activation, adds=adds)
            return
        sums = self._no_matrix if dbias is None else dbias
        name, pre_activation, dx_sums = activation or (None, self._no_matrix, self._no_matrix)
        loops.linear_backward(dout, weight, dx, sums, pre_activation, dx_sums, ACTIVATIONS[name], self._shares)

    def weight_gradient(self, x: np.ndarray, dout: np.ndarray, dweight: np.ndarray, *, fresh: bool = False) -> None:
        # BLAS wants the rows of the product contiguous: those of the tied head's gradient are its columns.
        left, right, product = x, dout, dweight
        if not product.flags.c_contiguous:
            left, right, product = dout, x, product.T
        loops.weight_gradient(left, right, product, 0 if fresh else 1, self._shares)

    def attention(self, qkv: np.ndarray, out: np.ndarray, lse: np.ndarray, dropout: Dropout | None = None) -> None:
        if dropout:
            super().attention(qkv, out, lse, dropout)
        else:
            loops.attention(qkv, out, lse, self._shares)

    def attention_backward(
        self,
        dout: np.ndarray,
        qkv: np.ndarray,
        out: np.ndarray,
        lse: np.ndarray,
        dqkv: np.ndarray,
        dropout: Dropout | None = None,
    ) -> None:
        if dropout:
            super().attention_backward(dout, qkv, out, lse, dqkv, dropout)
        else:
            loops.attention_backward(dout, qkv, out, lse, dqkv, self._shares)

    def softmax_cross_entropy(
        self,
        logits: np.ndarray,
        labels: np.ndarray,
        losses: np.ndarray,
        hits: np.ndarray,
        vocab: int,
        scale: np.ndarray | None = None,
    ) -> None:
        factor = np.float32(0 if scale is None else scale[0])
        loops.softmax_cross_entropy(logits, labels, losses, hits, vocab, factor, self._shares)

    def global_norm(self, x: np.ndarray, out: np.ndarray) -> None:
        sums = np.empty(self._shares)
        loops.sums_of_squares(x, sums)
        out[0] = math.sqrt(np.sum(sums))

    def _adam_step(self, buffers: AdamBuffers, step: AdamStep) -> None:
        weights, gradients, exp_avg, exp_avg_sq, _, decayed = buffers
        beta1, beta2, factor, root, eps, keep, step_size = map(np.float32, step)
        loops.adamw(
            weights, gradients, exp_avg, exp_avg_sq, beta1, beta2, factor, root, eps, keep, step_size, decayed,
            self._shares,
        )  # fmt: skip
