"""How the two kinds of tokenizer see a text: how it is cut, how words are spelled in ids, how ids become text again.

A text is cut into chunks, and a chunk into words. Merging never crosses the end of a word. Tables of distinct chunks
and words then do the rest (gpt/tokenizer/encoding.py).
- `word`: a chunk is a run of characters between white space, and it is also the word. "it's  12" has the chunks "it's"
  and "12".
- `byte`: a chunk is a run of other characters with the white space before it. GPT-2's pattern cuts it into words.
  "it's  12" has the chunks "it's" and "  12", which have the words "it", "'s" and " ", " 12". A word never spans two
  chunks, because the pattern never matches white space after other characters.
In both, the end-of-text mark is a chunk by itself.

All of this works on whole arrays of bytes or code points. Several strings in one `bytes` have MARK behind each.
"""

import codecs
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import chain
from typing import Protocol

import numpy as np

from gpt.errors import UserError
from gpt.tokenizer.bpe import GAP
from gpt.tokenizer.lexicon import MARGIN, MARK, Strings
from gpt.tokenizer.text import END_OF_TEXT
from gpt.tokenizer.unicode_table import LETTERS, NUMBERS

END_OF_WORD = "</w>"

_UNKNOWN = -2  # id of a character that has none
_ALL = 0x110000  # number of code points in Unicode
_MARK_POINT = 0xDC00 + MARK[0]  # code point that Python's "surrogateescape" makes of a MARK
_FIRST_GAP = np.array([GAP], np.int32)  # GAP before the first word of a row
_NOTHING = np.zeros(0, np.int32)  # array of no words, so that there is always something to concatenate

# White space beyond ASCII (Unicode's White_Space): the characters of two bytes in UTF-8, and those of three
_WIDE_WHITE = (
    [c.encode() for c in "\x85\xa0"],
    [c.encode() for c in ("\u1680", *map(chr, range(0x2000, 0x200B)), *"\u2028\u2029\u202f\u205f\u3000")],
)
# Kinds of characters in GPT-2's pattern: the end of a chunk, the space, other white space, letters, digits, other signs
_END, _SPACE, _WHITE, _LETTER, _DIGIT, _OTHER = range(6)


class Decoder(Protocol):
    """Turns ids into text one at a time. The results of all `feed` calls and of `finish`, joined, equal `decode`'s."""

    def feed(self, id: int) -> str: ...

    def finish(self) -> str: ...


