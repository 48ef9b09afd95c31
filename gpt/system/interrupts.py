"""Signals: the first asks a command to end, the second ends it at once, whatever it is doing.

Ctrl-C (SIGINT), SIGTERM, SIGHUP (the terminal is gone), SIGUSR1 and SIGUSR2 (a cluster's warnings) all ask. A signal
that was ignored when the command started, as nohup and a shell's `&` arrange, stays ignored.

Python runs a handler between two bytecodes of the main thread, so not while that is inside a call of NumPy's, which may
take seconds; two signals meanwhile run it once. So a thread listens too: the interpreter writes the number of each
signal into a pipe as it arrives (signal.set_wakeup_fd), and NumPy lets other threads run meanwhile.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

GRACE = 1.0  # seconds that a step may still take after a signal before it is dropped
ECHO = 0.05  # seconds: timeout(1) sends SIGTERM to its command and to its group, which are not two requests

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGBREAK")
    if hasattr(signal, name)
)

SIGPIPE = getattr(signal, "SIGPIPE", 13)  # also where a system has none: nobody reads the output any more


class Interrupted(KeyboardInterrupt):
    """A signal asks the command to end; nothing defers it."""


class Dropped(BaseException):
    """Work inside `Deferred.droppable` was given up, because a signal came and it took too long.

    It is no Exception, so that nobody takes it for an error.
    """


class Deferred:
    """Signals while work goes on that is to be saved first. `received` is the number of the first, None before it."""

    def __init__(self, announce: Callable[[], object], farewell: Callable[[], str]) -> None:
        self.received: int | None = None
        self.announce, self.farewell = announce, farewell
        self._due = float("inf")  # when droppable work is dropped
        self._depth = 0

    def receive(self, number: int) -> None:
        if self.received is None:
            self.received, self._due = number, time.monotonic() + GRACE

    @contextmanager
    def droppable(self) -> Iterator[None]:
        """Work that may be given up at any moment. Raises Dropped, out of it, GRACE seconds after a signal.

        A single call of NumPy's is not cut short: the work after it is given up.
        """
        self._depth += 1
        try:
            self.drop_if_due()
            yield
        finally:
            self._depth -= 1

    def drop_if_due(self) -> None:
        if self._depth and time.monotonic() >= self._due:
            raise Dropped


_is_at_once = True  # whether nothing has begun that an exit would leave half done
_deferred: Deferred | None = None
_first: tuple[int, float] | None = None  # number and time of the first signal that the listener heard of
_raised: int | None = None  # number of the first signal that raised Interrupted
_listener: threading.Thread | None = None


def begin() -> None:
    """From now on a signal ends the process quietly. Called first by a command, whose imports take a while."""
    with suppress(ValueError):  # not the main thread
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                signal.signal(number, _handle)


@contextmanager
def raised() -> Iterator[None]:
    """Inside the `with`, a signal raises Interrupted in the main thread, so that temporary files go."""
    global _is_at_once
    _listen()
    _is_at_once = False
    try:
        yield
    finally:
        _is_at_once = True


@contextmanager
def deferred(announce: Callable[[], object], farewell: Callable[[], str]) -> Iterator[Deferred]:
    """Inside the `with`, the first signal raises nothing: `announce` is called, at once and in another thread.

    `farewell` gives the last words if a second signal ends the process.
    """
    global _deferred
    _deferred = Deferred(announce, farewell)
    try:
        yield _deferred
    finally:
        _deferred = None


def status() -> int:
    """The exit status of a command that a signal has ended, as a shell gives it: 130 for Ctrl-C."""
    return 128 + (_raised or signal.SIGINT)


def _handle(number: int, _frame: object) -> None:
    """The handler, in the main thread, between two bytecodes."""
    global _raised
    if _is_at_once:
        with suppress(OSError, AttributeError):
            os.write(2, b"Interrupted\n")
        os._exit(128 + number)
    if _listener is None:
        _receive(number)
    if _deferred is None:
        _raised = _raised or number
        raise Interrupted
    _deferred.receive(number)
    _deferred.drop_if_due()


def _nudged(_number: int, _frame: object) -> None:
    if _deferred is not None:
        _deferred.drop_if_due()


def _listen() -> None:
    """Start the thread that hears of signals as they arrive. If there is none to be had, the handler does its work."""
    global _listener
    if _listener is not None or threading.current_thread() is not threading.main_thread():
        return
    if os.name == "nt":  # which takes sockets only
        import socket

        heard, written = socket.socketpair()
        read, handle = heard.recv, written.fileno()
        written.setblocking(False)
        _listen.sockets = heard, written  # type: ignore[attr-defined]  or they would be closed
    else:
        pipe, handle = os.pipe()
        os.set_blocking(handle, False)
        read = lambda size: os.read(pipe, size)  # noqa: E731
    thread = threading.Thread(target=_hear, args=(read,), daemon=True)
    with suppress(RuntimeError):
        thread.start()
        _listener = thread
        signal.set_wakeup_fd(handle, warn_on_full_buffer=False)
        if hasattr(signal, "SIGURG"):  # which nobody sends, and whose default is to do nothing
            signal.signal(signal.SIGURG, _nudged)


def _hear(read: Callable[[int], bytes]) -> None:
    while numbers := read(64):
        for number in numbers:
            if number in SIGNALS:
                _receive(number)


def _receive(number: int) -> None:
    if _first is not None and _is_again(number):
        _end_at_once(number)
    is_first = _first is None
    _remember(number)
    work = _deferred
    if work is not None:
        work.receive(number)
        if is_first:
            _aside(work.announce)
            if hasattr(signal, "pthread_kill"):
                _aside(_nudge_later)


def _remember(number: int) -> None:
    global _first
    if _first is None:
        _first = number, time.monotonic()


def _is_again(number: int) -> bool:
    """Whether a signal after the first asks for an end at once.

    Ctrl-C does. SIGTERM does after itself or Ctrl-C; after a warning (SIGHUP, SIGUSR1, SIGUSR2) it is the request
    that the warning announced. Warnings never do: a terminal that is closed may send two.
    """
    first, since = _first  # type: ignore[misc]
    if number == signal.SIGTERM:
        return first == signal.SIGINT or (first == signal.SIGTERM and time.monotonic() - since > ECHO)
    return number not in (getattr(signal, name, None) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2"))


def _nudge_later() -> None:
    """Have the main thread look, once it is time, whether it is doing something that can be dropped."""
    time.sleep(GRACE + 0.01)
    with suppress(OSError):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGURG)  # type: ignore[arg-type]


def _end_at_once(number: int) -> None:
    work = _deferred
    farewell = work.farewell() if work is not None else "Interrupted"
    _aside(lambda: os.write(2, farewell.encode() + b"\n"))
    if sys.stdout and sys.stdout.isatty():
        _aside(lambda: os.write(1, b"\x1b[?25h"))  # shows the cursor, which a progress bar hides
    os._exit(128 + number)


def _aside(action: Callable[[], object]) -> None:
    """Do something in a thread of its own, and wait for it a moment: a terminal may be stopped (Ctrl-S), or gone."""

    def attempt() -> None:
        with suppress(OSError, ValueError):
            action()

    with suppress(RuntimeError):
        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(0.0 if action is _nudge_later else 0.2)
