"""What a run says: plain lines, and on a terminal a live progress bar under them."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Console:
    """Prints to standard output. Piped output is plain lines only; a terminal also gets progress bars."""

    def __init__(self) -> None:
        self._terminal: Any = None
        if sys.stdout and sys.stdout.isatty():
            from rich.console import Console as Terminal  # imported here: a piped run and `--help` never pay for it

            self._terminal = Terminal()

    def line(self, text: str) -> None:
        """Print one line (or several), above the progress bar if there is one. A terminal wraps it between words."""
        if self._terminal:
            from rich.text import Text  # as which "[bold]" and ":cat:" are what they are

            self._terminal.print(Text(text))
        else:
            print(text, flush=True)

    @contextmanager
    def progress(self, what: str, total: int, completed: int = 0) -> Iterator[Callable[..., None]]:
        """A bar named `what`; call what is yielded with the amount done, and as needed a `status` text or a `total`.

        It is one line, as wide as the terminal: the bar takes what name, percentage, status and time left leave.
        """
        if not self._terminal:
            yield lambda done, **changes: None
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        columns = (
            TextColumn("{task.description}"), BarColumn(bar_width=None),
            TextColumn("{task.percentage:.0f}%", justify="right"), TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
        )  # fmt: skip
        with Progress(*columns, console=self._terminal, transient=True, expand=True) as bar:
            task = bar.add_task(what, total=total, completed=completed, status="")
            yield lambda done, **changes: bar.update(task, completed=done, **changes)


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


def rate(count: float) -> str:
    """A number in few characters: "312", "33.7k", "3.5M"."""
    for unit in ("", "k"):
        if round(count) < 1000:
            return f"{count:.1f}{unit}" if unit else f"{count:.0f}"
        count /= 1000
    return f"{count:.1f}M"
