"""Curves of runs as a picture: one panel per quantity, one color per run. matplotlib draws (extra `plot`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt.errors import UserError
from gpt.metrics.curves import LOSSES, PANELS, UNITS, Panel, curve
from gpt.system.files import atomic_path

FORMATS = (".png", ".svg", ".pdf")
_FAINT = 0.45  # opacity of the training loss, which swings about the validation loss


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
    except ImportError:
        raise UserError(
            "a picture needs matplotlib: pip install 'hipgpt[plot]', or leave --out out to draw in the terminal"
        ) from None
    figure = Figure(figsize=(11, 7), layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=(2, 1))
    places = [grid[0, :], *(grid[1, column] for column in range(3))]
    for panel, place in zip(PANELS, places, strict=True):
        axes = figure.add_subplot(place)
        _draw_panel(axes, panel, logs, axis)
    try:
        with atomic_path(out) as temporary, rc_context({"svg.fonttype": "none"}):  # text stays text
            figure.savefig(temporary, format=out.suffix[1:].lower(), dpi=150)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from None


def _draw_panel(axes: Any, panel: Panel, logs: Mapping[str, Sequence[dict[str, Any]]], axis: str) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator

    for number, (name, lines) in enumerate(logs.items()):
        color = f"C{number % 10}"
        for key, quantity in panel.quantities:
            points = curve(lines, key, axis)
            if not points.x:
                continue
            is_main = key != "loss"
            label = f"{name}, {quantity}" if panel is LOSSES else None
            axes.plot(*points, color=color, alpha=1 if is_main else _FAINT, label=label)
            if key == "val_loss" and (lowest := points.lowest):
                axes.plot(*lowest, "o", color=color)
                axes.annotate(f"{lowest[1]:.3f}", lowest, xytext=(0, 7), textcoords="offset points", ha="center")
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
    if panel is LOSSES:
        axes.legend(frameon=False)
