"""Low-rank adapters (LoRA, Hu et al. 2021): a model is tuned by small matrices beside the large ones, which stay.

A layer x W of a block gets an adapter of rank R: a, [R, in], and b, [out, R]. It then computes x W + (x aᵀ) bᵀ. Only a
and b learn. b is 0 at first, so the model begins as it was. Afterwards W + aᵀ bᵀ is a layer like any other (`Merged`).
PEFT calls this a LoRA with lora_alpha = r: the product is not scaled, because the learning rate can do that.

An adapter is two linear layers, [in, R] and [R, out], and their sums go on top of the large layer's. So the operations
of the other layers compute both passes, and W needs no gradient. The other way is to make W + aᵀ bᵀ before each
product, and to contract the gradient of W to those of a and b. It has three drawbacks:

- It computes the gradient of W, a third of all products. With 774M parameters (36 layers of width 1280) and 4 x 1,024
  tokens the blocks' products take 17 TFLOP that way, and 12 this way, with 0.3 for adapters of rank 16.
- W + aᵀ bᵀ and the gradient of W are written and read for each block, however few tokens there are: about 14 GB a step
  in bf16. This way layers add to activations: 24 GB with 4 x 1,024 tokens, which take a GPU a tenth of the time of the
  products that are saved, and 6 GB with 1 x 1,024.
- It cannot learn in bf16. W itself is in bf16, and W + aᵀ bᵀ is rounded to W again as long as the product is below
  2⁻⁹ of W. Here the sums of activations are rounded, and no step is lost.

Either way launches about six kernels more for each matrix than training it whole; a GPU replays them as a graph. Both
need little memory: no gradient or moment of W, and W in the type that products read alone.

Shapes: weights are [in, out] as everywhere; a and b lie as PEFT's files have them.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from gpt.arithmetic import round_up
from gpt.config import ModelConfig
from gpt.ops.interface import ALIGNMENT, Affine, Array
from gpt.parameters import matrix_names, over_layers, parameter_shapes

PREFIX = "base_model.model."  # of the names in PEFT's files


class Adapter(NamedTuple):
    """The adapter of one layer, or its gradients."""

    a: Array  # [R, in]
    b: Array  # [out, R]

    @property
    def down(self) -> Affine:
        """The layer from `in` to R."""
        return Affine(self.a.T, bias=None)

    @property
    def up(self) -> Affine:
        """The layer from R to `out`."""
        return Affine(self.b.T, bias=None)


def adapter_names(matrix: str) -> Adapter:
    """The names of the two tensors beside a matrix.

    Example:

    >>> adapter_names("transformer.h.0.attn.c_attn.weight").a
    'base_model.model.transformer.h.0.attn.c_attn.lora_A.weight'
    """
    module = PREFIX + matrix.removesuffix(".weight")
    return Adapter(f"{module}.lora_A.weight", f"{module}.lora_B.weight")


def adapter_shapes(config: ModelConfig, lora: int) -> dict[str, tuple[int, ...]]:
    """Name → shape of the adapters of rank `lora`, in PEFT's names."""
    shapes, adapters = parameter_shapes(config), dict[str, tuple[int, ...]]()
    for matrix in matrix_names(config):
        d_in, d_out = shapes[matrix]
        names = adapter_names(matrix)
        adapters |= {names.a: (lora, d_in), names.b: (d_out, lora)}
    return adapters


def trained_shapes(config: ModelConfig, lora: int | None) -> dict[str, tuple[int, ...]]:
    """Name → shape of what a training changes: the adapters of rank `lora`, or all parameters if that is None."""
    return parameter_shapes(config) if lora is None else adapter_shapes(config, lora)


def trained_count(config: ModelConfig, lora: int | None) -> int:
    """The number of weights that a training changes."""
    return over_layers(config, lambda few: sum(math.prod(shape) for shape in trained_shapes(few, lora).values()))


def largest_rank(config: ModelConfig) -> int:
    """The smallest dimension of a matrix: with it as rank, an adapter can already be any matrix of that shape."""
    return min(config.embed_dim, config.ff_hidden_dim)


def adapter_elements(config: ModelConfig, lora: int) -> int:
    """Elements of the flat buffer of `Adapters`."""
    return over_layers(
        config,
        lambda few: sum(round_up(math.prod(shape), ALIGNMENT) for shape in adapter_shapes(few, lora).values()),
    )


def initial_adapters(config: ModelConfig, lora: int, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of `adapter_shapes`, float32, as PEFT begins: b = 0, and a uniform within ± 1 / sqrt(in).

    Tensor number i is drawn from the i-th stream of the seed's Philox generator, as in gpt/initialization.py.
    """
    for number, (name, shape) in enumerate(adapter_shapes(config, lora).items()):
        if name.endswith("lora_B.weight"):
            yield name, np.zeros(shape, np.float32)
        else:
            drawn = np.random.Generator(np.random.Philox(seed).jumped(number)).random(shape, np.float32)
            yield name, (2 * drawn - 1) / np.float32(math.sqrt(shape[1]))


class BlockAdapters(NamedTuple):
    """The adapters of one block, their gradients, or whatever there is one of for each of MATRICES."""

    attn_qkv: Adapter
    attn_proj: Adapter
    mlp_fc: Adapter
    mlp_proj: Adapter


class Adapters:
    """Named views into one flat buffer, as `Parameters`: all adapters of a model, or their gradients.

    Every tensor starts at a multiple of ALIGNMENT, and the gaps are always zero.
    """

    def __init__(self, config: ModelConfig, lora: int, allocate: Callable[..., Array]) -> None:
        self.shapes = adapter_shapes(config, lora)
        self.flat = allocate(adapter_elements(config, lora))
        self.decayed = self.flat.size  # all are matrices
        self.offsets, end = dict[str, int](), 0
        for name, shape in self.shapes.items():
            self.offsets[name] = end
            end += round_up(math.prod(shape), ALIGNMENT)
        self.named = {
            name: self.flat[start : start + math.prod(self.shapes[name])].reshape(self.shapes[name])
            for name, start in self.offsets.items()
        }
        of_matrices = [Adapter(*map(self.named.__getitem__, adapter_names(name))) for name in matrix_names(config)]
        layers = config.num_layers  # matrix_names has all layers of a module side by side
        self.blocks = [BlockAdapters(*of_matrices[layer::layers]) for layer in range(layers)]


class Merged(Mapping[str, np.ndarray]):
    """Weights into which adapters have been multiplied: W + aᵀ bᵀ. Each is computed when it is asked for, in float32.

    Example:

    >>> name = "transformer.h.0.attn.c_attn.weight"
    >>> a, b = adapter_names(name)
    >>> Merged({name: np.zeros((2, 3))}, {a: np.array([[1, 2]]), b: np.array([[1], [0], [4]])})[name]
    array([[1., 0., 4.],
           [2., 0., 8.]])
    """

    def __init__(self, base: Mapping[str, np.ndarray], adapters: Mapping[str, np.ndarray]) -> None:
        self._base, self._adapters = base, adapters

    def __getitem__(self, name: str) -> np.ndarray:
        a, b = adapter_names(name)
        if a not in self._adapters:
            return self._base[name]
        weight: np.ndarray = self._base[name] + (self._adapters[b] @ self._adapters[a]).T
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)
