"""The operations on a GPU: the kernels of kernels/ that each one launches. gpt/ops/interface.py defines the operations.

- A device object (gpt/ops/gpu/device.py) brings the array module, compiles kernels and starts them. Nothing here knows
  whose GPU it is, and tests put a CPU or an emulator in its place.
- Activations and the weights that products read are bf16 or float32. Everything that accumulates (gradients of weights,
  moments, statistics, losses) is float32 or float64. bf16 arrays have dtype uint16: only kernels look inside.
- Matrix products are the vendor's if the device has its library and the library can compute them, else matmul.hip's.
- Scratch memory is made at its first use and kept: a training step allocates nothing from its second run on.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gpt.arithmetic import ceil_div, round_up
from gpt.config import ModelConfig
from gpt.errors import UserError
from gpt.ops.gpu.blas import NO_EPILOGUE, PLAIN, Epilogue, Sum
from gpt.ops.gpu.interface import Device, Kernel
from gpt.ops.gpu.launch import (
    ADAMW_WIDTH,
    CACHED_THREADS,
    CONVERT_WIDTH,
    EMBEDDING_THREADS,
    LOGITS_THREADS,
    NORM_BLOCKS,
    NORM_WIDTH,
    SAMPLE_THREADS,
    SUM_LANES,
    THREADS,
    Kernels,
    attention_block,
    attention_edge,
    norm_lanes,
)  # fmt: skip
from gpt.ops.gpu.memory import Memory
from gpt.ops.gpu.muon import GpuMuon, scratch_elements
from gpt.ops.gpu.products import Products
from gpt.ops.gpu.replay import PinnedInputs, PinnedOutput, Replayed
from gpt.ops.gpu.rows import RowLayers
from gpt.ops.gpu.selfcheck import check, model_cases, muon_cases
from gpt.ops.gpu.targets import shared_bytes
from gpt.ops.interface import (
    Activation,
    AdamBuffers,
    Affine,
    Array,
    Branch,
    Coefficients,
    Dropout,
    Normed,
    Operations,
    Shape,
    Stack,
    StackShape,
    UpdateRule,
    Work,
)  # fmt: skip

HEAD_ROWS = 8192  # rows of logits at a time
LEAST_CONTEXT = 16  # rows of a pass over a context, which is recorded
MAX_HEAD_DIM = 128
LARGE_COPY = 2**22  # a copy of at least so many elements is done in parts of so many, and the GPU rounds
USUAL_PARTIAL_SUMS = 256  # of the gradient of a vector, a sum over rows; more on a GPU that would have idle units
PARTIAL_ROWS = 8  # least rows in a partial sum

_int, _long, _uint, _float = np.int32, np.int64, np.uint32, np.float32


class GpuOps(Operations):
    """The operations on one GPU; `precision` is "fp32", "tf32" or "bf16".

    In tf32, matrix units round float32 operands to 10 bits of mantissa. In fp32, NVIDIA's multiply in attention, too:
    operands are sums of two such numbers, and a product has a relative error of 2^-21 at most.
    """

    is_cpu = False
    head_rows = HEAD_ROWS
    vocab_multiple = 128  # matrix products are fastest with such sizes
    steps_ahead = 1

    def __init__(self, device: Device, precision: str) -> None:
        self.device, self.precision, self._xp = device, precision, device.xp
        self.description = f"{device.description}, {precision}"
        self.notes, self.timeline = device.notes, device.timeline
        self.low_precision = precision == "bf16"
        self._type = "bf16" if self.low_precision else "float"
        self._dtype = np.dtype(np.uint16 if self.low_precision else np.float32)
        self._memory = Memory(device, self._dtype)
        self._scratch = self._memory.scratch
        self._kernel = Kernels(device, self._type)
        self._products = Products(device, precision, self._kernel, self._memory)
        self._row_layers = RowLayers(self._kernel, device, self._memory)
        self._muon = GpuMuon(self._kernel, self._products, self._memory)
        self.attention_type = self._type  # of its products
        if device.has_tf32 and not self.low_precision:
            self.attention_type = "tf32" if precision == "tf32" else "tf32x3"
        self._no_key = self.zeros(2, "uint32")  # kernels without dropout take it as the key

    def check(self, config: ModelConfig) -> None:
        if config.head_dim > MAX_HEAD_DIM:
            raise UserError(
                f"--dim {config.embed_dim} with --heads {config.num_heads} makes heads of {config.head_dim}, but the "
                f"GPU's attention takes up to {MAX_HEAD_DIM}: "
                f"use at least {ceil_div(config.embed_dim, MAX_HEAD_DIM)} heads"
            )

    def check_products(
        self, config: ModelConfig, batch: int, training: bool = False, stacks: Sequence[StackShape] = (),
        lora: int | None = None,
    ) -> None:  # fmt: skip
        rows, vocab = batch * config.max_seq_len, round_up(config.vocab_size, self.vocab_multiple)
        fused = self._products.has_fused(config.activation, rows * config.ff_hidden_dim * self._dtype.itemsize)
        cases = [*model_cases(config, rows, self.head_rows, vocab, training, fused, lora), *muon_cases(stacks)]
        check(self, self._products, cases)

    @property
    def has_vendor_blas(self) -> bool:
        return self.device.blas is not None

    def sequences(self, batch: int, seq: int) -> int:
        return batch

    def partial_sums(self, rows: int) -> int:
        return min(max(USUAL_PARTIAL_SUMS, 2 * self.device.multiprocessors), ceil_div(rows, PARTIAL_ROWS))

    # ---- arrays ---------------------------------------------------------------------------------------------------

    def empty(self, shape: Shape, dtype: str = "") -> Array:
        return self._memory.empty(shape, dtype)

    def zeros(self, shape: Shape, dtype: str = "") -> Array:
        return self._memory.zeros(shape, dtype)

    def stream(self, rows: Array, inner: int) -> Array:
        return self._row_layers.stream(rows, inner)

    def from_host(self, array: np.ndarray) -> Array:
        self.device.use()
        return self._xp.asarray(array)

    def to_host(self, array: Array) -> np.ndarray:
        host = self.device.to_host(array)
        return (host.astype(np.uint32) << 16).view(np.float32) if host.dtype == np.uint16 else host

    def copy(self, value: Array, out: Array) -> None:
        rounds = value.dtype != out.dtype and np.uint16 in (value.dtype, out.dtype)
        on_device = value.dtype == np.float32 and (not rounds or value.size % CONVERT_WIDTH == 0)
        if value.size >= LARGE_COPY and on_device and out.flags.c_contiguous:
            self._copy_large(value.reshape(-1), out.reshape(-1))
            return
        if rounds:
            value = self.to_host(value)
            value = _to_bf16(value) if out.dtype == np.uint16 else value
        self._xp.copyto(out, self._xp.asarray(value))

    def _copy_large(self, value: Array, out: Array) -> None:
        """out = value, float32 or rounded to bf16, both [n]. Rounding takes the host longer than copying."""
        for start in range(0, value.size, LARGE_COPY):
            part = slice(start, start + LARGE_COPY)
            if value.dtype == out.dtype:
                self._xp.copyto(out[part], self._xp.asarray(value[part]))
            else:
                self.convert(self._xp.asarray(value[part]), out[part])

    def loading_bytes(self, tensor_bytes: int) -> int:
        return min(tensor_bytes, 4 * LARGE_COPY)

    def clear(self, array: Array) -> None:
        self.device.clear(array)

    def context_rows(self, rows: int) -> int:
        # Multiples of 16, and above 128 of an eighth to a quarter of the length: 20 → 32, 100 → 112, 513 → 640.
        return round_up(rows, max(LEAST_CONTEXT, 1 << max(0, rows.bit_length() - 3)))

    def inputs(self, **fields: tuple[tuple[int, ...], str]) -> PinnedInputs:
        return PinnedInputs(self.device, fields)

    def output(self, array: Array) -> PinnedOutput:
        return PinnedOutput(self.device, array)

    def replayed(self, function: Work) -> Work:
        return Replayed(self.device, function)

    def free_bytes(self) -> int:
        return self.device.free_bytes()

    def held_bytes(self) -> int:
        return self.device.held_bytes()

    # ---- embedding ------------------------------------------------------------------------------------------------

    def embedding(
        self, ids: Array, wte: Array, wpe: Array, out: Array, start: Array | None = None, dropout: Dropout | None = None
    ) -> None:
        d = out.shape[-1]
        defines: dict[str, Any] = {
            "WIDTH": self._kernel.width(d), "DROPOUT": int(bool(dropout)), "STARTED": int(start is not None)
        }  # fmt: skip
        if out.ndim == 3:
            defines |= {"STREAM": "float", "PARTS": out.shape[1]}
        sizes = map(_int, (len(wte), d, ids.shape[1]))
        arguments = (ids, wte, wpe, out, *sizes, ids if start is None else start, *self._mask(dropout))
        self._kernel("embedding.hip", "embedding", **defines)((ids.size,), (EMBEDDING_THREADS,), arguments)

    def embedding_backward(
        self, dout: Array, ids: Array, order: Array, dwte: Array, dwpe: Array, dropout: Dropout | None = None
    ) -> None:
        if dropout:
            self.dropout(dout, dout, dropout)
        (batch, seq), d = ids.shape, dout.shape[-1]
        defines = {"WIDTH": self._kernel.width(d), "DROPOUT": 0, "STARTED": 0}
        tokens = self._kernel("embedding.hip", "embedding_backward_tokens", **defines)
        tokens((ids.size,), (EMBEDDING_THREADS,), (dout, ids, order, dwte, _int(ids.size), _int(d)))
        positions = self._kernel("embedding.hip", "embedding_backward_positions", **defines)
        positions((seq,), (EMBEDDING_THREADS,), (dout, dwpe, _int(batch), _int(seq), _int(d)))

    # ---- layer norm -----------------------------------------------------------------------------------------------

    def layernorm(self, normed: Normed, norm: Affine) -> None:
        kernel, grid = self._norm_kernel("layernorm", normed.x)
        kernel(grid, (THREADS,), (normed.x, *norm, normed.out, normed.mean, normed.rstd, _int(len(normed.x))))

    def add_layernorm(self, x: Array, branch: Array, norm: Affine, out: Normed, dropout: Dropout | None = None) -> None:
        kernel, grid = self._norm_kernel("add_layernorm", x, dropout)
        kernel(grid, (THREADS,), (x, branch, *norm, *out, _int(len(x)), *self._mask(dropout)))

    def layernorm_backward(self, normed: Normed, norm: Affine, dx: Array, grads: Affine) -> None:
        kernel, _ = self._norm_kernel("layernorm_backward", dx)
        partials = self.partial_sums(len(dx))
        sizes = _int(len(dx)), _int(partials), _stride(grads.weight)
        kernel((partials,), (THREADS,), (*normed, *norm, dx, grads.weight[0], grads.bias[0], *sizes))

    def add_layernorm_backward(self, normed: Normed, norm: Affine, dx: Array, grads: Affine, branch: Branch) -> None:
        kernel, _ = self._norm_kernel("add_layernorm_backward", dx, branch.dropout)
        partials = self.partial_sums(len(dx))
        sizes = _int(len(dx)), _int(partials), _stride(grads.weight)
        sums = grads.weight[0], grads.bias[0], branch.dbias[0]
        mask = self._mask(branch.dropout)
        kernel((partials,), (THREADS,), (*normed, *norm, dx, branch.gradient, *sums, *sizes, *mask))

    def dropout(self, x: Array, out: Array, dropout: Dropout) -> None:
        kernel, grid = self._norm_kernel("dropout_rows", x, dropout)
        kernel(grid, (THREADS,), (x, out, _int(len(x)), *self._mask(dropout)))

    def _norm_kernel(self, name: str, x: Array, dropout: Dropout | None = None) -> tuple[Kernel, tuple[int]]:
        """A kernel of layernorm.hip, and a grid for all rows at once."""
        rows, d = x.shape
        lanes, width = norm_lanes(name, d, self._kernel.width(d), self.device)
        defines = {"D": d, "WIDTH": width, "LANES": lanes, "DROPOUT": int(bool(dropout))}
        return self._kernel("layernorm.hip", name, **defines), (ceil_div(rows * lanes, THREADS),)

    # ---- linear ---------------------------------------------------------------------------------------------------

    def linear(
        self, x: Array, layer: Affine, out: Array, activation: Activation | None = None, *, adds: bool = False
    ) -> None:
        weight, bias = layer
        product = activation.pre_activation if activation else out
        if adds:
            self._products.product(x, weight, product, Sum(addend=product))
            if bias is not None:
                self._add_bias(product, bias)
            if activation:
                self._activate(product, out, activation.name)
            return
        fused = activation and self._products.has_fused(activation.name, out.nbytes)
        if fused and self._products.try_vendor(x, weight, out, Epilogue("gelu", bias, product)):
            return
        epilogue = NO_EPILOGUE if bias is None else Epilogue("bias", bias)
        if not self._products.try_vendor(x, weight, product, epilogue):
            if bias is None or not self._products.try_vendor(x, weight, product):
                name = "BIAS_ACTIVATION" if activation else "STORE" if bias is None else "BIAS"
                self._products.by_kernel(x, weight, out, name, bias=bias, activation=activation)
                return
            self._add_bias(product, bias)
        if activation:
            self._activate(product, out, activation.name)

    def norm_linear(self, x: Array, norm: Affine, layer: Affine, out: Array, activation: str | None = None) -> None:
        if self._row_layers.launch(x, norm, layer, activation, out):
            return
        for its_x, its_out in self._one_by_one(x, out):
            normed = self._scratch("normed", its_x.size, self._dtype.name).reshape(its_x.shape)
            mean, rstd = self._scratch("mean", len(its_x)), self._scratch("rstd", len(its_x))
            self.layernorm(Normed(its_x, normed, mean, rstd), norm)
            self.linear(normed, layer, its_out)
            if activation:
                self._activate(its_out, its_out, activation)

    def linear_add(self, x: Array, layer: Affine, out: Array) -> None:
        if self._row_layers.launch(x, None, layer, None, out):
            return
        for its_x, its_out in self._one_by_one(x, out):
            self._products.product(its_x, layer.weight, its_out, Sum(addend=its_out))
            self._add_bias(its_out, layer.bias)

    def _one_by_one(self, x: Array, out: Array) -> Iterator[tuple[Array, Array]]:
        """Each row of x [sequences, in] and of out [sequences, out] as [1, in] and [1, out], in a place of its own.

        The place is the same for all, because a vendor's library may compute other bits at another alignment.
        """
        places = [
            self._scratch(name, rows.shape[1], self._dtype.name)[None]
            for name, rows in (("one x", x), ("one out", out))
        ]
        for row in range(len(x)):
            one = slice(row, row + 1)
            self.copy(x[one], out=places[0])
            self.copy(out[one], out=places[1])
            yield places[0], places[1]
            self.copy(places[1], out=out[one])

    def linear_backward(
        self, dout: Array, weight: Array, dx: Array, dbias: Array = None, activation: Activation | None = None, *,
        adds: bool = False,
    ) -> None:  # fmt: skip
        into = Sum(addend=dx) if adds else PLAIN
        if activation:
            self._activation_backward(dout, weight.T, dx, activation, into)
        else:
            self._products.product(dout, weight.T, dx, into)
        if dbias is not None:
            self._column_sums(dout, dbias)

    def weight_gradient(self, x: Array, dout: Array, dweight: Array, *, fresh: bool = False) -> None:
        a, b = x.T, dout
        if not dweight.flags.c_contiguous:
            a, b, dweight = dout.T, x, dweight.T
        self._products.gradient(a, b, dweight, fresh)

    def _activation_backward(self, dout: Array, weight: Array, dx: Array, activation: Activation, into: Sum) -> None:
        """dx = (dout @ weight) · activation'(pre_activation), and partial sums of it."""
        name, pre_activation, dbias = activation
        epilogue, fused = Epilogue("dgelu", pre_activation=pre_activation), into.addend is None
        fused = fused and self._products.has_fused(name, dx.nbytes)
        if fused and self._products.try_vendor(dout, weight, dx, epilogue):
            self._column_sums(dx, dbias)
            return
        self._products.product(dout, weight, dx, into)
        self._launch_sums("activation_backward", (pre_activation, dx), dbias, name)

    def _activate(self, pre_activation: Array, out: Array, activation: str) -> None:
        """out = activation(pre_activation), both [rows, columns]; out may be pre_activation."""
        self._elementwise("activation", out, (pre_activation, out), activation)

    def _add_bias(self, x: Array, bias: Array) -> None:
        """x [rows, columns] += bias"""
        self._elementwise("add_bias", x, (x, bias, _int(x.shape[1])))

    def _elementwise(self, name: str, out: Array, arguments: tuple[Any, ...], activation: str = "gelu") -> None:
        """Launch a kernel of gelu.hip over out [rows, columns]."""
        width = self._kernel.width(out.shape[1])
        kernel = self._kernel("gelu.hip", name, WIDTH=width, ACTIVATION=activation)
        kernel((ceil_div(out.size, THREADS * width),), (THREADS,), (*arguments, _long(out.size)))

    # ---- gradients of vectors -------------------------------------------------------------------------------------

    def _column_sums(self, x: Array, partials: Array) -> None:
        self._launch_sums("column_sums", (x,), partials)

    def _launch_sums(self, name: str, arrays: tuple[Array, ...], partials: Array, activation: str = "gelu") -> None:
        """Launch a kernel of sums.hip that leaves partial sums of [rows, columns]."""
        (rows, columns), count = arrays[0].shape, self.partial_sums(len(arrays[0]))
        width = self._kernel.width(columns)
        kernel = self._kernel("sums.hip", name, WIDTH=width, ACTIVATION=activation)
        sizes = map(_int, (rows, columns, ceil_div(rows, count)))
        kernel(
            (ceil_div(columns, SUM_LANES * width), count), (THREADS,), (*arrays, partials[0], *sizes, _stride(partials))
        )

    def add_partials(self, partials: Array, out: Array) -> None:
        self._products.add_partials(partials, out)

    # ---- attention ------------------------------------------------------------------------------------------------

    def attention(self, qkv: Array, out: Array, lse: Array, dropout: Dropout | None = None) -> None:
        head_dim = out.shape[1] // lse.shape[1]
        self._attention("attention", lse.shape, head_dim, dropout, (qkv, out, lse))

    def attention_backward(
        self, dout: Array, qkv: Array, out: Array, lse: Array, dqkv: Array, dropout: Dropout | None = None
    ) -> None:
        head_dim, delta = out.shape[1] // lse.shape[1], self._scratch("delta", lse.size)
        queries = (dout, qkv, out, lse, delta, dqkv)
        self._attention("attention_backward_queries", lse.shape, head_dim, dropout, queries)
        self._attention("attention_backward_keys", lse.shape, head_dim, dropout, (dout, qkv, lse, delta, dqkv))

    def attention_cached(self, qkv: Array, keys: Array, values: Array, start: Array, out: Array) -> None:
        sequences, heads, capacity, head_dim = keys.shape
        kernel = self._cache_kernel("attention_cached", head_dim)
        kernel((sequences, heads), (CACHED_THREADS,), (qkv, keys, values, out, _int(heads), _int(capacity), start))

    def fill_cache(self, qkv: Array, keys: Array, values: Array, place: Array) -> None:
        _, heads, capacity, _ = keys.shape
        kernel = self._cache_kernel("fill_cache", keys.shape[3])
        kernel((len(qkv),), (CACHED_THREADS,), (qkv, keys, values, _int(heads), _int(capacity), place))

    def _cache_kernel(self, name: str, head_dim: int) -> Kernel:
        """A kernel of attention_cached.hip."""
        width, lanes = self._kernel.width(head_dim), 1
        while lanes < self.device.warp and lanes * width < head_dim:
            lanes *= 2
        return self._kernel("attention_cached.hip", name, HEAD_DIM=head_dim, WIDTH=width, LANES=lanes)

    def _attention(
        self, name: str, shape: tuple[int, int, int], head_dim: int, dropout: Dropout | None, arrays: tuple[Array, ...]
    ) -> None:
        """Run a kernel of attention.hip on [batch, heads, seq]."""
        batch, heads, seq = shape
        matrix, wgmma = self.attention_type, self.device.has_wgmma and self.low_precision
        edge = attention_edge(name, head_dim, is_cdna=self.low_precision and self.device.warp == 64)
        if edge == 32:
            matrix = "wide_bf16"
        block = attention_block(name, head_dim, matrix, bool(dropout), wgmma, shared_bytes(self.device.target))
        side, threads = block.side, block.side // edge * self.device.warp
        kernel = self._kernel(
            "attention.hip", name, block.shared_bytes, MATRIX=matrix, HEAD_DIM=head_dim, DROPOUT=int(bool(dropout)),
            SIDE=side, THREADS=threads, WGMMA=int(wgmma), OWN_SHARED=int(block.shared_bytes > 0), SLICE=block.slice,
        )  # fmt: skip
        grid = (batch * heads * ceil_div(seq, side),)
        kernel(grid, (threads,), (*arrays, _int(heads), _int(seq), *self._mask(dropout)))

    # ---- loss -----------------------------------------------------------------------------------------------------

    def softmax_cross_entropy(
        self, logits: Array, labels: Array, losses: Array, hits: Array, vocab: int, scale: Array | None = None
    ) -> None:
        rows, stride = logits.shape
        size = stride * self._dtype.itemsize
        threads = next(threads for largest, threads in LOGITS_THREADS if size <= largest)
        kernel = self._kernel("softmax.hip", "cross_entropy", GRADIENT=int(scale is not None), THREADS=threads)
        unread = losses if scale is None else scale
        kernel((rows,), (threads,), (logits, labels, losses, hits, _int(vocab), _int(stride), unread))

    def add_sums(self, losses: Array, hits: Array, out: Array) -> None:
        kernel = self._kernel("sums.hip", "add_metrics", WIDTH=1, ACTIVATION="gelu")
        kernel((1,), (THREADS,), (losses, hits, out, _int(losses.size)))

    def sample(self, logits: Array, seen: Array, uniform: Array, out: Array, rules: Array, vocab: int) -> None:
        rows, stride = logits.shape
        keys = self._scratch("sample keys", rows * vocab, "uint32")
        arguments = (logits, seen, uniform, out, rules, keys, _int(vocab), _int(stride))
        self._kernel("sample.hip", "sample")((rows,), (SAMPLE_THREADS,), arguments)

    # ---- optimizer ------------------------------------------------------------------------------------------------

    def global_norm(self, x: Array, out: Array) -> None:
        partials = self._scratch("norm", NORM_BLOCKS, "float64")
        blocks = min(NORM_BLOCKS, ceil_div(x.size, THREADS * NORM_WIDTH))
        self._kernel("norm.hip", "squares")((blocks,), (THREADS,), (x, partials, _long(x.size)))
        self._kernel("norm.hip", "global_norm")((1,), (THREADS,), (partials, out, _int(blocks)))

    def convert(self, x: Array, out: Array) -> None:
        source, target = ("bf16" if array.dtype == np.uint16 else "float" for array in (x, out))
        kernel = self._kernel("convert.hip", "convert", FROM=source, TO=target)
        kernel((ceil_div(x.size, THREADS * CONVERT_WIDTH),), (THREADS,), (x, out, _long(x.size)))

    def norm_of_norms(self, norms: Array, out: Array) -> None:
        self._kernel("norm.hip", "norm_of_norms")((1,), (1,), (norms, out, _int(norms.size)))

    def plan_update(self, norm: Array, loss: Array, counters: Array, lr: Array, out: Array, rule: UpdateRule) -> None:
        factors = map(np.float64, (*rule.betas, rule.weight_decay, rule.clip))
        kernel = self._kernel("adamw.hip", "plan_update", COPY=int(self.low_precision))
        kernel((1,), (1,), (norm, loss, counters, lr, out, *factors))

    def adamw(self, buffers: AdamBuffers, plan: Array, rule: UpdateRule) -> None:
        weights, gradients, exp_avg, exp_avg_sq, copy, decayed = buffers
        kernel = self._kernel("adamw.hip", "adamw", COPY=int(copy is not None))
        arrays = (weights, gradients, exp_avg, exp_avg_sq, weights if copy is None else copy, plan)
        factors = (1 - rule.betas[0], 1 - rule.betas[1], rule.eps)
        scalars = (*map(_float, factors), _long(decayed), _long(weights.size))
        kernel((ceil_div(weights.size, THREADS * ADAMW_WIDTH),), (THREADS,), (*arrays, *scalars))

    def muon(self, stacks: Sequence[Stack], plan: Array, momentum: float, coefficients: Coefficients) -> None:
        self._muon.step(stacks, plan, momentum, coefficients)

    def muon_bytes(self, shapes: Sequence[StackShape]) -> int:
        return scratch_elements(shapes) * self._dtype.itemsize

    # ---- arguments ------------------------------------------------------------------------------------------------

    def _mask(self, dropout: Dropout | None) -> tuple[Any, ...]:
        """A dropout's arguments for a kernel: key, site, threshold and scale. `first` is 0: see `sequences`."""
        if not dropout:
            return self._no_key, _uint(0), _uint(0), _float(1)
        threshold = _uint(dropout.threshold << 16)
        return dropout.key, _uint(dropout.site), threshold, _float(1 / (1 - dropout.rate))


def _stride(partials: Array) -> np.int32:
    """Elements from one row to the next."""
    return _int(partials.strides[0] // partials.itemsize)


def _to_bf16(x: np.ndarray) -> np.ndarray:
    """Float32 rounded to the nearest bf16, ties to even, as uint16; NaN stays NaN."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(x), 0x7FC0, rounded).astype(np.uint16)
