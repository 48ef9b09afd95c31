"""Curves of runs as a picture: one panel per quantity, one color per run. matplotlib draws (extra `plot`)."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt.arithmetic import ceil_div
from gpt.errors import UserError, cannot
from gpt.metrics.curves import LOSSES, PANELS, UNITS, Panel, curve, in_view, loss_text
from gpt.system.files import atomic_path

FORMATS = (".png", ".svg", ".pdf")
_FAINT = 0.45  # opacity of the training loss, which swings about the validation loss
_COLORS, _DASHES = 10, ("-", "--", ":", "-.")  # the eleventh run has the color of the first one, in dashes
_BEHIND_LABEL = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1}  # readable on other curves
_LOSSES = {"training": _FAINT, "validation": 1.0}  # name → opacity
_LEGEND_WIDTH = 150  # characters that fit beside each other
_LEGEND_SAMPLE = 8  # characters for the piece of a curve before a name, and the space behind it
_LEGEND_LINE = 0.22  # inches


def draw(logs: Mapping[str, Sequence[dict[str, Any]]], axis: str, out: Path) -> None:
    """Draw the curves of the runs in `logs` (name → lines of metrics.jsonl) over `axis`, and write them to `out`.

    The file is replaced at once or not at all. Raises UserError if its name does not end in one of FORMATS, if
    matplotlib is missing, and if it cannot be written.
    """
    if out.suffix.lower() not in FORMATS:
        raise UserError(f"--out is {out}, but must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure  # without pyplot, which would look for a screen
        from matplotlib.lines import Line2D
    except ImportError:
        raise UserError(
            "a picture needs matplotlib: pip install 'hipgpt[plot]', or leave --out out to draw in the terminal"
        ) from None
    entries, columns = len(logs) + 2, _columns(logs)
    figure = Figure(figsize=(11, 7 + _LEGEND_LINE * ceil_div(entries, columns)), layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=(2, 1))
    places = [grid[0, :], *(grid[1, column] for column in range(3))]
    for panel, place in zip(PANELS, places, strict=True):
        axes = figure.add_subplot(place)
        _draw_panel(axes, panel, logs, axis)
    lines = [Line2D([], [], label=name, **_style(number)) for number, name in enumerate(logs)]
    lines += [Line2D([], [], color="gray", label=name, alpha=alpha) for name, alpha in _LOSSES.items()]
    figure.legend(handles=lines, loc="outside upper left", ncols=columns, frameon=False, fontsize="small")
    with (
        cannot(f"write {out}", even_if_missing=True),
        atomic_path(out) as temporary,
        rc_context({"svg.fonttype": "none"}),  # text stays text
    ):
        figure.savefig(temporary, format=out.suffix[1:].lower(), dpi=150)


def _draw_panel(axes: Any, panel: Panel, logs: Mapping[str, Sequence[dict[str, Any]]], axis: str) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator

    for number, lines in enumerate(logs.values()):
        style = _style(number)
        for key, _ in panel.quantities:
            points = curve(lines, key, axis)
            if not points.x:
                continue
            is_main = key != "loss"
            axes.plot(*points, **style, alpha=1 if is_main else _FAINT)
            if key == "val_loss" and (lowest := points.lowest):
                axes.plot(*lowest, "o", color=style["color"])
                axes.annotate(
                    loss_text(lowest[1]), lowest, xytext=(0, 7), textcoords="offset points", ha="center",
                    annotation_clip=True, color=style["color"], bbox=_BEHIND_LABEL,
                )  # fmt: skip
    if panel is LOSSES:
        high = max(in_view(loss for line in axes.lines for loss in line.get_ydata()), default=0.0)
        if high < axes.dataLim.ymax:
            axes.set_ylim(bottom=0, top=1.05 * high)
    axes.set_title(panel.title, fontsize="medium")
    axes.set_xlabel(UNITS[axis])
    if axis != "time":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 20k
    if panel.is_logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")  # 0.5, not 5 × 10⁻¹
        axes.yaxis.set_minor_formatter("")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _columns(names: Iterable[str]) -> int:
    """How many entries of the legend stand beside each other."""
    widest = max(map(len, (*names, *_LOSSES)))
    return max(1, _LEGEND_WIDTH // (widest + _LEGEND_SAMPLE))


def _style(number: int) -> dict[str, Any]:
    """Color and dashes of the curves of run `number`."""
    return {"color": f"C{number % _COLORS}", "linestyle": _DASHES[number // _COLORS % len(_DASHES)]}
