"""What a run says: plain lines, and on a terminal a live progress bar under them."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Console:
    """Prints to standard output. Piped output is plain lines only; a terminal also gets progress bars."""

    def __init__(self) -> None:
        self._live: Any = None

    def line(self, text: str) -> None:
        """Print one line, above the progress bar if there is one."""
        if self._live:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, flush=True)

    @contextmanager
    def progress(self, what: str, total: int, completed: int = 0) -> Iterator[Callable[..., None]]:
        """A bar named `what`; call what is yielded with the amount done, and as needed a `status` text or a `total`."""
        if not sys.stdout.isatty():
            yield lambda done, **changes: None
            return
        # Imported here: a piped run and `--help` never pay for it.
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(),
            TextColumn("{task.fields[status]}"), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, transient=True) as self._live:
            task = self._live.add_task(what, total=total, completed=completed, status="")
            try:
                yield lambda done, **changes: self._live.update(task, completed=done, **changes)
            finally:
                self._live = None


def duration(seconds: float) -> str:
    """A time as a person says it: "45 s", "12 min", "3 h 20 min", "2 days 4 h"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} days {hours % 24} h"


def size(count: float) -> str:
    """A number of bytes as a person says it: "312 MiB", "1.4 GiB"."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
