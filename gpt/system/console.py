"""The output of a command: plain lines, and on a terminal a live progress bar under them.

Work that takes days must not end because its output cannot be written. So a line that cannot be written is dropped,
and the three reasons for it (a closed pipe, a closed terminal, a full disk) are told apart here.
"""

import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console as RichConsole


class Console:
    """Prints to standard output. A pipe or a file gets plain lines only; a terminal also gets progress bars.

    A line that cannot be written never raises:
    - If the reader of a pipe has gone (`| head`), `reader_is_gone` is True. Training then stops as it does for Ctrl-C.
    - If the terminal was closed, work goes on without it. The SIGHUP that comes with it asks for an end.
    - If the disk under a log is full, a note says so. Lines are written again once there is space.

    A `silent` one prints nothing at all.
    """

    def __init__(self, silent: bool = False) -> None:
        self._terminal: RichConsole | None = None
        self._output = _Output(None if silent else sys.stdout)
        self._silent = silent
        # A thread may print while another one begins or ends a bar. rich would draw that twice, and a line beside it.
        self._bar_changes = threading.RLock()
        if not silent and sys.stdout and sys.stdout.isatty():
            from rich.console import Console as Terminal  # imported here, because a piped run and `--help` need no rich

            self._terminal = Terminal(file=cast(TextIO, self._output))  # `__getattr__` gives it the rest of a stream

    @property
    def reader_is_gone(self) -> bool:
        """Whether standard output is a pipe that nobody reads any more."""
        return self._output.reader_is_gone

    def line(self, text: str) -> None:
        """Print one line (or several), above the progress bar if there is one. A terminal wraps it between words."""
        if self._terminal:
            from rich.text import Text  # keeps "[bold]" and ":cat:" as they are

            with self._bar_changes:
                self._terminal.print(Text(text))
        else:
            print(text, file=self._output, flush=True)

    def urgent(self, text: str) -> None:
        """Print one line, and on standard error too if standard output is not the terminal that the user looks at."""
        self.line(text)
        if self._silent:
            return
        if self.reader_is_gone or (not self._terminal and sys.stderr and sys.stderr.isatty()):
            with suppress(OSError, AttributeError):
                print(text, file=sys.stderr, flush=True)

    @contextmanager
    def progress(self, name: str, total: int, completed: int = 0) -> Iterator[Callable[..., None]]:
        """A progress bar for the `with`. Yields `advance(done, status=…, total=…)`; `status` is a text beside the bar.

        The bar, its name, percentage, status and time left fill one line of the terminal.

        Example:
            with console.progress("Encoding", total=1000) as advance:
                advance(400, status="file 2")
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
        bar = Progress(*columns, console=self._terminal, transient=True, expand=True)
        try:
            with self._bar_changes:
                bar.start()
                task = bar.add_task(name, total=total, completed=completed, status="")
            yield lambda done, **changes: bar.update(task, completed=done, **changes)
        finally:
            with self._bar_changes:
                bar.stop()


class _Output:
    """A text stream whose writes never raise OSError (see `Console`). None stands for a closed stream."""

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
            if error.errno in (errno.EPIPE, errno.EIO):  # the reader or the terminal will not come back
                discard_output(self._stream)
            elif not self._noted:
                self._noted = True
                with suppress(OSError, AttributeError):
                    print(f"Note: the output cannot be written ({error.strerror}): going on", file=sys.stderr)


def discard_output(stream: TextIO) -> None:
    """Send whatever is still written to a broken stream, its own last flush included, to the null device."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def duration(seconds: float) -> str:
    """A time in words: "45 s", "12 min", "3 h 20 min", "2 days 4 h"."""
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
    """A number of bytes in words: "312 MiB", "1.4 GiB"."""
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
