"""From the blocks of a text to ids: each distinct word is encoded once, and a table does the rest.

Blocks come in groups. Threads do what can be done for each block by itself, as NumPy lets go of the interpreter lock.
In between, the calling thread alone puts what is new into the tables, so that nothing depends on the threads' order.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np

from gpt.system.threads import available_threads
from gpt.tokenizer.bpe import GAP, Merges
from gpt.tokenizer.lexicon import MARGIN, MARK, UNKNOWN, Lexicon, Strings
from gpt.tokenizer.spelling import Spelling

_TABLE_LIMIT = 1 << 23  # strings and their ids together: 200 to 300 MB, and `byte` has two tables
_MOST = 8  # threads: the calling one has no work for more
_GROUP = 4  # blocks per thread, as threads wait for one another twice a group; each takes some 10 MB


class Ids(NamedTuple):
    """The ids of strings one after the other; how many each string has, and how many characters it lost. All int32."""

    ids: np.ndarray
    lengths: np.ndarray
    lost: np.ndarray


EncodeNew = Callable[[bytes], Ids]  # of distinct strings, each with MARK behind it


def encoder(spelling: Spelling, merges: Merges) -> "Encoding":
    """What encodes a text."""

    def encode_words(words: bytes) -> Ids:
        row, lost = spelling.spell([words])
        row = merges.apply(row)
        is_gap = row == GAP
        return Ids(row[~is_gap], np.diff(is_gap.nonzero()[0]).astype(np.int32) - 1, lost)

    return Encoding(spelling, encode_words, _TABLE_LIMIT)


def count_words(spelling: type[Spelling], blocks: Iterable[str]) -> tuple[list[bytes], np.ndarray]:
    """The distinct words of a text, MARK behind each, in several strings; and how often each occurs, int64 [words].

    A word's number serves as its only id, so that counting ids counts words. ValueError for a lone surrogate.
    """
    words: list[bytes] = []
    counts = np.zeros(1, np.int64)  # of the end-of-text mark, which has the number 0

    def number_words(new: bytes) -> Ids:
        nonlocal counts
        words.append(new)
        first, count = len(counts), new.count(MARK)
        counts = np.append(counts, np.zeros(count, np.int64))
        return Ids(np.arange(first, first + count, dtype=np.int32), np.ones(count, np.int32), np.zeros(count, np.int32))

    for numbers, _ in Encoding(spelling, number_words, math.inf)(blocks):
        np.add.at(counts, numbers, 1)
    return words, counts[1:]


class Encoding:
    """Called with the blocks of a text, it gives the ids of each, int32 [n], and how many characters have none.

    `encode_words` gives the ids of new words. Words and ids are forgotten once they are more than `limit` together.
    Threads come from a ThreadPoolExecutor, as results are taken in order while later ones are still being made.
    """

    def __init__(self, spelling: Spelling | type[Spelling], encode_words: EncodeNew, limit: float):
        self._spelling = spelling
        self._words = _Table(encode_words, limit)
        self._chunks = self._words if spelling.cut is None else _Table(self._encode_chunks, _TABLE_LIMIT)

    def __call__(self, blocks: Iterable[str]) -> Iterator[tuple[np.ndarray, int]]:
        """A verbatim `<|endoftext|>` is id 0 wherever it stands. ValueError for a lone surrogate."""
        threads = min(available_threads(), _MOST)
        blocks = iter(blocks)
        with ThreadPoolExecutor(threads) as pool:
            while group := list(islice(blocks, _GROUP * threads)):
                run = partial(_run, pool) if len(group) > 1 else map
                for found in self._chunks.look_up(list(run(self._spelling.chunks, group)), run):
                    yield found.ids, int(found.lost.sum())

    def _encode_chunks(self, chunks: bytes) -> Ids:
        words, count = self._spelling.cut(chunks)
        (found,) = self._words.look_up([words])
        first = np.cumsum(count) - count
        return Ids(found.ids, np.add.reduceat(found.lengths, first), np.add.reduceat(found.lost, first))


def _run(pool: ThreadPoolExecutor, function: Callable, items: Sequence) -> Iterator:
    """map(function, items) in the threads of a pool; in this one alone if the system grants no more threads."""
    try:
        return pool.map(function, items)
    except RuntimeError:  # "can't start new thread", or in later calls "cannot schedule new futures after shutdown"
        pool.shutdown(cancel_futures=True)
        return map(function, items)


class _Table:
    """String → ids. What is new is encoded all at once by `encode_new`."""

    def __init__(self, encode_new: EncodeNew, limit: float):
        self._encode_new = encode_new
        self._limit = limit
        self._clear()

    def __len__(self) -> int:
        return len(self._lexicon)

    def _clear(self) -> None:
        self._lexicon = Lexicon()
        self._lexicon.add(Strings(MARK + bytes(MARGIN), np.array([0]), np.array([1])))
        self._known = Ids(np.zeros(1, np.int32), np.ones(1, np.int32), np.zeros(1, np.int32))
        self._start = np.zeros(1, np.int32)

    def look_up(self, texts: Sequence[Strings], run: Callable[..., Iterator] = map) -> Iterator[Ids]:
        """The ids of the strings of each text. `run` is called as map is, and may work in several threads."""
        if len(self._known.ids) + len(self) > self._limit:
            self._clear()
        numbers = list(run(self._lexicon.find, texts))
        try:
            self._add(texts, numbers)
        except BaseException:  # Ctrl-C too: strings that have a number but no ids would be given those of others
            self._clear()
            raise
        return run(partial(_gathered, self._known, self._start), numbers)

    def _add(self, texts: Sequence[Strings], numbers: Sequence[np.ndarray]) -> None:
        """Number and encode the strings that are UNKNOWN in `numbers`, and write their numbers there."""
        new = []
        for strings, number in zip(texts, numbers, strict=True):
            (unknown,) = (number == UNKNOWN).nonzero()
            if len(unknown):
                number[unknown], added = self._lexicon.add(strings.take(unknown))
                new.append(added.joined())
        if joined := b"".join(new):
            self._known = Ids(*map(np.concatenate, zip(self._known, self._encode_new(joined), strict=True)))
            self._start = np.cumsum(self._known.lengths, dtype=np.int32) - self._known.lengths


def _gathered(known: Ids, start: np.ndarray, number: np.ndarray) -> Ids:
    lengths = known.lengths[number]
    end = np.cumsum(lengths)
    place = np.repeat(start[number] - (end - lengths), lengths)
    place += np.arange(len(place))
    return Ids(known.ids[place], lengths, known.lost[number])
