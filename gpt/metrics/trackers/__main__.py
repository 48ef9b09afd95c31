"""The follower, as a process: python -m gpt.metrics.trackers TRACKER.

Its standard input has the opening in one line, and then, in another one, how the training has ended. If it is closed
before that, the training was killed. Each line of the standard output is one for the user.
"""

import json
import os
import sys
import threading
import warnings
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from gpt.errors import one_line
from gpt.metrics.trackers.follower import follow
from gpt.metrics.trackers.following import FAILED, PATIENCE
from gpt.metrics.trackers.interface import Opening


def main(name: str) -> None:
    """Follow a run with the tracker `name`. A failure costs one line."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as output:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what trackers print is not for the user
        if hasattr(os, "nice"):
            os.nice(10)  # training comes first
        # Trackers import torch if it is there, which takes seconds, and need it for nothing.
        sys.modules["torch"] = None  # type: ignore[assignment]
        noted = threading.Lock()  # taken by the first note

        def line(text: str) -> None:
            with suppress(OSError):  # the training was killed
                print(text, file=output, flush=True)

        def note(reason: object) -> None:
            if noted.acquire(blocking=False):
                why = one_line(str(reason))
                line(f"Note: --track {name}: {why}. The run goes on, and metrics.jsonl has everything")

        warnings.showwarning = lambda message, category, *_: note(message) if category is UserWarning else None
        try:
            opening = json.loads(sys.stdin.readline())
            opening["directory"] = Path(opening["directory"])
            opened = import_module(f"gpt.metrics.trackers.{name}").opened
            follow(Opening(**opening), opened, _End().wait, line)
        except Exception as error:
            note(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
            output.flush()
            os._exit(FAILED)  # the tracker's threads may never end


class _End:
    """The end of the training, as standard input tells it. The process then has PATIENCE seconds for the rest."""

    def __init__(self) -> None:
        self._known, self._how = threading.Event(), ""
        threading.Thread(target=self._listen, daemon=True).start()

    def wait(self, seconds: float) -> str | None:
        """How the training has ended, as soon as it has; None after so many seconds."""
        return self._how if self._known.wait(seconds) else None

    def _listen(self) -> None:
        self._how = sys.stdin.readline().strip()
        self._known.set()
        timer = threading.Timer(PATIENCE, os._exit, args=[1])
        timer.daemon = True
        timer.start()


if __name__ == "__main__":
    main(sys.argv[1])
