"""Causal attention alone, forward and backward: hipgpt's kernels beside PyTorch's.

    python benchmarks/attention.py hipgpt 32 12 1024 64
    python benchmarks/attention.py cudnn 32 12 1024 64 --dropout 0.1
    python benchmarks/attention.py efficient 4 16 2048 64 --precision tf32
    python benchmarks/attention.py --grid | tee grid.txt
    python benchmarks/attention_picture.py grid.txt docs/attention.svg
    python benchmarks/attention.py --grid --precision fp32 --head-dims 32,64,80,96,112,128 --seqs 2048

The first three print one JSON object, {"ms": …}: the median over groups of replays of a recorded graph. Groups are
timed by events of the device, so that the host's own work does not count. --grid prints a table, a line for each
point as soon as it is measured: every head size, sequences of 128 to 8,192, 16 to 512 heads in a batch, with and
without dropout, and the times of FlashAttention-2 and cuDNN as multiples of hipgpt's. With --precision fp32 or tf32 it
is the time of PyTorch's memory-efficient attention, which has no rival there. Needs a GPU, and PyTorch for all but
hipgpt.
"""

import itertools
import json
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import click
import numpy as np

from gpt.ops import select
from gpt.ops.interface import Array, Dropout, Operations
from gpt.timing import time_groups

WARM_UP = 20  # replays
GRID_WARM_UP, GRID_SECONDS = 3, 0.03  # of each side of a point
HEAD_DIMS, SEQS, HEADS, RATES = range(8, 129, 8), (128, 512, 2048, 8192), (16, 64, 512), (0.0, 0.1)
DRAWN = 2**22  # random numbers, which fill larger arrays again and again: the host draws 40 million a second
MOST_ELEMENTS = 2**28  # of an array of a point: 512 MiB in bf16
GRID_PEERS = {"bf16": ("fa2", "cudnn"), "tf32": ("efficient",), "fp32": ("efficient",)}
PEERS = {
    "fa2": "FLASH_ATTENTION", "fa2-deterministic": "FLASH_ATTENTION", "cudnn": "CUDNN_ATTENTION",
    "efficient": "EFFICIENT_ATTENTION",
}  # fmt: skip

Shape = tuple[int, int, int, int]  # batch, heads, seq, head_dim
Mark = TypeVar("Mark")


class Timed:
    """The median time of a replay on the device's own clock, in ms."""

    def __init__(self, warm_up: int = WARM_UP, seconds: float | None = None) -> None:
        self.warm_up, self.seconds = warm_up, seconds

    def __call__(
        self, replay: Callable[[], object], mark: Callable[[], Mark], seconds_between: Callable[[Mark, Mark], float]
    ) -> float:
        for _ in range(self.warm_up):
            replay()
        start = mark()
        return time_groups(replay, lambda: seconds_between(start, mark()), seconds=self.seconds).median * 1e3


@cache  # its kernels stay loaded from one point of the grid to the next
def operations(precision: str) -> tuple[Operations, Array]:
    """hipgpt's operations on the GPU, and random numbers there, [DRAWN]."""
    ops = select("gpu", precision)
    drawn = ops.empty(DRAWN)
    ops.copy(np.random.default_rng(0).standard_normal(DRAWN, np.float32), out=drawn)
    return ops, drawn


def hipgpt(shape: Shape, rate: float, timed: Timed, precision: str = "bf16") -> float:
    ops, drawn = operations(precision)
    batch, heads, seq, head_dim = shape
    rows, width = batch * seq, heads * head_dim
    qkv, dqkv = (ops.empty((rows, 3 * width)) for _ in range(2))
    out, dout = (ops.empty((rows, width)) for _ in range(2))
    lse = ops.empty((batch, heads, seq), "float32")
    for flat in (qkv.reshape(-1), dout.reshape(-1)):
        for start in range(0, flat.size, DRAWN):
            part = flat[start : start + DRAWN]
            ops.copy(drawn[: part.size], out=part)
    dropout = Dropout(rate, ops.zeros(2, "uint32"), 0) if rate else None

    def step() -> None:
        ops.attention(qkv, out=out, lse=lse, dropout=dropout)
        ops.attention_backward(dout, qkv, out, lse, dqkv, dropout)

    return timed(ops.replayed(step), ops.timeline.mark, ops.timeline.seconds_between)


