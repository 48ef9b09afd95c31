"""The parameters of a GPT-2: their names, their shapes, and the one flat buffer that holds them."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from gpt.arithmetic import round_up
from gpt.config import ModelConfig
from gpt.ops.interface import ALIGNMENT, Affine, Array, StackShape

POSITIONS = "transformer.wpe.weight"  # the embedding of positions


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name → shape of every parameter, in GPT-2's names and order (weights are [in, out])."""
    d, f = config.embed_dim, config.ff_hidden_dim
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (config.vocab_size, d),
        POSITIONS: (config.max_seq_len, d),
    }
    for layer in range(config.num_layers):
        for module, shape in zip(Block._fields, ((d,), (d, 3 * d), (d, d), (d,), (d, f), (f, d)), strict=True):
            prefix = f"transformer.h.{layer}.{_MODULE_NAMES[module]}"
            shapes[f"{prefix}.weight"] = shape
            shapes[f"{prefix}.bias"] = shape[-1:]
    shapes["transformer.ln_f.weight"] = shapes["transformer.ln_f.bias"] = (d,)
    if not config.tie_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, d)
    return shapes


def parameter_count(config: ModelConfig) -> int:
    """The number of weights that a model of this shape learns."""
    return over_layers(config, lambda few: sum(math.prod(shape) for shape in parameter_shapes(few).values()))


class Block(NamedTuple):
    """One transformer block's parameters, or their gradients."""

    ln_1: Affine
    attn_qkv: Affine
    attn_proj: Affine
    ln_2: Affine
    mlp_fc: Affine
    mlp_proj: Affine


_MODULE_NAMES = {
    "ln_1": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_proj": "attn.c_proj",
    "ln_2": "ln_2",
    "mlp_fc": "mlp.c_fc",
    "mlp_proj": "mlp.c_proj",
}
OF_VOCAB = ("transformer.wte.weight", "lm_head.weight")
MATRICES = ("attn_qkv", "attn_proj", "mlp_fc", "mlp_proj")  # the modules of a block whose weight is a matrix


def matrix_names(config: ModelConfig) -> list[str]:
    """The names of the blocks' weight matrices, which Muon moves."""
    return [name for module in MATRICES for name in _of_all_layers(config, module)]


def stack_shapes(config: ModelConfig) -> list[StackShape]:
    """Shapes of `Parameters.stacks`: layers, in and out of each module's matrices."""
    shapes, stacks = parameter_shapes(config), []
    for module in MATRICES:
        d_in, d_out = shapes[_of_all_layers(config, module)[0]]
        stacks.append((config.num_layers, d_in, d_out))
    return stacks


def matrix_spans(config: ModelConfig, vocab_multiple: int) -> list[tuple[int, int]]:
    """For each of MATRICES: the first element of layer 0's in the flat buffer, and the distance to the next layer's."""
    offsets, shapes = layout(config, vocab_multiple).offsets, parameter_shapes(config)
    firsts = [_of_all_layers(config, module)[0] for module in MATRICES]
    return [(offsets[name], round_up(math.prod(shapes[name]), ALIGNMENT)) for name in firsts]


def _of_all_layers(config: ModelConfig, module: str) -> list[str]:
    """The names of one module's weights, by layer."""
    return [f"transformer.h.{layer}.{_MODULE_NAMES[module]}.weight" for layer in range(config.num_layers)]


class Layout(NamedTuple):
    """The place of each parameter in the flat buffer. All figures are in elements.

    The blocks' matrices come first, those of one module side by side in the order of the layers; then the other
    matrices; then the vectors. With two layers of width 128 and a feed-forward width of 512, the buffer holds

        qkv 0, qkv 1 | proj 0, proj 1 | fc 0, fc 1 | mlp proj 0, mlp proj 1 | wte | wpe | vectors
        0            | 98,304         | 131,072    | 262,144                | 393,216 = matrices

    Every parameter starts at a multiple of ALIGNMENT, and matrices of the whole vocabulary have room for
    `padded_vocab` rows.
    """

    offsets: dict[str, int]  # parameter name → its first element
    matrices: int  # end of the blocks' matrices, which Muon moves
    decayed: int  # end of all matrices: weight decay applies to them alone
    total: int


