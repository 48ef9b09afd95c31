"""Causal attention alone, forward and backward in bf16: hipgpt's kernels, or one of PyTorch's.

    python benchmarks/attention.py hipgpt 32 12 1024 64
    python benchmarks/attention.py cudnn 32 12 1024 64

Prints one JSON object, {"ms": …}: the median over groups of replays of a recorded graph. Groups are timed by events of
the device, so that the host's own work does not count. Needs a GPU.
"""

import json
from collections.abc import Callable
from typing import TypeVar

import click
import numpy as np

from gpt.timing import time_groups

WARM_UP = 20  # replays

Mark = TypeVar("Mark")


def hipgpt(batch: int, heads: int, seq: int, head_dim: int) -> float:
    from gpt.ops import select

    ops = select("gpu", "bf16")
    rows, width, rng = batch * seq, heads * head_dim, np.random.default_rng(0)
    qkv, dqkv = (ops.empty((rows, 3 * width)) for _ in range(2))
    out, dout = (ops.empty((rows, width)) for _ in range(2))
    lse = ops.empty((batch, heads, seq), "float32")
    for array in (qkv, dout):
        ops.copy(rng.standard_normal(array.shape, np.float32), out=array)

    def step() -> None:
        ops.attention(qkv, out=out, lse=lse)
        ops.attention_backward(dout, qkv, out, lse, dqkv)

    return median_ms(ops.replayed(step), ops.timeline.mark, ops.timeline.seconds_between)


def pytorch(side: str, *shape: int) -> float:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    torch.manual_seed(0)
    torch.use_deterministic_algorithms(side == "fa2-deterministic")
    torch.utils.deterministic.fill_uninitialized_memory = False  # PyTorch's own check, which costs time
    backend = SDPBackend.CUDNN_ATTENTION if side == "cudnn" else SDPBackend.FLASH_ATTENTION
    q, k, v, dout = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    inputs = [each.requires_grad_() for each in (q, k, v)]

    def step() -> None:
        with sdpa_kernel(backend):
            torch.autograd.grad(scaled_dot_product_attention(q, k, v, is_causal=True), inputs, dout)

    aside = torch.cuda.Stream()  # a graph can be recorded only after its work has run once on a side stream
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def mark() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds_between(begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    return median_ms(graph.replay, mark, seconds_between)


def median_ms(
    replay: Callable[[], object], mark: Callable[[], Mark], seconds_between: Callable[[Mark, Mark], float]
) -> float:
    """The median time of a replay on the device's own clock."""
    for _ in range(WARM_UP):
        replay()
    start = mark()
    return time_groups(replay, lambda: seconds_between(start, mark())).median * 1e3


@click.command()
@click.argument("side", type=click.Choice(["hipgpt", "fa2", "fa2-deterministic", "cudnn"]))
@click.argument("batch", type=int)
@click.argument("heads", type=int)
@click.argument("seq", type=int)
@click.argument("head_dim", type=int)
def main(side: str, batch: int, heads: int, seq: int, head_dim: int) -> None:
    """Milliseconds of attention on bf16 [BATCH, HEADS, SEQ, HEAD_DIM]."""
    shape = batch, heads, seq, head_dim
    click.echo(json.dumps({"ms": hipgpt(*shape) if side == "hipgpt" else pytorch(side, *shape)}))


if __name__ == "__main__":
    main()
