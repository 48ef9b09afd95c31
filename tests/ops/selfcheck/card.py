"""A GPU whose library of matrix products is on the CPU, and can be made wrong.

The GPU is the CPU executor, so matmul.hip is real.
"""

import ctypes
from pathlib import Path

from gpt.config import ModelConfig, TrainConfig
from gpt.ops.gpu.blas import Blas
from gpt.ops.gpu.operations import GpuOps
from gpt.optim import stacks_here
from tests.support.blas import AlignedNumpy
from tests.support.executor import ExecutorDevice

MODEL = ModelConfig(vocab_size=40, max_seq_len=8, num_layers=2, embed_dim=16, num_heads=2, ff_hidden_dim=32)
BATCH = 2
PLAIN, BIAS, GELU, DGELU, ADDED = 1, 4, 164, 192, -1  # the values of the library's variable `wrong`


class Card(ExecutorDevice):
    """A GPU on ROCm with a library for products. `choice` is that of --blas."""

    xp, blas_missing = AlignedNumpy(), ""

    def __init__(self, library: ctypes.CDLL, cache: Path, choice: str = "auto", card: str = "gfx1201") -> None:
        super().__init__("wmma12")
        self.target, self.blas_choice, self.blas_card, self.cache = card, choice, card, str(cache)
        self.library, self.blas = library, Blas("rocm", 0, 0, library)

    def products(self) -> int:
        """How many products the library has been asked for."""
        return ctypes.c_int.in_dll(self.library, "products").value


def let(library: ctypes.CDLL, **variables: float) -> None:
    """Set variables of the library, which are described in tests/support/blas_library.c."""
    kinds = {"deviation": ctypes.c_float}
    for name, value in variables.items():
        kinds.get(name, ctypes.c_int).in_dll(library, name).value = value


def checked(device: Card, precision: str = "bf16", training: bool = True, optimizer: str = "muon") -> GpuOps:
    """The device's operations after the check."""
    ops = GpuOps(device, precision)
    stacks = stacks_here(MODEL, TrainConfig(optimizer=optimizer), ops) if training else []
    ops.check_products(MODEL, BATCH, training=training, stacks=stacks)
    return ops
