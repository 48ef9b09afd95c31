"""Linear layers of a whole batch in NumPy, forward and backward; decoding.py has those of one row of each sequence.

Threads share out blocks of rows. A block goes through its product, and in chunks through bias and activation. The
gradient of the weight is cut by its own rows, each of which sums over the whole batch. For example, 2 threads, 1,024
rows and a weight [256, 1024] are 2 blocks of 512 rows forward, the same 2 for the gradient of x, and 2 blocks of 128
rows of the weight's gradient.
"""

import numpy as np

from gpt.arithmetic import ceil_div
from gpt.ops.cpu import activations
from gpt.ops.cpu.sums import leave_total, sum_rows
from gpt.ops.interface import Activation, Affine
from gpt.system.threads import Scratch, Threads, blocks

CHUNK = 2**18  # most elements that go through bias and activation at a time: 1 MiB of float32
PRODUCT_ROWS = 512  # rows of a matrix product at a time: enough to pay for BLAS repacking the weight
PRODUCT_BLOCK = 2**18  # elements of a weight gradient at a time
SMALL_PRODUCT = 2**23  # multiplications that are not worth sharing out


def affine(
    threads: Threads, x: np.ndarray, layer: Affine, out: np.ndarray, activation: Activation | None, adds: bool
) -> None:
    """As `Operations.linear`."""
    weight, bias = layer
    product = activation.pre_activation if activation else out

    def block(r: slice) -> None:
        _multiply(x[r], weight, product[r], adds, threads.scratch)
        for chunk in blocks(r, max(1, CHUNK // weight.shape[1])):
            if bias is not None:
                product[chunk] += bias
            if activation:
                activations.apply(activation.name, product[chunk], out[chunk])

    threads.run_blocks(block, len(x), _block_rows(threads, len(x), weight))


def affine_backward(
    threads: Threads, dout: np.ndarray, weight: np.ndarray, dx: np.ndarray, dbias: np.ndarray | None,
    activation: Activation | None, adds: bool,
) -> None:  # fmt: skip
    """As `Operations.linear_backward`."""
    block_rows = _block_rows(threads, len(dout), weight)
    count = ceil_div(len(dout), block_rows)
    dout_sums = threads.scratch("linear dout sums", (count, dout.shape[1]), dout.dtype)
    dx_sums = threads.scratch("linear dx sums", (count, dx.shape[1]), dx.dtype)

    def block(r: slice) -> None:
        number = r.start // block_rows
        _multiply(dout[r], weight.T, dx[r], adds, threads.scratch)
        if activation:
            pre_activation = activation.pre_activation[r]
            activations.backward(activation.name, pre_activation, dx[r], dx_sums[number], threads.scratch)
        if dbias is not None:
            sum_rows(dout[r], out=dout_sums[number])

    threads.run_blocks(block, len(dout), block_rows)
    if dbias is not None:
        leave_total(dout_sums, dbias)
    if activation:
        leave_total(dx_sums, activation.dbias)


def weight_gradient(threads: Threads, x: np.ndarray, dout: np.ndarray, dweight: np.ndarray, fresh: bool) -> None:
    """As `Operations.weight_gradient`."""
    # BLAS wants the rows of the product contiguous: those of the tied head's gradient are its columns.
    a, b, product = (x, dout, dweight) if dweight.flags.c_contiguous else (dout, x, dweight.T)

    def block(r: slice) -> None:
        _multiply(a[:, r].T, b, product[r], not fresh, threads.scratch)

    threads.run_blocks(block, len(product), _gradient_rows(threads, len(x), product))


def _multiply(a: np.ndarray, b: np.ndarray, out: np.ndarray, adds: bool, scratch: Scratch) -> None:
    """out = a @ b, or with `adds` out +=."""
    if not adds:
        np.matmul(a, b, out=out)
        return
    out += np.matmul(a, b, out=scratch("product", out.shape, out.dtype))


def _block_rows(threads: Threads, rows: int, weight: np.ndarray) -> int:
    """Rows of x at a time, out of so many, in a product with the weight or its transpose."""
    if rows * weight.size <= SMALL_PRODUCT:
        return rows
    return min(PRODUCT_ROWS, max(64, ceil_div(rows, threads.count)))


def _gradient_rows(threads: Threads, rows: int, product: np.ndarray) -> int:
    """Rows of a weight's gradient at a time, in a product that sums over `rows` rows."""
    height, width = len(product), int(product.shape[1])
    if rows * product.size <= SMALL_PRODUCT:
        return height
    return min(ceil_div(height, threads.count), max(1, PRODUCT_BLOCK // width))
