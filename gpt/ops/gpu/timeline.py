"""The clock of a GPU: the times at which it reaches points of its work."""

from typing import Any

from gpt.ops.interface import Timeline


class CupyTimeline(Timeline):
    """A GPU works on after it was asked: a mark is an event that it notes with the time when it gets there."""

    def __init__(self, cupy: Any) -> None:
        self._cuda = cupy.cuda

    def mark(self) -> Any:
        event = self._cuda.Event()
        event.record(self._cuda.get_current_stream())
        return event

    def has_passed(self, mark: Any) -> bool:
        return bool(mark.done)

    def seconds_between(self, begin: Any, end: Any) -> float:
        end.synchronize()
        return float(self._cuda.get_elapsed_time(begin, end)) / 1e3
