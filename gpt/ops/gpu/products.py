"""Matrix products on a GPU: by the vendor's library (blas.py) if it can compute them, else by kernels/matmul.hip.

selfcheck.py compares the two.
"""

import math
import warnings

import numpy as np

from gpt.arithmetic import ceil_div
from gpt.errors import UserError
from gpt.ops.gpu.blas import NO_EPILOGUE, PLAIN, BlasError, Epilogue, Sum, is_transposed
from gpt.ops.gpu.interface import Device
from gpt.ops.gpu.launch import PARTIAL_LANES, SUM_LANES, THREADS, Kernels
from gpt.ops.gpu.memory import Memory
from gpt.ops.interface import Activation, Array

CACHE_BYTES = 2**25  # largest array that a GPU's last cache may still hold when the next kernel reads it

_int, _long, _float = np.int32, np.int64, np.float32


class Products:
    """The matrix products of one GPU in one precision, "fp32", "tf32" or "bf16"."""

    def __init__(self, device: Device, precision: str, kernel: Kernels, memory: Memory) -> None:
        self.device, self._precision, self._kernel, self._memory = device, precision, kernel, memory

    def has_fused(self, activation: str, out_bytes: int) -> bool:
        """Whether the vendor's product should apply the activation. Its GELU is good to 2^-18, not to float32; it slows
        tf32 products down fourfold; and it takes longer than a separate pass over a result that the cache still holds.
        """
        return activation == "gelu" and self._precision == "bf16" and out_bytes > CACHE_BYTES

    def try_vendor(self, a: Array, b: Array, out: Array, epilogue: Epilogue = NO_EPILOGUE, into: Sum = PLAIN) -> bool:
        """out = a @ b by the vendor's library. Returns False if it is missing or cannot compute that.

        Raises UserError if it fails although the user insists on it.
        """
        blas, tf32 = self.device.blas, self._precision == "tf32"
        if blas is None:
            return False
        try:
            return blas.product(a, b, out, stream=self.device.stream, epilogue=epilogue, into=into, tf32=tf32)
        except BlasError as error:
            if self.device.blas_choice == "vendor":
                raise UserError(f"--blas vendor: {error}; use --blas own") from None
            self.device.blas = None
            warnings.warn(f"{error}; from here on matrix products run on hipgpt's own, slower kernel", stacklevel=2)
            return False

    def product(self, a: Array, b: Array, out: Array, into: Sum = PLAIN) -> None:
        """out = alpha · a @ b, and + beta · addend if there is one, of matrices or stacks of them: see Blas.product."""
        if not self.try_vendor(a, b, out, into=into):
            self.by_kernel(a, b, out, "STORE" if into.addend is None else "ADD", into=into)

    def gradient(self, a: Array, b: Array, out: Array, fresh: bool) -> None:
        """out [M, N] += a [M, K] @ b [K, N], or with `fresh` =: the gradient of a weight, a sum over K rows of a batch.

        a is a transposed view, out is float32. If the weight is small, matmul.hip computes parts of the sum, each over
        some of the rows, as a stack of products. For example, 8192 rows in 16 parts are [16, M, 512] @ [16, 512, N].
        The parts are added up in an order that their number alone sets.
        """
        into = PLAIN if fresh else Sum(addend=out)
        if self.try_vendor(a, b, out, into=into):
            return
        (rows, columns), depth = out.shape, len(b)
        parts = self._kernel.gradient_parts(rows, columns, depth)
        if parts == 1:
            self.by_kernel(a, b, out, "STORE" if fresh else "ADD", into=into)
            return
        partials = self._memory.scratch("partial gradients", parts * out.size).reshape(parts, rows, columns)
        stack_a, stack_b = (x.reshape(parts, depth // parts, x.shape[1]) for x in (a.T, b))
        self.by_kernel(stack_a.swapaxes(1, 2), stack_b, partials, "STORE")
        self.add_partials(partials.reshape(parts, out.size), out.reshape(-1), fresh)

    def add_partials(self, partials: Array, out: Array, fresh: bool = False) -> None:
        """out [n] += or, with `fresh`, = Σ partials [partial sums, n], all float32."""
        width, is_few = 4 if out.size % 4 == 0 else 1, len(partials) < THREADS // PARTIAL_LANES
        lanes = SUM_LANES if self.device.has_tf32 or is_few else PARTIAL_LANES
        kernel = self._kernel(
            "sums.hip", "add_partials", WIDTH=width, ACTIVATION="gelu", LANES=lanes, FRESH=int(fresh)
        )  # fmt: skip
        kernel((ceil_div(out.size, lanes * width),), (THREADS,), (partials, out, _int(len(partials)), _int(out.size)))

    def by_kernel(
        self,
        a: Array,
        b: Array,
        out: Array,
        epilogue: str,
        *,
        bias: Array = None,
        activation: Activation | None = None,
        into: Sum = PLAIN,
    ) -> None:
        """out [M, N] = a [M, K] @ b [K, N], by matmul.hip; a and b may be transposed views, and all of them stacks."""
        (*stack, m, k), n = a.shape, b.shape[-1]
        a_transposed, b_transposed = is_transposed(a), is_transposed(b)
        row_a, row_b = m if a_transposed else k, k if b_transposed else n
        width = self._kernel.width(math.gcd(row_a, row_b, n))
        side = self._kernel.product_side(math.prod(stack), m, n, k, width)
        kernel = self._kernel(
            "matmul.hip", "matmul", OUT="float" if out.dtype == np.float32 else "bf16",
            A_TRANSPOSED=int(a_transposed), B_TRANSPOSED=int(b_transposed),
            WIDTH=width, EPILOGUE=epilogue, SIDE=side,
            ACTIVATION=activation.name if activation else "gelu", THREADS=self._kernel.tile_threads,
        )  # fmt: skip
        a, b = (x.swapaxes(-1, -2) if transposed else x for x, transposed in ((a, a_transposed), (b, b_transposed)))
        addend = out if into.addend is None else into.addend
        strides = (_long(x.strides[0] // x.itemsize if stack else 0) for x in (a, b, out, addend))
        if stack:
            a, b, out, addend = (x[0] for x in (a, b, out, addend))
        # `out` stands in for arrays that the kernel does not read.
        extras = (out if bias is None else bias, activation.pre_activation if activation else out)
        sizes = (_int(m), _int(n), _int(k), *strides, _float(into.alpha), _float(into.beta))
        grid = (ceil_div(n, side), math.prod(stack) * ceil_div(m, side))
        kernel(grid, (self._kernel.tile_threads,), (a, b, out, *extras, addend, *sizes))
