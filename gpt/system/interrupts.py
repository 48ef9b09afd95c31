"""Signals: the first one asks a command to end, the second one ends it at once, whatever it is doing.

Ctrl-C (SIGINT), SIGTERM, SIGHUP (the terminal was closed), SIGUSR1 and SIGUSR2 (a cluster's warnings) all ask. A signal
that was ignored when the command started, as nohup and a shell's `&` arrange, stays ignored.

A command goes through three stages:
    begin()     it imports its modules; a signal ends the process quietly
    raised()    it works; a signal raises Interrupted, so that `finally` blocks remove temporary files
    deferred()  it trains, and must save before it ends; a signal is noted, and the work looks at `received`

Two more are for work that goes on after Ctrl-C: `caught`, in a command that talks with its user, and `borrowed`, in a
program that uses hipgpt as a library.

Python runs a handler between two bytecodes of the main thread. It cannot run while NumPy computes there, which may take
seconds, and it runs only once for two signals in that time. So a second thread listens too: the interpreter writes the
number of each signal into a pipe as it arrives (signal.set_wakeup_fd), and NumPy lets other threads run meanwhile.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from gpt.system import ending

GRACE = 1.0  # seconds that a step may still take after a signal before it is dropped
MISSED = 0.05  # seconds after which a Ctrl-C is told once more to a main thread that may have missed it
ECHO = 0.05  # seconds in which two SIGTERM count as one: timeout(1) sends it to its command and to its group


def _existing(*names: str) -> set[int]:
    """The numbers of these signals, without those that Windows lacks."""
    return {int(getattr(signal, name)) for name in names if hasattr(signal, name)}


WARNINGS = _existing("SIGHUP", "SIGUSR1", "SIGUSR2")
SIGNALS = _existing("SIGINT", "SIGTERM", "SIGBREAK") | WARNINGS
SIGPIPE: int = getattr(signal, "SIGPIPE", 13)  # stands for an output that nobody reads any more, also on Windows
_NUDGE: int | None = getattr(signal, "SIGURG", None)  # nobody else sends it, and by default it does nothing


class Interrupted(KeyboardInterrupt):
    """A signal asks the command to end, and there is nothing to save first."""


class Dropped(BaseException):
    """Work inside `Deferred.droppable` was given up, because a signal came and the work took too long.

    It is not an Exception, so that nobody takes it for an error.
    """


class Deferred:
    """The requests to end while `deferred` work goes on. `received` is the first signal's number, None before it."""

    def __init__(self, announce: Callable[[], object], farewell: Callable[[], str]) -> None:
        self.received: int | None = None
        self.announce, self.farewell = announce, farewell
        self.is_announced = False
        self._due = float("inf")  # the time from which droppable work is dropped
        self._depth = 0  # how many `droppable` blocks the main thread is in

    def receive(self, number: int) -> None:
        if self.received is None:
            self.received, self._due = number, time.monotonic() + GRACE

    def wait_for_announcement(self) -> None:
        """Wait until the other thread has told the user, for a second at most. Else short work could end before that.

        A lock would not do: a second signal may run the same handler inside of the first one's wait.
        """
        until = time.monotonic() + 1.0
        while not self.is_announced and time.monotonic() < until:
            time.sleep(0.001)

    @contextmanager
    def droppable(self) -> Iterator[None]:
        """A block of work that may be given up at any moment: Dropped is raised in it GRACE seconds after a signal.

        A single NumPy call is not cut short; Dropped is raised after it.
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


class Caught:
    """The presses of Ctrl-C inside `caught`."""

    def __init__(self) -> None:
        self.is_pressed = False  # since `raised`
        self._raises = False

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Inside the `with`, Ctrl-C raises KeyboardInterrupt in the main thread, such as out of `input`."""
        self.is_pressed, self._raises = False, True
        try:
            yield
        finally:
            self._raises = False

    def press(self) -> None:
        if self._raises:
            raise KeyboardInterrupt
        self.is_pressed = True


_ends_at_once = True  # before and after `raised`, when an exit leaves nothing half done
_deferred: Deferred | None = None  # inside `deferred`
_caught: Caught | None = None  # inside `caught`
_is_borrowed = False  # inside `borrowed`
_first: tuple[int, float] | None = None  # number of the first signal inside `raised`, and when it was announced
_is_answered = False  # whether `deferred` work has ended because of it
_raised: int | None = None  # number of the first signal that raised Interrupted
_is_listening = False


def begin() -> None:
    """From now on, a signal ends the process quietly. A command calls this first, because its imports take a while."""
    with suppress(ValueError):  # not the main thread
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                signal.signal(number, _handle)


@contextmanager
def raised() -> Iterator[None]:
    """Inside the `with`, a signal raises Interrupted in the main thread, so that temporary files are removed.

    Example:
        begin()
        try:
            with raised():
                command()
        except KeyboardInterrupt:
            sys.exit(status())
    """
    global _ends_at_once
    _listen()
    _ends_at_once = False
    try:
        yield
    finally:
        _ends_at_once = True


@contextmanager
def deferred(announce: Callable[[], object], farewell: Callable[[], str]) -> Iterator[Deferred]:
    """Inside the `with`, which stands inside that of `raised`, the first signal raises nothing in the main thread.

    Instead `announce` is called at once, in another thread, and the yielded object's `received` is set. A second signal
    ends the process; `farewell` returns the last line that it prints.

    Example:
        with deferred(lambda: print("saving after this step"), lambda: "nothing was saved") as stop:
            while stop.received is None:
                with suppress(Dropped), stop.droppable():
                    gradients()  # may be given up: no result is kept yet
                update()
        save()
    """
    global _deferred, _is_answered
    _deferred = work = Deferred(announce, farewell)
    try:
        yield work
    finally:
        _is_answered = work.received is not None
        _deferred = None


