"""Curves: a quantity of a run's log, such as the loss, against steps, tokens or time."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeGuard

from gpt.errors import UserError
from gpt.run import Run

AXES = {"steps": "step", "tokens": "tokens", "time": "time"}  # names of the horizontal axis → keys of a line
LARGEST_LOSS = 20.0  # nats per token, that plots have room for beside others: a guess among 485 million tokens costs it
UNITS = {"steps": "step", "tokens": "tokens trained on", "time": "seconds of training"}


class Curve(NamedTuple):
    """The places on the horizontal axis, ascending, and a finite value at each."""

    x: list[float]
    y: list[float]

    @property
    def lowest(self) -> tuple[float, float] | None:
        """The first place with the lowest value, and that value; None for an empty curve."""
        return min(zip(self.x, self.y, strict=True), key=lambda point: point[1]) if self.y else None

    def up_to(self, high: float) -> "Curve":
        """The points whose values are not above `high`."""
        points = [(x, y) for x, y in zip(self.x, self.y, strict=True) if y <= high]
        return Curve([x for x, _ in points], [y for _, y in points])


class Panel(NamedTuple):
    """Quantities that are drawn together: a title, and the key and the name of each."""

    title: str
    quantities: Sequence[tuple[str, str]]
    is_logarithmic: bool = False


LOSSES = Panel("Loss (nats per token)", (("loss", "training"), ("val_loss", "validation")))
PANELS = (
    LOSSES,
    Panel("Learning rate", (("lr", "learning rate"),)),
    Panel("Gradient norm", (("grad_norm", "gradient norm"),), is_logarithmic=True),
    Panel("Tokens per second", (("tokens_per_second", "tokens/s"),)),
)


def curve(lines: Sequence[dict[str, Any]], key: str, axis: str) -> Curve:
    """The values of `key` in the lines of metrics.jsonl (`Run.metrics`) against `axis`, one of AXES.

    A line that lacks one of the two, or has a value that is not finite there, is left out.

    Example:

    >>> lines = [{"step": 1, "loss": 5.0}, {"step": 2, "val_loss": 4.5}, {"step": 3, "loss": None}]
    >>> curve([*lines, {"step": 4, "loss": 4.0}], "loss", "steps")
    Curve(x=[1.0, 4.0], y=[5.0, 4.0])
    """
    points = [(line.get(AXES[axis]), line.get(key)) for line in lines]
    finite = [(float(x), float(y)) for x, y in points if _is_finite(x) and _is_finite(y)]
    return Curve([x for x, _ in finite], [y for _, y in finite])


def in_view(losses: Iterable[float]) -> list[float]:
    """The losses that a plot has room for. Those of a run that diverged would press all others flat.

    Example:

    >>> in_view([2.0, 3.0, 9e12]), in_view([8e12, 9e12])
    ([2.0, 3.0], [8000000000000.0, 9000000000000.0])
    """
    every = list(losses)
    return [loss for loss in every if loss <= LARGEST_LOSS] or every


def loss_text(loss: float) -> str:
    """A loss as users read it: "3.2926", and "8.2e+12" for one of a run that diverges."""
    return f"{loss:.4f}" if loss < 1000 else f"{loss:.3g}"


def logs(runs: Sequence[Run], axis: str) -> dict[str, list[dict[str, Any]]]:
    """The lines of each run's log, by the run's name.

    Raises UserError for a run that is not there, has logged nothing, or has an old log without tokens and times.
    """
    found = {}
    for run in runs:
        if not run.path.is_dir():
            raise UserError(f"there is no run {run.path}: `hipgpt runs` lists those there are")
        lines = run.metrics()
        if not any(curve(lines, key, "steps").x for panel in PANELS for key, _ in panel.quantities):
            raise UserError(f"run {run.name} has logged no step yet: train it, or wait until it has")
        if not any(AXES[axis] in line for line in lines):
            raise UserError(f"the log of run {run.name} has no {axis}, as an older version wrote it: plot over steps")
        found[run.name] = lines
    return found


def _is_finite(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
