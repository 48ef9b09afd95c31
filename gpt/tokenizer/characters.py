"""The code points of a text as an array, and their classes: white space, line ends, letters, digits.

The classes are those of one version of Unicode (unicode_table.py), so that a text has the same ids on every machine.
"""

from functools import cache
from itertools import chain

import numpy as np

from gpt.tokenizer.lexicon import MARK
from gpt.tokenizer.unicode_table import LETTERS, LOWERS, MARKS, NUMBERS, UPPERS

ALL = 0x110000  # number of code points in Unicode
MARK_POINT = 0xDC00 + MARK[0]  # code point that Python's "surrogateescape" makes of a MARK

# Kinds of characters in the patterns that split text: the end of a chunk, the space, other white space, line ends,
# letters, digits, other signs. White space is SPACE … NEWLINE.
END, SPACE, WHITE, NEWLINE, LETTER, DIGIT, SIGN = range(7)
# Kinds that GPT-4o's pattern has besides: letters in upper case (or title case) and in lower case, and combining marks
UPPER, LOWER, COMBINING = range(7, 10)

# White space beyond ASCII (Unicode's White_Space): the characters of two bytes in UTF-8, and those of three
_WIDE_WHITE = (
    [c.encode() for c in "\x85\xa0"],
    [c.encode() for c in ("\u1680", *map(chr, range(0x2000, 0x200B)), *"\u2028\u2029\u202f\u205f\u3000")],
)


def code_points(text: bytes) -> np.ndarray:
    """The code points of UTF-8 text, uint32 [characters]. MARK is a character too, MARK_POINT."""
    characters = text.decode("utf-8", "surrogateescape")
    return np.frombuffer(characters.encode("utf-32-le", "surrogatepass"), np.uint32)


def white_bytes(data: bytes) -> np.ndarray:
    r"""Whether each byte belongs to white space (Unicode's White_Space), bool [n]. `data` must end in MARGIN spaces.

    Example: the no-break space U+00A0 has the bytes C2 A0.

    >>> white_bytes("a\xa0b".encode() + b" " * 8)[:4].tolist()
    [False, True, True, False]
    """
    array = np.frombuffer(data, np.uint8)
    white: np.ndarray = (array == ord(" ")) | (array - np.uint8(ord("\t")) < 5)
    if not data.isascii():
        # four_bytes[i] is made of the bytes i … i + 3, the first one lowest
        four_bytes = np.ndarray(len(data) - 3, "<u4", data, strides=(1,))
        for wide in _WIDE_WHITE:
            # Look at the whole character wherever the first byte of a wide one stands
            size = len(wide[0])
            (at,) = np.isin(array, [c[0] for c in wide]).nonzero()
            found = np.isin(four_bytes[at] & ((1 << 8 * size) - 1), [int.from_bytes(c, "little") for c in wide])
            for byte in range(size):
                white[at[found] + byte] = True
    return white


@cache
def white_points() -> np.ndarray:
    """Whether each code point is white space (Unicode's White_Space), bool [code points]."""
    white = np.zeros(ALL, bool)
    white[[*map(ord, "\t\n\v\f\r "), *(ord(c.decode()) for c in chain(*_WIDE_WHITE))]] = True
    return white


@cache
def kinds() -> np.ndarray:
    r"""The kind of each code point, uint8 [code points].

    Example: "a" is a letter, "7" a digit, a tab white space, "!" another sign.

    >>> [int(kinds()[ord(c)]) for c in "a7\t!"] == [LETTER, DIGIT, WHITE, SIGN]
    True
    """
    found = np.full(ALL, SIGN, np.uint8)
    _put(LETTER, LETTERS, found)
    _put(DIGIT, NUMBERS, found)
    found[white_points()] = WHITE
    found[ord(" ")] = SPACE
    found[[ord("\r"), ord("\n")]] = NEWLINE
    found[MARK_POINT] = END
    return found


@cache
def cased_kinds() -> np.ndarray:
    """The same, with UPPER, LOWER and COMBINING: LETTER is a letter without a case, SIGN no combining mark."""
    found = kinds().copy()
    _put(UPPER, UPPERS, found)
    _put(LOWER, LOWERS, found)
    _put(COMBINING, MARKS, found)
    return found


def _put(kind: int, ranges: str, found: np.ndarray) -> None:
    for first, _, last in (each.partition("-") for each in ranges.split()):
        found[int(first, 16) : int(last or first, 16) + 1] = kind
