"""The operations in NumPy: the reference for every other device, and the default on a CPU.

gpt/ops/interface.py defines the operations. How they are built here:

- Work is cut into blocks, and threads share the blocks out. A block goes through a whole chain of NumPy calls (product,
  bias, activation) while it is in the cache, and is as large as the cache allows. Between two calls a thread needs the
  interpreter's lock, and waking up from a wait for it takes some 20 µs, so threads with shorter calls get no more done
  than one thread. Little work is one block, in the calling thread.
- A sum over rows is taken per block and then over the blocks, in order: timing changes no result.
- Within a block, sums over either axis are products with ones: BLAS takes a fifth of the time of NumPy's reductions.
- Arrays of a block's size come from scratch memory, so a step allocates nothing large.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import psutil

from gpt.arithmetic import ceil_div
from gpt.config import ModelConfig
from gpt.ops.cpu import activations
from gpt.ops.cpu.attention import Attended, Heads, attend, attend_backward
from gpt.ops.cpu.decoding import attend_newest, multiply
from gpt.ops.cpu.embedding import TokenRows
from gpt.ops.cpu.host import HostInputs, HostOutput, HostTimeline
from gpt.ops.cpu.linear import affine, affine_backward, weight_gradient
from gpt.ops.cpu.loss import cross_entropy
from gpt.ops.cpu.masks import Mask
from gpt.ops.cpu.norm import normalize, normalize_backward
from gpt.ops.cpu.optimizer import AdamStep, adam_step, move_matrix, plan_update
from gpt.ops.cpu.sampling import choose
from gpt.ops.cpu.sums import leave_total, sum_rows
from gpt.ops.interface import (
    Activation,
    AdamBuffers,
    Affine,
    Branch,
    Coefficients,
    Dropout,
    Normed,
    Operations,
    Shape,
    Stack,
    StackShape,
    Timeline,
    UpdateRule,
    Work,
)
from gpt.system import limits
from gpt.system.threads import QUIET, Threads, available_threads

BLOCK = 2**18  # most elements of a block in an elementwise chain: 1 MiB of float32
LEAST_BLOCK = 2**17  # elements below which another thread does not pay
PASS_ROWS = 1024  # tokens for each thread in a pass: more would only take more memory
BESIDE_ARRAYS, BESIDE_ARRAYS_PER_THREAD = 2**24, 2**22  # bytes: modules, scratch, BLAS's own; 2 threads took 17 MiB


class CpuOps(Operations):
    """The operations on `threads` threads; None: as many as CPUs this process may use, or OMP_NUM_THREADS.

    With `dtype` "float64" every floating-point array is float64, also those asked for as float32: for gradient checks.
    """

    is_cpu, has_vendor_blas = True, False
    precision = "fp32"
    low_precision = False
    head_rows = 512
    vocab_multiple = 1
    steps_ahead = 0
    notes: Sequence[str] = ()
    timeline: Timeline = HostTimeline()

    def __init__(self, threads: int | None = None, dtype: str = "float32") -> None:
        self.threads = Threads(threads or available_threads())
        self.description = f"CPU, {self.threads.count} thread{'s' if self.threads.count > 1 else ''}"
        self._dtype = np.dtype(dtype)
        self._scratch = self.threads.scratch

    def check(self, config: ModelConfig) -> None:
        pass  # every model runs here

    def check_products(
        self, config: ModelConfig, batch: int, training: bool = False, stacks: Sequence[StackShape] = (),
        lora: int | None = None,
    ) -> None:  # fmt: skip
        pass

    def sequences(self, batch: int, seq: int) -> int:
        # Enough rows for all threads, in micro-batches that are as equal as possible.
        micro_batches = ceil_div(batch * seq, PASS_ROWS * self.threads.count)
        return ceil_div(batch, micro_batches)

    def partial_sums(self, rows: int) -> int:
        return 1

    # ---- arrays ---------------------------------------------------------------------------------------------------

    def empty(self, shape: Shape, dtype: str = "") -> np.ndarray:
        return np.empty(shape, self._dtype if dtype in ("", "float32") else dtype)

    def zeros(self, shape: Shape, dtype: str = "") -> np.ndarray:
        return np.zeros(shape, self._dtype if dtype in ("", "float32") else dtype)

    def stream(self, rows: np.ndarray, inner: int) -> np.ndarray:
        return rows

    def from_host(self, array: np.ndarray) -> np.ndarray:
        return array

    def to_host(self, array: np.ndarray) -> np.ndarray:
        return array

    def copy(self, value: np.ndarray, out: np.ndarray) -> None:
        np.copyto(out, value)

    def clear(self, array: np.ndarray) -> None:
        array.fill(0)

    def context_rows(self, rows: int) -> int:
        return rows

    def inputs(self, **fields: tuple[tuple[int, ...], str]) -> HostInputs:
        return HostInputs(fields)

    def output(self, array: np.ndarray) -> HostOutput:
        return HostOutput(array)

    def replayed(self, function: Work) -> Work:
        return function

    def free_bytes(self) -> int:
        return max(0, limits.free_memory() - BESIDE_ARRAYS - BESIDE_ARRAYS_PER_THREAD * self.threads.count)

    def loading_bytes(self, tensor_bytes: int) -> int:
        return tensor_bytes

    def held_bytes(self) -> int:
        rss: int = psutil.Process().memory_info().rss
        return rss

    # ---- embedding ------------------------------------------------------------------------------------------------

    def embedding(
        self,
        ids: np.ndarray,
        wte: np.ndarray,
        wpe: np.ndarray,
        out: np.ndarray,
        start: np.ndarray | None = None,
        dropout: Dropout | None = None,
    ) -> None:
        batch, seq = ids.shape
        out_3d = out.reshape(batch, seq, -1)

        def block(b: slice) -> None:
            positions = wpe[:seq] if start is None else wpe[start[b, None] + np.arange(seq)]
            np.add(wte[ids[b]], positions, out=out_3d[b])

        self.threads.run_blocks(block, batch, self._block_rows(batch, seq * out.shape[-1]))
        if dropout:
            self.dropout(out, out, dropout)

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
        batch, seq = ids.shape
        dout_3d = dout.reshape(batch, seq, -1)

        def positions(s: slice) -> None:
            for sequence in dout_3d[:, s]:
                dwpe[s] += sequence

        tokens = TokenRows(ids, order)
        self.threads.run_blocks(positions, seq, self._block_rows(seq, batch * dout.shape[-1]))
        rows = self._block_rows(tokens.count, dout.size // tokens.count)
        self.threads.run_blocks(lambda t: tokens.add_gradients(t, dout, dwte), tokens.count, rows)

    # ---- layer norm -----------------------------------------------------------------------------------------------

    def layernorm(self, normed: Normed, norm: Affine) -> None:
        self._by_rows(lambda r: normalize(normed.slice(r), norm), normed.x)

    def add_layernorm(
        self, x: np.ndarray, branch: np.ndarray, norm: Affine, out: Normed, dropout: Dropout | None = None
    ) -> None:
        mask = Mask(dropout, x.shape[1]) if dropout else None

        def block(r: slice) -> None:
            added = branch[r]
            if mask:
                added = np.multiply(added, self._draw(mask, r, x.shape[1]), out=out.out[r])
            np.add(x[r], added, out=out.x[r])
            normalize(out.slice(r), norm)

        self._by_rows(block, x)

    def layernorm_backward(self, normed: Normed, norm: Affine, dx: np.ndarray, grads: Affine) -> None:
        self._layernorm_backward(normed, norm, dx, grads)

    def add_layernorm_backward(
        self, normed: Normed, norm: Affine, dx: np.ndarray, grads: Affine, branch: Branch
    ) -> None:
        self._layernorm_backward(normed, norm, dx, grads, branch)

    def _layernorm_backward(
        self, normed: Normed, norm: Affine, dx: np.ndarray, grads: Affine, branch: Branch | None = None
    ) -> None:
        rows, d = normed.x.shape
        mask = Mask(branch.dropout, d) if branch and branch.dropout else None
        block_rows = self._block_rows(rows, d)
        sums = self._scratch("layernorm sums", (3, ceil_div(rows, block_rows), d), self._dtype)

        def block(r: slice) -> None:
            number = r.start // block_rows
            block_sums = Affine(weight=sums[0, number], bias=sums[1, number])
            normalize_backward(normed.slice(r), norm, dx[r], block_sums, self._scratch)
            if branch:  # these rows of dx are complete
                if mask:
                    np.multiply(dx[r], self._draw(mask, r, d), out=branch.gradient[r])
                sum_rows(branch.gradient[r], out=sums[2, number])

        self.threads.run_blocks(block, rows, block_rows)
        leave_total(sums[0], grads.weight)
        leave_total(sums[1], grads.bias)
        if branch:
            leave_total(sums[2], branch.dbias)

    def dropout(self, x: np.ndarray, out: np.ndarray, dropout: Dropout) -> None:
        mask = Mask(dropout, x.shape[1])

        def block(r: slice) -> None:
            np.multiply(x[r], self._draw(mask, r, x.shape[1]), out=out[r])

        self._by_rows(block, x)

    def _draw(self, mask: Mask, r: slice, columns: int) -> np.ndarray:
        return mask.draw(np.arange(r.start, r.stop, dtype=np.uint32), columns, self._scratch, self._dtype)

    # ---- linear ---------------------------------------------------------------------------------------------------

    def linear(
        self, x: np.ndarray, layer: Affine, out: np.ndarray, activation: Activation | None = None, *, adds: bool = False
    ) -> None:
        affine(self.threads, x, layer, out, activation, adds)

    def norm_linear(
        self, x: np.ndarray, norm: Affine, layer: Affine, out: np.ndarray, activation: str | None = None
    ) -> None:
        normed = self._scratch("normed", x.shape, self._dtype)
        mean, rstd = self._scratch("norm statistics", (2, len(x), 1), self._dtype)
        with QUIET():
            normalize(Normed(x[:, None], normed[:, None], mean, rstd), norm)
        product = self._scratch("pre-activation", out.shape, self._dtype) if activation else out

        def finish(b: slice, c: slice) -> None:
            if layer.bias is not None:
                product[b, c] += layer.bias[c]
            if activation:
                activations.apply(activation, product[b, c], out[b, c])

        multiply(self.threads, normed, layer.weight, product, finish)

    def linear_add(self, x: np.ndarray, layer: Affine, out: np.ndarray) -> None:
        branch = self._scratch("branch", out.shape, self._dtype)

        def finish(b: slice, c: slice) -> None:
            branch[b, c] += layer.bias[c]
            out[b, c] += branch[b, c]

        multiply(self.threads, x, layer.weight, branch, finish)

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
        affine_backward(self.threads, dout, weight, dx, dbias, activation, adds)

    def weight_gradient(self, x: np.ndarray, dout: np.ndarray, dweight: np.ndarray, *, fresh: bool = False) -> None:
        weight_gradient(self.threads, x, dout, dweight, fresh)

    def add_partials(self, partials: np.ndarray, out: np.ndarray) -> None:
        with QUIET():
            out += np.add.reduce(partials, axis=0)

    # ---- attention ------------------------------------------------------------------------------------------------

    def attention(self, qkv: np.ndarray, out: np.ndarray, lse: np.ndarray, dropout: Dropout | None = None) -> None:
        batch, heads, seq = lse.shape
        q, k, v = _by_head(qkv, 3, batch, heads)
        (out,) = _by_head(out, 1, batch, heads)
        attend(self.threads, Heads(q, k, v), out, lse, Mask(dropout, seq) if dropout else None)

    def attention_backward(
        self,
        dout: np.ndarray,
        qkv: np.ndarray,
        out: np.ndarray,
        lse: np.ndarray,
        dqkv: np.ndarray,
        dropout: Dropout | None = None,
    ) -> None:
        batch, heads, seq = lse.shape
        inputs, gradients = Heads(*_by_head(qkv, 3, batch, heads)), Heads(*_by_head(dqkv, 3, batch, heads))
        (out,), (dout,) = _by_head(out, 1, batch, heads), _by_head(dout, 1, batch, heads)
        mask = Mask(dropout, seq) if dropout else None
        attend_backward(self.threads, dout, inputs, Attended(out, lse), gradients, mask)

    def attention_cached(
        self, qkv: np.ndarray, keys: np.ndarray, values: np.ndarray, start: np.ndarray, out: np.ndarray
    ) -> None:
        batch, heads = keys.shape[:2]
        q, k, v = _by_head(qkv, 3, batch, heads)
        (out,) = _by_head(out, 1, batch, heads)
        sequences = np.arange(batch)
        keys[sequences, :, start], values[sequences, :, start] = k[:, :, 0], v[:, :, 0]
        attend_newest(self.threads, q, keys, values, start + 1, out)

    def fill_cache(self, qkv: np.ndarray, keys: np.ndarray, values: np.ndarray, place: np.ndarray) -> None:
        _, k, v = _by_head(qkv, 3, 1, keys.shape[1])
        keys[place, :, : len(qkv)], values[place, :, : len(qkv)] = k, v

    # ---- loss -----------------------------------------------------------------------------------------------------

    def softmax_cross_entropy(
        self,
        logits: np.ndarray,
        labels: np.ndarray,
        losses: np.ndarray,
        hits: np.ndarray,
        vocab: int,
        scale: np.ndarray | None = None,
    ) -> None:
        if vocab < logits.shape[1]:
            if scale is not None:
                logits[:, vocab:] = 0
            logits = logits[:, :vocab]

        def block(r: slice) -> None:
            x = logits[r]
            e = self._scratch("softmax", x.shape, self._dtype) if scale is None else x
            cross_entropy(x, labels[r], losses[r], hits[r], e, scale)

        self._by_rows(block, logits)

    def add_sums(self, losses: np.ndarray, hits: np.ndarray, out: np.ndarray) -> None:
        with QUIET():
            out += [np.sum(losses, dtype=np.float64), np.sum(hits, dtype=np.float64)]

    def sample(
        self,
        logits: np.ndarray,
        seen: np.ndarray,
        uniform: np.ndarray,
        out: np.ndarray,
        rules: np.ndarray,
        vocab: int,
    ) -> None:
        with QUIET():
            choose(logits[:, :vocab], seen[:, :vocab], uniform, out, rules)

    # ---- optimizer ------------------------------------------------------------------------------------------------

    def global_norm(self, x: np.ndarray, out: np.ndarray) -> None:
        size = self._block_rows(x.size, 1)
        sums = np.empty(ceil_div(x.size, size))

        def block(r: slice) -> None:
            wide = self._scratch("norm", (r.stop - r.start,), np.dtype(np.float64))
            np.copyto(wide, x[r])
            sums[r.start // size] = np.dot(wide, wide)

        self.threads.run_blocks(block, x.size, size)
        out[0] = math.sqrt(np.sum(sums))

    def convert(self, x: np.ndarray, out: np.ndarray) -> None:
        np.copyto(out, x)

    def norm_of_norms(self, norms: np.ndarray, out: np.ndarray) -> None:
        out[0] = math.sqrt(np.dot(norms, norms))

    def plan_update(
        self,
        norm: np.ndarray,
        loss: np.ndarray,
        counters: np.ndarray,
        lr: np.ndarray,
        out: np.ndarray,
        rule: UpdateRule,
    ) -> None:
        plan_update(norm, loss, counters, lr, out, rule)

    def adamw(self, buffers: AdamBuffers, plan: np.ndarray, rule: UpdateRule) -> None:
        step = AdamStep.of(plan, rule)
        if step:
            self._adam_step(buffers, step)

    def _adam_step(self, buffers: AdamBuffers, step: AdamStep) -> None:
        size = buffers.weights.size
        self.threads.run_blocks(lambda r: adam_step(buffers, step, r, self._scratch), size, self._block_rows(size, 1))

    def muon(self, stacks: Sequence[Stack], plan: np.ndarray, momentum: float, coefficients: Coefficients) -> None:
        if plan[0]:
            return
        # The longest first, so that threads end at about the same time.
        matrices = [(stack, i) for stack in stacks for i in range(len(stack.weights))]
        matrices.sort(key=lambda matrix: -matrix[0].weights[0].size)

        def move(number: int) -> None:
            stack, i = matrices[number]
            move_matrix(stack, i, plan, momentum, coefficients, self._scratch)

        self.threads.run(move, len(matrices))

    def muon_bytes(self, shapes: Sequence[StackShape]) -> int:
        most = max(4 * rows * columns + 4 * min(rows, columns) ** 2 for _, rows, columns in shapes)
        return self.threads.count * most * self._dtype.itemsize

    # ---- blocks ---------------------------------------------------------------------------------------------------

    def _block_rows(self, rows: int, width: int) -> int:
        """Rows of an elementwise chain at a time: as many for every thread, unless that is too little or too much."""
        turns = ceil_div(rows * width, BLOCK * self.threads.count)
        return max(ceil_div(rows, turns * self.threads.count), ceil_div(LEAST_BLOCK, width))

    def _by_rows(self, block: Callable[[slice], None], x: np.ndarray) -> None:
        """Call block(slice) for blocks of the rows of x."""
        rows, width = x.shape
        self.threads.run_blocks(block, rows, self._block_rows(rows, width))


def _by_head(x: np.ndarray, count: int, batch: int, heads: int) -> np.ndarray:
    """[rows, count · D] as a view [count, batch, heads, seq, head_dim]."""
    return x.reshape(batch, len(x) // batch, count, heads, -1).transpose(2, 0, 3, 1, 4)
