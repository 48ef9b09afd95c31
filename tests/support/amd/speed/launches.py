"""The launches whose speed is estimated: a model's training step, a token that it writes, and products of matrices.

The model runs on a device that only notes its launches, so grids, threads and macros are those of gpt/ops/gpu.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from gpt.batches import token_order
from gpt.config import ModelConfig, TrainConfig
from gpt.model import KVCache, TrainableGPT
from gpt.ops.gpu.launch import Kernels
from gpt.ops.gpu.memory import Memory
from gpt.ops.gpu.operations import GpuOps
from gpt.ops.gpu.products import Products
from gpt.ops.gpu.sources import Instance
from gpt.ops.interface import SamplingRule
from gpt.optim import Optimizer
from tests.support.amd.compile import PROCESSORS
from tests.support.amd.speed.chips import CHIPS
from tests.support.host_device import HostDevice

# Multiply-adds of each kernel of attention, for each pair of a query and a key and each element of a head
PRODUCTS = {"attention": 2, "attention_backward_queries": 3, "attention_backward_keys": 4}
DECODED = 512  # tokens before the one that is written
SMALL_BYTES = 64  # of an array that holds no numbers of the model


class Launch(NamedTuple):
    """One launch of a kernel."""

    name: str
    instance: Instance
    grid: tuple[int, ...]
    block: tuple[int, ...]
    arguments: tuple[Any, ...]

    @property
    def flops(self) -> int:
        """Multiplications and additions of its matrix products. If it has none, 0: then memory limits the launch.

        Example: attention of [1, 1, 4] rows of 64 has 4 + 3 + 2 + 1 pairs, and 2 * 2 * 64 * 10 = 2,560 operations.
        """
        if self.name == "matmul":
            m, n, k = (int(size) for size in self.arguments[6:9])
            stack = self.grid[1] // -(-m // int(dict(self.instance.defines)["SIDE"]))
            return 2 * stack * m * n * k
        if self.name in PRODUCTS:
            lse = next(x for x in self.arguments if isinstance(x, np.ndarray) and x.dtype == np.float32)
            *heads, seq = lse.shape
            pairs = math.prod(heads) * seq * (seq + 1) // 2
            return 2 * PRODUCTS[self.name] * int(dict(self.instance.defines)["HEAD_DIM"]) * pairs
        return 0

    @property
    def adds_parts(self) -> bool:
        """Whether it adds up the parts of a weight's gradient that matmul.hip has left."""
        return self.name == "add_partials" and dict(self.instance.defines)["FRESH"] == "1"

    @property
    def key(self) -> tuple[Any, ...]:
        """Launches with the same key take the same time."""
        return self.name, self.instance, self.grid, self.block, self.flops


class AlignedNumpy:
    """NumPy whose new arrays begin at multiples of ALIGNMENT bytes, as CuPy's do; NumPy's own begin 16 bytes later."""

    ALIGNMENT = 512

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def empty(self, shape: Any, dtype: Any = np.float32) -> np.ndarray:
        return self.zeros(shape, dtype)

    def zeros(self, shape: Any, dtype: Any = np.float32) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = np.zeros(size + self.ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % self.ALIGNMENT
        return memory[start : start + size].view(dtype).reshape(shape)


class NotingDevice(HostDevice):
    """A device that notes each launch and computes nothing. Its large arrays take memory only once they are written."""

    has_bf16, has_tf32 = True, False
    xp = AlignedNumpy()

    def __init__(self, target: str) -> None:
        self.target, self.warp = target, PROCESSORS[target].wave
        self.multiprocessors = CHIPS[target].units
        self.description = f"notes of launches for {target}"
        self.launches: list[Launch] = []

    def kernel(self, file: str, name: str, defines: Mapping[str, object], shared_bytes: int = 0) -> Callable[..., None]:
        instance = Instance.of(file, defines)

        def note(grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
            # An estimate executes launches, which write to arrays. Small arrays say what a launch does, such as the
            # plan of an optimizer's step, so they are noted as they are now.
            is_small = [isinstance(x, np.ndarray) and x.nbytes <= SMALL_BYTES for x in arguments]
            kept = tuple(x.copy() if small else x for x, small in zip(arguments, is_small, strict=True))
            self.launches.append(Launch(name, instance, grid, block, kept))

        return note


def training_step(target: str, config: ModelConfig, batch: int) -> list[Launch]:
    """The launches of one step of AdamW in bf16, with random tokens."""
    device = NotingDevice(target)
    ops = GpuOps(device, "bf16")
    model = TrainableGPT(config, ops, batch)
    ids = np.random.default_rng(0).integers(config.vocab_size, size=(batch, config.max_seq_len), dtype=np.int32)
    model.loss_and_gradients(ids, ids, token_order(ids), np.ones(1, np.float32), fresh=True)
    Optimizer(model, TrainConfig()).step(np.full(1, 1e-3, np.float32))
    return device.launches


def written_tokens(target: str, config: ModelConfig, sequences: int) -> list[Launch]:
    """The launches that write one token of each of so many sequences, after DECODED others."""
    device = NotingDevice(target)
    ops = GpuOps(device, "bf16")
    model = TrainableGPT(config, ops, sequences)
    ids, shape = np.zeros(sequences, np.int32), (sequences, config.vocab_size)
    model.decode(ids, KVCache.allocate(config, ops, ids + DECODED, np.zeros(1, np.int32)))
    numbers = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    logits, seen = (numbers.view(np.uint32) >> 16).astype(np.uint16), np.zeros(shape, np.uint8)
    rules = np.tile(SamplingRule(1.0, top_k=50, top_p=0.9, repetition_penalty=1.0).numbers, (sequences, 1))
    ops.sample(logits, seen, np.full(sequences, 0.5), ids.copy(), rules, config.vocab_size)
    return device.launches


def products(target: str, size: int) -> list[Launch]:
    """The launches of matmul.hip for matrices [size, size] in bf16: of a @ b, a @ bᵀ, aᵀ @ b and aᵀ @ bᵀ."""
    device = NotingDevice(target)
    memory = Memory(device, np.dtype(np.uint16))
    by_kernel = Products(device, "bf16", Kernels(device, "bf16"), memory).by_kernel
    a, b, out = (device.xp.zeros((size, size), np.uint16) for _ in range(3))
    for left in (a, a.T):
        for right in (b, b.T):
            by_kernel(left, right, out, "STORE")
    return device.launches
