"""Texts at which a continuation stops, such as "\\n" or "<|user|>", found in a text that comes in pieces."""

from collections.abc import Iterable

from gpt.errors import UserError


class Stops:
    """Cuts a text before that one of some texts which is complete first. A piece's end that may begin one is held back.

    Raises UserError for an empty one.

    Example: the piece "the E" may go on as "the END".

    >>> stops = Stops(["END", "\\n\\n"])
    >>> [stops.feed(piece) for piece in ("the E", "mu. The EN", "D of it")], stops.found
    (['the ', 'Emu. The ', ''], True)
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = tuple(texts)
        if "" in self.texts:
            raise UserError("--stop is empty, but must be a text at which to stop")
        self._held = ""
        self.found = False  # whether one of the texts has come; nothing is returned after it

    def feed(self, piece: str) -> str:
        """The text that this piece makes certain."""
        if self.found or not self.texts:
            return "" if self.found else piece
        text = self._held + piece
        found = [(place + len(stop), place) for stop in self.texts if (place := text.find(stop)) >= 0]
        self.found = bool(found)
        end = min(found)[1] if found else len(text) - self._begun(text)
        self._held = "" if self.found else text[end:]
        return text[:end]

    def finish(self) -> str:
        """The text that was held back, if no more pieces come."""
        held, self._held = self._held, ""
        return held

    def _begun(self, text: str) -> int:
        """The length of the longest end of `text` with which one of the texts begins."""
        longest = min(len(text), max(map(len, self.texts)) - 1)
        return next((n for n in range(longest, 0, -1) if any(stop.startswith(text[-n:]) for stop in self.texts)), 0)