class WordSpelling:
    """Words between white space, spelled in characters.

    Character number k has two ids: 2k + 1 within a word, and 2k + 2, with `</w>`, at the end of a word.
    """

    least = 3
    suffix = END_OF_WORD
    pre_tokenizer = {"type": "WhitespaceSplit"}
    hf_decoder = {"type": "BPEDecoder", "suffix": END_OF_WORD}

    def __init__(self, characters: Iterable[str] = ()):
        known = list(characters)
        self.alphabet = [END_OF_TEXT, *chain.from_iterable((c, c + END_OF_WORD) for c in known)]
        self._ids = np.full(_ALL, _UNKNOWN, np.int32)  # ids by code point
        self._ids[[ord(c) for c in known]] = np.arange(1, 2 * len(known), 2)
        self._ids[_MARK_POINT] = GAP

    @classmethod
    def from_alphabet(cls, alphabet: Sequence[str]) -> "WordSpelling":
        return cls(alphabet[1::2])

    @classmethod
    def fit(cls, words: Sequence[bytes], counts: np.ndarray, vocab_limit: int) -> tuple["WordSpelling", str | None]:
        r"""Choose the most frequent characters as alphabet: (spelling, advice). The lower code point wins a tie.

        `words` holds words in any number of strings, and `counts` says how often each of them occurs. The advice is a
        line for the user if the characters would fill more than half of the vocabulary, else None.
        Raises UserError if there is no word.

        Example: "ab" occurs once and "b" twice, so b comes before a.

        >>> spelling, advice = WordSpelling.fit([b"ab\xffb\xff"], np.array([1, 2]), vocab_limit=8)
        >>> spelling.alphabet
        ['<|endoftext|>', 'b', 'b</w>', 'a', 'a</w>']
        """
        # Add up the counts of the words that each character is in; MARK ends a word and is counted with it
        times = np.zeros(_ALL)  # counts by code point; float64, as bincount's weights are: exact up to 2^53
        counted = 0  # words of the strings before
        for some in words:
            code_points = _code_points(some)
            (end,) = (code_points == _MARK_POINT).nonzero()
            weights = np.repeat(counts[counted : counted + len(end)], np.diff(end, prepend=-1))
            times += np.bincount(code_points, weights, _ALL)
            counted += len(end)
        times[_MARK_POINT] = 0
        (found,) = times.nonzero()
        if not len(found):
            raise UserError(
                f"the text has no word to train on, only white space and {END_OF_TEXT} marks: give a text with words"
            )
        # A character takes two ids: with and without </w>
        advice = None
        if 4 * len(found) > vocab_limit:
            advice = (
                f"the {len(found)} different characters want {2 * len(found)} of the {vocab_limit} tokens: "
                "a larger --vocab-size or --tokenizer byte would leave room for words"
            )
        by_count = found[np.argsort(-times[found], kind="stable")]
        return cls(map(chr, by_count[: (vocab_limit - 1) // 2].tolist())), advice

    @staticmethod
    def chunks(text: str) -> Strings:
        r"""Cut a text into its words and end-of-text marks. Raises ValueError for a lone surrogate.

        Example:

        >>> WordSpelling.chunks("the cat<|endoftext|>\nsat").joined().split(b"\xff")
        [b'the', b'cat', b'', b'', b'sat', b'']
        """
        data = b" " + _encoded(text).replace(MARK, b" " + MARK + b" ") + b" " * MARGIN
        white = _white(data)
        # Words and white space alternate, white space first: every second edge begins a word
        edge = (white[1:] != white[:-1]).nonzero()[0] + 1
        return Strings(data, edge[::2], edge[1::2] - edge[::2])

    cut = None  # a chunk is a word

    def spell(self, words: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        r"""Spell words: (the row of their characters' ids; the number of characters each word has lost, int32 [words]).

        A word whose last character is unknown ends without </w>.

        Example: the alphabet is a = 1, a</w> = 2, b = 3, b</w> = 4. "ab" becomes a b</w>, and "xbx" loses both x.

        >>> row, lost = WordSpelling("ab").spell([b"ab\xffxbx\xff"])
        >>> row.tolist(), lost.tolist()
        ([-1, 1, 4, -1, 3, -1], [0, 2])
        """
        rows, lost = [_FIRST_GAP], [_NOTHING]
        for some in words:
            # Ids of characters, with GAP for each MARK; the id of c</w> is one more than that of c
            row = self._ids[_code_points(some)]
            (gap,) = (row == GAP).nonzero()
            known = row != _UNKNOWN
            row[gap - 1] += known[gap - 1]
            # Unknown characters go; their number per word is counted from each word's first character to its GAP
            rows.append(row[known])
            lost.append(np.add.reduceat(~known, gap - np.diff(gap, prepend=-1) + 1, dtype=np.int32))
        return np.concatenate(rows), np.concatenate(lost)

    def unknown(self, text: str) -> Counter[str]:
        """The characters of a text that have no id, with how often each occurs. White space needs none."""
        points = _code_points(_encoded(text))
        points = points[self._ids[points] == _UNKNOWN]
        points, counts = np.unique(points[~_white_points()[points]], return_counts=True)
        return Counter(dict(zip(map(chr, points.tolist()), counts.tolist(), strict=True)))

    @staticmethod
    def joinable(left: str, right: str) -> bool:
        """Whether a merge is allowed. It may not spell a `</w>` of the text, which would read as the end of a word."""
        return (left + right).count(END_OF_WORD) == right.count(END_OF_WORD)

    @staticmethod
    def byte_length(piece: str) -> int:
        """UTF-8 bytes of the piece's characters, and one for the space that decoding puts behind a word."""
        return len(piece.removesuffix(END_OF_WORD).encode()) + piece.endswith(END_OF_WORD)

    @staticmethod
    def decoder(piece: Callable[[int], str]) -> Decoder:
        return _WordDecoder(piece)


class _WordDecoder:
    """`</w>` becomes a space once another token follows (Hugging Face's BPEDecoder)."""

    def __init__(self, piece: Callable[[int], str]):
        self._piece = piece
        self._space = ""

    def feed(self, id: int) -> str:
        piece = self._piece(id)
        text = piece.removesuffix(END_OF_WORD)
        space, self._space = self._space, " " if len(text) < len(piece) else ""
        return space + text

    def finish(self) -> str:
        return ""


def _byte_characters() -> list[str]:
    """GPT-2's printable character for each byte: itself if Latin-1 prints it, else the next from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0x100)} - {0xAD}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(spare)) for byte in range(0x100)]


class ByteSpelling:
    """The words that GPT-2's pattern finds, spelled in UTF-8 bytes. Byte b has the id b + 1."""

    least = 257
    suffix = None
    alphabet = (END_OF_TEXT, *_byte_characters())
    pre_tokenizer = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    hf_decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}

    @classmethod
    def from_alphabet(cls, alphabet: Sequence[str]) -> "ByteSpelling":
        return cls()

    @classmethod
    def fit(cls, words: Sequence[bytes], counts: np.ndarray, vocab_limit: int) -> tuple["ByteSpelling", None]:
        return cls(), None

    @staticmethod
    def chunks(text: str) -> Strings:
        r"""Cut a text into words with the white space before them, and end-of-text marks.

        A chunk begins at the first character, at white space after other characters, at a mark and after a mark.
        Raises ValueError for a lone surrogate.

        Example:

        >>> ByteSpelling.chunks("it's  12<|endoftext|>a b").joined().split(b"\xff")
        [b"it's", b'  12', b'', b'', b'a', b' b', b'']
        """
        data = _encoded(text)
        padded = data + b" " * MARGIN
        white = _white(padded)[: len(data)]
        # A chunk begins at white space that follows other characters …
        begins = white.copy()
        begins[1:] &= ~white[:-1]
        begins[:1] = True
        # … and at a mark and behind it
        if MARK in data:
            (mark,) = (np.frombuffer(data, np.uint8) == MARK[0]).nonzero()
            begins[mark] = True
            begins[mark[mark + 1 < len(data)] + 1] = True
        (start,) = begins.nonzero()
        return Strings(padded, start, np.diff(start, append=len(data)))

    @staticmethod
    def cut(chunks: bytes) -> tuple[Strings, np.ndarray]:
        r"""Cut chunks into words by GPT-2's pattern: (the words; how many each chunk has, intp [chunks]).

        The pattern is `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`: contractions, runs
        of letters, of digits or of other signs with the space before them, and white space without its last character
        if something follows.

        Example: the apostrophe of "it's" begins a contraction, which ends after one letter. The second space before 12
        belongs to the digits.

        >>> words, count = ByteSpelling.cut(b"it's\xff  12!\xff")
        >>> words.joined().split(b"\xff")[:-1], count.tolist()
        ([b'it', b"'s", b' ', b' 12', b'!'], [2, 3])
        """
        # Every character beside its neighbors; two marks at the end, so that two characters follow every quote
        points = np.append(_code_points(chunks), np.array([_MARK_POINT, _MARK_POINT], np.uint32))
        kind = _kinds()[points]
        before, after = np.append(np.uint8(_END), kind[:-1]), np.append(kind[1:], np.uint8(_END))
        white, white_before, white_after = (np.isin(k, (_SPACE, _WHITE)) for k in (kind, before, after))
        # A word begins at the first and last white space of a run (at the first only, if the chunk ends there); and at
        # a change of kind, unless a space goes before it, which then has begun the word. Marks are words for now.
        begins = np.where(
            white,
            ~white_before | ~white_after & (after != _END),
            (kind != before) & (before != _SPACE) | (kind == _END),
        )
        # A contraction is one word, and another one begins behind it
        (quote,) = (begins & (points == ord("'"))).nonzero()
        letters = _contraction(points[quote + 1], points[quote + 2])
        quote, letters = quote[letters > 0], letters[letters > 0]
        begins[quote + 1] = False
        begins[quote + 1 + letters] = True
        # From code points to bytes: UTF-8 marks all but the first byte of a character with the upper bits 10
        (begin,) = begins[:-2].nonzero()
        is_end = kind[begin] == _END
        first_bytes = ((np.frombuffer(chunks, np.uint8) & 0xC0) != 0x80).nonzero()[0]
        start = first_bytes[begin]
        # Drop the marks; the number of words between two of them is that of a chunk
        words = Strings(chunks + bytes(MARGIN), start, np.diff(start, append=len(chunks)))
        return words.take(~is_end), np.diff(is_end.nonzero()[0], prepend=-1) - 1

    @staticmethod
    def spell(words: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        r"""Spell words: (the row of their bytes' ids; a zero per word, int32 [words], because no byte is ever lost).

        Example:

        >>> row, lost = ByteSpelling.spell([b"\x00\x01\xff\x02\xff"])
        >>> row.tolist(), lost.tolist()
        ([-1, 1, 2, -1, 3, -1], [0, 0])
        """
        data = np.frombuffer(b"".join(words), np.uint8)
        row = np.concatenate([_FIRST_GAP, data.astype(np.int32) + 1])
        row[1:][data == MARK[0]] = GAP
        return row, np.zeros(np.count_nonzero(row == GAP) - 1, np.int32)

    @staticmethod
    def unknown(text: str) -> Counter[str]:
        """Always empty: every character is known."""
        return Counter()

    @staticmethod
    def joinable(left: str, right: str) -> bool:
        return True

    @staticmethod
    def byte_length(piece: str) -> int:
        """The piece's bytes: each is spelled in one character."""
        return len(piece)

    @staticmethod
    def decoder(piece: Callable[[int], str]) -> Decoder:
        return _ByteDecoder(piece)


class _ByteDecoder:
    """Holds bytes back until they make a character. Malformed ones become U+FFFD, as in Hugging Face's ByteLevel."""

    _BYTE = {character: byte for byte, character in enumerate(_byte_characters())}

    def __init__(self, piece: Callable[[int], str]):
        self._piece = piece
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, id: int) -> str:
        return self._utf8.decode(bytes(map(self._BYTE.__getitem__, self._piece(id))))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


Spelling = WordSpelling | ByteSpelling
SPELLINGS: dict[str, type[Spelling]] = {"word": WordSpelling, "byte": ByteSpelling}


def _encoded(text: str) -> bytes:
    """The text in UTF-8, with MARK for each end-of-text mark. Raises ValueError for a lone surrogate."""
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the text holds a lone surrogate at character {error.start}") from None
    return data.replace(END_OF_TEXT.encode(), MARK)


def _white(data: bytes) -> np.ndarray:
    r"""Whether each byte belongs to white space (Unicode's White_Space), bool [n]. `data` must end in MARGIN spaces.

    Example: the no-break space U+00A0 has the bytes C2 A0.

    >>> _white("a\xa0b".encode() + b" " * MARGIN)[:4].tolist()
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
def _white_points() -> np.ndarray:
    """Whether each code point is white space (Unicode's White_Space), bool [code points]."""
    white = np.zeros(_ALL, bool)
    white[[*map(ord, "\t\n\v\f\r "), *(ord(c.decode()) for c in chain(*_WIDE_WHITE))]] = True
    return white


@cache
def _kinds() -> np.ndarray:
    """The kind of each code point in GPT-2's pattern, uint8 [code points].

    The letters and digits are those of one version of Unicode, so that a text has the same ids on every machine.

    Example: "a" is a letter, "7" a digit, a newline white space, "!" another sign.

    >>> [int(_kinds()[ord(c)]) for c in "a7\\n!"] == [_LETTER, _DIGIT, _WHITE, _OTHER]
    True
    """
    kinds = np.full(_ALL, _OTHER, np.uint8)
    for kind, ranges in ((_LETTER, LETTERS), (_DIGIT, NUMBERS)):
        for first, _, last in (each.partition("-") for each in ranges.split()):
            kinds[int(first, 16) : int(last or first, 16) + 1] = kind
    kinds[_white_points()] = _WHITE
    kinds[ord(" ")] = _SPACE
    kinds[_MARK_POINT] = _END
    return kinds


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


def _code_points(text: bytes) -> np.ndarray:
    """The code points of UTF-8 text, uint32 [characters]. MARK is a character too, _MARK_POINT."""
    characters = text.decode("utf-8", "surrogateescape")
    return np.frombuffer(characters.encode("utf-32-le", "surrogatepass"), np.uint32)
