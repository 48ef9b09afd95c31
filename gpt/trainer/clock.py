"""The time that training takes, without that of evaluations and checkpoints."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Clock:
    """Times steps: seconds per step since the last lap, and since the run began. Pauses count in neither.

    `spent` is how many seconds the run had trained before, up to `step`. `wait` returns when all steps so far are done.
    """

    def __init__(self, step: int, spent: float, wait: Callable[[], object]) -> None:
        self._wait = wait
        self._lap_step, self._lap_start = step, time.perf_counter()
        self._run_start = self._lap_start - spent
        self._pause_start: float | None = None
        self._shown = 0.0

    def seconds(self) -> float:
        """How long the run has trained: until now, or until the clock was paused."""
        now = time.perf_counter() if self._pause_start is None else self._pause_start
        return now - self._run_start

    def seconds_per_step(self, step: int) -> float:
        """The mean since the last lap, up to the end of `step`, for which it waits."""
        self._wait()
        return (time.perf_counter() - self._lap_start) / max(1, step - self._lap_step)

    def lap(self, step: int) -> float:
        """End a lap with `step`. Returns its seconds per step."""
        seconds = self.seconds_per_step(step)
        self._lap_step, self._lap_start = step, time.perf_counter()
        return seconds

    def due(self) -> bool:
        """True at most twice a second: often enough for a progress bar."""
        now = time.perf_counter()
        if now - self._shown < 0.5:
            return False
        self._shown = now
        return True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock inside the `with`, once all steps so far are done."""
        self._wait()
        self._pause_start = start = time.perf_counter()
        yield
        pause, self._pause_start = time.perf_counter() - start, None
        self._lap_start += pause
        self._run_start += pause
