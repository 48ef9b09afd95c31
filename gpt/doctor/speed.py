"""The speed of a few operations, timed as `hipgpt bench` times: the median over groups of calls (gpt/timing.py)."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from gpt.ops.interface import Activation, AdamBuffers, Affine, Array, Normed, Operations, UpdateRule
from gpt.timing import after, time_groups

GROUP_SECONDS = 0.05  # about the length of a group of calls
HEADS, HEAD_DIM, WIDER = 12, 64, 4  # the shape of GPT-2's layers


class Sizes(NamedTuple):
    """How much an operation gets to do: enough to be limited by the device, not by the host that asks it."""

    batch: int
    seq: int
    vocab: int
    parameters: int


ON_GPU, ON_CPU = Sizes(8, 1024, 50_304, 2**26), Sizes(2, 256, 5_000, 2**20)
LOGITS_ROWS = 2048


class Speed(NamedTuple):
    """The time of a call, and what it does: floating-point operations, or bytes that it has to read and write."""

    operation: str
    seconds: float
    flops: float = 0
    bytes: float = 0

    def to_json(self) -> dict[str, Any]:
        rate = {"tflops": self.flops / self.seconds / 1e12} if self.flops else {"gb_s": self.bytes / self.seconds / 1e9}
        return {"operation": self.operation, "ms": self.seconds * 1e3, **rate}

    def __str__(self) -> str:
        if self.flops:
            rate = f"{self.flops / self.seconds / 1e12:10.3g} TFLOP/s"
        else:
            rate = f"{self.bytes / self.seconds / 1e9:10.3g} GB/s"
        return f"{self.operation:<26}{self.seconds * 1e3:10.3f} ms{rate}"


class TimedCall(NamedTuple):
    """A call to be timed, and what it does."""

    operation: str
    call: Callable[[], object]
    flops: float = 0
    bytes: float = 0


def measure(ops: Operations) -> Iterator[Speed]:
    """Time some operations, one after the other. Raises UserError if a GPU lacks the memory."""
    marker = ops.zeros(1, "float32")
    now = after(lambda: ops.to_host(marker))
    for name, call, flops, moved in _timed_calls(ops):
        call()  # compiles it, or plans it
        yield Speed(name, time_groups(call, now, seconds=GROUP_SECONDS).median, flops, moved)


def _timed_calls(ops: Operations) -> Iterator[TimedCall]:
    sizes, rng = ON_CPU if ops.is_cpu else ON_GPU, np.random.default_rng(0)
    rows, d, itemsize = sizes.batch * sizes.seq, HEADS * HEAD_DIM, 2 if ops.low_precision else 4
    wide = WIDER * d

    def random(*shape: int, scale: float = 1.0) -> Array:
        # Not zeros, because a GPU that multiplies zeros draws less power and is faster.
        array = ops.empty(shape)
        ops.copy(rng.standard_normal(shape, np.float32) * np.float32(scale), out=array)
        return array

    x, out = random(rows, d), ops.empty((rows, d))
    layer = Affine(random(d, wide, scale=0.02), random(wide))
    hidden, pre_activation = random(rows, wide), random(rows, wide)
    product = 2.0 * rows * d * wide
    activation = Activation("gelu", pre_activation)
    shape = f"{rows} x {d} x {wide}"
    yield TimedCall(f"linear, {shape}", lambda: ops.linear(x, layer, hidden), flops=product)
    yield TimedCall("linear with gelu", lambda: ops.linear(x, layer, hidden, activation), flops=product)
    yield TimedCall("linear_backward", lambda: ops.linear_backward(hidden, layer.weight, out), flops=product)
    dweight = ops.zeros((d, wide), "float32")
    yield TimedCall("weight_gradient", lambda: ops.weight_gradient(x, hidden, dweight), flops=product)

    qkv, dqkv = random(rows, 3 * d), ops.empty((rows, 3 * d))
    lse = ops.empty((sizes.batch, HEADS, sizes.seq), "float32")
    attended = 2.0 * rows * sizes.seq * d  # two products, half of whose elements lie before the query
    yield TimedCall(f"attention, {sizes.seq} positions", lambda: ops.attention(qkv, out, lse), flops=attended)
    backward = partial(ops.attention_backward, x, qkv, out, lse, dqkv)
    yield TimedCall("attention_backward", backward, flops=2.5 * attended)

    mean, rstd = ops.empty(rows, "float32"), ops.empty(rows, "float32")
    normed, norm = Normed(x, out, mean, rstd), Affine(random(d), random(d))
    yield TimedCall("layernorm", lambda: ops.layernorm(normed, norm), bytes=2.0 * rows * d * itemsize)

    few = min(rows, LOGITS_ROWS)
    logits, losses, hits = random(few, sizes.vocab), ops.empty(few, "float32"), ops.empty(few, "float32")
    labels, scale = ops.from_host(np.zeros(few, np.int32)), ops.from_host(np.ones(1, np.float32))
    loss = partial(ops.softmax_cross_entropy, logits, labels, losses, hits, sizes.vocab, scale)
    yield TimedCall("softmax_cross_entropy", loss, bytes=2.0 * few * sizes.vocab * itemsize)

    n = sizes.parameters
    weights, gradients, exp_avg, exp_avg_sq = (ops.zeros(n, "float32") for _ in range(4))
    copy = ops.zeros(n) if ops.low_precision else None
    buffers = AdamBuffers(weights, gradients, exp_avg, exp_avg_sq, copy, n)
    plan = ops.from_host(np.array([0, 1, 1e-3, 1, 1e-3, 1], np.float64))
    rule = UpdateRule(betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, clip=1.0)
    yield TimedCall("adamw", lambda: ops.adamw(buffers, plan, rule), bytes=n * (28.0 + (2 if copy is not None else 0)))
