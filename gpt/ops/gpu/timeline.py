"""When a GPU gets to which point of its work: the clock that operations are timed with."""

from typing import Any


class CupyTimeline:
    """Of a GPU, which works on after it was asked: an event is a time that it notes when it gets there."""

    def __init__(self, cupy: Any) -> None:
        self._cuda = cupy.cuda

    def mark(self) -> Any:
        event = self._cuda.Event()
        event.record(self._cuda.get_current_stream())
        return event

    def has_passed(self, mark: Any) -> bool:
        return mark.done

    def seconds_between(self, begin: Any, end: Any) -> float:
        end.synchronize()
        return self._cuda.get_elapsed_time(begin, end) / 1e3
