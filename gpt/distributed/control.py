"""The control plane: all messages between the ranks of a run, except their arrays.

A thread in each rank, the watch, answers at once, whatever the main thread does. It carries values that the ranks share
before they begin, their agreement on the step to stop after (agreement.py), their failures, and a heartbeat every
second. The first rank is in the middle: each other rank has a link to it alone.

A failure. The first one ends all ranks. One line on standard error names the rank that failed and its host. It comes
from the first rank; if that one is lost, from the lowest rank that is left. A main thread that waits here gets `Ended`;
one that has not ended after GRACE seconds, because it waits for a collective operation, is ended.
"""

import atexit
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any, NamedTuple

from gpt.distributed import keeper
from gpt.distributed.agreement import Agreement
from gpt.distributed.launch import PATIENCE, Place, meeting_point
from gpt.distributed.links import Link, Member, accept, connect
from gpt.errors import one_line
from gpt.system import ending, lock

TICK = 0.2  # seconds between two rounds of the watch, if no message comes
GRACE = 2.0  # seconds in which a main thread may end by itself after a failure
REAPING = 1.0  # seconds after that in which the children of the first rank may end by themselves
LATECOMING = 5.0  # seconds for which the first rank waits with its failure for ranks that have not come yet
SAYING = 1.0  # seconds in which a failure is told at the most
CONSEQUENCE = 0.5  # seconds in which an error of this rank may turn out to follow from another's end


class Ended(SystemExit):
    """The ranks end because one of them has failed. Everything has been said; `code` is the exit status."""


class Failure(NamedTuple):
    """Why the ranks end. `text` is empty for a signal. A rank that hangs is killed."""

    rank: int
    text: str
    status: int
    hangs: bool = False


