"""The arrays that a pass through a model writes: its activations, and the gradients of activations."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

from gpt.arithmetic import round_up
from gpt.config import ModelConfig
from gpt.ops.interface import ALIGNMENT, Affine, Array, Normed, Operations
from gpt.parameters import MATRICES, Block, padded_vocab, stack_shapes

Kept = Literal["nothing", "streams", "everything"]  # for the backward pass, of what each block computes


class BlockActivations(NamedTuple):
    """The results of one block's forward pass that its backward pass reads."""

    ln_1: Normed
    qkv: Array  # [rows, 3 D]
    attended: Array  # [rows, D]
    lse: Array  # [batch x heads x seq]; for ids, [batch, heads, seq]
    ln_2: Normed
    pre_activation: Array  # [rows, F]
    activated: Array  # [rows, F]

    def of(self, ids: Array) -> "BlockActivations":
        """The rows for ids [batch, seq]."""
        (batch, seq), rows = ids.shape, ids.size
        heads = len(self.lse) // len(self.qkv)
        return BlockActivations(
            self.ln_1.rows(rows),
            self.qkv[:rows],
            self.attended[:rows],
            self.lse[: rows * heads].reshape(batch, heads, seq),
            self.ln_2.rows(rows),
            self.pre_activation[:rows],
            self.activated[:rows],
        )


class Workspace:
    """Every array that a pass over at most `sequences` sequences writes, allocated once.

    `residuals[layer]` is the residual stream, with its norm, as it enters block `layer`, and `residuals[-1]` as it
    enters the head. `blocks[layer]` has the other activations, and the stream again in the middle of the block, as
    `ln_2`. Blocks share the arrays that are not `kept`. "nothing" is for inference. If "streams" are kept, each block
    has its own `x`, `mean` and `rstd` of `residuals`, from which the rest can be computed again.

    Other arrays are shared because their times do not overlap:

    - `normed` is the output of every norm, until the next one. A backward pass has the gradient of a norm's output in
      it, and then that output again (`Operations.layernorm_backward`).
    - `logits` are the head's, chunk by chunk. They lie over the arrays that only blocks need: before the head that is
      `branch`, and after it `branch` (if a block is computed again), `dbranch`, `dx`, `dqkv` and `dfc`.

    With adapters of rank `lora`, `inner` has the sums between the two products of one, `dinner` their gradient, and
    `merged`, by module, the matrices of a block after the adapters have been merged into them.
    """

    def __init__(
        self, config: ModelConfig, sequences: int, ops: Operations, kept: Kept, allocate: Callable[..., Array],
        lora: int | None = None,
    ) -> None:  # fmt: skip
        rows, d, f, layers = sequences * config.max_seq_len, config.embed_dim, config.ff_hidden_dim, config.num_layers
        self.normed = allocate((rows, d))

        def stream() -> Normed:
            return Normed(allocate((rows, d)), self.normed, allocate(rows, "float32"), allocate(rows, "float32"))

        def block(ln_1: Normed) -> BlockActivations:
            lse = allocate(rows * config.num_heads, "float32")
            pre_activation, activated = allocate((rows, f)), allocate((rows, f))
            qkv, attended = allocate((rows, 3 * d)), allocate((rows, d))
            return BlockActivations(ln_1, qkv, attended, lse, stream(), pre_activation, activated)

        if kept == "everything":
            self.residuals = [stream() for _ in range(layers + 1)]
            self.blocks = [block(ln_1) for ln_1 in self.residuals[:-1]]
        elif kept == "streams":
            self.residuals = [stream() for _ in range(layers + 1)]
            shared = block(self.residuals[0])
            self.blocks = [shared._replace(ln_1=ln_1) for ln_1 in self.residuals[:-1]]
        else:
            self.residuals = [stream()] * (layers + 1)
            self.blocks = [block(self.residuals[0])] * layers
        of_blocks = [(rows, d)]
        if kept != "nothing":
            of_blocks += [(rows, d), (rows, d), (rows, 3 * d), (rows, f)]
        logits = min(rows, ops.head_rows), padded_vocab(config, ops.vocab_multiple)
        memory = allocate(max(_end(of_blocks), _end([logits])))
        self.branch, *gradients = _side_by_side(memory, of_blocks)
        if kept != "nothing":
            self.dbranch, self.dx, self.dqkv, self.dfc = gradients
        (self.logits,) = _side_by_side(memory, [logits])
        self.losses, self.hits = allocate(rows, "float32"), allocate(rows, "float32")
        if lora:
            self.inner, self.dinner = allocate((rows, lora)), allocate((rows, lora))
            shapes = {module: stack[1:] for module, stack in zip(MATRICES, stack_shapes(config), strict=True)}
            self.merged = {module: allocate(shape) for module, shape in shapes.items()}
            if kept != "nothing":
                wide, high = round_up(d, ALIGNMENT), round_up(f, ALIGNMENT)
                self._room = allocate((ops.partial_sums(rows), 3 * wide + high), "float32")

    def unused(self, config: ModelConfig) -> Block:
        """Views [partial_sums, n] for the gradients of a block's vectors, if these do not learn.

        Operations sum them up in any case. All blocks share the room.
        """
        d, f, wide = config.embed_dim, config.ff_hidden_dim, round_up(config.embed_dim, ALIGNMENT)
        weight, norm_bias, bias = (self._room[:, start : start + d] for start in (0, wide, 2 * wide))
        norm, proj = Affine(weight, norm_bias), Affine(None, bias)
        return Block(norm, Affine(None, None), proj, norm, Affine(None, self._room[:, 3 * wide :][:, :f]), proj)


def _side_by_side(memory: Array, shapes: Iterable[tuple[int, int]]) -> Iterator[Array]:
    """Arrays of these shapes in `memory`, a flat array, one after the other. Each begins at a multiple of ALIGNMENT.

    They are None if `memory` is, which is so while memory is only counted.
    """
    end = 0
    for shape in shapes:
        start, end = end, end + round_up(math.prod(shape), ALIGNMENT)
        yield None if memory is None else memory[start : start + math.prod(shape)].reshape(shape)


def _end(shapes: Iterable[tuple[int, int]]) -> int:
    """Elements that `_side_by_side` needs."""
    return sum(round_up(math.prod(shape), ALIGNMENT) for shape in shapes)