def pytorch(side: str, shape: Shape, rate: float, timed: Timed, precision: str = "bf16") -> float:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    torch.manual_seed(0)
    torch.use_deterministic_algorithms(side == "fa2-deterministic")
    torch.utils.deterministic.fill_uninitialized_memory = False  # PyTorch's own check, which costs time
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    q, k, v, dout = (torch.randn(shape, device="cuda", dtype=dtype) for _ in range(4))
    inputs = [each.requires_grad_() for each in (q, k, v)]

    def step() -> None:
        with sdpa_kernel(getattr(SDPBackend, PEERS[side])):
            out = scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
            torch.autograd.grad(out, inputs, dout)

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

    return timed(graph.replay, mark, seconds_between)


def measured(side: str, shape: Shape, rate: float, timed: Timed, precision: str = "bf16") -> float:
    """Milliseconds of one side."""
    if side == "hipgpt":
        return hipgpt(shape, rate, timed, precision)
    return pytorch(side, shape, rate, timed, precision)


def print_grid(head_dims: list[int], seqs: list[int], precision: str) -> None:
    sides = GRID_PEERS[precision]
    titles = "".join(f"{side.upper():>11}" for side in ("hipgpt ms", *sides))
    click.echo(f"{'HEAD':>5}{'SEQ':>6}{'HEADS':>7}{'DROPOUT':>9}{titles}")
    timed = Timed(GRID_WARM_UP, GRID_SECONDS)
    for seq, heads, head_dim, rate in itertools.product(seqs, HEADS, head_dims, RATES):
        if heads * seq * head_dim > MOST_ELEMENTS:
            continue
        shape = heads // 16, 16, seq, head_dim
        ours, cells = measured("hipgpt", shape, rate, timed, precision), ""
        for side in sides:
            cells += f"{multiple(side, shape, rate, timed, ours, precision):>11}"
        click.echo(f"{head_dim:>5}{seq:>6}{heads:>7}{rate:>9}{ours:>11.4f}{cells}")


def multiple(side: str, shape: Shape, rate: float, timed: Timed, ours: float, precision: str) -> str:
    """The time of a peer as a multiple of ours, or "-" if it has no kernel for the shape."""
    try:
        return f"{measured(side, shape, rate, timed, precision) / ours:.2f}"
    except RuntimeError:
        return "-"


def numbers(_context: Any, _parameter: Any, value: str | None) -> list[int] | None:
    return None if value is None else [int(each) for each in value.split(",")]


@click.command()
@click.argument("side", type=click.Choice(["hipgpt", *PEERS]), required=False)
@click.argument("shape", type=int, nargs=-1)
@click.option("--dropout", "rate", default=0.0, show_default=True, help="Probability that a weight is dropped.")
@click.option("--precision", type=click.Choice(["bf16", "tf32", "fp32"]), default="bf16", show_default=True,
              help="Precision, as in hipgpt train.")  # fmt: skip
@click.option("--grid", is_flag=True, help="Measure the whole grid.")
@click.option("--head-dims", callback=numbers, metavar="N,N,…", help="Head sizes of the grid, if not all.")
@click.option("--seqs", callback=numbers, metavar="N,N,…", help="Lengths of the grid's sequences, if not all.")
def main(
    side: str | None,
    shape: tuple[int, ...],
    rate: float,
    precision: str,
    grid: bool,
    head_dims: list[int] | None,
    seqs: list[int] | None,
) -> None:
    """Milliseconds of attention on SHAPE: batch, heads, seq, head_dim."""
    if grid:
        print_grid(head_dims or list(HEAD_DIMS), seqs or list(SEQS), precision)
        return
    if side is None or len(shape) != 4:
        raise click.UsageError("give a side and four numbers (batch, heads, seq, head_dim), or --grid")
    batch, heads, seq, head_dim = shape
    click.echo(json.dumps({"ms": measured(side, (batch, heads, seq, head_dim), rate, Timed(), precision)}))


if __name__ == "__main__":
    main()
