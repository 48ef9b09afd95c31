"""Tokens on their way out of the engine: many travel in one message."""

import time

from gpt.serve.channel import Channel
from gpt.serve.messages import End, Score, Text, Update

PACE = 0.02  # seconds between tokens that are told: 50 times a second is smooth to the eye


class Outbox:
    """Brings tokens and ends of texts to the front, in the engine's thread.

    The first token and the end of a text are told after the step that they come from, and the tokens between them every
    PACE seconds, those of all texts together. So a token costs the engine little more than its place in a list.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._held: dict[int, Update] = {}  # by the text's number
        self._urgent: set[int] = set()  # of these, those that are told next
        self._begun: set[int] = set()  # texts that have got something, and go on
        self._due = 0.0  # when all that is held is told

    def token(self, text: Text, id: int, score: Score | None = None) -> None:
        """The next token of a text."""
        update = self._held.get(text.number) or self._opened(text.number)
        update.ids.append(id)
        if score:
            update.scores.append(score)

    def end(self, text: Text, end: End) -> None:
        """The end of a text. It brings all that is held of it."""
        number = text.number
        update = self._held.get(number) or Update(number, [], [])
        self._held[number] = update._replace(end=end)
        self._urgent.add(number)
        self._begun.discard(number)

    def drop(self, text: Text) -> None:
        """A text that nobody wants any more."""
        for numbers in (self._urgent, self._begun):
            numbers.discard(text.number)
        self._held.pop(text.number, None)

    def tell(self, *, all_of_it: bool = False) -> None:
        """Send what is urgent; if it is time, or `all_of_it` is asked for, everything."""
        now = time.monotonic()
        if now >= self._due or all_of_it:
            told, self._held = list(self._held.values()), {}
            self._due = now + PACE
        else:
            told = [self._held.pop(number) for number in self._urgent]
        if told:
            self._urgent.clear()
            self._channel.send(told)

    def _opened(self, number: int) -> Update:
        if number not in self._begun:
            self._begun.add(number)
            self._urgent.add(number)
        self._held[number] = update = Update(number, [], [])
        return update
