"""The ranks' agreement on the step to stop after.

One rank hears a signal and tells the first rank, which has all ranks hold: each says which step it has begun last, and
begins no other. The largest of these is the last step for everybody. For example, on three ranks:

    rank                   0    1    2
    has begun              7    8    7      rank 1 gets SIGTERM
    may begin step 8      yes   -   yes     the ranks behind go on to step 8
    may begin step 9       no   no   no     and stopped_by is 15 everywhere

The messages, between the first rank and each other one:

    signal  ->  the first rank     a rank has received this signal
    hold    <-  the first rank     begin no step until the ranks have agreed
    held    ->  the first rank     the last step that a rank has begun
    stop    <-  the first rank     the last step of all, and the signal
"""

import threading
from collections.abc import Callable
from typing import Any, Protocol

BEFORE_ANY = -1  # stands for the last step of a rank that has begun none


class Send(Protocol):
    """Sends a message: from the first rank to all others, from another rank to the first."""

    def __call__(self, kind: str, **values: Any) -> None: ...


class Agreement:
    """This rank's part of the agreement. The watch calls `hear` and `receive`; the main thread begins steps.

    `changed` guards what both threads read, and is notified when the ranks have agreed.
    """

    def __init__(self, rank: int, size: int, send: Send, changed: threading.Condition) -> None:
        self._rank, self._size, self._send, self._changed = rank, size, send, changed
        self.received: Callable[[], int | None] = lambda: None  # the number of a signal that this rank has received
        self.stopped_by: int | None = None  # number of the signal, once the ranks have agreed to stop
        self._last: int | None = None  # the last step of all, once agreed on
        self._begun = BEFORE_ANY  # the last step that this rank's main thread has begun
        self._is_held = False
        self._has_told = False  # of the signal that was received
        self._stopping: int | None = None  # at the first rank: the signal for which it has asked all to hold
        self._held: dict[int, int] = {}  # at the first rank: the last step that each rank has begun

    @property
    def is_pending(self) -> bool:
        """Whether the ranks are still finding out the last step: no step may begin meanwhile."""
        return self._is_held and self._last is None

    def begin(self, step: int) -> bool:
        """Begin `step`, unless it comes after the last one. To be called with the lock held, and not while pending."""
        if self._last is not None and step > self._last:
            return False
        self._begun = step
        return True

    def hear(self) -> None:
        """Tell the first rank of the signal that this rank has received, if it has received one."""
        if not self._has_told and (number := self.received()) is not None:
            self._has_told = True
            if self._rank:
                self._send("signal", number=number)
            else:
                self._ask_to_hold(number)

    def receive(self, rank: int, kind: str, message: dict[str, Any]) -> None:
        """Take in a message of another rank. Messages that are not of the agreement are ignored."""
        if kind == "signal":
            self._ask_to_hold(message["number"])
        elif kind == "hold":
            self._send("held", step=self._hold())
        elif kind == "held":
            self._note_held(rank, message["step"])
        elif kind == "stop":
            self._stop_after(message["step"], message["number"])

    def _hold(self) -> int:
        """Let no step begin until the ranks have agreed. Returns the last that has begun."""
        with self._changed:
            self._is_held = True
            return self._begun

    def _stop_after(self, step: int, number: int) -> None:
        with self._changed:
            self._last, self.stopped_by = step, number
            self._changed.notify_all()

    # ---- at the first rank ----------------------------------------------------------------------------------------

    def _ask_to_hold(self, number: int) -> None:
        if self._stopping is None:
            self._stopping = number
            self._send("hold")
            self._note_held(0, self._hold())

    def _note_held(self, rank: int, step: int) -> None:
        self._held[rank] = step
        if len(self._held) == self._size and self._stopping is not None:
            last = max(self._held.values())
            self._send("stop", step=last, number=self._stopping)
            self._stop_after(last, self._stopping)
