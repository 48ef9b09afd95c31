"""Breaks: places within words that no token can span, found before anything is merged.

Chinese, Japanese and Thai have few spaces, so their words are long, and most of them occur once. But merging works on
the two sides of a place independently if no piece of the vocabulary has the characters around it side by side. So a
word may be cut there, and its parts are short and frequent.

Only *wide* characters are looked at, those of three bytes in UTF-8: U+0800 to U+FFFF.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gpt.tokenizer.characters import COMBINING, LETTER, LOWER, SIGN, UPPER, cased_kinds, kinds
from gpt.tokenizer.lexicon import MARGIN, MARK, Strings
from gpt.tokenizer.spelling import ByteSpelling

_FIRST_WIDE, _BEYOND = 0x800, 0x10000  # the first wide character, and the one behind the last
_LAST_BYTES = 0x40  # last bytes that a wide character can have
_PREFIXES = 0x400  # first two bytes that it can have
_OUTLINE = 6  # bytes at the beginning and at the end of a whole word that are compared
_OUTLINE_MASK = np.uint64((1 << 8 * _OUTLINE) - 1)
_SHARES = 1 << 16  # outlines share so many places of a table
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # factor of the hash that gives an outline its place, as in lexicon.py


# Bytes that end a run of letters: ASCII without its letters, and MARK
_STOPS = np.array([chr(byte) < "\x7f" and not chr(byte).isalpha() or byte == MARK[0] for byte in range(256)])


class Breaks:
    r"""The breaks that the pieces of a byte tokenizer leave. `whole` has words that are one token whatever merges say.

    `has_case` is true if the pattern cuts words at changes of case, as GPT-4o's does.

    Example: this vocabulary has a token for 日本, and another for the first two bytes of 語 behind the last byte of 本.

    >>> pieces = [ByteSpelling.piece_of(data) for data in ("日本".encode(), b"\xac\xe8\xaa")]
    >>> text = "日本語日本".encode()
    >>> strings = Strings(text + bytes(MARGIN), np.array([0]), np.array([len(text)]))
    >>> [part.decode() for part in Breaks(pieces).cut(strings).joined().split(MARK)]
    ['日本語', '日本', '']
    """

    def __init__(self, pieces: Sequence[str], whole: Iterable[bytes] = (), has_case: bool = False) -> None:
        self._pieces, self._whole, self._has_case = pieces, list(whole), has_case
        self._spanned = _Pairs(*_spans(ByteSpelling.joined(pieces)))
        kind = (cased_kinds() if has_case else kinds())[:_BEYOND]
        self._letter, self._sign = kind == LETTER, kind == SIGN
        self._is_cased, self._goes_on = (kind == UPPER) | (kind == LOWER), (kind == LETTER) | (kind == COMBINING)
        # A part of a word must not look like a whole word: no break is before its beginning or behind its end
        short = [ord(c) for word in self._whole if len(word) < _OUTLINE for c in word.decode() if ord(c) < _BEYOND]
        self._letter[short] = self._sign[short] = False
        long = [word for word in self._whole if len(word) >= _OUTLINE and max(word) >= 0xE0]
        self._begins, self._ends = np.zeros((2, _SHARES), bool)
        self._begins[_places([word[:_OUTLINE] for word in long])] = True
        self._ends[_places([word[-_OUTLINE:] for word in long])] = True

    def __reduce__(self) -> Any:
        """Another process makes the tables sooner than it receives them."""
        return Breaks, (self._pieces, self._whole, self._has_case)

    def cut(self, strings: Strings) -> Strings:
        """The same strings, cut at the breaks too. They must follow each other without a gap, MARK among them.

        A break is between two letters or between a sign and a letter if no token spans them. Between a letter and a
        sign every pattern ends a word (gpt/tokenizer/splits.py), so this is a break as well. A pattern finds the same
        words on both sides of each as in the whole text, but for the one word that is cut. With a pattern that
        `has_case`, a break between letters has no letter with a case behind it, up to the end of the run of letters:
        such a pattern takes "aあいB" for aあい, B, and "いB" for い, B, but "いBc" for one word.
        """
        data = np.frombuffer(strings.data, np.uint8)
        (at,) = (data - np.uint8(0xE0) < 0x10).nonzero()
        point = _points(data, at)
        # The places between two wide characters: they are three bytes apart
        (first,) = (np.diff(at) == 3).nonzero()
        left, right, place = point[first], point[first + 1], at[first + 1]
        before_letter = (self._letter.take(left) | self._sign.take(left)) & ~self._spanned(left, right)
        if self._has_case:
            before_letter &= self._sign.take(left) | self._ends_without_case(data, at, point)[first + 1]
        breaks = np.where(self._letter.take(right), before_letter, self._letter.take(left) & self._sign.take(right))
        place = place.compress(breaks)
        if len(self._whole):
            integers = np.ndarray(len(data) - 7, "<u8", strings.data, strides=(1,))
            begins = self._begins[_shared(integers[place])]
            ends = self._ends[_shared(integers[np.maximum(place - _OUTLINE, 0)])]
            place = place.compress(~(begins | ends))
        begins = np.zeros(len(data), bool)
        begins[strings.start] = begins[place] = True
        (start,) = begins.nonzero()
        return Strings(strings.data, start, np.diff(start, append=len(data) - MARGIN))

    def _ends_without_case(self, data: np.ndarray, at: np.ndarray, point: np.ndarray) -> np.ndarray:
        """Whether the run of letters from each wide character on has no case, bool [n]; False if that is not known."""
        goes_on, is_last = self._goes_on.take(point), np.diff(at, append=-1) != 3
        (stop,) = (~goes_on | is_last).nonzero()
        is_end = np.where(goes_on[stop], _STOPS.take(data[at[stop] + 3]), ~self._is_cased.take(point[stop]))
        found: np.ndarray = np.repeat(is_end, np.diff(stop, prepend=-1))
        return found


class _Pairs:
    """Pairs of wide characters that a piece may span: a bit for each, in a table of rows (left) and columns (right).

    Characters that pieces have whole have a row or a column of their own. Because a piece may begin and end within a
    character, the others have a row for each last byte, and a column for each first two bytes.
    """

    def __init__(self, left: np.ndarray, right: np.ndarray) -> None:
        rows = np.concatenate([np.arange(_LAST_BYTES), np.unique(left[left >= _FIRST_WIDE])])
        columns = np.concatenate([np.arange(_PREFIXES), np.unique(right[right >= _FIRST_WIDE])])
        points = np.arange(_BEYOND)
        self._row, self._column = (points & (_LAST_BYTES - 1)).astype(np.int32), (points >> 6).astype(np.int32)
        self._row[rows[_LAST_BYTES:]] = np.arange(_LAST_BYTES, len(rows))
        self._column[columns[_PREFIXES:]] = np.arange(_PREFIXES, len(columns))
        table = np.zeros((len(rows), len(columns)), bool)
        is_whole = (left >= _FIRST_WIDE) & (right >= _FIRST_WIDE)
        table[self._row[left[is_whole]], self._column[right[is_whole]]] = True
        # Parts of characters stand for all characters that have them
        last, prefix = rows & (_LAST_BYTES - 1), np.where(columns < _FIRST_WIDE, columns, columns >> 6)
        for a, b in set(zip(left[~is_whole].tolist(), right[~is_whole].tolist(), strict=True)):
            some_rows = rows == a if a >= _FIRST_WIDE else last == a
            some_columns = columns == b if b >= _FIRST_WIDE else prefix == b if b >= 0x10 else prefix >> 6 == b
            table[np.ix_(some_rows, some_columns)] = True
        self._bits = np.packbits(table, axis=1, bitorder="little")

    def __call__(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Whether a piece may span these pairs of wide characters, bool [n]."""
        row, column = self._row.take(left), self._column.take(right)
        byte = self._bits.take(row * self._bits.shape[1] + (column >> 3))
        spanned: np.ndarray = byte >> (column & 7).astype(np.uint8) & 1 != 0
        return spanned


