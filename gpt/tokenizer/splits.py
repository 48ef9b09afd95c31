r"""How a text is cut into chunks, and chunks into words. Merging never crosses the end of a word.

There are few distinct chunks in a text, and fewer distinct words. So tables of them (gpt/tokenizer/encoding.py) leave
little to be cut and merged. What a chunk is differs; each split has `chunks`, which finds them in a text, and `cut`,
which cuts distinct chunks into words, or is None if a chunk is a word.
- `WhiteSpace`: a chunk is a run of characters between white space, and it is also the word. "it's  12" has the chunks
  "it's" and "12". Line ends may be chunks too.
- `Gpt2`: a chunk is a run of other characters with the white space before it, and GPT-2's pattern cuts it. "it's  12"
  has the chunks "it", "'s", " " and " 12", which are words; but "12ab" is one chunk of two words. A word never
  spans two chunks, because the pattern never matches white space after other characters, nor signs after letters or
  digits, nor white space and a space before other characters.
- `Gpt4`: the pattern of GPT-4, Llama 3 and Qwen lets line ends follow other signs. So a line end goes with the chunk
  before it: "if:\n 12" has the chunks "if", ":\n" and " 12", of which the last has the words " " and "12". GPT-4o's
  pattern (gpt/tokenizer/gpt4o.py) does so too.

All of this works on whole arrays of bytes or code points. A text comes in UTF-8, with MARK for each of its marks
(gpt/tokenizer/marks.py), and each mark is a chunk by itself. Several strings in one `bytes` have MARK behind each.
"""

import string
from collections.abc import Callable
from typing import Protocol

import numpy as np

from gpt.tokenizer.characters import (
    DIGIT,
    END,
    LETTER,
    MARK_POINT,
    NEWLINE,
    SIGN,
    SPACE,
    WHITE,
    code_points,
    kinds,
    white_bytes,
)  # fmt: skip
from gpt.tokenizer.lexicon import MARGIN, MARK, Strings

Cut = Callable[[bytes], tuple[Strings, np.ndarray]]  # chunks → (their words; how many each chunk has)

# Kinds of bytes: ASCII's letters and digits (LETTER), its other signs (SIGN), space and tab (SPACE), the rest (END)
_kinds_of_bytes = np.full(0x100, END, np.uint8)
for _kind, _characters_of in (
    (LETTER, string.ascii_letters + string.digits),
    (SIGN, string.punctuation),
    (SPACE, " \t"),
):
    _kinds_of_bytes[[*map(ord, _characters_of)]] = _kind
_BYTE_KINDS = _kinds_of_bytes.tobytes()
_LONG_S = 0x17F  # ſ, which equals s if upper and lower case do not matter


class Split(Protocol):
    """One way to cut a text."""

    @property
    def cut(self) -> Cut | None: ...

    def chunks(self, data: bytes) -> Strings: ...


class WhiteSpace:
    """Words between white space. With `keep_newlines`, each line feed is a word by itself."""

    cut = None

    def __init__(self, keep_newlines: bool = False) -> None:
        self._keep_newlines = keep_newlines

    def chunks(self, data: bytes) -> Strings:
        r"""Cut a text into its words and marks.

        Example:

        >>> WhiteSpace().chunks(b"the cat\xff\nsat").joined().split(b"\xff")
        [b'the', b'cat', b'', b'', b'sat', b'']
        """
        data = b" " + data.replace(MARK, b" " + MARK + b" ") + b" " * MARGIN
        if self._keep_newlines:
            data = data.replace(b"\n", b" \n ")
        white = white_bytes(data)
        if self._keep_newlines:
            white[np.frombuffer(data, np.uint8) == ord("\n")] = False
        # Words and white space alternate, white space first: every second edge begins a word
        edge = (white[1:] != white[:-1]).nonzero()[0] + 1
        return Strings(data, edge[::2], edge[1::2] - edge[::2])


class Gpt2:
    r"""GPT-2's pattern: `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`.

    It finds contractions, runs of letters, of digits or of other signs with the space before them, and white space
    without its last character if something follows.
    """

    def chunks(self, data: bytes) -> Strings:
        r"""Cut a text into words with the white space before them, and marks.

        A chunk begins at the first character, at white space after other characters, at a space before them, at
        ASCII's signs after its letters and digits, at a mark and after a mark.

        Example:

        >>> Gpt2().chunks(b"it's  12\xffa b").joined().split(b"\xff")
        [b'it', b"'s", b' ', b' 12', b'', b'', b'a', b' b', b'']
        """
        padded = data + b" " * MARGIN
        white = white_bytes(padded)[: len(data)]
        begins = white.copy()
        begins[1:] &= ~white[:-1]
        return _beginning(begins, white, data, padded)

    def cut(self, chunks: bytes) -> tuple[Strings, np.ndarray]:
        r"""Cut chunks into words: (the words; how many each chunk has, intp [chunks]).

        Example: the apostrophe of "it's" begins a contraction, which ends after one letter. The second space before 12
        belongs to the digits.

        >>> words, count = Gpt2().cut(b"it's\xff  12!\xff")
        >>> words.joined().split(b"\xff")[:-1], count.tolist()
        ([b'it', b"'s", b' ', b' 12', b'!'], [2, 3])
        """
        points = padded_points(chunks)
        kind = kinds().take(points)
        before, after = neighbors(kind)
        # A word begins at the first and last white space of a run (at the first only, if the chunk ends there); and at
        # a change of kind, unless a space goes before it, which then has begun the word. Marks are words for now.
        begins = np.where(
            _is_white(kind),
            ~_is_white(before) | ~_is_white(after) & (after != END),
            (kind != before) & (before != SPACE) | (kind == END),
        )
        _begin_contractions(begins, points, any_case=False)
        return words(begins, kind, chunks)


