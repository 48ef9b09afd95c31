"""Linear layers and attention for sequences that are written side by side, each with bits of its own.

Another number of rows makes BLAS add in another order. So each sequence is a product by itself: the calls of BLAS for
it are the same however many sequences there are, and whichever place it has. NumPy makes these calls in one loop. A
call takes a block of a weight's columns, which stays in the cache until all sequences have been multiplied with it.

For example, 16 sequences with one new position each and a weight [768, 3072] are 19 blocks of up to 160 columns, and 16
products of a row and a matrix in each. Such products run at the speed of the cache, so on a CPU they are about as fast
as one product of 16 rows.
"""

import math
from collections.abc import Callable

import numpy as np

from gpt.arithmetic import ceil_div, round_up
from gpt.ops.cpu.sums import ones
from gpt.system.threads import Threads, blocks

BLOCK = 2**17  # elements of a weight that stay in a core's cache: 512 KiB
COLUMNS = 16  # a block's columns are a multiple: whole vectors and cache lines
LEAST_WORK = 2**21  # multiplications below which another thread does not pay
KEYS = 64  # a sequence's keys are padded to a multiple

Finish = Callable[[slice, slice], None]  # takes sequences, and columns


def multiply(threads: Threads, x: np.ndarray, weight: np.ndarray, out: np.ndarray, finish: Finish) -> None:
    """out = x @ weight, each row by itself; x [batch, in], weight [in, columns], out [batch, columns].

    finish(sequences, columns) is called as soon as that part of out is computed, by the thread that did it.
    """
    (batch, rows), width = x.shape, weight.shape[1]
    columns = blocks(slice(0, width), max(COLUMNS, BLOCK // rows // COLUMNS * COLUMNS))
    shares = ceil_div(threads.count, len(columns)) if batch * weight.size > LEAST_WORK else 1
    parts = [(b, c) for c in columns for b in blocks(slice(0, batch), ceil_div(batch, shares))]

    def run(number: int) -> None:
        b, c = parts[number]
        np.matmul(x[b, None], weight[:, c], out=out[b, None, c])
        finish(b, c)

    def run_all(_: int) -> None:
        for number in range(len(parts)):
            run(number)

    if batch * weight.size > LEAST_WORK:
        threads.run(run, len(parts))
    else:
        threads.run(run_all, 1)


def attend_newest(
    threads: Threads, q: np.ndarray, keys: np.ndarray, values: np.ndarray, ends: np.ndarray, out: np.ndarray
) -> None:
    """out = softmax(q kᵀ / sqrt(head_dim)) v for one query of each sequence and the first ends[b] of its keys.

    q and out are [batch, heads, 1, head_dim], keys and values [batch, heads, max_seq_len, head_dim].

    Neighboring sequences go through together if their numbers of keys are equal once they are padded to a multiple of
    KEYS. So the calls for a sequence depend on its own number alone. Padding has a probability of 0. For example, ends
    of 3, 64, 65 and 9 are padded to 64, 64, 128 and 64: the first two go through together.
    """
    batch, heads, capacity, head_dim = keys.shape
    padded = [min(capacity, round_up(int(end), KEYS)) for end in ends]
    scaled_q = q * q.dtype.type(1 / math.sqrt(head_dim))
    tasks: list[slice] = []
    for b, length in enumerate(padded):
        most = max(1, LEAST_WORK // (heads * length * head_dim))
        if tasks and padded[b - 1] == length and b - tasks[-1].start < most:
            tasks[-1] = slice(tasks[-1].start, b + 1)
        else:
            tasks.append(slice(b, b + 1))

    def run(number: int) -> None:
        b = tasks[number]
        length = padded[b.start]
        p = threads.scratch("scores", (b.stop - b.start, heads, 1, length), q.dtype)
        np.matmul(scaled_q[b], keys[b, :, :length].swapaxes(-1, -2), out=p)
        for its, end in zip(p, ends[b].tolist(), strict=True):
            its[..., end:] = -np.inf
        p -= np.maximum.reduce(p, axis=-1, keepdims=True)
        np.exp(p, out=p)
        np.matmul(p, values[b, :, :length], out=out[b])
        out[b] /= np.matmul(p, ones(length, q.dtype)[:, None])

    threads.run(run, len(tasks))
