"""GPT-2 (Radford et al. 2019): parameters, forward pass, backward pass.

A block is x + proj(attention(ln_1(x))), then x + proj(gelu(fc(ln_2(x)))): pre-LN, learned positions, biases everywhere.
All arithmetic is asked of an operations object (gpt/ops); this file only says in which order. Four choices shape it:

- All parameters lie in one flat buffer, and so do their gradients: clipping, AdamW and saving are one pass.
- In training the residual add is fused with the layer norm that follows it, so every block ends by computing the norm
  that the next one (or the head) starts with.
- The head goes over the rows in chunks, each turned from logits into its gradient at once: no array of
  [rows, vocabulary] ever exists.
- A pass takes as many sequences of a batch as the device asks for, so that activations need only so much memory.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from gpt.config import ModelConfig
from gpt.ops.interface import Array, Dropout
from gpt.parameters import Affine, Parameters, layout, over_layers, padded_vocab, stack_shapes

Drop = Callable[..., Dropout | None]  # of a site, and of how many rows its mask has for a token

INIT_STD = 0.02


class Normed(NamedTuple):
    """A point of the residual stream, its layer norm, and what that norm's backward needs."""

    x: Array  # [rows, D]
    out: Array  # [rows, D]
    mean: Array  # [rows]
    rstd: Array  # [rows]

    def rows(self, rows: int) -> "Normed":
        return Normed(*(array[:rows] for array in self))


class BlockActivations(NamedTuple):
    """What one block's forward pass leaves for its backward pass."""

    ln_1: Normed
    qkv: Array  # [rows, 3 D]
    attended: Array  # [rows, D]
    lse: Array  # [batch x heads x seq]
    ln_2: Normed
    fc: Array  # [rows, F], before the activation
    activated: Array  # [rows, F]


class Workspace:
    """Every array that a pass over at most `sequences` x `seq` tokens writes, allocated once.

    For inference (`training` False) all blocks share one set of arrays.
    """

    def __init__(
        self, config: ModelConfig, sequences: int, seq: int, ops: Any, training: bool, allocate: Callable[..., Array]
    ) -> None:
        rows, d, f = sequences * seq, config.embed_dim, config.ff_hidden_dim

        def normed() -> Normed:
            x, out = allocate((rows, d)), allocate((rows, d))
            return Normed(x, out, mean=allocate(rows, "float32"), rstd=allocate(rows, "float32"))

        def block(ln_1: Normed) -> BlockActivations:
            lse = allocate(rows * config.num_heads, "float32")
            fc, activated = allocate((rows, f)), allocate((rows, f))
            return BlockActivations(ln_1, allocate((rows, 3 * d)), allocate((rows, d)), lse, normed(), fc, activated)

        if training:
            self.norms = [normed() for _ in range(config.num_layers + 1)]
            self.blocks = [block(ln_1) for ln_1 in self.norms[:-1]]
            self.dx, self.dbranch, self.dnormed = allocate((rows, d)), allocate((rows, d)), allocate((rows, d))
            self.dqkv, self.dfc = allocate((rows, 3 * d)), allocate((rows, f))
        else:
            self.norms = [normed()] * (config.num_layers + 1)
            self.blocks = [block(self.norms[0])] * config.num_layers
        self.branch = allocate((rows, d))
        self.logits = allocate((min(rows, ops.head_rows), padded_vocab(config, ops.vocab_multiple)))
        self.losses, self.hits = allocate(rows, "float32"), allocate(rows, "float32")


class KVCache:
    """Keys and values of the positions decoded so far, for one sequence: [layers, heads, max_seq_len, head_dim].

    `start`, int32 [1] on the device, is where decoding goes on; whoever decodes writes it.
    """

    def __init__(self, config: ModelConfig, allocate: Callable[..., Array], start: Array) -> None:
        shape = (config.num_layers, config.num_heads, config.max_seq_len, config.head_dim)
        self.keys, self.values = allocate(shape), allocate(shape)
        self.start = start

    @staticmethod
    def bytes(config: ModelConfig, ops: Any) -> int:
        """What a cache on `ops` takes."""
        return 2 * config.num_layers * config.max_seq_len * config.embed_dim * (2 if ops.low_precision else 4)