class Gpt4:
    r"""The pattern of GPT-4 and Llama 3, with at most `digits` digits in a word (3; Qwen has 1).

    `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|
    \s+` finds contractions, runs of letters with any one character before them, digits, other signs with the space
    before them and the line ends after them, white space up to its last line end, and other white space without its
    last character if something follows.
    """

    def __init__(self, digits: int) -> None:
        self._digits = digits

    def chunks(self, data: bytes) -> Strings:
        r"""Cut a text into words with the white space before them and the line ends after them, and marks.

        A chunk begins at the first character, at white space other than a line end after other characters, after the
        last line end of a run of white space, at a space before other characters, at ASCII's signs after its letters
        and digits, at a mark and after a mark. At all of these places the pattern cuts, whatever stands around them.

        Example: the empty line has spaces, which go with the line ends around them.

        >>> Gpt4(3).chunks(b"if:\n  \n  12 a\xffb").joined().split(b"\xff")
        [b'if', b':\n  \n', b' ', b' 12', b' a', b'', b'', b'b', b'']
        """
        padded = data + b" " * MARGIN
        array = np.frombuffer(data, np.uint8)
        white = white_bytes(padded)[: len(data)]
        is_newline = (array == ord("\n")) | (array == ord("\r"))
        begins = white & ~is_newline
        begins[1:] &= ~white[:-1]
        # The places behind line ends. One is the last of its run of white space if the next lies beyond the run's end.
        behind = (is_newline & ~np.append(is_newline[1:], False)).nonzero()[0] + 1
        run_end = np.append((white[:-1] & ~white[1:]).nonzero()[0] + 1, len(data))
        is_last = np.append(behind[1:], len(data) + 1) > run_end[np.searchsorted(run_end, behind)]
        begins[behind[is_last & (behind < len(data))]] = True
        return _beginning(begins, white, data, padded, self._never_begins(array))

    def _never_begins(self, array: np.ndarray) -> np.ndarray | None:
        """Which bytes begin no chunk, because they may belong to those before them: bool [n], or None if none do so."""
        return None

    def cut(self, chunks: bytes) -> tuple[Strings, np.ndarray]:
        r"""Cut chunks into words: (the words; how many each chunk has, intp [chunks]).

        White space that has a line end must end in one, as that of `chunks` does.

        Example: the tab goes with the letters, but digits take no space. Four of them make two words.

        >>> words, count = Gpt4(3).cut(b"\tit'S:\n\n\xff 1234\xff")
        >>> words.joined().split(b"\xff")[:-1], count.tolist()
        ([b'\tit', b"'S", b':\n\n', b' ', b'123', b'4'], [3, 3])
        """
        points = padded_points(chunks)
        kind = kinds().take(points)
        begins = self._begins(kind)
        _begin_contractions(begins, points, any_case=True)
        return words(begins, kind, chunks)

    def _begins(self, kind: np.ndarray) -> np.ndarray:
        """Whether a word begins at each character, bool [n], contractions aside."""
        before, after = neighbors(kind)
        white, is_newline = _is_white(kind), kind == NEWLINE
        # White space begins a word at its first character, unless this is a line end that goes with the signs before
        # it, and at its last one if something follows, which cannot be a line end
        is_first, is_last = ~_is_white(before), ~_is_white(after) & (after != END)
        begins = white & np.where(is_newline, is_first & (before != SIGN), is_first | is_last)
        # Line ends that go with signs may have more white space behind them, up to another line end
        (behind,) = (white & ~is_newline & (before == NEWLINE)).nonzero()
        (first,) = (is_newline & (before != NEWLINE)).nonzero()
        begins[behind] = before[first[np.searchsorted(first, behind) - 1]] == SIGN
        # A sign by itself goes with the letters behind it, unless a space goes with the sign
        two_before = np.append(np.uint8(END), before[:-1])
        is_joined = (before == SIGN) & (two_before != SIGN) & (two_before != SPACE)
        begins |= (kind == LETTER) & (before != LETTER) & (before != SPACE) & (before != WHITE) & ~is_joined
        begins |= (kind == SIGN) & (before != SIGN) & (before != SPACE)
        begins |= kind == END
        # Digits begin a word at the first of a run, and then at every third
        (digit,) = (kind == DIGIT).nonzero()
        number = np.arange(len(digit))
        within = number - np.maximum.accumulate(np.where(before[digit] != DIGIT, number, 0))
        begins[digit] = within % self._digits == 0
        found: np.ndarray = begins
        return found


