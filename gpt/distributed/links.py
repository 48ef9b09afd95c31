"""Connections between the first rank and the others: short JSON messages over TCP, after both have proved their key."""

import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any, NamedTuple

from gpt.errors import UserError

LONGEST = 16_000_000  # bytes of a message
RETRY = 0.1  # seconds between two attempts to connect
ATTEMPT = 5.0  # seconds that an attempt may take


class Member(NamedTuple):
    """A rank as a process of a host. `namespace` is equal for processes that can send each other signals."""

    rank: int
    host: str
    process: int
    namespace: str

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}"


class Link:
    """A connection to another rank. Any thread may send; one thread receives."""

    def __init__(self, stream: socket.socket) -> None:
        stream.settimeout(None)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection: Connection = Connection(stream.detach())
        self._sending = threading.Lock()
        self.member: Member | None = None  # the rank at the other end
        self.heard = time.monotonic()  # when its last message came
        self.is_done = False  # whether it has said goodbye
        self.is_open = True

    def fileno(self) -> int:
        return self._connection.fileno()

    def authenticate(self, key: bytes, listens: bool) -> None:
        """Check the other side's key, and prove this side's. Raises AuthenticationError, EOFError or OSError."""
        steps: list[Callable[[Any, bytes], None]] = [deliver_challenge, answer_challenge]
        try:
            for step in steps if listens else reversed(steps):
                step(self._connection, key)
        except AssertionError as error:  # the other side does not speak this language
            raise AuthenticationError(str(error)) from None

    def awaits(self, seconds: float) -> bool:
        """Whether a message, or the end, comes within this time."""
        return self._connection.poll(max(0.0, seconds))

    def send(self, kind: str, **values: Any) -> None:
        """Send a message. Nothing happens if the other side is gone: `receive` says so."""
        with suppress(OSError), self._sending:
            self._connection.send_bytes(json.dumps({"kind": kind, **values}).encode())

    def receive(self) -> dict[str, Any] | None:
        """The next message; None if the connection has ended."""
        try:
            message: dict[str, Any] = json.loads(self._connection.recv_bytes(LONGEST))
        except (EOFError, OSError):
            return None
        self.heard = time.monotonic()
        return message

    def close(self) -> None:
        self.is_open = False
        with suppress(OSError):
            self._connection.close()


def accept(listener: socket.socket, key: bytes, arrived: Callable[[Link, dict[str, Any]], None]) -> None:
    """Start a thread that calls `arrived`, in further threads, with each link and its first message.

    Who has another key, or says nothing, is ignored. The thread ends when the listener is shut down.
    """

    def welcome(stream: socket.socket) -> None:
        link = Link(stream)
        with suppress(AuthenticationError, EOFError, OSError):
            link.authenticate(key, listens=True)
            if hello := link.receive():
                return arrived(link, hello)
        return link.close()

    def listen() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=welcome, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=listen, daemon=True).start()


def connect(addresses: Sequence[str], port: int, key: bytes, patience: float, retries: bool) -> Link:
    """A link to the first rank. With `retries` it may start to listen up to `patience` seconds later than now.

    Raises UserError if nobody listens, if it is another job, or no hipgpt at all.
    """
    end = time.monotonic() + patience
    where = " or ".join(f"{address}:{port}" for address in addresses)
    while True:
        for address in addresses:
            try:
                link = Link(socket.create_connection((address, port), timeout=ATTEMPT))
            except OSError as error:
                reason = error.strerror or str(error)
                continue
            if not link.awaits(end - time.monotonic()):
                raise UserError(f"{where} does not answer as a first rank of hipgpt: set MASTER_PORT to a free port")
            try:
                link.authenticate(key, listens=False)
            except AuthenticationError:
                raise UserError(f"{where} belongs to another job: set MASTER_PORT to a free port") from None
            except (EOFError, OSError) as error:
                reason = str(error) or "it ended the connection"
                continue
            return link
        if not retries or time.monotonic() > end:
            within = f" within {patience:g} s" if retries else ""
            raise UserError(f"the first rank cannot be reached at {where}{within}: {reason}")
        time.sleep(RETRY)
