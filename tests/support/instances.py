"""Every kernel instance that hipgpt's models ask for.

They are found by running the models on a device that takes notes and runs no kernel.
"""

import itertools

import numpy as np

from gpt.arithmetic import ceil_div
from gpt.batches import token_order
from gpt.config import OPTIMIZERS, ModelConfig, TrainConfig
from gpt.generate import MOST_PLACES
from gpt.model import GPT, KVCache, TrainableGPT
from gpt.ops.gpu.noting import NotingDevice
from gpt.ops.gpu.operations import GpuOps
from gpt.ops.gpu.sources import Instance
from gpt.optim import Optimizer

# Between them these models have every head size, rows that are whole vectors and rows that are not, rows for one warp
# and rows for several, both activations, and dropout and none.
MODELS = [
    {"embed_dim": 32, "num_heads": 2, "ff_hidden_dim": 64},  # heads of 16
    {"embed_dim": 256, "num_heads": 8, "ff_hidden_dim": 1024, "dropout": 0.1},  # the default: 32
    {"embed_dim": 768, "num_heads": 12, "ff_hidden_dim": 3072},  # gpt2-124M: 64
    {"embed_dim": 1024, "num_heads": 16, "ff_hidden_dim": 4096},  # gpt2-350M: 64
    {"embed_dim": 1600, "num_heads": 25, "ff_hidden_dim": 6400, "dropout": 0.1},  # gpt2-xl: 64
    {"embed_dim": 160, "num_heads": 2, "ff_hidden_dim": 80, "dropout": 0.1},  # 80
    {"embed_dim": 192, "num_heads": 2, "ff_hidden_dim": 64, "dropout": 0.1},  # 96
    {"embed_dim": 128, "num_heads": 1, "ff_hidden_dim": 64, "dropout": 0.1},  # 128
    {"embed_dim": 30, "num_heads": 2, "ff_hidden_dim": 36, "activation": "relu", "dropout": 0.1},  # 15: odd
]
ADAPTED = [({"embed_dim": 768, "num_heads": 12, "ff_hidden_dim": 3072}, 16)]  # models with adapters, and their rank


def instances(target: str, warp: int, has_bf16: bool) -> list[Instance]:
    """The instances that training, evaluation and generation compile on `target`, in every precision that it has.

    Training on several ranks has kernels of its own.
    """
    device = NotingDevice(target, warp, has_bf16)
    precisions = ("fp32", *["bf16"] * device.has_bf16, *["tf32"] * device.has_tf32)
    for precision, device.multiprocessors in itertools.product(precisions, (1, 1000)):  # for wide blocks and small ones
        for shape in MODELS:
            ops = GpuOps(device, precision)
            model = TrainableGPT(ModelConfig(vocab_size=40, max_seq_len=8, num_layers=1, **shape), ops)
            ids = np.zeros((1, 8), np.int32)
            model.loss(ids, ids)
            model.loss_and_gradients(ids, ids, token_order(ids), np.ones(1))
            for optimizer in OPTIMIZERS:
                Optimizer(model, TrainConfig(optimizer=optimizer)).step(np.full(1, 1e-3, np.float32))
            many = GPT(model.config, ops, ceil_div(MOST_PLACES, 8))
            cache = KVCache.allocate(model.config, ops, ops.zeros(MOST_PLACES, "int32"), ops.zeros(1, "int32"))
            many.read(ids, cache)
            for batch in (1, 2, MOST_PLACES):
                many.decode(np.zeros(batch, np.int32), cache)
        for shape, lora in ADAPTED:
            ops = GpuOps(device, precision)
            model = TrainableGPT(ModelConfig(vocab_size=40, max_seq_len=8, num_layers=1, **shape), ops, lora=lora)
            model.loss_and_gradients(ids, ids, token_order(ids), np.ones(1))
            cache = KVCache.allocate(model.config, ops, *np.zeros((2, 1), np.int32))
            model.read(ids, cache)
            model.decode(ids[:, 0], cache)
        for rows, width in ((8, 256), (512, 256), (8192, 256), (512, 15)):  # gradients in no, few and many parts
            x, dweight = ops.empty((rows, width)), ops.empty((width, width), "float32")
            for fresh in (False, True):
                ops.weight_gradient(x, x, dweight, fresh=fresh)
        for vocab in (16384, 50304):  # rows of logits for blocks of each size
            logits = ops.empty((1, vocab))
            for scale in (None, np.ones(1)):
                ops.softmax_cross_entropy(logits, ids, np.empty(1), np.empty(1), vocab=vocab, scale=scale)
        for vocab in (40, 5000):
            logits, seen = ops.empty((1, vocab)), np.empty((1, vocab), np.uint8)
            ops.sample(logits, seen, np.empty(1), np.zeros(1, np.int32), np.empty((1, 4)), vocab)
        if ops.low_precision:  # ranks that exchange gradients in bf16
            exact, rounded = ops.empty(128, "float32"), ops.empty(128)
            ops.convert(exact, rounded)
            ops.convert(rounded, exact)
    return list(device.instances)
