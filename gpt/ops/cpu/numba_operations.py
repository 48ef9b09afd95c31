"""The operations on a CPU with numba: those of operations.py, but the slowest ones of a training step are compiled.

Needs `pip install "hipgpt[numba]"`: numba, SciPy for its BLAS, and OpenMP, which Linux has. What numba compiles, it
keeps on disk: beside these files, or in the user's cache where that folder is not writable.
"""

import math
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpt.ops.cpu.operations import CpuOps
from gpt.system.threads import ALLOWED  # found before OpenMP is loaded, which may bind this thread to one CPU

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # some 50 µs; OpenMP looks when it is loaded, below

import llvmlite.binding
import numba
import numba.np.ufunc.omppool  # an ImportError where there is no OpenMP
import numpy as np

from gpt.ops.cpu import numba_loops as loops
from gpt.ops.interface import Dropout

if ALLOWED:  # again: threads that are started from here on inherit it
    with suppress(OSError):
        os.sched_setaffinity(0, ALLOWED)

FEW_ROWS = 256  # up to which a backward pass is cut into half as many pieces: smaller products are less efficient
ACTIVATIONS = {None: loops.IDENTITY, "relu": loops.RELU, "gelu": loops.GELU}

if numba.config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set")
if not llvmlite.binding.address_of_symbol("numba_xxgemm"):
    raise ImportError(f"numba {numba.__version__} has no numba_xxgemm")
numba.config.THREADING_LAYER = "omp"  # others let threads sleep at once

CACHE_ROOM = 2**22  # bytes that numba's cache needs, and to spare


class _Cache:
    """numba's cache of a function, which never fails: it compiles code that it cannot load."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def load_overload(self, *arguments: Any) -> Any:
        try:
            return self._cache.load_overload(*arguments)
        except Exception:  # whatever unpickling damaged bytes may raise
            with suppress(Exception):
                self._cache.flush()
            return None

    def save_overload(self, *arguments: Any) -> None:
        with suppress(Exception):
            self._cache.save_overload(*arguments)


for _function in vars(loops).values():
    if hasattr(_function, "py_func"):
        _function._cache = _Cache(_function._cache)


def _cache_notes(folder: Path) -> list[str]:
    """Notes for the user about numba's cache in `folder`. Files that a power cut damaged are removed from it."""
    damaged, kept = [], []
    for file in folder.glob(f"{Path(loops.__file__).stem}.*.nb[ic]"):
        (kept if _is_whole(file) else damaged).append(file)
    for file in damaged:
        with suppress(OSError):
            file.unlink()
    notes = []
    if damaged:
        notes.append(f"Note: {len(damaged)} damaged files of numba's cache {folder} are compiled anew")
    elif not kept:
        notes.append("Note: numba compiles the code of a step, once; that takes half a minute")
    if damaged or not kept:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(CACHE_ROOM))
        except OSError as error:
            notes.append(
                f"Note: numba's cache {folder} cannot be written ({error.strerror}), so every start compiles anew: "
                "free some space, or set NUMBA_CACHE_DIR to another folder"
            )
    return notes


def _is_whole(file: Path) -> bool:
    """Whether a file ends as a pickle does; one that was cut short, or whose end is zeros, does not."""
    try:
        with open(file, "rb") as content:
            content.seek(-1, os.SEEK_END)
            return content.read(1) == b"."
    except OSError:  # also of an empty file, which has no last byte
        return False


