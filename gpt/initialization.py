"""The weights that a model begins with: GPT-2's (Radford et al. 2019), drawn on all cores of the host."""

import math
from collections.abc import Iterator

import numpy as np

from gpt.config import ModelConfig
from gpt.parameters import parameter_shapes
from gpt.system.threads import ahead, available_threads

STD = 0.02


def initial_weights(config: ModelConfig, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of `parameter_shapes` by name, float32: N(0, 0.02²), projections into the residual stream scaled by
    1 / sqrt(2 layers); biases 0, layer norms 1.

    Tensor number i is drawn from the i-th stream of the seed's Philox generator (each has 2¹²⁸ numbers), so all cores
    can draw, and the weights are the same however many there are. Not many more tensors than cores wait to be taken.
    """
    shapes = parameter_shapes(config)

    def draw(numbered: tuple[int, str]) -> np.ndarray:
        number, name = numbered
        if len(shapes[name]) == 1:
            return np.full(shapes[name], 1 if "ln_" in name and name.endswith("weight") else 0, np.float32)
        rng = np.random.Generator(np.random.Philox(seed).jumped(number))
        tensor = rng.standard_normal(shapes[name], np.float32)
        tensor *= np.float32(STD / math.sqrt(2 * config.num_layers) if "c_proj" in name else STD)
        return tensor

    yield from zip(shapes, ahead(draw, list(enumerate(shapes)), available_threads()), strict=True)