class GPT:
    """A GPT-2 on one device.

    `batch` is the largest number of sequences, each of `config.max_seq_len` tokens or fewer, that it is ever given;
    `sequences` of them go through it at a time. With `training` it also holds gradients and the activations that
    backward needs.
    """

    def __init__(self, config: ModelConfig, ops: Any, batch: int = 1, training: bool = False) -> None:
        ops.check(config)
        self.config, self.ops = config, ops
        self.sequences = ops.sequences(batch, config.max_seq_len)

        def parameters(dtype: str, partial_sums: int = 0) -> Parameters:
            return Parameters(config, lambda shape: ops.zeros(shape, dtype), ops.vocab_multiple, partial_sums)

        self.weights = parameters("float32")
        self.compute = parameters("") if ops.low_precision else self.weights  # what the passes read
        self.gradients = parameters("float32", ops.parts(self.sequences * config.max_seq_len)) if training else None
        self.workspace = Workspace(config, self.sequences, config.max_seq_len, ops, training, ops.empty)
        self.metrics = ops.zeros(2, "float64")  # loss and top-1 hits, summed over tokens since they were last cleared
        self.dropout_key = ops.zeros(2, "uint32")  # seed and counter; whoever runs the steps moves the counter

    # ---- parameters -----------------------------------------------------------------------------------------------

    def initialize(self, seed: int) -> None:
        """GPT-2's initialization: N(0, 0.02²), projections into the residual stream scaled by 1 / sqrt(2 layers)."""
        rng = np.random.Generator(np.random.Philox(seed))
        for name, view in self.weights.named.items():
            if view.ndim == 1:
                value = np.full(view.shape, 1 if "ln_" in name and name.endswith("weight") else 0, np.float32)
            else:
                std = INIT_STD / math.sqrt(2 * self.config.num_layers) if "c_proj" in name else INIT_STD
                value = rng.standard_normal(view.shape, np.float32) * np.float32(std)
            self.ops.copy(value, out=view)
        self._refresh()

    def load(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Take over float32 tensors by name; names and shapes are those of `parameter_shapes`."""
        for name, view in self.weights.named.items():
            self.ops.copy(tensors[name], out=view)
        self._refresh()

    def _refresh(self) -> None:
        """Bring the copy that the passes read up to the weights; from then on the optimizer keeps it there."""
        if self.compute is not self.weights:
            for name, view in self.compute.named.items():
                self.ops.copy(self.weights.named[name], out=view)

    # ---- passes ---------------------------------------------------------------------------------------------------

    def loss(self, ids: Array, labels: Array) -> None:
        """Add the cross-entropy and top-1 hits of int32 [batch, seq] ids and labels to `metrics`."""
        for part in self._parts(ids):
            self._forward(ids[part])
            self._head(labels[part])

    def loss_and_gradients(self, ids: Array, labels: Array, order: Array, scale: float) -> None:
        """As `loss`, with dropout, and add `scale` x d(summed cross-entropy)/d(weights) to `gradients`.

        order, int32 [batch x seq], is a stable argsort of every `sequences` ids (`gpt.batches.token_order`).
        """
        seq = ids.shape[1]
        for part in self._parts(ids):
            drop = self._dropout(part.start * seq)
            self._forward(ids[part], drop)
            self._head(labels[part], scale)
            self._backward(ids[part], order[part.start * seq : part.stop * seq], drop)

    def logits(self, ids: Array) -> np.ndarray:
        """The full forward pass: float32 [batch, seq, vocab] logits, on the host, of int32 [batch, seq] ids."""
        vocab, chunks = self.config.vocab_size, []
        for part in self._parts(ids):
            self._forward(ids[part])
            chunks += [self.ops.to_host(logits)[:, :vocab].copy() for _, logits in self._logits(ids[part].size)]
        return np.concatenate(chunks).reshape(*ids.shape, vocab)

    def decode(self, ids: Array, cache: KVCache) -> Array:
        """The logits, [vocab], that follow int32 [n] ids at the positions from `cache.start` on, now in the cache.

        Computes n positions, however long the sequence is; the last one must be below max_seq_len. Nothing is kept for
        a way back, so that each linear layer takes the norm before it, or the residual add after it, along.
        """
        ops, weights, ws, rows = self.ops, self.compute, self.workspace, ids.size
        x = ws.norms[0].x[:rows]
        ops.embedding(ids.reshape(1, -1), weights.wte, weights.wpe, out=x, start=cache.start)
        for layer, (w, act) in enumerate(zip(weights.blocks, ws.blocks, strict=True)):
            qkv, attended, activated = act.qkv[:rows], act.attended[:rows], act.activated[:rows]
            ops.norm_linear(x, *w.ln_1, *w.attn_qkv, out=qkv)
            ops.attention_cached(qkv, cache.keys[layer], cache.values[layer], cache.start, out=attended)
            ops.linear_add(attended, *w.attn_proj, out=x)
            ops.norm_linear(x, *w.ln_2, *w.mlp_fc, out=activated, activation=self.config.activation)
            ops.linear_add(activated, *w.mlp_proj, out=x)
        logits = ws.logits[:1]
        ops.norm_linear(x[rows - 1 :], *weights.ln_f, weights.head.T, None, out=logits)
        return logits[0, : self.config.vocab_size]

    def _parts(self, ids: Array) -> list[slice]:
        """Which sequences of a batch go through the model together."""
        starts = range(0, len(ids), self.sequences)
        return [slice(start, min(start + self.sequences, len(ids))) for start in starts]

    def _forward(self, ids: Array, drop: Drop = lambda *_: None) -> None:
        ops, weights, ws, rows = self.ops, self.compute, self.workspace, ids.size
        branch = ws.branch[:rows]
        stream = ws.norms[0].rows(rows)
        ops.embedding(ids, weights.wte, weights.wpe, out=stream.x, dropout=drop(0))
        ops.layernorm(stream.x, *weights.norms[0], out=stream.out, mean=stream.mean, rstd=stream.rstd)
        for layer, (w, act) in enumerate(zip(weights.blocks, ws.blocks, strict=True)):
            qkv, attended = act.qkv[:rows], act.attended[:rows]
            ops.linear(stream.out, *w.attn_qkv, out=qkv)
            dropped = drop(3 * layer + 1, self.config.num_heads)
            ops.attention(qkv, out=attended, lse=self._lse(act, ids), dropout=dropped)
            ops.linear(attended, *w.attn_proj, out=branch)
            middle = act.ln_2.rows(rows)
            ops.add_layernorm(stream.x, branch, *w.ln_2, *middle, dropout=drop(3 * layer + 2))
            fc, activated = act.fc[:rows], act.activated[:rows]
            ops.linear(middle.out, *w.mlp_fc, out=activated, before=fc, activation=self.config.activation)
            ops.linear(activated, *w.mlp_proj, out=branch)
            stream = ws.norms[layer + 1].rows(rows)
            ops.add_layernorm(middle.x, branch, *weights.norms[layer + 1], *stream, dropout=drop(3 * layer + 3))

    def _logits(self, rows: int) -> Iterator[tuple[slice, Array]]:
        """Chunks of rows with their logits; a chunk's array is reused by the next."""
        out, logits = self.workspace.norms[-1].out, self.workspace.logits
        for start in range(0, rows, len(logits)):
            chunk = slice(start, min(start + len(logits), rows))
            self.ops.linear(out[chunk], self.compute.head.T, None, out=logits[: chunk.stop - start])
            yield chunk, logits[: chunk.stop - start]

    def _head(self, labels: Array, scale: float | None = None) -> None:
        """Cross-entropy of the last norm's output; with `scale` also its gradient, into `dnormed` and the head's."""
        ops, ws, labels = self.ops, self.workspace, labels.reshape(-1)
        losses, hits, vocab = ws.losses[: labels.size], ws.hits[: labels.size], self.config.vocab_size
        for chunk, logits in self._logits(labels.size):
            ops.softmax_cross_entropy(logits, labels[chunk], losses[chunk], hits[chunk], vocab=vocab, scale=scale)
            if scale is not None:
                out, dhead = ws.norms[-1].out[chunk], self.gradients.head
                ops.linear_backward(logits, out, self.compute.head.T, dx=ws.dnormed[chunk], dweight=dhead.T, dbias=None)
        ops.add_sums(losses, hits, out=self.metrics)

    def _backward(self, ids: Array, order: Array, drop: Drop) -> None:
        """From `dnormed`, the gradient of the last norm's output, down to the embedding."""
        ops, weights, grads, ws, rows = self.ops, self.compute, self.gradients, self.workspace, ids.size
        dx, dnormed, dqkv, dfc = ws.dx[:rows], ws.dnormed[:rows], ws.dqkv[:rows], ws.dfc[:rows]
        dbranch = ws.dbranch[:rows] if drop(0) else dx
        ops.fill(dx, 0)

        def norm_backward(norm: Normed, weight: Affine, grad: Affine, branch: Affine, site: int) -> None:
            """Through a norm into the stream, and on to the branch that was added to it and that branch's bias."""
            x, _, mean, rstd = norm.rows(rows)
            ops.add_layernorm_backward(
                dnormed, x, weight.weight, mean, rstd, dx, dbranch, *grad, branch.bias, dropout=drop(site)
            )

        for layer in reversed(range(self.config.num_layers)):
            w, g, act = weights.blocks[layer], grads.blocks[layer], ws.blocks[layer]
            activated, attended = act.activated[:rows], act.attended[:rows]
            stream, middle = act.ln_1.rows(rows), act.ln_2.rows(rows)

            after, after_weight, after_grad = (each.norms[layer + 1] for each in (ws, weights, grads))
            norm_backward(after, after_weight, after_grad, g.mlp_proj, 3 * layer + 3)
            ops.linear_backward(
                dbranch,
                activated,
                w.mlp_proj.weight,
                dfc,
                g.mlp_proj.weight,
                None,
                before=act.fc[:rows],
                activation=self.config.activation,
                dx_sums=g.mlp_fc.bias,
            )
            ops.linear_backward(dfc, middle.out, w.mlp_fc.weight, dnormed, g.mlp_fc.weight, None)

            norm_backward(act.ln_2, w.ln_2, g.ln_2, g.attn_proj, 3 * layer + 2)
            dattended = dnormed  # free until attention's own backward is done
            ops.linear_backward(dbranch, attended, w.attn_proj.weight, dattended, g.attn_proj.weight, None)
            dropped = drop(3 * layer + 1, self.config.num_heads)
            ops.attention_backward(dattended, act.qkv[:rows], attended, self._lse(act, ids), dqkv, dropout=dropped)
            ops.linear_backward(dqkv, stream.out, w.attn_qkv.weight, dnormed, *g.attn_qkv)
        first = ws.norms[0].rows(rows)
        ops.layernorm_backward(dnormed, first.x, weights.norms[0].weight, first.mean, first.rstd, dx, *grads.norms[0])
        ops.embedding_backward(dx, ids, order, grads.wte, grads.wpe, dropout=drop(0))
        ops.add_partials(grads.partials[: ops.parts(rows)], out=grads.vectors)

    def _dropout(self, first: int) -> Drop:
        """The dropout of a site: the embedding is 0; a block's attention and two branches follow, three per block.

        `first` is the token of the batch that a pass begins with; attention's mask has as many rows a token as heads.
        """
        rate = self.config.dropout
        return lambda site, heads=1: Dropout(rate, self.dropout_key, site, first * heads) if rate else None

    def _lse(self, act: BlockActivations, ids: Array) -> Array:
        batch, seq = ids.shape
        return act.lse[: ids.size * self.config.num_heads].reshape(batch, self.config.num_heads, seq)


def memory_bytes(config: ModelConfig, batch: int, ops: Any, optimizer: str | None = None) -> int:
    """Bytes that a GPT on `ops` holds, and with `optimizer`, "adamw" or "muon", its training; nothing is allocated."""
    itemsize = 2 if ops.low_precision else 4

    def total(few: ModelConfig) -> int:
        sizes = []

        def count(shape: int | tuple[int, ...], dtype: str = "") -> None:
            size = shape if isinstance(shape, int) else math.prod(shape)
            sizes.append(size * (np.dtype(dtype).itemsize if dtype else itemsize))

        place, sequences = layout(few, ops.vocab_multiple), ops.sequences(batch, few.max_seq_len)
        count(place.total, "float32")
        if optimizer:
            count(2 * place.total, "float32")  # gradients, and a moment of every tensor
            count(place.total - (place.matrices if optimizer == "muon" else 0), "float32")  # Adam's second moment
            count((ops.parts(sequences * few.max_seq_len), place.total - place.decayed), "float32")
        if ops.low_precision:
            count(place.total)
        Workspace(few, sequences, few.max_seq_len, ops, optimizer is not None, count)
        return sum(sizes)

    shared = ops.muon_bytes(stack_shapes(config)) if optimizer == "muon" else 0
    return over_layers(config, total) + shared
