"""Draw the table of `attention.py --grid`: how many times as long the peers take, by head size and sequence length.

    python benchmarks/attention_picture.py grid.txt docs/attention.svg

A point is the geometric mean over the numbers of heads in a batch, and the shade reaches from the least to the most.
Needs matplotlib.
"""

import math
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import click
from matplotlib import rc_context
from matplotlib.figure import Figure

PEERS = {"FA2": "FlashAttention-2", "CUDNN": "cuDNN"}
EVEN_HEAD_SIZES = range(16, 129, 16)  # that are written below the axis


class Point(NamedTuple):
    """A line of the table. `times` has a peer's time as a multiple of hipgpt's, by its title; a peer may be absent."""

    head_dim: int
    seq: int
    dropout: float
    times: dict[str, float]


def read(table: str) -> list[Point]:
    """The points of a table: HEAD, SEQ, HEADS, DROPOUT, HIPGPT MS and a column for each peer."""
    points, titles = [], []
    for line in table.splitlines():
        if "DROPOUT" in line:
            titles = line.replace("HIPGPT MS", "HIPGPT").split()[5:]
        elif titles and len(cells := line.split()) == 5 + len(titles):
            times = {title: float(cell) for title, cell in zip(titles, cells[5:], strict=True) if cell != "-"}
            points.append(Point(int(cells[0]), int(cells[1]), float(cells[3]), times))
    return points


def draw_panel(axes: Any, points: list[Point], peer: str) -> None:
    """A curve over the head size for each sequence length."""
    curves: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for point in points:
        if peer in point.times:
            curves[point.seq][point.head_dim].append(point.times[peer])
    for seq, by_size in sorted(curves.items()):
        sizes = sorted(by_size)
        means = [math.exp(sum(map(math.log, by_size[size])) / len(by_size[size])) for size in sizes]
        (line,) = axes.plot(sizes, means, marker=".", label=f"{seq:,} positions")
        low, high = ([limit(by_size[size]) for size in sizes] for limit in (min, max))
        axes.fill_between(sizes, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
    axes.axhline(1, color="gray", linewidth=0.8)
    axes.set_xticks(EVEN_HEAD_SIZES)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


@click.command()
@click.argument("table", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("picture", type=click.Path(dir_okay=False, path_type=Path))
def main(table: Path, picture: Path) -> None:
    """Draw TABLE, the output of attention.py --grid, as PICTURE (.svg, .png)."""
    points = read(table.read_text(encoding="utf-8"))
    rates = sorted({point.dropout for point in points})
    figure = Figure(figsize=(11, 7), layout="constrained")
    panels = figure.subplots(len(PEERS), len(rates), sharex=True, sharey="row", squeeze=False)
    for (peer, name), row in zip(PEERS.items(), panels, strict=True):
        for rate, axes in zip(rates, row, strict=True):
            draw_panel(axes, [point for point in points if point.dropout == rate], peer)
            axes.set_title(f"{name}, dropout {rate:g}" if rate else f"{name}, no dropout", fontsize="medium")
        row[0].set_ylabel("its time / hipgpt's")
    for axes in panels[-1]:
        axes.set_xlabel("head size")
    figure.align_ylabels()
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "attention"}):  # text stays text, and ids stay the same
        figure.savefig(picture, metadata={"Date": None} if picture.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