def _spans(pieces: bytes) -> tuple[np.ndarray, np.ndarray]:
    r"""The neighbors at each place between wide characters in the pieces: (left, right), int32 [n] each.

    A character that is there whole is its code point. If only an end of the left one is there, this is the last six
    bits. If two bytes of the right one are there, or one, these are its upper ten or four bits. All these are less than
    _FIRST_WIDE; ten bits are at least 0x20, four less than 0x10.

    Example: in these pieces, い is behind あ, behind an end of あ, and as a beginning of one and of two bytes.

    >>> both = "あい".encode()
    >>> [side.tolist() for side in _spans(MARK.join([b"", both, both[1:], both[:4], both[:5], b""]))]
    [[12354, 2, 12354, 12354], [12356, 12356, 3, 193]]
    """
    data = np.frombuffer(pieces + bytes(2), np.uint8)
    continues = data & 0xC0 == 0x80
    is_wide = data - np.uint8(0xE0) < 0x10
    is_end = data == MARK[0]
    (at,) = (is_wide[1:] & continues[:-1]).nonzero()
    at += 1
    # How many bytes of the left character are there, and whether it is whole
    two = continues[at - 2]
    three = two & continues[at - 3]
    is_whole = two & is_wide[at - 3]
    begins_piece = np.where(three, is_end[at - 4], np.where(two, is_end[at - 3], is_end[at - 2]))
    left = np.where(is_whole, _points(data, at - 3), data[at - 1] & np.int32(0x3F))
    right = _points(data, at)
    right = np.where(continues[at + 1], np.where(continues[at + 2], right, right >> 6), right >> 12)
    known = is_whole | begins_piece
    return left[known], right[known]


def _points(data: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The code points of the wide characters at these places, int32 [n]."""
    first, second, third = data[at].astype(np.int32), data[at + 1].astype(np.int32), data[at + 2]
    points: np.ndarray = (first & 0xF) << 12 | (second & 0x3F) << 6 | third & 0x3F
    return points


def _places(outlines: Sequence[bytes]) -> np.ndarray:
    """The place of each outline in a table."""
    return _shared(np.array([int.from_bytes(outline, "little") for outline in outlines], np.uint64))


def _shared(integers: np.ndarray) -> np.ndarray:
    """The same for outlines that are the lower bytes of integers, uint64 [n]. Several may share a place."""
    return (((integers & _OUTLINE_MASK) * _FACTOR) >> np.uint64(48)).astype(np.intp)
