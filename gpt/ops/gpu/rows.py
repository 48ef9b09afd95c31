"""Linear layers of one row of each sequence, for writing text: how skinny.hip (bf16) and matvec.hip (float32) start."""

from typing import Any

import numpy as np

from gpt.arithmetic import ceil_div
from gpt.ops.gpu.interface import Device
from gpt.ops.gpu.launch import (
    MATVEC_LANES,
    MATVEC_LONGEST,
    MATVEC_ROWS,
    SKINNY_SIDE,
    STREAM_PARTS,
    THREADS,
    Kernels,
    matvec_block,
    skinny_block,
)
from gpt.ops.gpu.memory import Memory
from gpt.ops.interface import Affine, Array


class RowLayers:
    """out = activation(layernorm(x) W + bias), or out += x W + bias if there is no norm.

    x is [sequences, K], out [sequences, n], and W lies in memory as [K, n] or, with a norm, as [n, K]. The stream,
    which is x with a norm and out without one, may be in parts: see `Operations.stream`.
    """

    def __init__(self, kernel: Kernels, device: Device, memory: Memory) -> None:
        self._kernel, self._device, self._memory = kernel, device, memory

    def stream(self, rows: Array, inner: int) -> Array:
        """As `Operations.stream`. On CDNA it is in parts, if skinny.hip has all layers that read it or add to it."""
        is_cdna = self._device.warp == 64 and not self._device.has_tf32
        widths = [self._kernel.width(size) for size in (rows.shape[1], inner)]
        if not (self._kernel.is_bf16 and is_cdna and min(widths) > 1):
            return rows
        count, columns = rows.shape
        return self._memory.scratch("stream", count * STREAM_PARTS * columns).reshape(count, STREAM_PARTS, columns)

    def launch(self, x: Array, norm: Affine | None, layer: Affine, activation: str | None, out: Array) -> bool:
        """Launch a kernel, if there is one for these sizes. Returns whether there is.

        The rows of W must be whole vectors. In bf16 those of x must be, too; in float32 they may have MATVEC_LONGEST
        elements at most.
        """
        (count, k), n, by_columns = (len(x), x.shape[-1]), layer.weight.shape[1], layer.weight.flags.c_contiguous
        if self._kernel.width(n if by_columns else k) == 1:
            return False
        name = "linear_add" if norm is None else "norm_linear" if by_columns else "norm_linear_transposed"
        w = layer.weight if by_columns else layer.weight.T
        defines: dict[str, Any] = {
            "K": k, "BIAS": int(layer.bias is not None), "ACTIVATION": activation or "none"
        }  # fmt: skip
        arguments = (w, w if layer.bias is None else layer.bias, out, np.int32(n), np.int32(count))
        if self._kernel.is_bf16:
            return self._skinny(name, x, norm, n, defines, arguments)
        return self._matvec(name, x, norm, n, defines, arguments)

    def _skinny(
        self, name: str, x: Array, norm: Affine | None, n: int, defines: dict[str, Any], arguments: tuple[Any, ...]
    ) -> bool:
        """On the matrix unit. Several rows are normalized by a launch of their own."""
        count, k = len(x), x.shape[-1]
        if self._kernel.width(k) == 1:
            return False
        warps = THREADS // self._device.warp
        stream: Array = x if norm else arguments[2]
        parts = stream.shape[1] if stream.ndim == 3 else 1
        in_parts: dict[str, Any] = {"STREAM": "float", "PARTS": parts} if parts > 1 else {}
        sharing = 1 if norm else parts  # blocks that share the rows of W
        if name == "norm_linear_transposed":
            columns = warps * SKINNY_SIDE
            block = skinny_block(k, count, ceil_div(n, columns), self._device)._replace(threads=THREADS, slots=warps)
        else:
            columns = SKINNY_SIDE if self._device.has_tf32 else 2 * SKINNY_SIDE  # a tile on NVIDIA, two on AMD
            block = skinny_block(ceil_div(k, sharing), count, sharing * ceil_div(n, columns), self._device)
        if norm and count > 1:
            normed = self._memory.scratch("normed", count * k, "uint16")
            kernel = self._kernel(
                "skinny.hip", "normalize", K=k, BIAS=0, ACTIVATION="none", THREADS=THREADS, SLOTS=warps,
                SEQUENCES=SKINNY_SIDE, ONLY="NORMALIZE", **in_parts,
            )  # fmt: skip
            kernel((count,), (self._device.warp,), (x, *norm, normed))
            x, in_parts = normed, {}
        kernel = self._kernel(
            "skinny.hip", name, **defines, THREADS=block.threads, SLOTS=block.slots, SEQUENCES=block.sequences,
            ONLY=name.upper(), **in_parts,
        )  # fmt: skip
        grid = sharing * ceil_div(n, columns), ceil_div(count, block.sequences)
        kernel(grid, (block.threads,), (x, *(norm or ()), *arguments))
        return True

    def _matvec(
        self, name: str, x: Array, norm: Affine | None, n: int, defines: dict[str, Any], arguments: tuple[Any, ...]
    ) -> bool:
        """With the arithmetic of threads alone."""
        count, k = x.shape
        if k > MATVEC_LONGEST:
            return False
        block = matvec_block(name, k, count)
        kernel = self._kernel(
            "matvec.hip", name, **defines, WIDTH=self._kernel.vector, THREADS=block.threads, TURNS=block.turns,
            SEQUENCES=block.sequences, LANES=MATVEC_LANES, ROWS=MATVEC_ROWS,
        )  # fmt: skip
        columns, threads = MATVEC_LANES * self._kernel.vector, block.threads
        if name == "norm_linear_transposed":
            columns, threads = MATVEC_ROWS * THREADS // self._device.warp, THREADS
        grid = ceil_div(n, columns), ceil_div(count, block.sequences)
        kernel(grid, (threads,), (x, *(norm or ()), *arguments))
        return True