@contextmanager
def caught() -> Iterator[Caught]:
    """Inside the `with`, which stands inside that of `raised`, Ctrl-C asks for no end of the command, however often.

    It is noted in the yielded object, so that the command ends what it is doing, and goes on. Other signals work as
    usual.
    """
    global _caught
    _caught = Caught()
    try:
        yield _caught
    finally:
        _caught = None


@contextmanager
def borrowed() -> Iterator[None]:
    """Inside the `with`, Ctrl-C counts for `deferred` work in a program that has signal handlers of its own.

    The first one asks the work to end, as in a command. Without such work, or for the second time, it raises
    KeyboardInterrupt. Afterwards the program's handler is back. Does nothing outside of the main thread, because Python
    handles signals there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _frame: object) -> None:
        work = _deferred
        if work is None or work.received is not None:
            raise KeyboardInterrupt
        work.receive(number)
        ending.aside(work.announce)

    global _is_borrowed
    before, _is_borrowed = signal.signal(signal.SIGINT, handle), True
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        _is_borrowed = False


def status() -> int:
    """The exit status of a command that a signal has ended, as a shell gives it: 130 for Ctrl-C."""
    return 128 + (_raised or signal.SIGINT)


# ---- in the main thread, between two bytecodes ---------------------------------------------------------------------


def _handle(number: int, _frame: object) -> None:
    global _raised
    if _caught is not None and number == signal.SIGINT:
        _caught.press()
        return
    if _is_answered and _first is not None and not _insists(number, time.monotonic(), *_first):
        return  # such as the echo of a SIGTERM after which small work has been saved already
    if _ends_at_once:
        with suppress(OSError):
            os.write(2, b"Interrupted\n")
        os._exit(128 + number)
    if not _is_listening:
        _receive(number)
    if _deferred is None:
        _raised = _raised or number
        raise Interrupted
    _deferred.receive(number)
    _deferred.wait_for_announcement()
    _deferred.drop_if_due()


def _handle_nudge(_number: int, _frame: object) -> None:
    if _deferred is not None:
        _deferred.drop_if_due()


# ---- in the thread that listens, as soon as a signal arrives -------------------------------------------------------


def _listen() -> None:
    """Start the thread that hears of signals as they arrive. If none can be started, `_handle` does its work."""
    global _is_listening
    if _is_listening or threading.current_thread() is not threading.main_thread():
        return
    with suppress(OSError, RuntimeError):
        read, handle, kept_open = _wakeup_channel()
        threading.Thread(target=_hear, args=(read, kept_open), daemon=True).start()
        _is_listening = True
        signal.set_wakeup_fd(handle, warn_on_full_buffer=False)
        if _NUDGE is not None:
            signal.signal(_NUDGE, _handle_nudge)


def _wakeup_channel() -> tuple[Callable[[int], bytes], int, object]:
    """A function that reads bytes, the descriptor that they are written to, and an object that keeps this open.

    It is a pipe; on Windows, where the interpreter writes only to sockets, a pair of sockets.
    """
    if sys.platform == "win32":
        import socket

        hearing, telling = socket.socketpair()
        telling.setblocking(False)
        return hearing.recv, telling.fileno(), telling
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    return partial(os.read, reading), writing, None


def _hear(read: Callable[[int], bytes], _kept_open: object) -> None:
    while numbers := read(64):
        for number in numbers:
            if number in SIGNALS:
                _receive(number)


def _receive(number: int) -> None:
    """Take note of a signal: announce the end if it is the first, and end at once if it insists."""
    global _first
    if number == signal.SIGINT and (_is_borrowed or _caught is not None):
        if _caught is not None:
            _nudge_after(MISSED)
        return  # the main thread's handler does all else
    now, work = time.monotonic(), _deferred
    if _first is not None and _insists(number, now, *_first):
        _end_at_once(number)
    is_first = _first is None
    if _first is None:
        _first = number, now
    if work is not None:
        work.receive(number)
        if is_first:
            ending.aside(work.announce)
            _first = number, time.monotonic()  # an echo that came meanwhile is read now
            _nudge_after(GRACE + 0.01)
        work.is_announced = True


def _insists(number: int, now: float, first: int, since: float) -> bool:
    """Whether signal `number`, `now`, asks for an end at once, if the `first` one is known since the time `since`.

    Ctrl-C does. SIGTERM does after Ctrl-C, or after another SIGTERM unless that is its echo; after a warning it is the
    request that the warning foretold. A warning never does: a terminal that is closed may send two.
    """
    if number == signal.SIGTERM:
        return first == signal.SIGINT or (first == signal.SIGTERM and now - since > ECHO)
    return number not in WARNINGS


def _nudge_after(seconds: float) -> None:
    """Wake the main thread after so many seconds, so that it runs the handlers of all signals that have come.

    There are two reasons: `_handle_nudge` gives up work whose GRACE is over. And a Ctrl-C that arrives just before
    `input` begins to wait for a key does not wake it, so that nothing would happen until the user presses a key.
    """
    if _NUDGE is not None:
        timer = threading.Timer(seconds, signal.pthread_kill, (threading.main_thread().ident, _NUDGE))
        timer.daemon = True
        with suppress(RuntimeError):
            timer.start()


def _end_at_once(number: int) -> None:
    work, status = _deferred, 128 + number
    farewell = work.farewell() if work is not None else "Interrupted"
    if farewell:
        ending.say(farewell)
    ending.aside(lambda: ending.tell_others("", status, at_once=True))  # the main thread may end by this
    ending.at_once(status)
