"""The end of a process: other ranks are told of it first, and the terminal's cursor is shown again."""

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

_tell: Callable[[str, int, bool], None] | None = None
_is_first = True  # of the ranks
_said: set[str] = set()


def others(tell: Callable[[str, int, bool], None] | None, is_first: bool = True) -> None:
    """Set the function that tells the other ranks (see `tell_others`). None: this process works alone.

    `is_first` says whether this process is the first rank.
    """
    global _tell, _is_first
    _tell, _is_first = tell, is_first


def has_others() -> bool:
    """Whether there is a function that tells other ranks."""
    return _tell is not None


def tell_others(message: str, status: int, at_once: bool = False) -> None:
    """Tell the other ranks, if there are any, that this process ends with an error. "" stands for a signal.

    Returns if this process is to print the error itself. Otherwise raises SystemExit: the error follows from another
    rank's, or the first rank prints it. With `at_once` the process ends as soon as this returns.
    """
    if _tell is not None:
        _tell(message, status, at_once)


def say(line: str) -> None:
    """Print a line on standard error from any thread, above a progress bar. Waits a second at most."""
    clear = "\r\x1b[K" if sys.stderr and sys.stderr.isatty() else ""
    aside(lambda: os.write(2, f"{clear}{line}\n".encode(errors="backslashreplace")))


def say_once(line: str) -> None:
    """As `say`, but only the first rank prints the line, and only the first time."""
    if _is_first and line not in _said:
        _said.add(line)
        say(line)


def at_once(status: int) -> NoReturn:
    """End this process now, whatever its threads do."""
    if sys.stdout and sys.stdout.isatty():
        aside(lambda: os.write(1, b"\x1b[?25h"))  # shows the cursor, which a progress bar hides
    os._exit(status)


def aside(action: Callable[[], object]) -> None:
    """Do something in another thread, and wait a second for it at most: a terminal may be stopped (Ctrl-S), or gone."""

    def attempt() -> None:
        with suppress(OSError, ValueError, SystemExit):  # `tell_others` may raise the last
            action()

    with suppress(RuntimeError):
        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(1.0)  # a busy machine may take a while to start it
