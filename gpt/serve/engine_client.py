"""The engine, as the front knows it: models that are in memory, and texts that are on their way.

All of it belongs to the thread of one event loop.
"""

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

from gpt.decoder import Request
from gpt.run import Run
from gpt.serve import messages
from gpt.serve.channel import Frames, framed
from gpt.serve.errors import ENDING, RequestError
from gpt.serve.messages import End, ModelInfo, Text, Update

MOST_WAITING = 256  # texts that have got nothing yet; more are refused
MOST_UNREAD = 20_000  # tokens that a client may leave unread
_GONE = RequestError(499, "the client has gone", "client_gone")
_UNREAD = RequestError(408, f"the client has left {MOST_UNREAD} tokens unread", "client_too_slow")


class Listener:
    """Where the texts of one HTTP request arrive.

    Tokens that nobody has taken yet are put together, so a slow client gets few large pieces. If it leaves too many
    unread, its texts end.
    """

    def __init__(self, model: int) -> None:
        self.model, self.unread = model, 0
        self._arrived: dict[int, Update] = {}
        self._something = asyncio.Event()

    def put(self, update: Update) -> None:
        self.unread += len(update.ids)
        before = self._arrived.get(update.number)
        if before:
            update = Update(update.number, before.ids + update.ids, before.scores + update.scores, update.end)
        self._arrived[update.number] = update
        self._something.set()

    async def something(self) -> None:
        """Waits until something has come that nobody has taken yet."""
        await self._something.wait()

    async def arrived(self) -> Collection[Update]:
        """All that has come since the last call; waits until there is something."""
        await self.something()
        self._something.clear()
        arrived, self._arrived, self.unread = self._arrived, {}, 0
        return arrived.values()


class EngineClient:
    """Asks the engine at the other end of `connection`, inside `connected`.

    `device` is what its device is called, once it has said so. `on_done` is called when the engine has ended, with True
    if it has said so before.
    """

    def __init__(self, connection: socket.socket, on_done: Callable[[bool], object] = lambda is_orderly: None) -> None:
        self._connection, self._on_done = connection, on_done
        self.device = ""
        self.is_ending = False
        self._numbers = itertools.count()
        self._models: dict[str, ModelInfo] = {}  # by the run's name
        self._loading: dict[str, asyncio.Future[ModelInfo]] = {}  # by the run's name
        self._listeners: dict[int, Listener] = {}  # by the text's number
        self._waiting: set[int] = set()  # texts that have got nothing yet

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Inside the `with`, which begins once the engine has begun, the engine may be asked."""
        loop = asyncio.get_running_loop()
        self._begun = asyncio.Event()
        self._transport, _ = await loop.create_connection(lambda: _Hearing(self), sock=self._connection)
        await self._begun.wait()
        try:
            yield
        finally:
            self._transport.close()

    def in_memory(self, name: str) -> ModelInfo | None:
        """The model of the run of this name, if it is in memory."""
        return self._models.get(name)

    async def model(self, run: Run) -> ModelInfo:
        """The model of a run, once it is in memory. Raises RequestError if it cannot be."""
        if self.is_ending:
            raise ENDING
        if run.name in self._models:
            return self._models[run.name]
        if run.name not in self._loading:
            self._loading[run.name] = asyncio.get_running_loop().create_future()
            self._send(messages.Load(run))
        return await asyncio.shield(self._loading[run.name])

    def submit(self, model: ModelInfo, texts: Sequence[tuple[Request, int | None, bool]]) -> tuple[Listener, list[int]]:
        """Have texts written, all or none: a request, its `likeliest` and `scores_prompt` (see `Text`) for each.

        Returns where they arrive, and their numbers. Raises RequestError: too many wait, or the server is ending.
        """
        if self.is_ending:
            raise ENDING
        if len(self._waiting) + len(texts) > MOST_WAITING:
            message = f"{len(self._waiting)} texts wait for a place, and {MOST_WAITING} may at most: ask again later"
            raise RequestError(429, message, "queue_full", headers={"Retry-After": "5"})
        listener, numbers = Listener(model.number), list(itertools.islice(self._numbers, len(texts)))
        self._waiting.update(numbers)
        self._listeners.update(dict.fromkeys(numbers, listener))
        self._send(
            messages.Write(model.number, [Text(number, *text) for number, text in zip(numbers, texts, strict=True)])
        )
        return listener, numbers

    def cancel(self, numbers: Collection[int], why: RequestError = _GONE) -> None:
        """Nobody wants the rest of these texts any more: their places are free before the next token."""
        left = [number for number in numbers if number in self._listeners]
        if left:
            self._send(messages.Cancel(self._listeners[left[0]].model, left))
            self._end(left, why)

    # ---- what the engine says --------------------------------------------------------------------------------------

    def hear(self, message: Any) -> None:
        """Take a message of the engine's."""
        if isinstance(message, list):
            for update in message:
                self._pass_on(update)
        elif isinstance(message, messages.Loaded):
            name = message.model.run.name
            self._models[name] = message.model
            if future := self._loading.pop(name, None):
                future.set_result(message.model)
        elif isinstance(message, messages.Forgotten):
            self._models.pop(message.name, None)
        elif isinstance(message, messages.Refused):
            self._refuse(message.name, message.error)
        elif isinstance(message, messages.Begin):
            self.device = message.device
            self._begun.set()
        elif isinstance(message, messages.Ending | messages.Done):
            self.is_ending = True
            if isinstance(message, messages.Done):
                self._begun.set()
                self._end_all(message.error)
                self._on_done(True)

    def lose(self) -> None:
        """The engine's process has gone."""
        self._end_all(ENDING)
        self._on_done(False)

    def _pass_on(self, update: Update) -> None:
        listener = self._listeners.get(update.number)
        if listener is None:  # it was cancelled
            return
        self._waiting.discard(update.number)
        if update.end:
            del self._listeners[update.number]
        listener.put(update)
        if listener.unread > MOST_UNREAD:
            self.cancel([number for number, each in self._listeners.items() if each is listener], _UNREAD)

    def _end(self, numbers: Collection[int], error: RequestError) -> None:
        for number in numbers:
            self._waiting.discard(number)
            self._listeners.pop(number).put(Update(number, [], [], End(error=error)))

    def _end_all(self, error: RequestError) -> None:
        self._end(list(self._listeners), error)
        for name in list(self._loading):
            self._refuse(name, error)

    def _refuse(self, name: str, error: RequestError) -> None:
        if future := self._loading.pop(name, None):
            future.set_exception(error)
            future.exception()  # somebody may have asked who has gone: no complaint that nobody has looked at it

    def _send(self, message: object) -> None:
        self._transport.write(framed(message))


class _Hearing(asyncio.Protocol):
    """Gives a client the messages of its connection."""

    def __init__(self, client: EngineClient) -> None:
        self._client, self._frames = client, Frames()

    def data_received(self, data: bytes) -> None:
        for message in self._frames.feed(data):
            self._client.hear(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.lose()
