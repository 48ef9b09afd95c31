"""Curves of runs as text, for a terminal. uniplot draws."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gpt.metrics.curves import LOSSES, PANELS, UNITS, Curve, Panel, curve, in_view, loss_text
from gpt.system.console import duration

_MARGIN = 14  # columns beside a plot, for its frame and the numbers on its axis
_HEIGHT, _LOW = 16, 6  # lines of the plot of the losses, and of each other one


def drawn(logs: Mapping[str, Sequence[dict[str, Any]]], axis: str, columns: int, color: bool = False) -> str:
    """The curves of the runs in `logs` (name → lines of metrics.jsonl) over `axis`, as lines of `columns` characters.

    Below the losses, a line for each run says which validation loss was the lowest. A quantity that no run has logged
    has no plot. Without color, the curves differ by their characters, or those of a single run by dots for the
    validation losses.
    """
    parts = []
    for panel in PANELS:
        named = _named_curves(panel, logs, axis)
        if not named:
            continue
        parts.append(_plot(panel, named, columns, color))
        if panel is LOSSES:
            parts += [_lowest(name, lines, axis) for name, lines in logs.items() if curve(lines, "val_loss", axis).x]
    return "\n".join([*parts, f"Horizontal axis: {UNITS[axis]}"])


def _named_curves(
    panel: Panel, logs: Mapping[str, Sequence[dict[str, Any]]], axis: str
) -> list[tuple[str, str, Curve]]:
    """The curves of a panel that have points in view: key, label and points of each."""
    named = [
        (key, f"{name}, {quantity}" if len(logs) > 1 else quantity, points)
        for name, lines in logs.items()
        for key, quantity in panel.quantities
        if (points := curve(lines, key, axis)).x
    ]
    if panel is LOSSES and named:
        high = max(in_view(loss for *_, points in named for loss in points.y))
        named = [(key, label, points.up_to(high)) for key, label, points in named]
    return [each for each in named if each[2].x]


def _plot(panel: Panel, named: Sequence[tuple[str, str, Curve]], columns: int, color: bool) -> str:
    from uniplot import plot_to_string

    keys, labels, curves = zip(*named, strict=True)
    needs_characters = not color and len(keys) > len(set(keys))  # several runs
    low, high = (pick(value for points in curves for value in points.y) for pick in (min, max))
    # uniplot writes 0.016 as 0.0, so small numbers are shown in units of a power of ten
    power = math.floor(math.log10(high)) if 0 < high < 0.1 else 0
    padding = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    text: str = plot_to_string(
        xs=[points.x for points in curves],
        ys=[[value / 10**power for value in points.y] for points in curves],
        lines=[color or needs_characters or key != "val_loss" for key in keys],
        title=panel.title + (f" (1e{power})" if power else ""),
        legend_labels=list(labels) if len(labels) > 1 else None,
        width=max(20, columns - _MARGIN),
        height=_HEIGHT if panel is LOSSES else _LOW,
        y_min=(low - padding) / 10**power,
        y_max=(high + padding) / 10**power,
        y_gridlines=[],
        color=color,
        character_set="ascii" if needs_characters else "braille",
    )
    return text


def _lowest(name: str, lines: Sequence[dict[str, Any]], axis: str) -> str:
    place, loss = curve(lines, "val_loss", axis).lowest or (0.0, 0.0)
    there = {"steps": f"step {place:.0f}", "tokens": f"{place:,.0f} tokens", "time": duration(place)}[axis]
    return f"{name}: lowest validation loss {loss_text(loss)} at {there}"
