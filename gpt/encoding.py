"""What is done with each block of a text: its words are counted, or looked up in a table of ids.

Loops in Python run over distinct words alone. The rest is left to str.split, to dictionaries asked through `map`, and
to NumPy.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import chain, count, islice
from typing import NamedTuple

import numpy as np

from gpt.bpe import GAP, Merges
from gpt.spelling import Spelling
from gpt.text import END_OF_TEXT

_TABLE_LIMIT = 1 << 21  # ids of all entries together; with their strings about 100 MB


class Counting:
    """Called with a block, it gives the number of times each word is in it."""

    def __init__(self, spelling: type[Spelling]):
        self._spelling = spelling

    def __call__(self, block: str) -> Counter[str]:
        """ValueError for a lone surrogate."""
        chunks = Counter()
        for document in _documents(block):
            chunks.update(self._spelling.chunks(document))
        if self._spelling.cut is None:
            return chunks
        counts = Counter()
        for words, times in zip(self._spelling.cut(chunks), chunks.values(), strict=True):
            for word in words:
                counts[word] += times
        return counts


class Encoding:
    """Called with a block, it gives the ids, int32 [n], and the number of characters that have none."""

    def __init__(self, spelling: Spelling, merges: Merges):
        self.merges = merges
        self._spelling = spelling
        self._words = _Table(self._encode_words)
        self._chunks = self._words if spelling.cut is None else _Table(self._encode_chunks)

    def __reduce__(self):
        return Encoding, (self._spelling, self.merges)  # the tables stay here

    def __call__(self, block: str) -> tuple[np.ndarray, int]:
        """A verbatim `<|endoftext|>` is id 0 wherever it stands. ValueError for a lone surrogate."""
        first, *others = _documents(block)
        chunks = self._spelling.chunks(first)
        for document in others:
            chunks.append(END_OF_TEXT)
            chunks += self._spelling.chunks(document)
        found = self._chunks.look_up(chunks)
        return found.ids, int(found.lost.sum())

    def _encode_chunks(self, chunks: Sequence[str]) -> "_Ids":
        words = self._spelling.cut(chunks)
        found = self._words.look_up(list(chain.from_iterable(words)))
        counts = np.fromiter(map(len, words), np.int64, len(words))
        first = np.cumsum(counts) - counts
        return _Ids(found.ids, np.add.reduceat(found.lengths, first), np.add.reduceat(found.lost, first))

    def _encode_words(self, words: Sequence[str]) -> "_Ids":
        row, lost = self._spelling.spell(words)
        row = self.merges.apply(row)
        is_gap = row == GAP
        return _Ids(row[~is_gap], np.diff(np.flatnonzero(is_gap)) - 1, lost)


class _Ids(NamedTuple):
    """The ids of strings one after the other, int32 [n]; how many ids each has, and how many characters it lost."""

    ids: np.ndarray
    lengths: np.ndarray
    lost: np.ndarray


class _Table:
    """String → ids. What is new is encoded all at once by `encode`, which takes distinct strings."""

    def __init__(self, encode: Callable[[Sequence[str]], _Ids]):
        self._encode = encode
        self._clear()

    def _clear(self) -> None:
        self._number = defaultdict(count().__next__)  # string → its place in `lengths`
        self._number[END_OF_TEXT]  # which no chunk contains
        self._known = _Ids(np.zeros(1, np.int32), np.ones(1, np.int64), np.zeros(1, np.int64))
        self._start = np.zeros(1, np.int64)

    def look_up(self, strings: Sequence[str]) -> _Ids:
        if len(self._known.ids) > _TABLE_LIMIT:
            self._clear()
        before = len(self._number)
        number = np.fromiter(map(self._number.__getitem__, strings), np.intp, len(strings))
        new = list(islice(reversed(self._number), len(self._number) - before))[::-1]
        if new:
            self._known = _Ids(*map(np.concatenate, zip(self._known, self._encode(new), strict=True)))
            self._start = np.cumsum(self._known.lengths) - self._known.lengths
        lengths = self._known.lengths[number]
        end = np.cumsum(lengths)
        shift = self._start[number] - (end - lengths)
        ids = self._known.ids[np.repeat(shift, lengths) + np.arange(end[-1] if len(end) else 0)]
        return _Ids(ids, lengths, self._known.lost[number])


def _documents(text: str) -> list[str]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the text holds a lone surrogate at character {error.start}") from None
    return text.split(END_OF_TEXT)