def layout(config: ModelConfig, vocab_multiple: int) -> Layout:
    """The layout of a model's parameters, on a device that pads the vocabulary to `vocab_multiple`."""
    shapes, matrices = parameter_shapes(config), dict.fromkeys(matrix_names(config))
    others = sorted((name for name in shapes if name not in matrices), key=lambda name: len(shapes[name]) == 1)
    whole_vocab = padded_vocab(config, vocab_multiple) * config.embed_dim
    offsets: dict[str, int] = {}
    ends: dict[str, int] = {}
    end = 0
    for name in (*matrices, *others):
        offsets[name] = end
        end += round_up(whole_vocab if name in OF_VOCAB else math.prod(shapes[name]), ALIGNMENT)
        ends["matrices" if name in matrices else "decayed" if len(shapes[name]) == 2 else "total"] = end
    return Layout(offsets, **ends)


class Parameters:
    """Named views into one flat buffer: the weights, their low-precision copy, their gradients, or a moment.

    `flat` lies as `layout` says: `flat[:matrices]` are the blocks' matrices, and `stacks` has a view [layers, in, out]
    of each module's; `flat[:decayed]` are all matrices; `vectors` is the rest.

    The gaps between parameters are always zero, so they affect neither a norm nor an update. The same holds for rows
    vocab_size … V' - 1, which exist in `head` [V', D] but not in the named view.

    The gradient of a vector is a sum over all rows of a batch, and operations leave up to `partial_sums` partial sums
    of it. If `partial_sums` is given, the partial sums of all vectors lie side by side in `partials` [partial_sums, all
    vectors], to be added to `vectors` at once; `blocks`, `norms` and `ln_f` then have views [partial_sums, n] of
    `partials` in place of vectors.
    """

    def __init__(
        self, config: ModelConfig, allocate: Callable[..., Array], vocab_multiple: int, partial_sums: int = 0
    ) -> None:
        self.shapes = shapes = parameter_shapes(config)
        self.offsets, self.matrices, self.decayed, total = layout(config, vocab_multiple)
        self.flat = allocate(total)
        self.named = {
            name: self.flat[start : start + math.prod(shapes[name])].reshape(shapes[name])
            for name, start in ((name, self.offsets[name]) for name in shapes)
        }
        self._stacked = [_of_all_layers(config, module) for module in MATRICES]
        self.stacks = self.stacks_of(self.flat[: self.matrices])
        self.vectors = self.flat[self.decayed :]
        self._views = self.named
        if partial_sums:
            # The gradient of a bias is then a view of all its partial sums.
            self.partials = allocate((partial_sums, len(self.vectors)))
            starts = {name: start - self.decayed for name, start in self.offsets.items() if start >= self.decayed}
            vectors = {name: self.partials[:, start : start + shapes[name][0]] for name, start in starts.items()}
            self._views = {**self.named, **vectors}

        self.wte = self.named["transformer.wte.weight"]
        self.wpe = self.named[POSITIONS]
        head_shape = (padded_vocab(config, vocab_multiple), config.embed_dim)
        head = self.offsets["transformer.wte.weight" if config.tie_embeddings else "lm_head.weight"]
        self.head = self.flat[head : head + math.prod(head_shape)].reshape(head_shape)
        self.ln_f = self._affine("transformer.ln_f")
        self.blocks = [
            Block(*(self._affine(f"transformer.h.{layer}.{_MODULE_NAMES[module]}") for module in Block._fields))
            for layer in range(config.num_layers)
        ]
        self.norms = [block.ln_1 for block in self.blocks] + [self.ln_f]

    def stacks_of(self, flat: Array) -> list[Array]:
        """Views [layers, in, out] of the matrices of each module, in a buffer that lies as `flat[:matrices]` does.

        The buffer may have fewer layers: a rank's own ones.
        """
        shapes = [self.named[names[0]].shape for names in self._stacked]
        strides = [round_up(math.prod(shape), ALIGNMENT) for shape in shapes]
        layers = flat.size // sum(strides)
        stacks, start = [], 0
        for shape, stride in zip(shapes, strides, strict=True):
            rows = flat[start : start + layers * stride].reshape(layers, stride)
            stacks.append(rows[:, : math.prod(shape)].reshape(layers, *shape))
            start += layers * stride
        return stacks

    def _affine(self, prefix: str) -> Affine:
        return Affine(self._views[f"{prefix}.weight"], self._views[f"{prefix}.bias"])


def padded_vocab(config: ModelConfig, multiple: int) -> int:
    """The rows of the head's matrix in memory: the size of the vocabulary, rounded up to `multiple`."""
    return round_up(config.vocab_size, multiple)


def over_layers(config: ModelConfig, total: Callable[[ModelConfig], int]) -> int:
    """`total` of a model of any depth, at the cost of two shallow ones: every layer adds the same."""
    one, two = (total(replace(config, num_layers=layers)) for layers in (1, 2))
    return one + (config.num_layers - 1) * (two - one)
