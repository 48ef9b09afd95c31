"""The work of a follower: hand on what is new in a log, until the training has ended."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gpt.metrics.trackers.interface import Opening, Tracker
from gpt.metrics.trackers.log import Log
from gpt.system.filesystem import try_lock

LOCK = ".track.lock"
EVERY = 1.0  # seconds between two looks at the log


def follow(
    opening: Opening, opened: Callable[[Opening], Tracker], wait: Callable[[float], str | None],
    line: Callable[[str], None],
) -> None:  # fmt: skip
    """Hand the log of the run to the tracker that `opened` returns, from its first line to the end of the training.

    `wait` takes seconds, and returns how the training has ended: "done", or something else if the run can go on. While
    it trains, it returns None after these seconds. `line` prints a line for the user.
    """
    with alone(opening.directory):
        log = Log(opening.directory / "metrics.jsonl")
        tracker = opened(opening)
        line(f"Track:  {tracker.place}")
        ended = None
        while ended is None:
            ended = wait(EVERY)
            if lines := log.new():
                tracker.write(lines)
        tracker.close(ended == "done")


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Inside the `with`, this is the run's only follower. Waits for that of a training that was killed.

    On a file system without locks it does not wait.
    """
    handle = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with suppress(OSError):
            while not try_lock(handle):
                time.sleep(0.05)
        yield
    finally:
        os.close(handle)
