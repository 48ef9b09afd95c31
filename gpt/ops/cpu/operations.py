"""The operations in NumPy: the reference that defines each of them, and the embedded default.

How all of them are built:

- Work is cut into blocks, and threads share the blocks out. A block goes through a whole chain of NumPy calls (product,
  bias, activation) while it is in the cache, and is as large as that allows: between two calls a thread needs the
  interpreter's lock, and waking up from a wait for it takes 20 µs or so, so that threads with calls shorter than that
  get no more done than one. Little work is one block, in the calling thread.
- A sum over rows is taken per block and then over the blocks, in order: timing changes no result.
- Within a block, sums over either axis are products with ones: BLAS takes a fifth of the time of NumPy's reductions.
- Arrays of a block's size come from scratch memory, so a step allocates nothing large.

Conventions: activations are C-contiguous [rows, D]. Weights are [in, out], and may be transposed views (the tied head
is `wte.T`), as may their gradients. Results go into arrays that the caller gives and are overwritten, but gradients
of weight matrices are added to. Gradients of vectors (biases, layer norms), sums over rows, are left as partial sums
[parts(rows), n] or more, which `add_partials` adds up. Outputs may alias inputs only where that is said.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import psutil

from gpt.config import ModelConfig
from gpt.ops.cpu.activations import ACTIVATIONS, backward
from gpt.ops.cpu.attention import attend, attend_backward
from gpt.ops.cpu.host import HostInputs, HostOutput, HostTimeline
from gpt.ops.cpu.masks import Mask
from gpt.ops.cpu.orthogonal import orthogonalized
from gpt.ops.cpu.sampling import choose
from gpt.ops.cpu.sums import ones, sum_rows
from gpt.ops.interface import Dropout, Stack
from gpt.system import limits
from gpt.system.threads import QUIET, Scratch, Threads, available_threads, blocks

EPS = 1e-5  # of a layer norm
BLOCK = 2**18  # elements that an elementwise chain works on at a time, at most: 1 MiB of float32
LEAST_BLOCK = 2**17  # elements below which another thread does not pay
PRODUCT_ROWS = 512  # rows of a matrix product at a time: enough to pay for BLAS repacking the weight
PASS_ROWS = 1024  # tokens for every thread that make a pass: more would only take more memory
PRODUCT_BLOCK = 2**18  # elements of a weight gradient at a time
FEW_TOKENS = 16  # whose rows an embedding's gradient takes token by token
MUON_RMS = 0.2  # root mean square of a step of Muon in units of the learning rate
BESIDE_ARRAYS, BESIDE_ARRAYS_PER_THREAD = 2**24, 2**22  # bytes: modules, scratch, BLAS's own; 2 threads took 17 MiB
SMALL_PRODUCT = 2**23  # multiplications that are not worth sharing out


class CpuOps:
    """The operations on `threads` threads; None: as many as CPUs this process may use, or OMP_NUM_THREADS.

    With `dtype` "float64" every floating-point array is float64, also where float32 is asked for: for gradient checks.
    """

    is_cpu = True
    precision = "fp32"
    low_precision = False  # whether products read a bf16 copy of the weights
    head_rows = 512  # rows of logits at a time
    vocab_multiple = 1  # what the vocabulary is padded to in memory
    steps_ahead = 0  # that are worth asking for before the result of one is looked at
    notes: Sequence[str] = ()  # what a user should know about the device
    timeline = HostTimeline()

    def __init__(self, threads: int | None = None, dtype: str = "float32") -> None:
        self.threads = Threads(threads or available_threads())
        self.description = f"CPU, {self.threads.count} thread{'s' if self.threads.count > 1 else ''}"
        self._dtype = np.dtype(dtype)
        self._scratch = Scratch()

    def check(self, config: ModelConfig) -> None:
        """Raises UserError for a model that cannot run here: there is none."""

    def sequences(self, batch: int, seq: int) -> int:
        """How many sequences of a batch a pass takes: enough rows for all threads, in parts as equal as may be."""
        parts = -(-batch * seq // (PASS_ROWS * self.threads.count))
        return -(-batch // parts)

    # ---- arrays ---------------------------------------------------------------------------------------------------

    def empty(self, shape: int | tuple[int, ...], dtype: str = "") -> np.ndarray:
        """An array of undefined content; without `dtype` of the type that activations and weights have."""
        return np.empty(shape, self._dtype if dtype in ("", "float32") else dtype)

    def zeros(self, shape: int | tuple[int, ...], dtype: str = "") -> np.ndarray:
        """As `empty`, filled with 0."""
        return np.zeros(shape, self._dtype if dtype in ("", "float32") else dtype)

    def from_host(self, array: np.ndarray) -> np.ndarray:
        """A NumPy array as one of the device's; it may share memory."""
        return array

    def to_host(self, array: np.ndarray) -> np.ndarray:
        """The device's array as a NumPy one, after all work on it is done; it may share memory."""
        return array

    def copy(self, value: np.ndarray, out: np.ndarray) -> None:
        """out[...] = value, from the host or the device; converts between floating-point types."""
        np.copyto(out, value)

    def fill(self, array: np.ndarray, value: float) -> None:
        """array[...] = value."""
        array.fill(value)

    def inputs(self, **fields: tuple[tuple[int, ...], str]) -> HostInputs:
        """Arrays that the host writes for every step: name = (shape, dtype). See gpt/ops/gpu/replay.py."""
        return HostInputs(fields)

    def output(self, array: np.ndarray) -> HostOutput:
        """A way to read an array after every step. See gpt/ops/gpu/replay.py."""
        return HostOutput(array)

    def replayed(self, function: Callable[[], object]) -> Callable[[], object]:
        """As cheap a way as there is to run, over and over, a function that asks for the same work every time.

        It must read nothing from the host that varies, and allocate nothing after its first run.
        """
        return function

    def free_bytes(self) -> int:
        """Bytes of arrays that could be allocated now."""
        return max(0, limits.free_memory() - BESIDE_ARRAYS - BESIDE_ARRAYS_PER_THREAD * self.threads.count)

    def held_bytes(self) -> int:
        """Bytes of the device's memory that this process holds."""
        return psutil.Process().memory_info().rss

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
        """out[b·seq + s] = wte[ids[b, s]] + wpe[start + s], then dropout; ids int32 [batch, seq], out [rows, D].

        start is int32 [1], or None for 0. Raises IndexError for an id outside of wte.
        """
        batch, seq = ids.shape
        first = 0 if start is None else int(start[0])
        out_3d = out.reshape(batch, seq, -1)

        def block(b: slice) -> None:
            np.add(wte[ids[b]], wpe[first : first + seq], out=out_3d[b])

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
        """Add the gradients of both tables; with dropout, `dout` is overwritten.

        order, int32 [rows], is a stable argsort of ids: rows of one token are summed in their order, and nobody has to
        look for them.
        """
        if dropout:
            self.dropout(dout, dout, dropout)
        batch, seq = ids.shape
        dout_3d = dout.reshape(batch, seq, -1)

        def positions(s: slice) -> None:
            for sequence in dout_3d[:, s]:
                dwpe[s] += sequence

        sorted_ids = ids.reshape(-1)[order]
        first = np.append(np.flatnonzero(np.diff(sorted_ids, prepend=-1)), ids.size)  # of each token in sorted_ids
        tokens, counts = sorted_ids[first[:-1]], np.diff(first)

        def rows_of_tokens(t: slice) -> None:
            """The first row of every token at once, then the second of those that have one, and so on; the many rows
            that the last few tokens have left, token by token. np.add.reduceat takes twice as long or more.
            """
            token, start, count, turn = tokens[t], first[t], counts[t], 0
            while len(token) > FEW_TOKENS:
                dwte[token] += dout[order[start + turn]]
                turn += 1
                (more,) = (count > turn).nonzero()
                token, start, count = token[more], start[more], count[more]
            for id, begin, rows in zip(token.tolist(), start.tolist(), count.tolist(), strict=True):
                rest = dout[order[begin + turn : begin + rows]]
                dwte[id] += np.matmul(ones(len(rest), rest.dtype), rest)

        self.threads.run_blocks(positions, seq, self._block_rows(seq, batch * dout.shape[-1]))
        self.threads.run_blocks(rows_of_tokens, len(tokens), self._block_rows(len(tokens), dout.size // len(tokens)))

    # ---- layer norm -----------------------------------------------------------------------------------------------

    def layernorm(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray,
        out: np.ndarray,
        mean: np.ndarray,
        rstd: np.ndarray,
    ) -> None:
        """out = (x - mean) · rstd · weight + bias per row, rstd = 1 / sqrt(variance + 1e-5) (Ba et al. 2016).

        x and out are [rows, D]; mean and rstd, which backward needs, are [rows]. The variance is that of the
        differences from the mean, in a second pass: right also where the mean is far larger than the spread.
        """
        self._by_rows(lambda r: _layernorm(x[r], weight, bias, out[r], mean[r], rstd[r]), x)

    def add_layernorm(
        self,
        x: np.ndarray,
        branch: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray,
        x_out: np.ndarray,
        out: np.ndarray,
        mean: np.ndarray,
        rstd: np.ndarray,
        dropout: Dropout | None = None,
    ) -> None:
        """x_out = x + dropout(branch), then out = the layer norm of x_out, as above. x_out may be x."""
        mask = Mask(dropout, x.shape[1]) if dropout else None

        def block(r: slice) -> None:
            added = branch[r]
            if mask:
                added = np.multiply(added, self._draw(mask, r, x.shape[1]), out=out[r])
            np.add(x[r], added, out=x_out[r])
            _layernorm(x_out[r], weight, bias, out[r], mean[r], rstd[r])

        self._by_rows(block, x)

    def layernorm_backward(
        self,
        dout: np.ndarray,
        x: np.ndarray,
        weight: np.ndarray,
        mean: np.ndarray,
        rstd: np.ndarray,
        dx: np.ndarray,
        dweight: np.ndarray,
        dbias: np.ndarray,
    ) -> None:
        """Add to dx (the residual stream's gradient) what comes through a layer norm of x.

        With n = (x - mean) · rstd and g = dout · weight: dx += rstd · (g - mean(g) - n · mean(g · n)); dweight and
        dbias [parts, D] get partial sums over rows of dout · n and of dout.
        """
        self._layernorm_backward(dout, x, weight, mean, rstd, dx, (dweight, dbias), lambda r, out: None)

    def add_layernorm_backward(
        self, dout: np.ndarray, x: np.ndarray, weight: np.ndarray, mean: np.ndarray, rstd: np.ndarray, dx: np.ndarray,
        dbranch: np.ndarray, dweight: np.ndarray, dbias: np.ndarray, dbranch_sums: np.ndarray,
        dropout: Dropout | None = None,
    ) -> None:  # fmt: skip
        """As `layernorm_backward`, of the x_out of `add_layernorm`, and on to the branch that was added to it.

        dbranch = dx · mask / (1 - rate), and dbranch_sums [parts, D] gets partial sums of it over rows, the gradient of
        a bias at the branch's end. Without dropout dbranch is dx.
        """
        mask = Mask(dropout, x.shape[1]) if dropout else None

        def branch(r: slice, out: np.ndarray) -> None:
            if mask:
                np.multiply(dx[r], self._draw(mask, r, x.shape[1]), out=dbranch[r])
            sum_rows(dbranch[r], out=out)

        self._layernorm_backward(dout, x, weight, mean, rstd, dx, (dweight, dbias, dbranch_sums), branch)

    def _layernorm_backward(
        self, dout: np.ndarray, x: np.ndarray, weight: np.ndarray, mean: np.ndarray, rstd: np.ndarray, dx: np.ndarray,
        outs: tuple[np.ndarray, ...], branch: Callable[[slice, np.ndarray], None],
    ) -> None:  # fmt: skip
        """`branch` gets rows of dx that are complete, and room for sums over them."""
        rows, d = x.shape
        block_rows = self._block_rows(rows, d)
        sums = self._scratch("layernorm sums", (3, -(-rows // block_rows), d), self._dtype)

        def block(r: slice) -> None:
            number = r.start // block_rows
            centered = self._scratch("layernorm centered", (r.stop - r.start, d), self._dtype)
            g = self._scratch("layernorm g", centered.shape, self._dtype)
            np.subtract(x[r], mean[r, None], out=centered)  # n is this times rstd
            dout_centered = np.multiply(dout[r], centered, out=g)
            np.matmul(rstd[r], dout_centered, out=sums[0, number])
            sum_rows(dout[r], out=sums[1, number])
            centered *= (np.matmul(dout_centered, weight) * (rstd[r] ** 2 / d))[:, None]
            np.multiply(dout[r], weight, out=g)
            g -= (np.matmul(dout[r], weight) / d)[:, None]
            g -= centered
            g *= rstd[r, None]
            dx[r] += g
            branch(r, sums[2, number])

        self.threads.run_blocks(block, rows, block_rows)
        for total, out in zip(sums, outs, strict=False):
            _leave_total(total, out)

    # ---- linear ---------------------------------------------------------------------------------------------------

    def linear(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray | None,
        out: np.ndarray,
        before: np.ndarray | None = None,
        activation: str | None = None,
    ) -> None:
        """out = x @ weight + bias; x [rows, in], out [rows, out].

        With `activation`, "relu" or "gelu" (the tanh approximation of Hendrycks & Gimpel 2016), that sum goes into
        `before`, for the backward pass, and out = activation(before).
        """
        product = before if activation else out

        def block(r: slice) -> None:
            np.matmul(x[r], weight, out=product[r])
            for part in blocks(r, max(1, BLOCK // weight.shape[1])):
                if bias is not None:
                    product[part] += bias
                if activation:
                    ACTIVATIONS[activation](before[part], out[part])

        self.threads.run_blocks(block, len(x), self._product_rows(x, weight))

    def norm_linear(
        self, x: np.ndarray, norm_weight: np.ndarray, norm_bias: np.ndarray, weight: np.ndarray,
        bias: np.ndarray | None, out: np.ndarray, activation: str | None = None,
    ) -> None:  # fmt: skip
        """out = activation(layernorm(x) @ weight + bias): `layernorm` and `linear`, where no way back is needed.

        x [rows, in], norm_weight and norm_bias [in], out [rows, out]; activation None is none.
        """
        normed = self._scratch("normed", x.shape, self._dtype)
        self.layernorm(x, norm_weight, norm_bias, normed, *self._scratch("norm statistics", (2, len(x)), self._dtype))
        before = self._scratch("before", out.shape, self._dtype) if activation else None
        self.linear(normed, weight, bias, out, before, activation)

    def linear_add(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, out: np.ndarray) -> None:
        """out += x @ weight + bias: a branch, from its last layer into the residual stream.

        x [rows, in], weight [in, out], bias [out], out [rows, out].
        """

        def block(r: slice) -> None:
            branch = np.matmul(x[r], weight, out=self._scratch("branch", out[r].shape, self._dtype))
            branch += bias
            out[r] += branch

        self.threads.run_blocks(block, len(x), self._product_rows(x, weight))

    def linear_backward(
        self,
        dout: np.ndarray,
        x: np.ndarray,
        weight: np.ndarray,
        dx: np.ndarray,
        dweight: np.ndarray,
        dbias: np.ndarray | None,
        before: np.ndarray | None = None,
        activation: str | None = None,
        dx_sums: np.ndarray | None = None,
    ) -> None:
        """dx = dout @ weight.T; dweight += x.T @ dout.

        dbias [parts, out] gets partial sums over rows of dout, unless it is None: then whoever wrote dout left them.
        With `activation`, x was activation(before), and dx is the gradient of `before`: dx *= activation'(before), and
        dx_sums [parts, in] gets partial sums of it, the gradient of the bias in `before`.
        """
        block_rows = self._product_rows(x, weight)
        rows = blocks(slice(0, len(x)), block_rows)
        dout_sums = self._scratch("linear dout sums", (len(rows), dout.shape[1]), self._dtype)
        dx_sums_of = self._scratch("linear dx sums", (len(rows), dx.shape[1]), self._dtype)

        def dx_block(r: slice) -> None:
            number = r.start // block_rows
            np.matmul(dout[r], weight.T, out=dx[r])
            if activation:
                backward(activation, before[r], dx[r], dx_sums_of[number], self._scratch)
            if dbias is not None:
                sum_rows(dout[r], out=dout_sums[number])

        a, b, product = (x, dout, dweight) if dweight.flags.c_contiguous else (dout, x, dweight.T)

        def dweight_block(r: slice) -> None:
            added = np.matmul(a[:, r].T, b, out=self._scratch("product", product[r].shape, self._dtype))
            product[r] += added

        tasks = [(dx_block, r) for r in rows]
        tasks += [(dweight_block, r) for r in blocks(slice(0, len(product)), self._gradient_rows(len(x), product))]
        self.threads.run(lambda number: tasks[number][0](tasks[number][1]), len(tasks))
        if dbias is not None:
            _leave_total(dout_sums, dbias)
        if activation:
            _leave_total(dx_sums_of, dx_sums)

    # ---- gradients of vectors -------------------------------------------------------------------------------------

    def parts(self, rows: int) -> int:
        """How many partial sums the gradient of a vector has in a batch of `rows` rows."""
        return 1

    def add_partials(self, partials: np.ndarray, out: np.ndarray) -> None:
        """out [n] += Σ partials [parts, n]."""
        with QUIET():
            out += np.add.reduce(partials, axis=0)

    # ---- dropout --------------------------------------------------------------------------------------------------

    def dropout(self, x: np.ndarray, out: np.ndarray, dropout: Dropout) -> None:
        """out = x · mask / (1 - rate), [rows, D]; forward and backward alike (Srivastava et al. 2014). out may be x.

        Which elements are kept: gpt/ops/cpu/masks.py.
        """
        mask = Mask(dropout, x.shape[1])
        self._by_rows(lambda r: np.multiply(x[r], self._draw(mask, r, x.shape[1]), out=out[r]), x)

    def _draw(self, mask: Mask, r: slice, columns: int) -> np.ndarray:
        return mask.draw(np.arange(r.start, r.stop, dtype=np.uint32), columns, self._scratch, self._dtype)

    # ---- attention ------------------------------------------------------------------------------------------------

    def attention(self, qkv: np.ndarray, out: np.ndarray, lse: np.ndarray, dropout: Dropout | None = None) -> None:
        """Causal self-attention of every head: out = dropout(softmax(q kᵀ / sqrt(head_dim))) v.

        qkv is [rows, 3 D]: a row's queries, keys and values, each by head. out is [rows, D]. lse, [batch, heads, seq],
        says how rows form sequences and receives the log of every softmax's denominator, which backward needs.
        Dropout sees the probabilities as an array [batch, heads, seq, seq].
        """
        batch, heads, seq = lse.shape
        q, k, v = _by_head(qkv, 3, batch, heads)
        (out,) = _by_head(out, 1, batch, heads)
        attend(self.threads, self._scratch, q, k, v, out, lse, Mask(dropout, seq) if dropout else None)

    def attention_backward(
        self,
        dout: np.ndarray,
        qkv: np.ndarray,
        out: np.ndarray,
        lse: np.ndarray,
        dqkv: np.ndarray,
        dropout: Dropout | None = None,
    ) -> None:
        """dqkv = the gradient of qkv, [rows, 3 D], for that of out; out and lse are what `attention` wrote."""
        batch, heads, seq = lse.shape
        q, k, v = _by_head(qkv, 3, batch, heads)
        dq, dk, dv = _by_head(dqkv, 3, batch, heads)
        (out,), (dout,) = _by_head(out, 1, batch, heads), _by_head(dout, 1, batch, heads)
        mask = Mask(dropout, seq) if dropout else None
        attend_backward(self.threads, self._scratch, dout, q, k, v, out, lse, dq, dk, dv, mask)

    def attention_cached(
        self, qkv: np.ndarray, keys: np.ndarray, values: np.ndarray, start: np.ndarray, out: np.ndarray
    ) -> None:
        """Causal attention of n new positions, from start (int32 [1]) on, of one sequence; qkv [n, 3 D], out [n, D].

        Their keys and values are first written into keys and values, [heads, max_seq_len, head_dim], which hold those
        of all positions before.
        """
        first, end = int(start[0]), int(start[0]) + len(qkv)
        q, k, v = _by_head(qkv, 3, 1, len(keys))
        (out,) = _by_head(out, 1, 1, len(keys))
        keys[:, first:end], values[:, first:end] = k[0], v[0]
        attend(self.threads, self._scratch, q, keys[None, :, :end], values[None, :, :end], out)

    # ---- loss -----------------------------------------------------------------------------------------------------

    def softmax_cross_entropy(
        self,
        logits: np.ndarray,
        labels: np.ndarray,
        losses: np.ndarray,
        hits: np.ndarray,
        vocab: int,
        scale: float | None = None,
    ) -> None:
        """losses = log Σ exp(logits) - logits[label] per row, hits = 1 where the label has the largest logit, else 0.

        logits [rows, V], of which the first `vocab` columns count and the rest is padding; int32 labels, losses and
        hits [rows]. With `scale`, logits become their gradient, scale · (softmax(logits) - onehot(label)), and 0 in the
        padding.
        """
        if vocab < logits.shape[1]:
            if scale is not None:
                logits[:, vocab:] = 0
            logits = logits[:, :vocab]

        def block(r: slice) -> None:
            x, each = logits[r], np.arange(r.stop - r.start)
            best = np.argmax(x, axis=1)
            largest, wanted = x[each, best], x[each, labels[r]]
            e = self._scratch("softmax", x.shape, self._dtype) if scale is None else x
            np.subtract(x, largest[:, None], out=e)
            np.exp(e, out=e)
            total = np.matmul(e, ones(e.shape[1], e.dtype))
            np.equal(best, labels[r], out=hits[r], casting="unsafe")
            np.subtract(np.log(total), wanted - largest, out=losses[r])
            if scale is not None:
                e *= (scale / total)[:, None]
                e[each, labels[r]] -= scale

        self._by_rows(block, logits)

    def add_sums(self, losses: np.ndarray, hits: np.ndarray, out: np.ndarray) -> None:
        """out += [Σ losses, Σ hits], float64 [2], summed in float64."""
        with QUIET():
            out += [np.sum(losses, dtype=np.float64), np.sum(hits, dtype=np.float64)]

    def sample(
        self,
        logits: np.ndarray,
        seen: np.ndarray,
        uniform: np.ndarray,
        out: np.ndarray,
        *,
        temperature: float,
        top_k: int,
        top_p: float,
        repetition_penalty: float,
    ) -> None:
        """out (int32 [1]) = the id that uniform (float64 [1], in [0, 1)) draws from logits [vocab]; -1 if one is not
        finite. It is then marked in seen, uint8 [vocab].

        First the logits of tokens that are marked are divided (where negative: multiplied) by `repetition_penalty`
        (Keskar et al. 2019); then exp(logits / temperature) are weights, temperature 0 taking the largest. `top_k`
        above 0 keeps the k heaviest, and `top_p` below 1 the fewest of these that reach that share of their weight
        (Holtzman et al. 2020); of equal ones the lowest id comes first. The draw goes through the kept in order of id.
        """
        if not np.isfinite(logits).all():
            out[0] = -1
            return
        out[0] = choose(logits, seen, temperature, top_k, top_p, repetition_penalty, uniform[0])
        seen[out[0]] = 1

    # ---- optimizer ------------------------------------------------------------------------------------------------

    def global_norm(self, x: np.ndarray, out: np.ndarray) -> None:
        """out = the L2 norm of x [n], float64 [1], summed in float64; not finite if any element is not."""
        size = self._block_rows(x.size, 1)
        sums = np.empty(-(-x.size // size))

        def block(r: slice) -> None:
            wide = self._scratch("norm", (r.stop - r.start,), np.dtype(np.float64))
            np.copyto(wide, x[r])
            sums[r.start // size] = np.dot(wide, wide)

        self.threads.run_blocks(block, x.size, size)
        out[0] = math.sqrt(np.sum(sums))

    def plan_update(
        self, norm: np.ndarray, loss: np.ndarray, counters: np.ndarray, lr: np.ndarray, *, out: np.ndarray,
        betas: tuple[float, float], weight_decay: float, clip: float,
    ) -> None:  # fmt: skip
        """Work out what all weights of a step share; out, float64 [6], is what `adamw` and `muon` take as `plan`.

        norm [1] is the gradients', loss [2] the step's sums, lr [1] the learning rate. counters, int64 [3], are Adam's
        step t, the steps skipped, and those skipped in a row. If norm or an element of loss is not finite, the step is
        skipped: out[0] = 1, and the last two counters rise. Otherwise t rises, and out is
        [0, gradient_scale, lr, decay, lr / (1 - beta1^t), sqrt(1 - beta2^t)] with gradient_scale =
        min(1, clip / (norm + 1e-6)), or 1 if clip is 0, and decay = 1 - lr · weight_decay.
        """
        out[0] = not (np.isfinite(norm).all() and np.isfinite(loss).all())
        if out[0]:
            counters[1:] += 1
            return
        counters[0] += 1
        counters[2] = 0
        step, rate, (beta1, beta2) = int(counters[0]), float(lr[0]), betas
        scale = min(1.0, clip / (float(norm[0]) + 1e-6)) if clip else 1.0
        out[1:] = scale, rate, 1 - rate * weight_decay, rate / (1 - beta1**step), math.sqrt(1 - beta2**step)

    def adamw(
        self,
        weights: np.ndarray,
        gradients: np.ndarray,
        exp_avg: np.ndarray,
        exp_avg_sq: np.ndarray,
        *,
        copy: np.ndarray | None,
        plan: np.ndarray,
        betas: tuple[float, float],
        eps: float,
        decayed: int,
    ) -> None:
        """One step of AdamW (Loshchilov & Hutter 2019) over flat arrays; weights[:decayed] decay.

        `copy` receives the weights in the type that products read, if that is another (never here). `plan` is what
        `plan_update` left.
        """
        skip, scale, _, decay, step_size, correction = plan.tolist()
        if skip:
            return
        beta1, beta2 = betas
        self._update(
            weights, gradients, exp_avg, exp_avg_sq, beta1, beta2, scale * (1 - beta1), scale * math.sqrt(1 - beta2),
            eps * correction, decay, step_size * correction, decayed,
        )  # fmt: skip

    def muon(
        self, stacks: Sequence[Stack], plan: np.ndarray, *, momentum: float,
        coefficients: Sequence[tuple[float, float, float]],
    ) -> None:  # fmt: skip
        """One step of Muon (Jordan et al. 2024) for every matrix of `stacks`; `plan` is what `plan_update` left.

        With g the clipped gradient: m += (1 - momentum) (g - m), u = g + momentum (m - g) (Nesterov), and
        w = decay · w - lr · 0.2 sqrt(max(rows, columns)) · orthogonalized(u). The factor gives the step the size of
        AdamW's, a root mean square of 0.2 (Liu et al. 2025). orthogonalized(u) is u with its singular values s replaced
        by p(s / ‖u‖), where ‖u‖ is the Frobenius norm (1e-7 at least) and p the composition of the polynomials
        a x + b x³ + c x⁵ of `coefficients`, which is about 1.
        """
        skip, scale, rate, decay, _, _ = plan.tolist()
        if skip:
            return
        tasks = sorted(
            ((stack, i) for stack in stacks for i in range(len(stack.weights))),
            key=lambda task: -task[0].weights[0].size,  # the longest first, so that threads end at about the same time
        )

        def move(number: int) -> None:
            stack, i = tasks[number]
            w, g, m = stack.weights[i], stack.gradients[i], stack.momentum[i]
            u = np.multiply(g, scale, out=self._scratch("muon", g.shape, self._dtype))
            m += np.multiply(u - m, 1 - momentum)
            u *= 1 - momentum
            u += m * momentum
            step_size = rate * MUON_RMS * math.sqrt(max(w.shape))
            w *= decay
            w -= orthogonalized(u, coefficients, step_size)

        self.threads.run(move, len(tasks))

    def muon_bytes(self, shapes: Sequence[tuple[int, int, int]]) -> int:
        """Bytes of scratch memory that `muon` takes for stacks of these shapes."""
        most = max(4 * rows * columns + 4 * min(rows, columns) ** 2 for _, rows, columns in shapes)
        return self.threads.count * most * self._dtype.itemsize

    def _update(
        self, w: np.ndarray, g: np.ndarray, m: np.ndarray, v: np.ndarray, beta1: float, beta2: float, factor: float,
        root: float, eps: float, keep: float, step_size: float, decayed: int,
    ) -> None:  # fmt: skip
        """m = beta1 m + factor g, v = beta2 v + (root g)², w = keep w - step_size m / (√v + eps), each [n].

        Of w[decayed:] all is kept.
        """

        def block(r: slice) -> None:
            t = self._scratch("adamw", (r.stop - r.start,), self._dtype)
            m[r] *= beta1
            m[r] += np.multiply(g[r], factor, out=t)
            np.multiply(g[r], root, out=t)
            v[r] *= beta2
            v[r] += np.multiply(t, t, out=t)
            denominator = np.sqrt(v[r], out=t)
            denominator += eps
            np.divide(m[r], denominator, out=t)
            w[r.start : min(r.stop, decayed)] *= keep
            w[r] -= np.multiply(t, step_size, out=t)

        self.threads.run_blocks(block, w.size, self._block_rows(w.size, 1))

    # ---- blocks ---------------------------------------------------------------------------------------------------

    def _block_rows(self, rows: int, width: int) -> int:
        """Rows of an elementwise chain at a time: as many for every thread, unless that is too little or too much."""
        turns = -(-rows * width // (BLOCK * self.threads.count))
        return max(-(-rows // (turns * self.threads.count)), -(-LEAST_BLOCK // width))

    def _by_rows(self, block: Callable[[slice], None], x: np.ndarray) -> None:
        """Call block(slice) for blocks of the rows of x."""
        self.threads.run_blocks(block, len(x), self._block_rows(*x.shape))

    def _product_rows(self, x: np.ndarray, weight: np.ndarray) -> int:
        """Rows of x at a time, in a product with weight or its transpose."""
        if x.shape[0] * weight.size <= SMALL_PRODUCT:
            return len(x)
        return min(PRODUCT_ROWS, max(64, -(-len(x) // self.threads.count)))

    def _gradient_rows(self, rows: int, product: np.ndarray) -> int:
        """Rows of a weight's gradient at a time."""
        height, width = product.shape
        if rows * product.size <= SMALL_PRODUCT:
            return height
        return min(-(-height // self.threads.count), max(1, PRODUCT_BLOCK // width))


def _layernorm(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, out: np.ndarray, mean: np.ndarray, rstd: np.ndarray
) -> None:
    np.matmul(x, ones(x.shape[1], x.dtype), out=mean)
    mean /= x.shape[1]
    np.subtract(x, mean[:, None], out=out)
    np.einsum("ij,ij->i", out, out, out=rstd)
    rstd /= x.shape[1]
    rstd += EPS
    np.divide(1, np.sqrt(rstd, out=rstd), out=rstd)
    out *= rstd[:, None]
    out *= weight
    out += bias


def _leave_total(sums: np.ndarray, out: np.ndarray) -> None:
    """What every block [blocks, D] summed up, as partial sums [parts, D]: all of it in the first."""
    with QUIET():
        np.add.reduce(sums, axis=0, out=out[0])
    out[1:] = 0


def _by_head(x: np.ndarray, parts: int, batch: int, heads: int) -> np.ndarray:
    """[rows, parts · D] as a view [parts, batch, heads, seq, head_dim]."""
    return x.reshape(batch, len(x) // batch, parts, heads, -1).transpose(2, 0, 3, 1, 4)
