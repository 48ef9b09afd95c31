"""The lines that are new in a log, and the values that trackers show of a line."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt.metrics.trackers.interface import Line
from gpt.run import log_line

_PLACES = {"step", "time", "passes", "val_fraction", "sample"}  # keys of a line that are no quantities


class Log:
    """A metrics.jsonl that grows. It ends when another file takes its place: then the run has been resumed."""

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, 0
        self._inode: int | None = None

    def new(self) -> list[Line]:
        """The whole lines that have come since the last call. A line that is damaged is left out."""
        try:
            with open(self._path, "rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                if self._inode not in (None, inode):
                    return []
                self._inode = inode
                file.seek(self._read)
                block = file.read()
        except FileNotFoundError:
            return []
        end = block.rfind(b"\n") + 1  # the line behind is still being written
        self._read += end
        return [line for each in block[:end].split(b"\n") if (line := log_line(each)) is not None]


def values(line: Mapping[str, Any]) -> dict[str, float]:
    """The quantities of a line by the names that trackers show; NaN for one that was not finite.

    Example:

    >>> values({"step": 20, "time": 3.0, "tokens": 1280, "loss": 4.0, "lr": 0.01})
    {'train/tokens': 1280.0, 'train/loss': 4.0, 'train/lr': 0.01}
    >>> values({"step": 20, "time": 3.0, "val_loss": None, "val_accuracy": 0.5, "val_fraction": 0.05})
    {'val/loss': nan, 'val/accuracy': 0.5}
    """
    return {
        f"val/{key[4:]}" if key.startswith("val_") else f"train/{key}": math.nan if value is None else float(value)
        for key, value in line.items()
        if key not in _PLACES and (value is None or isinstance(value, int | float))
    }