class Characters:
    """Every character by itself. A chunk is that of Gpt2, and spelled as it is, because nothing in it is merged."""

    cut = None

    def chunks(self, data: bytes) -> Strings:
        return Gpt2().chunks(data)


def _beginning(
    begins: np.ndarray, white: np.ndarray, data: bytes, padded: bytes, never: np.ndarray | None = None
) -> Strings:
    """The chunks of `data` that begin where `begins` says, and at these characters: the first one, ASCII's signs after
    its letters and digits, a space or tab between white space and something else, marks, and what follows a mark.
    `never` has bytes that stay with those before them.
    """
    array = np.frombuffer(data, np.uint8)
    kind = np.frombuffer(data.translate(_BYTE_KINDS), np.uint8)
    begins[1:] |= (kind[:-1] == LETTER) & (kind[1:] == SIGN)
    begins[1:-1] |= (kind[1:-1] == SPACE) & white[:-2] & ~white[2:] & (array[2:] != MARK[0])
    if never is not None:
        begins &= ~never
    begins[:1] = True
    if MARK in data:
        (mark,) = (array == MARK[0]).nonzero()
        begins[mark] = True
        begins[mark[mark + 1 < len(data)] + 1] = True
    (start,) = begins.nonzero()
    return Strings(padded, start, np.diff(start, append=len(data)))


def padded_points(chunks: bytes) -> np.ndarray:
    """The code points of chunks, uint32 [n + 2]. Two marks more are at the end: characters follow every apostrophe."""
    return np.append(code_points(chunks), np.array([MARK_POINT, MARK_POINT], np.uint32))


def neighbors(kind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The kinds of the characters before and after each character, END where there is none."""
    return np.append(np.uint8(END), kind[:-1]), np.append(kind[1:], np.uint8(END))


def _is_white(kind: np.ndarray) -> np.ndarray:
    white: np.ndarray = kind - np.uint8(SPACE) <= NEWLINE - SPACE
    return white


def _begin_contractions(begins: np.ndarray, points: np.ndarray, any_case: bool) -> None:
    """Let each contraction be one word, and another one begin behind it."""
    (quote,) = (begins & (points == ord("'"))).nonzero()
    length = contraction_lengths(points, quote, any_case)
    quote, length = quote[length > 0], length[length > 0]
    begins[quote + 1] = False
    begins[quote + 1 + length] = True


def contraction_lengths(points: np.ndarray, quote: np.ndarray, any_case: bool) -> np.ndarray:
    """The number of letters that belong to each apostrophe, int64 [n]; 0 if it begins no contraction."""
    first, second = points[quote + 1], points[quote + 2]
    if any_case:  # the letters of contractions differ in one bit from those in the other case
        first, second = (np.where(each == _LONG_S, ord("s"), each | 0x20) for each in (first, second))
    return _contraction(first, second)


def _contraction(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The letters that belong to an apostrophe, int64 [n]: 1 for s, t, m, d, 2 for re, ve, ll, else 0.

    `first` and `second` are the code points of the two characters that follow it.

    Example: 's, 're and 'ra (a letter that belongs to no contraction).

    >>> _contraction(*(np.array([*map(ord, letters)], np.uint32) for letters in ("srr", " ea"))).tolist()
    [1, 2, 0]
    """
    both = first.astype(np.uint64) << np.uint64(32) | second
    one = np.isin(first, [*map(ord, "stmd")])
    two = np.isin(both, np.array([ord(a) << 32 | ord(b) for a, b in ("re", "ve", "ll")], np.uint64))
    letters: np.ndarray = one + 2 * two
    return letters


def words(begins: np.ndarray, kind: np.ndarray, chunks: bytes) -> tuple[Strings, np.ndarray]:
    """The words that begin at these characters, and how many each chunk has. Marks are words until they are dropped."""
    (begin,) = begins[:-2].nonzero()
    is_end = kind[begin] == END
    # From code points to bytes: UTF-8 marks all but the first byte of a character with the upper bits 10
    first_bytes = ((np.frombuffer(chunks, np.uint8) & 0xC0) != 0x80).nonzero()[0]
    start = first_bytes[begin]
    # Drop the marks; the number of words between two of them is that of a chunk
    words = Strings(chunks + bytes(MARGIN), start, np.diff(start, append=len(chunks)))
    return words.take((~is_end).nonzero()[0]), np.diff(is_end.nonzero()[0], prepend=-1) - 1
