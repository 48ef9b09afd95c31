"""Triton's kernel for the work of one of ours, compiled for an AMD GPU by Triton's own backend, which needs no GPU.

Triton's wheel (pip install triton) has the whole compiler. Its users let it measure several block sizes on their GPU.
Without one, the first of CONFIGS counts that has none of the faults which our kernels must not have (Kernel.slowness),
or else the one that spills the fewest registers.
"""

import functools
import importlib
import importlib.util
import math
import os
from typing import Any, NamedTuple

import numpy as np

from gpt.ops.gpu.targets import warp_size
from tests.support.amd.compile import read_kernels
from tests.support.amd.speed.launches import PRODUCTS, AlignedNumpy, Launch

LOG2_E = 1.4426950408889634


class Config(NamedTuple):
    """How a kernel divides its work: rows and columns of a block's tile, and warps."""

    rows: int
    columns: int
    warps: int = 4
    depth: int = 0  # of a step of matmul

    def __str__(self) -> str:
        return f"{self.rows} x {self.columns}, {self.warps} warps"


_ATTENTION = (Config(128, 64), Config(64, 64), Config(128, 32), Config(64, 32), Config(32, 32))
CONFIGS = {
    "attention": _ATTENTION,
    "attention_backward_queries": _ATTENTION,
    "attention_backward_keys": _ATTENTION,
    "matmul": (Config(256, 128, 8, depth=64), Config(128, 128, depth=64), Config(128, 128, 8, depth=32)),
}
GROUP = 8  # rows of blocks that matmul goes through together
_TYPES = {"seq": "i32", "m": "i32", "n": "i32", "inner": "i32", "scale": "fp32", "lse": "*fp32",
          "delta": "*fp32"}  # of arguments; the others are pointers to bf16  # fmt: skip


class TritonLaunch(NamedTuple):
    """One launch of a kernel of Triton, with the fields of a Launch that an estimate needs."""

    name: str
    config: Config
    code: bytes
    shared_bytes: int
    grid: tuple[int, ...]
    block: tuple[int, ...]
    arguments: tuple[Any, ...]
    flops: int


def is_installed() -> bool:
    """Whether Triton can be imported. An import would take seconds."""
    return importlib.util.find_spec("triton") is not None


def peer(launch: Launch, target: str) -> TritonLaunch | None:
    """Triton's launch for the same sizes; None if there is none: for dropout, sums with a bias, and other kernels.

    On RDNA there is none either, because Triton's kernels have been compared with NumPy on gfx942 alone.
    """
    if warp_size(target) == 32:
        return None
    defines = dict(launch.instance.defines)
    if launch.name in PRODUCTS and defines["DROPOUT"] == "0":
        lse = next(x for x in launch.arguments if isinstance(x, np.ndarray) and x.dtype == np.float32)
        batch, heads, seq = lse.shape
        return attention(launch.name, target, (batch * heads, seq, int(defines["HEAD_DIM"])))
    if launch.name == "matmul" and defines["EPILOGUE"] == "STORE" and defines["OUT"] == "bf16":
        sizes = tuple(int(size) for size in launch.arguments[6:9])
        return matmul(target, sizes, defines["A_TRANSPOSED"] == "1", defines["B_TRANSPOSED"] == "1")
    return None


def attention(name: str, target: str, shape: tuple[int, int, int]) -> TritonLaunch:
    """A kernel of attention on [heads of all sequences, seq, head_dim]; seq is a multiple of 128."""
    heads, seq, dim = shape
    config, code, shared_bytes = _compiled(name, target, (("DIM", dim),))
    names = kernel(name).arg_names
    arrays = [
        _zeros((heads, seq), np.float32) if _TYPES.get(each) == "*fp32" else _zeros(shape, np.uint16)
        for each in names[: names.index("seq")]
    ]
    arguments = (*arrays, np.int32(seq), np.float32(dim**-0.5 * LOG2_E))
    products, pairs = PRODUCTS[name], heads * seq * (seq + 1) // 2
    grid = seq // config.rows, heads
    return _launch(name, target, config, code, shared_bytes, grid, arguments, 2 * products * dim * pairs)


def matmul(target: str, sizes: tuple[int, int, int], a_transposed: bool, b_transposed: bool) -> TritonLaunch:
    """A product of sizes (m, n, k). The arrays are large enough for whole blocks; blocks need no masks then."""
    m, n, k = (-(-size // 256) * 256 for size in sizes)
    transposed = (("A_TRANSPOSED", a_transposed), ("B_TRANSPOSED", b_transposed))
    config, code, shared_bytes = _compiled("matmul", target, (*transposed, ("GROUP", GROUP)))
    arrays = _zeros((m, k), np.uint16), _zeros((k, n), np.uint16), _zeros((m, n), np.uint16)
    grid = (m // config.rows * (n // config.columns),)
    arguments = (*arrays, *map(np.int32, (m, n, k)))
    return _launch("matmul", target, config, code, shared_bytes, grid, arguments, 2 * math.prod(sizes))


def _launch(
    name: str, target: str, config: Config, code: bytes, shared_bytes: int, grid: tuple[int, ...],
    arguments: tuple[Any, ...], flops: int,
) -> TritonLaunch:  # fmt: skip
    scratch = np.zeros(1, np.uint64)  # two pointers that Triton adds to every kernel, and these do not use
    block = (config.warps * warp_size(target),)
    return TritonLaunch(name, config, code, shared_bytes, grid, block, (*arguments, scratch, scratch), flops)


def _zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return AlignedNumpy().zeros(shape, dtype)


def kernel(name: str) -> Any:
    """A kernel of triton_kernels.py."""
    return getattr(importlib.import_module("tests.support.amd.speed.triton_kernels"), name)


@functools.cache
def _compiled(name: str, target: str, constants: tuple[tuple[str, int], ...]) -> tuple[Config, bytes, int]:
    """The configuration that is taken: it, the code object, and bytes of shared memory."""
    fewest: tuple[int, Config, bytes, int] | None = None
    for config in CONFIGS[name]:
        code, shared_bytes = _compile(name, target, config, dict(constants))
        (compiled,) = read_kernels(code)
        if not compiled._replace(lds=shared_bytes).slowness:
            return config, code, shared_bytes
        if fewest is None or compiled.spills < fewest[0]:
            fewest = compiled.spills, config, code, shared_bytes
    return fewest[1:]


def _compile(name: str, target: str, config: Config, constants: dict[str, int]) -> tuple[bytes, int]:
    # Loads and stores through buffers are left out: trace.py does not know their addresses.
    os.environ["AMDGCN_USE_BUFFER_OPS"] = "0"
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = kernel(name)
    constants |= {"ROWS": config.rows, "COLUMNS": config.columns, "DEPTH": config.depth}
    constants = {each: constants[each] for each in function.arg_names if each in constants}
    signature = {each: "constexpr" if each in constants else _TYPES.get(each, "*bf16") for each in function.arg_names}
    # Pointers and sizes are multiples of 16. Triton notices that at a launch, and compiles for it.
    aligned = {
        (place,): [["tt.divisibility", 16]] for place, each in enumerate(function.arg_names)
        if signature[each] not in ("constexpr", "fp32")
    }  # fmt: skip
    source = ASTSource(function, signature, constants, aligned)
    made = triton.compile(
        source, target=GPUTarget("hip", target, warp_size(target)), options={"num_warps": config.warps}
    )
    return made.asm["hsaco"], made.metadata.shared