class NumbaOps(CpuOps):
    """CpuOps in float32, faster. What is not here is computed there, and so is what has dropout."""

    def __init__(self, threads: int | None = None) -> None:
        super().__init__(threads)
        if self.threads.count < self.threads.wanted:
            raise RuntimeError("no more threads can be started")  # for want of which OpenMP would end the process
        self.description += ", numba"
        self._parts = self.threads.count  # into which all work is cut
        numba.set_num_threads(min(self._parts, numba.config.NUMBA_NUM_THREADS))
        self._no_vector, self._no_matrix = np.empty(0, np.float32), np.empty((0, 0), np.float32)
        self.notes = _cache_notes(Path(loops.linear.stats.cache_path))

    def parts(self, rows: int) -> int:
        return self._parts

    def embedding_backward(
        self, dout: np.ndarray, ids: np.ndarray, order: np.ndarray, dwte: np.ndarray, dwpe: np.ndarray,
        dropout: Dropout | None = None,
    ) -> None:  # fmt: skip
        if dropout:
            self.dropout(dout, dout, dropout)
        loops.embedding_backward(dout, ids, dwte, dwpe, self._parts)

    def layernorm(
        self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, out: np.ndarray, mean: np.ndarray, rstd: np.ndarray
    ) -> None:
        loops.layernorm(x, self._no_matrix, weight, bias, x, out, mean, rstd, self._parts)

    def add_layernorm(
        self, x: np.ndarray, branch: np.ndarray, weight: np.ndarray, bias: np.ndarray, x_out: np.ndarray,
        out: np.ndarray, mean: np.ndarray, rstd: np.ndarray, dropout: Dropout | None = None,
    ) -> None:  # fmt: skip
        if dropout:
            super().add_layernorm(x, branch, weight, bias, x_out, out, mean, rstd, dropout)
        else:
            loops.layernorm(x, branch, weight, bias, x_out, out, mean, rstd, self._parts)

    def layernorm_backward(
        self, dout: np.ndarray, x: np.ndarray, weight: np.ndarray, mean: np.ndarray, rstd: np.ndarray, dx: np.ndarray,
        dweight: np.ndarray, dbias: np.ndarray,
    ) -> None:  # fmt: skip
        dx_sums = self._scratch("dx sums", dweight.shape, self._dtype)
        loops.layernorm_backward(dout, x, weight, mean, rstd, dx, dweight, dbias, dx_sums, self._parts)

    def add_layernorm_backward(
        self, dout: np.ndarray, x: np.ndarray, weight: np.ndarray, mean: np.ndarray, rstd: np.ndarray, dx: np.ndarray,
        dbranch: np.ndarray, dweight: np.ndarray, dbias: np.ndarray, dbranch_sums: np.ndarray,
        dropout: Dropout | None = None,
    ) -> None:  # fmt: skip
        arguments = dout, x, weight, mean, rstd, dx
        if dropout:
            super().add_layernorm_backward(*arguments, dbranch, dweight, dbias, dbranch_sums, dropout)
        else:
            loops.layernorm_backward(*arguments, dweight, dbias, dbranch_sums, self._parts)

    def linear(
        self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, out: np.ndarray,
        before: np.ndarray | None = None, activation: str | None = None,
    ) -> None:  # fmt: skip
        if len(x) == 1:  # for which BLAS has a way of its own
            super().linear(x, weight, bias, out, before, activation)
        else:
            bias, before = self._no_vector if bias is None else bias, before if activation else out
            loops.linear(x, weight, bias, before, out, ACTIVATIONS[activation], self._parts)

    def linear_backward(
        self, dout: np.ndarray, x: np.ndarray, weight: np.ndarray, dx: np.ndarray, dweight: np.ndarray,
        dbias: np.ndarray | None, before: np.ndarray | None = None, activation: str | None = None,
        dx_sums: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        left, right, product = x, dout, dweight
        if not dweight.flags.c_contiguous:  # as the tied head's; BLAS wants the product's rows contiguous
            left, right, product = dout, x, dweight.T
        dbias = self._no_matrix if dbias is None else dbias
        before, dx_sums = (before, dx_sums) if activation else (self._no_matrix, self._no_matrix)
        few = len(x) <= FEW_ROWS and self._parts % 2 == 0
        loops.linear_backward(
            dout, weight, dx, left, right, product, dbias, before, dx_sums, ACTIVATIONS[activation],
            self._parts // 2 if few else self._parts,
        )  # fmt: skip

    def attention(self, qkv: np.ndarray, out: np.ndarray, lse: np.ndarray, dropout: Dropout | None = None) -> None:
        if dropout:
            super().attention(qkv, out, lse, dropout)
        else:
            loops.attention(qkv, out, lse, self._parts)

    def attention_backward(
        self, dout: np.ndarray, qkv: np.ndarray, out: np.ndarray, lse: np.ndarray, dqkv: np.ndarray,
        dropout: Dropout | None = None,
    ) -> None:  # fmt: skip
        if dropout:
            super().attention_backward(dout, qkv, out, lse, dqkv, dropout)
        else:
            loops.attention_backward(dout, qkv, out, lse, dqkv, self._parts)

    def softmax_cross_entropy(
        self, logits: np.ndarray, labels: np.ndarray, losses: np.ndarray, hits: np.ndarray, vocab: int,
        scale: float | None = None,
    ) -> None:  # fmt: skip
        loops.softmax_cross_entropy(logits, labels, losses, hits, vocab, np.float32(scale or 0), self._parts)

    def global_norm(self, x: np.ndarray, out: np.ndarray) -> None:
        sums = np.empty(self._parts)
        loops.sums_of_squares(x, sums)
        out[0] = math.sqrt(np.sum(sums))

    def _update(
        self, w: np.ndarray, g: np.ndarray, m: np.ndarray, v: np.ndarray, beta1: float, beta2: float, factor: float,
        root: float, eps: float, keep: float, step_size: float, decayed: int,
    ) -> None:  # fmt: skip
        numbers = map(np.float32, (beta1, beta2, factor, root, eps, keep, step_size))
        loops.adamw(w, g, m, v, *numbers, decayed, self._parts)
