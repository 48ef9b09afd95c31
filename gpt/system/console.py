"""What a run says: plain lines, and on a terminal a live progress bar under them."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class Console:
    """Prints to standard output. Piped output is plain lines only; a terminal also gets progress bars.

    A line that cannot be written never raises. If the reader of a pipe has gone (`| head`), `reader_is_gone` says so,
    and whoever works for that reader stops as for Ctrl-C. If the terminal has gone, work goes on without one: those
    who do not want that get a signal for it. If the disk under a log is full, a note says so, and work goes on; what
    comes after there is space again is written.
    """

    def __init__(self) -> None:
        self._terminal: Any = None
        self._output = _Output(sys.stdout)
        if sys.stdout and sys.stdout.isatty():
            from rich.console import Console as Terminal  # imported here: a piped run and `--help` never pay for it

            self._terminal = Terminal(file=self._output)

    @property
    def reader_is_gone(self) -> bool:
        return self._output.reader_is_gone

    def line(self, text: str) -> None:
        """Print one line (or several), above the progress bar if there is one. A terminal wraps it between words."""
        if self._terminal:
            from rich.text import Text  # as which "[bold]" and ":cat:" are what they are

            self._terminal.print(Text(text))
        else:
            print(text, file=self._output, flush=True)

    def urgent(self, text: str) -> None:
        """Print one line, and if nobody reads it there, or only later, on standard error as well."""
        self.line(text)
        if self.reader_is_gone or (not self._terminal and sys.stderr and sys.stderr.isatty()):
            with suppress(OSError, AttributeError):
                print(text, file=sys.stderr, flush=True)

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


class _Output:
    """A text stream whose writes never raise (see `Console`). None stands for a closed one, which takes anything."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream, self.reader_is_gone, self._noted = stream, False, False

    def write(self, text: str) -> int:
        self._attempt(lambda stream: stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(lambda stream: stream.flush())

    def __getattr__(self, name: str) -> Any:  # isatty, encoding and the like
        return getattr(self._stream, name)

    def _attempt(self, action: Callable[[TextIO], object]) -> None:
        if self._stream is None:
            return
        try:
            action(self._stream)
        except OSError as error:
            self.reader_is_gone |= error.errno == errno.EPIPE
            if error.errno in (errno.EPIPE, errno.EIO):  # for good
                discard_output(self._stream)
            elif not self._noted:
                self._noted = True
                with suppress(OSError, AttributeError):
                    print(f"Note: the output cannot be written ({error.strerror}): going on", file=sys.stderr)


def discard_output(stream: TextIO) -> None:
    """Let a stream that can no longer be written to take, and lose, all that comes, its own last flush among it."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


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