class Control:
    """This rank's part of the control plane. Methods are for the main thread.

    share, gather, may_begin and close raise Ended if a rank has failed.

    Example:
        control = Control(place)
        plan = control.share(make_plan() if place.rank == 0 else None)
        control.listen(lambda: stop.received)
        for step in range(1, plan["steps"] + 1):
            if not control.may_begin(step):
                break
            take(step)
        control.close()
    """

    def __init__(self, place: Place, *, patience: float = PATIENCE, silence: float = 20.0) -> None:
        """Connect to the first rank; or, at the first rank, listen to the others, which may come later.

        Ranks must come within `patience` seconds. A rank that says nothing for `silence` seconds hangs, or its host
        is gone. Raises UserError if the ranks cannot meet.
        """
        self.place, self.patience, self.silence = place, patience, silence
        self._changed = threading.Condition()  # guards what follows
        self._links: dict[int, Link] = {}  # by the rank at the other end
        self._members: list[Member] = []  # all ranks, once they have come
        self._values: dict[int, deque[Any]] = {rank: deque() for rank in range(place.size)}  # that ranks have sent
        self._is_ending = False  # whether a failure is known
        self._is_told = False  # whether this rank has told its own end
        self._failure: Failure | None = None  # it, once all has been said
        self._is_confirmed = False  # whether the first rank has said it
        self._deadline = 0.0  # when a main thread that has not ended after a failure is ended
        self._is_closed = False
        self._agreement = Agreement(place.rank, place.size, self._send, self._changed)

        me = Member(place.rank, socket.gethostname(), os.getpid(), lock.host())
        self._me, self._since = me, time.monotonic()
        meeting = meeting_point(place)
        self._children = meeting.children
        atexit.register(self._at_exit)
        ending.others(self._tell, is_first=place.rank == 0)
        if meeting.listener is not None:
            self._listener = meeting.listener
            self._members = [me]
            accept(meeting.listener, meeting.key, self._arrive)
        else:
            try:
                link = connect(meeting.addresses, meeting.port, meeting.key, patience, place.launcher != "gpus")
            except BaseException:
                ending.others(None)
                if place.launcher == "gpus" and place.rank > 1:  # rank 1 says it
                    raise Ended(2) from None
                raise
            link.member = Member(0, meeting.addresses[0], 0, "")  # until it says more
            self._links[0] = link
            link.send("hello", member=me, size=place.size)
        self._watch = threading.Thread(target=self._run, daemon=True)
        self._watch.start()

    # ---- for the main thread ----------------------------------------------------------------------------------

    def share(self, value: Any = None) -> Any:
        """The first rank's `value`, on every rank: anything that JSON has, of a few KiB. Others' is ignored."""
        if self.place.rank == 0:
            self._wait(self._is_complete)
            self._broadcast("value", value=value)
            return value
        self._wait(lambda: bool(self._values[0]))
        return self._values[0].popleft()

    def gather(self, value: Any) -> list[Any]:
        """The `value` of each rank, in their order, on the first rank; [] on the others. JSON of a few KiB."""
        if self.place.rank:
            self._links[0].send("value", value=value)
            return []
        self._values[0].append(value)
        self._wait(lambda: all(self._values.values()))
        return [self._values[rank].popleft() for rank in range(self.place.size)]

    def listen(self, received: Callable[[], int | None]) -> None:
        """From now on, the ranks stop when `received` returns the number of a signal. The watch asks it often."""
        self._agreement.received = received

    def may_begin(self, step: int) -> bool:
        """Whether to take `step`. False: the ranks have agreed to stop before it. Waits while they agree."""
        with self._changed:
            self._wait(lambda: not (self._is_ending or self._agreement.is_pending))
            return self._agreement.begin(step)

    @property
    def stopped_by(self) -> int | None:
        """The number of the signal that the ranks stop for, once they have agreed to."""
        return self._agreement.stopped_by

    def fail(self, message: str, status: int = 2) -> None:
        """This rank ends with an error: tell all, who end with `status`. An empty message stands for a signal."""
        text = f"{self._me}: {one_line(message)}" if message else ""
        self._end(Failure(self.place.rank, text, status), speaks=self.place.rank == 0)
        if self.place.rank:  # mpirun kills all ranks as soon as one has ended
            with self._changed:
                self._changed.wait_for(lambda: self._is_confirmed, SAYING)

    def close(self) -> None:
        """All work is done: wait until all ranks say so. The first rank also waits for its children to end."""
        if self.place.rank == 0:
            self._wait(lambda: self._is_complete() and all(link.is_done for link in self._links.values()))
            self._broadcast("goodbye")
        else:
            self._links[0].send("goodbye")
            self._wait(lambda: self._links[0].is_done)
        with self._changed:
            self._is_closed = True
        ending.others(None)
        self._watch.join(5.0)
        keeper.tell(watching=False)
        self._reap(time.monotonic() + 10.0)
        atexit.unregister(self._at_exit)

    def _wait(self, is_true: Callable[[], bool]) -> None:
        """Return when `is_true` (asked with the lock held); raise Ended if a rank has failed."""
        with self._changed:
            while not is_true():
                if self._failure is not None:
                    raise Ended(self._failure.status)
                self._changed.wait(0.5)  # Windows hears Ctrl-C only between two waits

    def _is_complete(self) -> bool:
        return len(self._members) == self.place.size

    def _awaits_others(self) -> bool:
        """Whether other ranks may still come, to whom the first rank must tell a failure. It kills its children."""
        is_early = time.monotonic() < self._since + self.patience
        return is_early and not (self.place.rank or self._children) and len(self._links) + 1 < self.place.size

    def _open_links(self) -> dict[int, Link]:
        with self._changed:
            return {rank: link for rank, link in self._links.items() if link.is_open}

    def _broadcast(self, kind: str, **values: Any) -> None:
        for link in self._open_links().values():
            link.send(kind, **values)

    def _send(self, kind: str, **values: Any) -> None:
        """From the first rank to all others; from another rank to the first."""
        if self.place.rank:
            self._links[0].send(kind, **values)
        else:
            self._broadcast(kind, **values)

    # ---- how a rank ends --------------------------------------------------------------------------------------

    def _tell(self, message: str, status: int, at_once: bool) -> None:
        """Tell all that this process ends with an error, or by a signal (no message). gpt/system/ending.py calls it."""
        with self._changed:
            if status == 1:
                self._changed.wait_for(lambda: self._is_ending, CONSEQUENCE)
            is_others = self._is_ending and not self._is_told  # a signal is told twice on its way out
            self._is_told = not is_others
        self.fail(message, status)
        if at_once:
            self._reap(0.0)
        if is_others or (status != 1 and (message or self.place.rank)):
            raise Ended(self._failure.status if self._failure else status)

    def _end(self, failure: Failure, speaks: bool) -> None:
        """All ranks end because of this failure, unless they end because of another already."""
        with self._changed:
            if self._is_ending:
                self._changed.wait_for(lambda: self._failure is not None, SAYING)
            if self._is_ending or self._is_closed:
                return
            self._is_ending = True
        if speaks and failure.text:
            ending.say(f"Error: {failure.text}")
        self._broadcast("failure", **failure._asdict())
        if failure.hangs:
            self._kill(failure.rank)
        with self._changed:  # only now may the main thread end
            self._failure = failure
            self._deadline = time.monotonic() + (LATECOMING if self._awaits_others() else GRACE)
            self._changed.notify_all()

    def _kill(self, rank: int) -> None:
        """Kill a rank that hangs, if this is the lowest other rank that can send it a signal."""
        if rank < len(self._members):
            target = self._members[rank]
            able = [m.rank for m in self._members if m.namespace == target.namespace and m.rank != rank]
            if able and able[0] == self.place.rank:
                with suppress(OSError):
                    os.kill(target.process, getattr(signal, "SIGKILL", signal.SIGTERM))

    def _reap(self, deadline: float) -> None:
        """Wait for the children, and kill those that have not ended at that time."""
        for child in self._children:
            while child.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            child.kill()
            child.wait()

    def _at_exit(self) -> None:
        """At the end of Python. After a failure nothing else may hold the process up, such as MPI's own end."""
        with self._changed:
            if self._is_ending:
                self._changed.wait_for(lambda: self._failure is not None, SAYING)
            failure = self._failure
            if failure:
                self._changed.wait_for(lambda: not self._awaits_others(), self._deadline - time.monotonic())
        self._reap(self._deadline + REAPING if failure else 0.0)
        if failure:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError, AttributeError):
                    stream.flush()
            os._exit(failure.status)

    # ---- the watch --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        tick = min(TICK, self.silence / 20)
        last = beaten = time.monotonic()
        while not self._is_closed:
            links = self._open_links()
            for rank in self._with_messages(links, tick):
                self._receive(rank, links[rank])
            now = time.monotonic()
            if now - last > 0.15 * self.silence:  # this process stood still: it cannot tell how long others did
                for link in self._open_links().values():  # also of a rank that has come meanwhile
                    link.heard = now
            last = now
            if self._failure is not None:
                if now > self._deadline:
                    self._reap(self._deadline + REAPING)
                    ending.at_once(self._failure.status)
                continue
            if now - beaten > self.silence / 20:
                beaten = now
                self._broadcast("beat")
            if self._is_complete():
                self._agreement.hear()
            self._look_for_silent(links, now)
            self._look_for_missing(now)
        for link in links.values():
            link.close()

    def _with_messages(self, links: dict[int, Link], seconds: float) -> list[int]:
        """The ranks whose links have a message, or have ended. Waits for it, but no longer than `seconds`."""
        if not links:
            time.sleep(seconds)
            return []
        candidates: list[Any] = list(links.values())
        ready: list[Any] = wait(candidates, seconds)
        return [rank for rank, link in links.items() if link in ready]

    def _receive(self, rank: int, link: Link) -> None:
        message = link.receive()
        if message is None:
            self._lose(rank, link)
            return
        kind = message.pop("kind")
        if kind in ("welcome", "failure") and self.place.rank:
            keeper.tell(watching=True)  # all have come: from now on the ranks themselves say which of them is lost
        with self._changed:
            if kind == "value":
                self._values[rank].append(message["value"])
            elif kind == "goodbye":
                link.is_done = True
            elif kind == "welcome":
                self._members = [Member(*member) for member in message["members"]]
                link.member = self._members[0]
            self._changed.notify_all()
        if kind == "failure":
            with self._changed:
                self._is_confirmed = True
                self._changed.notify_all()
            self._end(Failure(**message), speaks=self.place.rank == 0)
        elif kind == "refused":
            self._end(Failure(self.place.rank, message["text"], 2), speaks=True)
        else:
            self._agreement.receive(rank, kind, message)

    def _lose(self, rank: int, link: Link) -> None:
        """The connection to a rank has ended."""
        link.close()
        if not link.is_done:
            who = f"{link.member} (process {link.member.process})" if link.member else f"rank {rank}"
            text = f"{who} ended without a word: it was killed, perhaps because memory ran out"
            self._end(Failure(rank, text, 1), speaks=self.place.rank == (1 if rank == 0 else 0))

    def _look_for_silent(self, links: dict[int, Link], now: float) -> None:
        """End the ranks if one has said nothing for too long.

        If that is the first rank, those on its host are the first to see it. They kill it, which tells the others; so
        the others hear nothing for longer only if the host is gone.
        """
        for rank, link in links.items():
            shares_host = link.member is not None and link.member.namespace == self._me.namespace
            limit = self.silence * (1.0 if rank or shares_host else 1.15)
            if now - link.heard > limit and link.is_open:
                who = f"{link.member} (process {link.member.process})" if link.member else f"rank {rank}"
                text = f"{who} has not been heard of for {self.silence:g} s: it hangs, or its host is gone"
                self._end(Failure(rank, text, 1, hangs=True), speaks=self._speaks_for_silent(rank))

    def _speaks_for_silent(self, rank: int) -> bool:
        if rank:
            return self.place.rank == 0
        host = self._members[0].namespace if self._members else ""
        same = [m.rank for m in self._members[1:] if m.namespace == host]
        others = [m.rank for m in self._members[1:] if m.namespace != host]
        mine = same if self._me.namespace == host else others
        return mine[:1] == [self.place.rank]

    # ---- the first rank's watch -------------------------------------------------------------------------------

    def _arrive(self, link: Link, hello: dict[str, Any]) -> None:
        """A rank has come, in a thread of its own."""
        member, size = Member(*hello["member"]), hello["size"]
        refusal, members = "", [self._me]
        with self._changed:
            if size != self.place.size:
                refusal = f"{member} is one of {size} ranks, but the first rank one of {self.place.size}"
            elif not 0 < member.rank < size or member.rank in self._links:
                refusal = f"{member} (process {member.process}) is one too many: that rank is there already"
            else:
                link.member, link.heard = member, time.monotonic()
                self._links[member.rank] = link
                members += sorted(each.member for each in self._links.values() if each.member)
                if len(members) == size:
                    keeper.tell(watching=True)
                if self._failure:
                    link.send("failure", **self._failure._asdict())
                self._changed.notify_all()
        if refusal:
            link.send("refused", text=refusal)
        elif len(members) == size:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._broadcast("welcome", members=members)
            with self._changed:
                self._members = members
                self._changed.notify_all()

    def _look_for_missing(self, now: float) -> None:
        """End the ranks if some have not come in time, or cannot come any more."""
        if self.place.rank or self._is_complete():
            return
        with self._changed:
            missing = [rank for rank in range(1, self.place.size) if rank not in self._links]
        for rank, child in enumerate(self._children, 1):
            if rank in missing and child.poll() is not None:
                child_as_member = self._me._replace(rank=rank, process=child.pid)
                text = f"{child_as_member} (process {child.pid}) ended at its start, with status {child.returncode}"
                self._end(Failure(rank, text, 1), speaks=True)
        if missing and now - self._since > self.patience:
            few = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
            text = f"{'ranks' if len(missing) > 1 else 'rank'} {few} did not come within {self.patience:g} s"
            self._end(Failure(missing[0], f"{text}: start all {self.place.size}", 2), speaks=True)
