"""GPT-2 (Radford et al. 2019): forward pass and backward pass.

A block is x + proj(attention(ln_1(x))), then x + proj(gelu(fc(ln_2(x)))): pre-LN, learned positions, biases everywhere.
Read `GPT._forward` first, then `TrainableGPT._backward`. The arithmetic is that of an `Operations` object
(gpt/ops/interface.py); this file only says in which order. Six choices shape it:

- All parameters are in one flat buffer (gpt/parameters.py), and so are their gradients: clipping and AdamW are one pass
  over it, and Muon and saving take views of it.
- In training the residual add is fused with the layer norm that follows it, so every block ends by computing the norm
  that the next one (or the head) starts with.
- The head goes over the rows in chunks, each turned from logits into its gradient at once: no array of
  [rows, vocabulary] ever exists.
- A batch goes through in micro-batches of as many sequences as the device asks for, so activations need only so much
  memory.
- With `recompute`, only the stream that enters each block is kept. The backward pass runs the block again for the rest
  (Chen et al. 2016), which gives the same bits, because every operation does.
- With `lora`, each layer of a block has an adapter of that rank beside it (gpt/lora.py), and only adapters learn.

Shapes: a row is a token of a micro-batch, D = embed_dim, F = ff_hidden_dim, V' the padded vocabulary.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from gpt.config import ModelConfig
from gpt.initialization import initial_weights
from gpt.lora import Adapter, Adapters, adapter_elements
from gpt.ops.interface import Activation, Affine, Array, Branch, Dropout, Operations, Shape
from gpt.parameters import Block, Parameters, layout, over_layers
from gpt.workspace import BlockActivations, Kept, Workspace

BlockDone = Callable[[int], None]  # takes a block's number


# ---- the model -------------------------------------------------------------------------------------------------------


class GPT:
    """A GPT-2 on one device, for inference.

    `batch` is the largest number of sequences, each of `config.max_seq_len` tokens or fewer, that it is ever given;
    `sequences` of them go through it at a time. With `lora` it has adapters of that rank.
    """

    def __init__(
        self, config: ModelConfig, ops: Operations, batch: int = 1, kept: Kept = "nothing", lora: int | None = None
    ) -> None:
        ops.check(config)
        self.config, self.ops = config, ops
        self.sequences = ops.sequences(batch, config.max_seq_len)
        # In the type that products read; in training, the optimizer has exact ones of those that learn.
        self.weights = self._parameters("")
        self.adapters = Adapters(config, lora, ops.zeros) if lora else None
        self.workspace = Workspace(config, self.sequences, ops, kept, allocate=ops.empty, lora=lora)
        self.metrics = ops.zeros(2, "float64")  # loss and top-1 hits, summed over tokens since they were last cleared
        self.dropout_key = ops.zeros(2, "uint32")  # seed and counter; whoever runs the steps moves the counter

    def _parameters(self, dtype: str, partial_sums: int = 0) -> Parameters:
        ops = self.ops
        return Parameters(self.config, lambda shape: ops.zeros(shape, dtype), ops.vocab_multiple, partial_sums)

    def initialize(self, seed: int) -> None:
        """Begin with `initial_weights`."""
        self.load(initial_weights(self.config, seed))

    def load(self, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
        """Take over float32 tensors by name; names and shapes are those of `parameter_shapes`."""
        for name, tensor in tensors:
            self.ops.copy(tensor, out=self.weights.named[name])

    def loss(self, ids: Array, labels: Array) -> None:
        """Add the cross-entropy and top-1 hits of int32 [batch, seq] ids and labels to `metrics`."""
        for part in self._micro_batches(ids):
            self._forward(ids[part], self._sites(rate=0))
            self._head(labels[part])

    def token_losses(self, ids: Array, labels: Array) -> tuple[np.ndarray, np.ndarray]:
        """The cross-entropy of each label, and whether it is the likeliest token (1 or 0): float32 [batch, seq] on the
        host, of int32 [batch, seq] ids and labels.
        """
        losses, hits, ws = [], [], self.workspace
        for part in self._micro_batches(ids):
            self._forward(ids[part], self._sites(rate=0))
            self._head(labels[part])
            rows = ids[part].size
            losses.append(self.ops.to_host(ws.losses[:rows]).copy())
            hits.append(self.ops.to_host(ws.hits[:rows]).copy())
        return np.concatenate(losses).reshape(ids.shape), np.concatenate(hits).reshape(ids.shape)

    def logits(self, ids: Array) -> np.ndarray:
        """The full forward pass: float32 [batch, seq, vocab] logits, on the host, of int32 [batch, seq] ids."""
        chunks = [logits.copy() for logits in self.logits_in_chunks(ids)]
        return np.concatenate(chunks).reshape(*ids.shape, self.config.vocab_size)

    def logits_in_chunks(self, ids: Array) -> Iterator[np.ndarray]:
        """The rows of `logits`, a few at a time: float32 [rows, vocab], which the next ones may overwrite."""
        for part in self._micro_batches(ids):
            self._forward(ids[part], self._sites(rate=0))
            for _, logits in self._logits(ids[part].size):
                yield self.ops.to_host(logits)[:, : self.config.vocab_size]

    def _forward(self, ids: Array, sites: "DropoutSites", cache: "KVCache | None" = None) -> None:
        """From ids [sequences, seq] to the last layer norm, in `workspace.residuals[-1]`.

        With a cache, the keys and values of ids [1, seq] go into it.
        """
        ops, weights, ws, rows = self.ops, self.weights, self.workspace, ids.size
        branch = ws.branch[:rows]  # [rows, D]
        stream = ws.residuals[0].rows(rows)  # x and its norm, both [rows, D]
        ops.embedding(ids, weights.wte, weights.wpe, out=stream.x, dropout=sites.embedding())
        ops.layernorm(stream, norm=weights.norms[0])

        for layer in range(self.config.num_layers):
            act = self._block(layer, ids, sites)
            if cache:
                ops.fill_cache(act.qkv, cache.keys[layer], cache.values[layer], cache.place)
            self._linear(layer, "mlp_proj", act.activated, out=branch)
            norm = weights.norms[layer + 1]  # the next block's ln_1, or ln_f
            stream = ws.residuals[layer + 1].rows(rows)
            ops.add_layernorm(act.ln_2.x, branch, norm=norm, out=stream, dropout=sites.mlp_branch(layer))

    def _block(self, layer: int, ids: Array, sites: "DropoutSites") -> BlockActivations:
        """A block, from the stream that enters it and its norm, ln_1, up to the activation."""
        ops, w, act = self.ops, self.weights.blocks[layer], self.workspace.blocks[layer].of(ids)
        branch = self.workspace.branch[: ids.size]
        # x + proj(attention(ln_1(x)))
        self._linear(layer, "attn_qkv", act.ln_1.out, out=act.qkv)  # [rows, 3 D]
        ops.attention(act.qkv, out=act.attended, lse=act.lse, dropout=sites.attention(layer))  # [rows, D]
        self._linear(layer, "attn_proj", act.attended, out=branch)
        ops.add_layernorm(act.ln_1.x, branch, norm=w.ln_2, out=act.ln_2, dropout=sites.attention_branch(layer))

        # x + proj(gelu(fc(ln_2(x)))), of which proj and x + follow in `_forward`
        activation = Activation(self.config.activation, act.pre_activation)
        self._linear(layer, "mlp_fc", act.ln_2.out, out=act.activated, activation=activation)  # [rows, F]
        return act

    def _linear(self, layer: int, module: str, x: Array, out: Array, activation: Activation | None = None) -> None:
        """The linear layer `module`, one of MATRICES, of block `layer`; and beside it its adapter, if there is one."""
        ops, weight = self.ops, getattr(self.weights.blocks[layer], module)
        if self.adapters is None:
            ops.linear(x, weight, out, activation)
            return
        adapter: Adapter = getattr(self.adapters.blocks[layer], module)
        inner = self.workspace.inner[: len(x)]  # [rows, R]
        ops.linear(x, weight, out=activation.pre_activation if activation else out)
        ops.linear(x, adapter.down, out=inner)
        ops.linear(inner, adapter.up, out, activation, adds=True)

    def _head(self, labels: Array, scale: Array | None = None, dhead: Array = None, fresh: bool = False) -> None:
        """Cross-entropy of the last norm's output. With `scale` also its gradient, which replaces that output; and
        that of the head is added to dhead [V', D], or with `fresh` written there, unless that is None.
        """
        ops, ws, head, labels = self.ops, self.workspace, self._head_layer(), labels.reshape(-1)
        losses, hits, vocab = ws.losses[: labels.size], ws.hits[: labels.size], self.config.vocab_size
        for chunk, logits in self._logits(labels.size):
            ops.softmax_cross_entropy(logits, labels[chunk], losses[chunk], hits[chunk], vocab=vocab, scale=scale)
            if scale is not None:  # logits are their own gradient now
                if dhead is not None:
                    ops.weight_gradient(ws.normed[chunk], logits, dhead.T, fresh=fresh and chunk.start == 0)
                ops.linear_backward(logits, head.weight, ws.normed[chunk])
        ops.add_sums(losses, hits, out=self.metrics)

    def _logits(self, rows: int) -> Iterator[tuple[slice, Array]]:
        """Chunks of rows with their logits [chunk, V']; a chunk's array is reused by the next."""
        out, logits = self.workspace.normed, self.workspace.logits
        for start in range(0, rows, len(logits)):
            chunk = slice(start, min(start + len(logits), rows))
            self.ops.linear(out[chunk], self._head_layer(), out=logits[: chunk.stop - start])
            yield chunk, logits[: chunk.stop - start]

    def _head_layer(self) -> Affine:
        return Affine(self.weights.head.T, bias=None)  # [D, V']

    def read(self, ids: Array, cache: "KVCache") -> None:
        """Let int32 [1, seq] ids be the first positions of the sequence in place `cache.place`.

        More ids may follow those of the sequence: no earlier position sees them, and `decode` overwrites theirs.
        """
        self._forward(ids, self._sites(rate=0), cache)

    def decode(self, ids: Array, cache: "KVCache") -> Array:
        """The logits [batch, V'] that follow int32 [batch] ids, each at the position `cache.start` of its sequence.

        The positions join the cache, whose first `batch` places have the sequences; they must be below max_seq_len. No
        backward pass follows, so norms and residual adds are fused into the linear layers. A sequence's bits depend on
        its own ids alone: not on the other sequences, nor on its place among them.
        """
        ops, weights, ws, batch = self.ops, self.weights, self.workspace, len(ids)
        x = ops.stream(ws.residuals[0].x[:batch], self.config.ff_hidden_dim)
        logits, start = ws.logits[:batch], cache.start[:batch]
        ops.embedding(ids[:, None], weights.wte, weights.wpe, out=x, start=start)
        for layer, act in enumerate(ws.blocks):
            w = self._merged(layer)
            keys, values = cache.keys[layer, :batch], cache.values[layer, :batch]
            qkv, attended, activated = act.qkv[:batch], act.attended[:batch], act.activated[:batch]
            ops.norm_linear(x, w.ln_1, w.attn_qkv, out=qkv)
            ops.attention_cached(qkv, keys, values, start, out=attended)
            ops.linear_add(attended, w.attn_proj, out=x)
            ops.norm_linear(x, w.ln_2, w.mlp_fc, out=activated, activation=self.config.activation)
            ops.linear_add(activated, w.mlp_proj, out=x)
        ops.norm_linear(x, weights.ln_f, self._head_layer(), out=logits)
        return logits

    def _merged(self, layer: int) -> Block:
        """The weights of a block, with its adapters merged into them. All blocks share the room for these."""
        block = self.weights.blocks[layer]
        if self.adapters is None:
            return block
        for module, weight in self.workspace.merged.items():
            adapter: Adapter = getattr(self.adapters.blocks[layer], module)
            affine: Affine = getattr(block, module)
            self.ops.copy(affine.weight, out=weight)
            self.ops.linear(adapter.a.T, adapter.up, out=weight, adds=True)
            block = block._replace(**{module: Affine(weight, affine.bias)})
        return block

    def _micro_batches(self, ids: Array) -> list[slice]:
        """The sequences of a batch that go through the model together."""
        starts = range(0, len(ids), self.sequences)
        return [slice(start, min(start + self.sequences, len(ids))) for start in starts]

    def _sites(self, rate: float, first: int = 0) -> "DropoutSites":
        return DropoutSites(rate, self.dropout_key, self.config.num_heads, first)


class TrainableGPT(GPT):
    """A GPT-2 with gradients, and room for the activations that the backward pass reads.

    `trained` are the weights that learn, and `gradients` theirs: all of them, or with `lora` the adapters alone.
    """

    gradients: Parameters | Adapters
    trained: Parameters | Adapters

    def __init__(
        self, config: ModelConfig, ops: Operations, batch: int = 1, recompute: bool = False, lora: int | None = None
    ) -> None:
        super().__init__(config, ops, batch, "streams" if recompute else "everything", lora)
        self._recompute = recompute
        if self.adapters and lora:
            self.trained = self.adapters
            self.gradients = Adapters(config, lora, lambda size: ops.zeros(size, "float32"))
            unused = self.workspace.unused(config)
            self._of_blocks, self._of_norms = [unused] * config.num_layers, [unused.ln_1] * (config.num_layers + 1)
        else:
            self.trained = self.weights
            self.gradients = self._parameters("float32", ops.partial_sums(self.sequences * config.max_seq_len))
            self._of_blocks, self._of_norms = self.gradients.blocks, self.gradients.norms

    def loss_and_gradients(
        self, ids: Array, labels: Array, order: Array, scale: Array, block_done: BlockDone | None = None,
        fresh: bool = False,
    ) -> None:  # fmt: skip
        """As `loss`, with dropout, and add `scale`, float32 [1], x d(summed cross-entropy)/d(weights) to `gradients`.

        With `fresh` the gradients begin anew, and what they hold does not count: products then write their results
        instead of adding them to zeros, which is less traffic. order, int32 [batch x seq], sorts the ids of every
        `sequences` rows by themselves (`gpt.batches.token_order`). `block_done(layer)` is called, from the last layer
        to the first, as soon as the gradients of a block's matrices are complete.
        """
        seq = ids.shape[1]
        parts = self._micro_batches(ids)
        for part in parts:
            its_fresh = fresh and part == parts[0]
            sites = self._sites(self.config.dropout, first=part.start * seq)
            if its_fresh and isinstance(self.gradients, Parameters):
                self._clear_sums(self.gradients)
            self._forward(ids[part], sites)
            dhead = self.gradients.head if isinstance(self.gradients, Parameters) else None
            self._head(labels[part], scale, dhead, its_fresh)
            done = block_done if part == parts[-1] else None
            self._backward(ids[part], order[part.start * seq : part.stop * seq], sites, its_fresh, done)

    def _clear_sums(self, gradients: Parameters) -> None:
        """Zero the gradients that no product writes."""
        for sums in (gradients.wpe, gradients.vectors, *(() if self.config.tie_embeddings else (gradients.wte,))):
            self.ops.clear(sums)

    def _backward(
        self, ids: Array, order: Array, sites: "DropoutSites", fresh: bool, block_done: BlockDone | None
    ) -> None:
        """From the gradient of the last norm's output, which is in `workspace.normed`, down to the embedding.

        Each line is the backward pass of a line of `_forward`, in reverse order; only the gradient of a weight may come
        later. `dx` is the gradient of the residual stream, and `dbranch` of a branch; both are [rows, D].
        """
        ops, weights, ws, rows = self.ops, self.weights, self.workspace, ids.size
        dx, dqkv, dfc = ws.dx[:rows], ws.dqkv[:rows], ws.dfc[:rows]
        dbranch = ws.dbranch[:rows] if sites.rate else dx
        ops.clear(dx)
        self._stream_backward(self.config.num_layers, dx, dbranch, sites)

        for layer in reversed(range(self.config.num_layers)):
            w, g = weights.blocks[layer], self._of_blocks[layer]
            act = self._block_again(layer, ids, sites) if self._recompute else ws.blocks[layer].of(ids)

            # x + proj(gelu(fc(ln_2(x))))
            activation = Activation(self.config.activation, act.pre_activation, dbias=g.mlp_fc.bias)
            self._linear_backward(layer, "mlp_proj", dbranch, dfc, activation=activation)
            self._weight_gradient(layer, "mlp_proj", act.activated, dbranch, g.mlp_proj, fresh)
            self._linear_backward(layer, "mlp_fc", dfc, act.ln_2.out)  # its gradient, until the next line
            branch = Branch(dbranch, g.attn_proj.bias, sites.attention_branch(layer))
            ops.add_layernorm_backward(act.ln_2, w.ln_2, dx, grads=g.ln_2, branch=branch)
            self._weight_gradient(layer, "mlp_fc", act.ln_2.out, dfc, g.mlp_fc, fresh)

            # x + proj(attention(ln_1(x)))
            dattended = ws.normed[:rows]  # free until attention's own backward pass is done
            self._linear_backward(layer, "attn_proj", dbranch, dattended)
            self._weight_gradient(layer, "attn_proj", act.attended, dbranch, g.attn_proj, fresh)
            dropout = sites.attention(layer)
            ops.attention_backward(dattended, act.qkv, act.attended, act.lse, dqkv, dropout=dropout)
            self._linear_backward(layer, "attn_qkv", dqkv, act.ln_1.out, g.attn_qkv.bias)
            self._stream_backward(layer, dx, dbranch, sites)
            self._weight_gradient(layer, "attn_qkv", act.ln_1.out, dqkv, g.attn_qkv, fresh)
            if block_done:
                block_done(layer)

        if isinstance(self.gradients, Adapters):  # nothing below learns
            return
        grads = self.gradients
        ops.embedding_backward(dx, ids, order, grads.wte, grads.wpe, dropout=sites.embedding())
        ops.add_partials(grads.partials[: ops.partial_sums(rows)], out=grads.vectors)

    def _stream_backward(self, number: int, dx: Array, dbranch: Array, sites: "DropoutSites") -> None:
        """The backward pass of norm `number` of the stream, and of the branch that was added before it, if any."""
        normed, norm = self.workspace.residuals[number].rows(len(dx)), self.weights.norms[number]
        grads = self._of_norms[number]
        if number == 0:
            self.ops.layernorm_backward(normed, norm, dx, grads)
        else:
            branch = Branch(dbranch, self._of_blocks[number - 1].mlp_proj.bias, sites.mlp_branch(number - 1))
            self.ops.add_layernorm_backward(normed, norm, dx, grads, branch)

    def _linear_backward(
        self, layer: int, module: str, dout: Array, dx: Array, dbias: Array = None, activation: Activation | None = None
    ) -> None:
        """The backward pass of `_linear`, all but the gradients of matrices."""
        ops, weight = self.ops, getattr(self.weights.blocks[layer], module).weight
        if self.adapters is None:
            ops.linear_backward(dout, weight, dx, dbias, activation)
            return
        adapter: Adapter = getattr(self.adapters.blocks[layer], module)
        dinner = self.workspace.dinner[: len(dout)]
        ops.linear_backward(dout, weight, dx, dbias)
        ops.linear_backward(dout, adapter.up.weight, dinner)
        ops.linear_backward(dinner, adapter.down.weight, dx, activation=activation, adds=True)

    def _weight_gradient(self, layer: int, module: str, x: Array, dout: Array, grads: Affine, fresh: bool) -> None:
        """The gradient of the matrix, or those of its adapter. `_linear_backward` of this layer came last."""
        ops = self.ops
        if self.adapters is None:
            ops.weight_gradient(x, dout, grads.weight, fresh=fresh)
            return
        adapter, its_grads = (getattr(each.blocks[layer], module) for each in (self.adapters, self.gradients))
        inner, dinner = self.workspace.inner[: len(x)], self.workspace.dinner[: len(x)]
        ops.linear(x, adapter.down, out=inner)  # again, because all adapters share the array
        ops.weight_gradient(inner, dout, its_grads.up.weight, fresh=fresh)
        ops.weight_gradient(x, dinner, its_grads.down.weight, fresh=fresh)

    def _block_again(self, layer: int, ids: Array, sites: "DropoutSites") -> BlockActivations:
        """The block's activations, from the stream that enters it. The last block's are still there."""
        act = self.workspace.blocks[layer].of(ids)
        if layer == self.config.num_layers - 1:
            return act
        self.ops.layernorm(act.ln_1, norm=self.weights.norms[layer])
        return self._block(layer, ids, sites)


class DropoutSites(NamedTuple):
    """The places where the model drops elements, in a micro-batch; a method gives the Dropout of a place, or None.

    Every place has a number, which chooses its mask: 0 for the embedding, and three for each block.
    """

    rate: float
    key: Array
    heads: int
    first: int  # the token of the batch that the micro-batch begins with

    def embedding(self) -> Dropout | None:
        return self._site(0)

    def attention(self, layer: int) -> Dropout | None:
        """For attention's probabilities, [batch, heads, seq, seq]: their mask has a row for every head of a token."""
        return self._site(3 * layer + 1, rows_per_token=self.heads)

    def attention_branch(self, layer: int) -> Dropout | None:
        return self._site(3 * layer + 2)

    def mlp_branch(self, layer: int) -> Dropout | None:
        return self._site(3 * layer + 3)

    def _site(self, number: int, rows_per_token: int = 1) -> Dropout | None:
        return Dropout(self.rate, self.key, number, self.first * rows_per_token) if self.rate else None


# ---- memory ----------------------------------------------------------------------------------------------------------


class KVCache(NamedTuple):
    """Keys and values of the positions so far, for a sequence in each place.

    `start` is the next position of each sequence, and `place` the one that `GPT.read` reads a sequence for. Whoever
    decodes writes both, on the device.
    """

    keys: Array  # [layers, places, heads, max_seq_len, head_dim]
    values: Array
    start: Array  # int32 [places]
    place: Array  # int32 [1]

    @classmethod
    def allocate(cls, config: ModelConfig, ops: Operations, start: Array, place: Array) -> "KVCache":
        shape = (config.num_layers, len(start), config.num_heads, config.max_seq_len, config.head_dim)
        return cls(ops.zeros(shape), ops.zeros(shape), start, place)

    @staticmethod
    def bytes(config: ModelConfig, ops: Operations) -> int:
        """Bytes that each place takes on `ops`."""
        return 2 * config.num_layers * config.max_seq_len * config.embed_dim * (2 if ops.low_precision else 4)


def memory_bytes(
    config: ModelConfig, batch: int, ops: Operations, kept: Kept = "nothing", lora: int | None = None
) -> int:
    """Bytes that a GPT on `ops` holds, or a TrainableGPT if something is `kept`; nothing is allocated."""
    itemsize = 2 if ops.low_precision else 4

    def total(few: ModelConfig) -> int:
        sizes = []

        def count(shape: Shape, dtype: str = "") -> None:
            size = shape if isinstance(shape, int) else math.prod(shape)
            sizes.append(size * (np.dtype(dtype).itemsize if dtype else itemsize))

        place, sequences = layout(few, ops.vocab_multiple), ops.sequences(batch, few.max_seq_len)
        count(place.total)
        if lora:
            count(adapter_elements(few, lora))
            count(adapter_elements(few, lora), "float32")
        elif kept != "nothing":  # gradients, and partial sums of those of the vectors
            count(place.total, "float32")
            count((ops.partial_sums(sequences * few.max_seq_len), place.total - place.decayed), "float32")
        Workspace(few, sequences, ops, kept, allocate=count, lora=lora)
        return sum(sizes)

    return over_layers(config, total)
