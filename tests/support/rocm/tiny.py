"""A few training steps of a tiny model on any operations, and the text that it then writes."""

import numpy as np

from gpt.batches import token_order
from gpt.config import ModelConfig, SamplingConfig, TrainConfig
from gpt.generate import draw
from gpt.initialization import initial_weights
from gpt.model import GPT, TrainableGPT
from gpt.ops.interface import Operations
from gpt.optim import Optimizer

CONFIG = ModelConfig(
    vocab_size=40, max_seq_len=16, num_layers=1, embed_dim=32, num_heads=2, ff_hidden_dim=64, dropout=0.1
)
BATCH, STEPS, LEARNING_RATE = 2, 3, 1e-3
# AdamW divides a gradient by its own size. With the weights of this seed, none is so near to 0 that rounding to float32
# is more than a hundredth of it.
SEED = 1


def train(ops: Operations) -> tuple[TrainableGPT, list[float]]:
    """A tiny model after STEPS steps, and the mean loss of each step. Weights and tokens are the same in every call."""
    rng = np.random.default_rng(0)
    model = TrainableGPT(CONFIG, ops, BATCH)
    optimizer = Optimizer(model, TrainConfig())
    optimizer.initialize(initial_weights(CONFIG, SEED))
    losses = []
    for _ in range(STEPS):
        tokens = rng.integers(0, CONFIG.vocab_size, (BATCH, CONFIG.max_seq_len + 1), dtype=np.int32)
        ids, labels = np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])
        for cleared in (model.metrics, model.gradients.flat):
            ops.clear(cleared)
        scale = np.full(1, 1 / ids.size, np.float32)
        model.loss_and_gradients(*map(ops.from_host, (ids, labels, token_order(ids), scale)))
        optimizer.step(ops.from_host(np.full(1, LEARNING_RATE, np.float32)))
        losses.append(float(ops.to_host(model.metrics)[0]) / ids.size)
    return model, losses


def weights(model: GPT) -> np.ndarray:
    """All weights of the model in a single array, one after the other."""
    return np.concatenate([model.ops.to_host(view).ravel() for view in model.weights.named.values()])


def write(model: GPT) -> list[int]:
    """The six likeliest ids after a prompt of one id.

    An id is less likely once it was written, and the window of 4 is shorter than the text.
    """
    return list(draw(model, [1], 6, SamplingConfig(temperature=0, repetition_penalty=4), eos_id=-1, seed=0, window=4))
