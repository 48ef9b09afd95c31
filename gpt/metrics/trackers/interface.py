"""The contract between a follower and a tracker, and the opening that a tracker gets at the start."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Line = dict[str, Any]  # of metrics.jsonl, as gpt.run.log_line has it

PROJECT = "hipgpt"  # the project of all runs, in trackers that have projects


@dataclass(frozen=True)
class Opening:
    """The run that is followed: its directory, how many lines its log has at the start, and its hyperparameters."""

    directory: Path
    kept: int
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        return self.directory.name


class Tracker(Protocol):
    """A copy of a run's log somewhere else.

    A tracker's module has a function `opened`, which takes an `Opening` and returns one of these. Its methods may raise
    anything and take any time.
    """

    place: str
    """Where the user finds it: a command or an address."""

    def write(self, lines: Sequence[Line]) -> None:
        """Take the next lines of the log. The first call has the first line, also if the run has been resumed."""

    def close(self, is_done: bool) -> None:
        """Finish. `is_done` is False if the run can go on: it was stopped or killed."""
