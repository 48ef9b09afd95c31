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
PACE = 0.02  # seconds between tokens that are told: 50 times a second is smooth to the eye
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

    Tokens that nobody has taken yet are put together, so a slow client gets few large pieces. If it leaves too many
    unread, its texts end.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._arrived: list[tuple[Text, Token | End]] = []
        self._something = asyncio.Event()

    def put(self, news: list[tuple["Text", Token | End]]) -> None:
        """Only in the loop's own thread; `Messenger` comes from another."""
        self._arrived += news
        self._something.set()
        if len(self._arrived) > MOST_UNREAD:
            for text, _ in self._arrived:
                text.cancel(_UNREAD)

    async def arrived(self) -> list[tuple["Text", Token | End]]:
        """All that has come since the last call, in order; waits until there is something."""
        await self._something.wait()
        self._something.clear()
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


class Messenger:
    """Brings tokens and ends to their listeners, from the engine's thread.

    The first tokens and the end of a text are told at once, and the tokens between them every PACE seconds, to all
    listeners together. Otherwise the server's loop would be busy with telling, and hold up the engine.
    """

    def __init__(self) -> None:
        self._held: dict[Listener, list[tuple[Text, Token | End]]] = {}
        self._begun: set[Listener] = set()  # those that have got something, and whose texts go on
        self._due = 0.0  # when what is held is told

    def tell(self, news: Iterable[tuple[Text, Token | End]]) -> None:
        """Tell news, now or a little later. The end of a text brings all that is held of it."""
        urgent = set()
        for text, what in news:
            listener = text.listener
            self._held.setdefault(listener, []).append((text, what))
            if isinstance(what, End):
                urgent.add(listener)
                self._begun.discard(listener)
            elif listener not in self._begun:
                urgent.add(listener)
                self._begun.add(listener)
        now = time.monotonic()
        if now >= self._due:
            urgent, self._due = set(self._held), now + PACE
        loops: dict[asyncio.AbstractEventLoop, dict[Listener, list[tuple[Text, Token | End]]]] = {}
        for listener in urgent:
            loops.setdefault(listener.loop, {})[listener] = self._held.pop(listener)
        for loop, listeners in loops.items():
            with suppress(RuntimeError):  # the loop is closed: the server has ended
                loop.call_soon_threadsafe(_put_all, listeners)


def _put_all(listeners: dict[Listener, list[tuple[Text, Token | End]]]) -> None:
    for listener, news in listeners.items():
        listener.put(news)
