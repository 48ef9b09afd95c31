"""Messages between the two processes of the server (messages.py), over a pair of sockets.

The processes share a machine and a version of hipgpt, and nobody else can reach the sockets. So a message is a pickled
object behind its length.
"""

import pickle
import selectors
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

_LENGTH = struct.Struct("!I")
_BLOCK = 1 << 18  # bytes that are read at once


class ChannelClosedError(Exception):
    """The other process has gone."""


def framed(message: object) -> bytes:
    """The bytes of a message."""
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(data)) + data


class Frames:
    """Messages again, from bytes that come in pieces of any size.

    >>> frames = Frames()
    >>> data = framed("one") + framed("two")
    >>> [list(frames.feed(piece)) for piece in (data[:9], data[9:])]
    [[], ['one', 'two']]
    """

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """The messages that are complete with these bytes."""
        self._data += data
        start = 0
        while len(self._data) - start >= _LENGTH.size:
            begin = start + _LENGTH.size
            end = begin + _LENGTH.unpack_from(self._data, start)[0]
            if end > len(self._data):
                break
            yield pickle.loads(memoryview(self._data)[begin:end].tobytes())
            start = end
        del self._data[:start]


class Channel:
    """The engine's end: one thread sends and receives, and any other may `wake` it.

    Methods raise ChannelClosedError if the front has gone.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._frames = connection, Frames()
        self._alarm, self._bell = socket.socketpair()
        self._alarm.setblocking(False)
        self._selector = selectors.DefaultSelector()
        for each in (self._connection, self._alarm):
            self._selector.register(each, selectors.EVENT_READ)

    def send(self, message: object) -> None:
        """Send a message. Waits if the front has many to read."""
        try:
            self._connection.sendall(framed(message))
        except OSError:
            raise ChannelClosedError from None

    def received(self, seconds: float | None) -> list[Any]:
        """The messages that have come. Waits for the first, but not longer than so many seconds, nor after `wake`."""
        messages: list[Any] = []
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self._alarm:
                self._alarm.recv(_BLOCK)
                continue
            try:
                data = self._connection.recv(_BLOCK)
            except OSError:
                data = b""
            if not data:
                raise ChannelClosedError
            messages += self._frames.feed(data)
        return messages

    def wake(self) -> None:
        """Let `received` return at once, or the next time."""
        with suppress(OSError):  # it is closed
            self._bell.send(b"\0")

    def close(self) -> None:
        self._selector.close()
        for each in (self._connection, self._alarm, self._bell):
            each.close()
