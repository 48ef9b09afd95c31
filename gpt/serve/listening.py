"""Texts on their way: the engine's thread writes them, and a coroutine of the server's loop waits for their tokens."""

import asyncio
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from gpt.decoder import Request
from gpt.serve.errors import RequestError

LONGEST = 600.0  # seconds that a text may take, its wait for a place included
MOST_UNREAD = 20_000  # tokens that a client may leave unread
PACE = 0.02  # seconds between two looks at what has arrived: 50 a second are smooth to the eye, and each costs 0.1 ms
_GONE = RequestError(499, "the client has gone", "client_gone")
_UNREAD = RequestError(408, f"the client has left {MOST_UNREAD} tokens unread", "client_too_slow")


class Token(NamedTuple):
    """A token, and if these were asked for: its log probability, and the likeliest tokens of its position.

    Probabilities are the model's own, before temperature, penalty, top_k and top_p. The first token of a prompt has
    none.
    """

    id: int
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()  # ids and log probabilities, the likeliest first


class End(NamedTuple):
    """The end of a text: the model has ended it, its number of tokens is reached, or an error came."""

    reason: Literal["stop", "length"] = "stop"
    error: RequestError | None = None


class Listener:
    """Where the texts of one HTTP request arrive, in the event loop that it was made in.

    The first token and the end of a text are told at once, and the tokens between them every PACE seconds: then many
    fast texts do not keep the server busy with telling. A slow client gets few large pieces, too. If it leaves too many
    tokens unread, its texts end.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._arrived: list[tuple[Text, Token | End]] = []
        self._something = asyncio.Event()
        self._due = 0.0  # when the next tokens are told, in the loop's time
        self._alarm: asyncio.TimerHandle | None = None

    def put(self, news: list[tuple["Text", Token | End]]) -> None:
        """Only in the loop's own thread; `deliver` comes from others."""
        self._arrived += news
        if self.loop.time() >= self._due or any(isinstance(what, End) for _, what in news):
            self._something.set()
        elif not self._alarm:
            self._alarm = self.loop.call_at(self._due, self._something.set)
        if len(self._arrived) > MOST_UNREAD:
            for text, _ in self._arrived:
                text.cancel(_UNREAD)

    async def arrived(self) -> list[tuple["Text", Token | End]]:
        """All that has come since the last call, in order; waits until there is something to tell."""
        await self._something.wait()
        self._something.clear()
        if self._alarm:
            self._alarm.cancel()
        self._alarm, self._due = None, self.loop.time() + PACE
        arrived, self._arrived = self._arrived, []
        return arrived


@dataclass(eq=False)
class Text:
    """A text to be written.

    `likeliest` is the number of likely tokens to tell with each token; None means no log probabilities at all. With
    `scores_prompt` the prompt's tokens come first, with theirs; `request.num_tokens` may then be 0.
    """

    listener: Listener
    request: Request
    likeliest: int | None = None
    scores_prompt: bool = False
    cancelled: RequestError | None = None
    deadline: float = field(default_factory=lambda: time.monotonic() + LONGEST)

    def cancel(self, why: RequestError = _GONE) -> None:
        """Nobody wants the rest any more: its place is free before the next token. From any thread."""
        self.cancelled = self.cancelled or why


def deliver(news: Iterable[tuple[Text, Token | End]]) -> None:
    """Bring tokens and ends to their listeners, from another thread: one call into each loop."""
    loops: dict[asyncio.AbstractEventLoop, dict[Listener, list[tuple[Text, Token | End]]]] = {}
    for each in news:
        listener = each[0].listener
        loops.setdefault(listener.loop, {}).setdefault(listener, []).append(each)
    for loop, listeners in loops.items():
        with suppress(RuntimeError):  # the loop is closed: the server has ended
            loop.call_soon_threadsafe(_put_all, listeners)


def _put_all(listeners: dict[Listener, list[tuple[Text, Token | End]]]) -> None:
    for listener, news in listeners.items():
        listener.put(news)
