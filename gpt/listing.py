"""The table of `hipgpt runs`: one line for each run."""

from collections.abc import Sequence
from contextlib import suppress

from gpt import checkpoint
from gpt.errors import UserError
from gpt.history import lowest, validation_losses
from gpt.parameters import parameter_count
from gpt.run import Run
from gpt.system.console import size

HEADER = ("RUN", "STEP", "LOSS", "BEST VALIDATION", "LAST VALIDATION", "PARAMETERS", "SIZE")


def table(runs: Sequence[Run]) -> list[str]:
    """The lines of the table, the header first. Names are on the left of their column, numbers on the right."""
    rows = [HEADER, *map(_row, runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([name.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(cells, widths[1:], strict=True))])
        for name, *cells in rows
    ]


def _row(run: Run) -> tuple[str, ...]:
    """The cells of one run. "-" stands for whatever the run does not have."""
    step, loss, parameters = "-", "-", "-"
    with suppress(UserError, OSError):  # a run that is tokenized only, or damaged, is still worth a line
        saved = checkpoint.load(run)
        step = "imported" if saved.imported else f"{saved.step}/{saved.train_config.total_steps}"
        parameters = f"{parameter_count(saved.model_config):,}"
    metrics = run.metrics()
    for line in metrics:
        loss = f"{line['loss']:.4f}" if line.get("loss") is not None else loss
    evaluations, kept = validation_losses(metrics), checkpoint.best(run)
    best = (kept.step, kept.val_loss) if kept else lowest(evaluations)
    last = evaluations[-1] if evaluations else None
    validation = [f"{each[1]:.4f} at {each[0]}" if each else "-" for each in (best, last)]
    return run.name, step, loss, *validation, parameters, size(run.disk_bytes())
