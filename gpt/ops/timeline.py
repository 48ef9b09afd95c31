"""When a device gets to which point of its work: the clocks that operations are timed with."""

import time
from typing import Any


class HostTimeline:
    """Of a device that works while it is asked: the host's own clock."""

    def mark(self) -> Any:
        """A point right behind the work asked for so far."""
        return time.perf_counter()

    def has_passed(self, mark: Any) -> bool:
        """Whether the device is beyond `mark`, and may have waited for what was asked for after it. Never, here."""
        return False

    def seconds_between(self, begin: Any, end: Any) -> float:
        """From mark to mark in the device's time, once it has got to `end`."""
        return end - begin


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
