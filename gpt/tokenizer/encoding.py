"""From the blocks of a text to ids: each distinct word is encoded once, and a table does the rest.

The way of a text: `Encoder.encode` takes a group of blocks and cuts each into chunks (gpt/tokenizer/splits.py), and
these at places that no token can span, in languages without spaces (gpt/tokenizer/breaks.py). A `_Table` looks up the
ids of each chunk. It hands chunks that it has never seen to the function that it was made with: for the kind `word`
this is `WordsToIds`, which spells and merges them; for `byte` it is `Encoder._encode_chunks`, which cuts them into
words and looks these up in a second table, whose function is `WordsToIds`.

Threads share what works on large arrays, because NumPy releases the interpreter lock there: the blocks, the size
classes of new strings (gpt/tokenizer/lexicon.py), and parts of the new chunks that are cut. None of their results
depends on the order of the threads. The calling thread alone merges words, because this works on short arrays, and
threads would wait for the interpreter.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np

from gpt.arithmetic import ceil_div
from gpt.system.threads import ahead, available_threads
from gpt.tokenizer.bpe import GAP
from gpt.tokenizer.breaks import Breaks
from gpt.tokenizer.lexicon import MARGIN, MARK, UNKNOWN, Found, Lexicon, Strings
from gpt.tokenizer.marks import Marks
from gpt.tokenizer.merges import Merges
from gpt.tokenizer.spelling import Spelling
from gpt.tokenizer.splits import Cut, Split

_TABLE_LIMIT = 1 << 23  # strings and ids that a table holds: 200 to 300 MB, and `byte` has two tables
_MAX_THREADS = 8  # threads at most: the calling thread cannot keep more of them busy
_A_MARK = -1  # id of every mark until it gets its own
_GROUP = 4  # blocks per thread in a group, as threads wait for one another several times a group; each takes some 10 MB
_LEAST_PART = 1 << 16  # bytes of new strings that are worth a part of their own


class Ids(NamedTuple):
    """The ids of strings one after the other; ids per string; characters that each string has lost. All int32."""

    ids: np.ndarray
    lengths: np.ndarray
    lost: np.ndarray


EncodeNew = Callable[[bytes], Ids]  # function that encodes distinct strings, each with MARK behind it


class Encoder:
    """Encodes the blocks of a text. It calls `encode_words` with the words that it has not seen yet, for their ids.

    Words and ids are forgotten once they are more than 8 million together, unless `keep_words` is true.

    Example: the ids of these words are their bytes, and MARK is not part of a word.

    >>> from gpt.tokenizer.marks import Mark
    >>> from gpt.tokenizer.spelling import ByteSpelling
    >>> from gpt.tokenizer.splits import Gpt2
    >>> words_to_ids = WordsToIds(ByteSpelling(), Merges(256), np.arange(256))
    >>> encoder = Encoder(Gpt2(), Marks((Mark("<|endoftext|>", 300),)), words_to_ids)
    >>> [(ids.tolist(), lost) for ids, lost in encoder.encode(["hi", " hi<|endoftext|>"])]
    [([104, 105], 0), ([32, 104, 105, 300], 0)]
    """

    def __init__(
        self,
        split: Split,
        marks: Marks,
        encode_words: EncodeNew,
        breaks: Breaks | None = None,
        keep_words: bool = False,
    ) -> None:
        self._split, self._marks, self._breaks = split, marks, breaks
        self._words = self._chunks = _Table(encode_words, math.inf if keep_words else _TABLE_LIMIT)
        if split.cut is not None:
            self._chunks = _Table(partial(self._encode_chunks, split.cut), _TABLE_LIMIT)

    def encode(self, blocks: Iterable[str]) -> Iterator[tuple[np.ndarray, int]]:
        """Yields, for each block, its ids, int32 [n], and how many of its characters have none.

        A mark has its own id wherever it stands. Raises ValueError for a lone surrogate.
        """
        threads = _threads()
        remaining, size = iter(blocks), threads  # few blocks at first, so that most strings of later ones are known
        while group := list(islice(remaining, size)):
            chunks, marks = zip(*ahead(self._chunks_and_marks, group, threads), strict=True)
            for found, ids in zip(self._chunks.look_up(chunks), marks, strict=True):
                if len(ids):
                    found.ids[found.ids == _A_MARK] = ids
                yield found.ids, int(found.lost.sum())
            size = min(2 * size, _GROUP * threads)

    def _chunks_and_marks(self, block: str) -> tuple[Strings, np.ndarray]:
        data, marks = self._marks.encoded(block)
        chunks = self._split.chunks(data)
        if self._breaks is not None and not data.isascii():
            chunks = self._breaks.cut(chunks)
        return chunks, marks

    def _encode_chunks(self, cut: Cut, chunks: bytes) -> Ids:
        """The ids of new chunks: cut them into words, look these up, and add up lengths and losses chunk by chunk.

        Example: chunks of 2 and 1 words have their first words at 0 and 2. Words with 1, 3 and 2 ids make chunks with
        4 and 2.
        """
        words, counts = zip(*ahead(cut, _parts(chunks, _threads()), _threads()), strict=True)
        found = Ids(*map(np.concatenate, zip(*self._words.look_up(words), strict=True)))
        count = np.concatenate(counts)
        first = np.cumsum(count) - count
        return Ids(found.ids, np.add.reduceat(found.lengths, first), np.add.reduceat(found.lost, first))


class WordsToIds:
    r"""Spells and merges words, each with MARK behind it, and gives the symbols their ids: `ids` by symbol, int32.

    `whole` has words that have one id whatever the merges say.

    Example: the alphabet is a = 0, a</w> = 1, b = 2, b</w> = 3, and the only merge makes ab</w> = 4 of (0, 3). With
    ids that are 1 more, "b" has the id 4. "xab" loses its x.

    >>> from gpt.tokenizer.spelling import WordSpelling
    >>> found = WordsToIds(WordSpelling("ab"), Merges(4, [(0, 3)]), np.arange(1, 6))(b"b\xffxab\xff")
    >>> found.ids.tolist(), found.lengths.tolist(), found.lost.tolist()
    ([4, 5], [1, 1], [0, 1])
    """

    def __init__(self, spelling: Spelling, merges: Merges, ids: np.ndarray, whole: Mapping[bytes, int] | None = None):
        self._spelling, self._merges, self._ids = spelling, merges, ids.astype(np.int32)
        self._whole = Lexicon()  # the words of `whole`, but for those with the byte of MARK, which no text has
        words = [word for word in whole or {} if MARK not in word]
        found = self._whole.find(_strings(b"".join(word + MARK for word in words)))
        self._whole.add([found])
        self._own = np.zeros(len(words), np.int32)  # their ids, by number
        self._own[found.number] = [(whole or {})[word] for word in words]

    def __call__(self, words: bytes) -> Ids:
        if not len(self._whole):
            return self._merged(words)
        # Words that are whole keep one id and lose nothing; the others are merged, and their ids go in between
        strings = _strings(words)
        number = self._whole.find(strings).number
        is_whole = number != UNKNOWN
        merged = self._merged(strings.take(~is_whole).joined())
        lengths, lost = np.ones(len(number), np.int32), np.zeros(len(number), np.int32)
        lengths[~is_whole], lost[~is_whole] = merged.lengths, merged.lost
        is_own = np.repeat(is_whole, lengths)
        ids = np.empty(len(is_own), np.int32)
        ids[is_own], ids[~is_own] = self._own.take(number.compress(is_whole)), merged.ids
        return Ids(ids, lengths, lost)

    def _merged(self, words: bytes) -> Ids:
        row, lost = self._spelling.spell([words])
        row = self._merges.apply(row)
        is_gap = row == GAP
        return Ids(self._ids.take(row.compress(~is_gap)), np.diff(is_gap.nonzero()[0]).astype(np.int32) - 1, lost)


def count_words(split: Split, marks: Marks, blocks: Iterable[str]) -> tuple[list[bytes], np.ndarray]:
    r"""Count the distinct words of a text: (the words, MARK behind each, in several strings; counts, int64 [words]).

    A word's number serves as its only id, so counting ids counts words. The marks, which have the ids 0, 1 … come
    before the words. Raises ValueError for a lone surrogate.

    Example:

    >>> from gpt.tokenizer.marks import Mark
    >>> from gpt.tokenizer.splits import WhiteSpace
    >>> words, counts = count_words(WhiteSpace(), Marks((Mark("<s>", 0),)), ["the cat<s>", " saw the dog"])
    >>> sorted(zip(b"".join(words).split(b"\xff"), counts.tolist()))
    [(b'cat', 1), (b'dog', 1), (b'saw', 1), (b'the', 2)]
    """
    words: list[bytes] = []
    counts = np.zeros(len(marks), np.int64)  # counts by number

    def number_words(new: bytes) -> Ids:
        nonlocal counts
        words.append(new)
        first, count = len(counts), new.count(MARK)
        counts = np.append(counts, np.zeros(count, np.int64))
        return Ids(np.arange(first, first + count, dtype=np.int32), np.ones(count, np.int32), np.zeros(count, np.int32))

    for numbers, _ in Encoder(split, marks, number_words, keep_words=True).encode(blocks):
        np.add.at(counts, numbers, 1)
    return words, counts[len(marks) :]


class _Table:
    """String → ids. All new strings of a look-up are encoded at once by `encode_new`.

    The table forgets all strings at a look-up if strings and ids are more than `limit` together.
    """

    def __init__(self, encode_new: EncodeNew, limit: float):
        self._encode_new = encode_new
        self._limit = limit
        self._clear()

    def __len__(self) -> int:
        return len(self._lexicon)

    def _clear(self) -> None:
        self._lexicon = Lexicon()
        self._lexicon.add([self._lexicon.find(Strings(MARK + bytes(MARGIN), np.array([0]), np.array([1])))])
        self._known = Ids(np.full(1, _A_MARK, np.int32), np.ones(1, np.int32), np.zeros(1, np.int32))
        self._start = np.zeros(1, np.int32)

    def look_up(self, texts: Sequence[Strings]) -> Iterator[Ids]:
        """Yields the ids of the strings of each text. `encode_new` is called in the calling thread."""
        if len(self._known.ids) + len(self) > self._limit:
            self._clear()
        found = list(ahead(self._lexicon.find, texts, _threads()))
        try:
            self._add(found)
        except BaseException:  # Ctrl-C too: a string that has a number but no ids would later get another one's
            self._clear()
            raise
        return ahead(partial(_gathered, self._known, self._start), [each.number for each in found], _threads())

    def _add(self, texts: Sequence[Found]) -> None:
        """Number and encode the strings whose number is UNKNOWN."""
        if new := self._lexicon.add(texts, _threads()):
            encoded = self._encode_new(b"".join(ahead(Strings.joined, new, _threads())))
            self._known = Ids(*map(np.concatenate, zip(self._known, encoded, strict=True)))
            self._start = np.cumsum(self._known.lengths, dtype=np.int32) - self._known.lengths


def _threads() -> int:
    return min(available_threads(), _MAX_THREADS)


def _strings(words: bytes) -> Strings:
    r"""Words with MARK behind each, as strings.

    >>> _strings(b"the\xffcat\xff").joined()
    b'the\xffcat\xff'
    """
    (end,) = (np.frombuffer(words, np.uint8) == MARK[0]).nonzero()
    length = np.diff(end, prepend=-1) - 1
    return Strings(words + bytes(MARGIN), end - length, length)


def _parts(strings: bytes, count: int) -> list[bytes]:
    r"""Strings with MARK behind each, in at most `count` parts of about the same size. Small ones are not divided.

    >>> _parts(b"a\xff" * 80_000, 2) == [b"a\xff" * 40_000] * 2, _parts(b"a\xffb\xff", 2)
    (True, [b'a\xffb\xff'])
    """
    size = max(_LEAST_PART, ceil_div(len(strings), count))
    parts, begin = [], 0
    while begin < len(strings):
        end = strings.find(MARK, begin + size - 1) + 1 or len(strings)
        parts.append(strings[begin:end])
        begin = end
    return parts


def _gathered(known: Ids, start: np.ndarray, number: np.ndarray) -> Ids:
    """The ids of the strings that have these numbers. The ids of string i begin at `known.ids[start[i]]`.

    Example: string 0 has the id 7, string 1 the ids 5 and 6. The strings 1, 0, 1 then have the ids at 1, 2, 0, 1, 2.

    >>> known = Ids(np.array([7, 5, 6]), np.array([1, 2]), np.array([0, 0]))
    >>> _gathered(known, start=np.array([0, 1]), number=np.array([1, 0, 1])).ids.tolist()
    [5, 6, 7, 5, 6]
    """
    lengths = known.lengths.take(number)
    end = np.cumsum(lengths)
    place = np.repeat(start.take(number) - (end - lengths), lengths)
    place += np.arange(len(place))
    return Ids(known.ids.take(place), lengths, known.lost.take(number))
