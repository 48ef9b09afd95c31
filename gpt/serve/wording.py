"""Tokens become text: whole characters only, up to the first stop string or the first token that ends a text."""

from collections.abc import Collection, Iterable, Sequence
from itertools import zip_longest
from typing import NamedTuple

from gpt.serve.messages import Score
from gpt.stops import Stops
from gpt.tokenizer import Tokenizer
from gpt.tokenizer.spelling import ByteSpelling


class Piece(NamedTuple):
    """A part of a text. `score` is that of its token, if scores were asked for and it is that of a token."""

    text: str
    score: Score | None


class Wording:
    """The text of one answer, piece by piece. The pieces joined are the text.

    `prompt` has the ids before the text. A piece whose end might be the beginning of a stop string is held back until
    it is known not to be (`Stops`). `stopped` is True once the text has come to a stop string, or to one of `stop_ids`;
    neither is part of it. `count` is the number of tokens up to there.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt: Iterable[int], stops: Sequence[str] = (), stop_ids: Collection[int] = ()
    ) -> None:
        self._decoder, self._stops, self._stop_ids = tokenizer.decoder(), Stops(stops), frozenset(stop_ids)
        for id in prompt:
            self._decoder.feed(id)
        self._held: list[Piece] = []
        self._certain = 0  # characters of these that are certain
        self.stopped, self.count = False, 0

    def read(self, ids: Sequence[int], scores: Sequence[Score]) -> list[Piece]:
        """The pieces that are certain with these tokens: one for each if they have scores, else for all of them."""
        if scores or self._stops.texts or not self._stop_ids.isdisjoint(ids):
            return [piece for id, score in zip_longest(ids, scores) for piece in self.feed(id, score)]
        if self.stopped or not ids:
            return []
        self.count += len(ids)
        return [Piece("".join(map(self._decoder.feed, ids)), None)]

    def feed(self, id: int, score: Score | None = None) -> list[Piece]:
        """The pieces that are certain with this token. Nothing any more once the text has stopped.

        Example: a text that stops before "END".

        >>> tokenizer = Tokenizer(kind="char")
        >>> tokenizer.train_bpe("a END. ")
        >>> wording = Wording(tokenizer, [], stops=["END"])
        >>> [[piece.text for piece in wording.feed(id)] for id in tokenizer.encode("EN a END.")]
        [[], [], ['E', 'N', ' '], ['a'], [' '], [], [], [], []]
        >>> wording.stopped, wording.count
        (True, 8)
        """
        if self.stopped:
            return []
        self.count += 1
        if id in self._stop_ids:
            return self._end()
        return self._read(self._decoder.feed(id), score)

    def finish(self) -> list[Piece]:
        """The pieces that are left when no more token comes."""
        if self.stopped:
            return []
        rest = self._decoder.finish()
        certain = self._read(rest, None) if rest else []
        return certain if self.stopped else certain + self._end()

    def _read(self, text: str, score: Score | None) -> list[Piece]:
        """Take the pieces that are certain with this one from those that are held."""
        self._held.append(Piece(text, score))
        self._certain += len(self._stops.feed(text))
        if self._stops.found:
            return _cut(self._end(), self._certain)
        count = 0
        for piece in self._held:
            if len(piece.text) > self._certain:
                break
            self._certain -= len(piece.text)
            count += 1
        taken, self._held = self._held[:count], self._held[count:]
        return taken

    def _end(self) -> list[Piece]:
        self.stopped = True
        held, self._held = self._held, []
        return held


def _cut(pieces: list[Piece], length: int) -> list[Piece]:
    """The pieces of the first `length` characters."""
    kept = []
    for piece in pieces:
        if length <= 0:
            break
        kept.append(piece._replace(text=piece.text[:length]))
        length -= len(piece.text)
    return kept


def token_text(tokenizer: Tokenizer, id: int) -> str:
    r"""The text of a token by itself, for lists of alternatives. Bytes that are no whole characters are spelled out.

    Example: the first byte of "é".

    >>> tokenizer = Tokenizer(kind="byte")
    >>> token_text(tokenizer, tokenizer.encode("é")[0])
    'bytes:\\xc3'
    """
    text = tokenizer.decode([id])
    if tokenizer.kind != "byte" or "\N{REPLACEMENT CHARACTER}" not in text:
        return text
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in ByteSpelling.bytes_of(tokenizer.piece(id)))
