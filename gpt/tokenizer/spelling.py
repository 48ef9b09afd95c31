"""How the two kinds of tokenizer see a text: where it is cut, how words are spelled in ids, how ids become text again.

A text is cut into chunks, and a chunk into words, which merging never leaves. For `word` the two are the same: what
stands between white space. For `byte` a chunk is that with the white space before it, and its words are GPT-2's
pieces: only distinct chunks are cut into them. No piece is in two chunks, as no alternative of GPT-2's pattern goes on
from what is no white space to what is. In both, the end-of-text mark is a chunk by itself.

All of it is done on whole arrays of bytes or code points. Several strings in one come each with MARK behind it.
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

_UNKNOWN = -2  # a character without an id
_ALL = 0x110000  # code points
_MARK_POINT = 0xDC00 + MARK[0]  # what Python's "surrogateescape" makes of a MARK
_FIRST_GAP = np.array([GAP], np.int32)
_NOTHING = np.zeros(0, np.int32)

# Unicode's White_Space beyond ASCII, as two and as three bytes of UTF-8
_WIDE_WHITE = (
    [c.encode() for c in "\x85\xa0"],
    [c.encode() for c in ("\u1680", *map(chr, range(0x2000, 0x200B)), *"\u2028\u2029\u202f\u205f\u3000")],
)
# What GPT-2's pattern tells apart
_END, _SPACE, _WHITE, _LETTER, _DIGIT, _OTHER = range(6)


class Decoder(Protocol):
    """Ids to text, one at a time: what `feed` and `finish` return, joined, is what `decode` gives for all the ids."""

    def feed(self, id: int) -> str: ...

    def finish(self) -> str: ...


class WordSpelling:
    """Words between white space, as characters. Of character number k, the ids 2k + 1 and 2k + 2 are c and c</w>."""

    least = 3
    suffix = END_OF_WORD
    pre_tokenizer = {"type": "WhitespaceSplit"}
    hf_decoder = {"type": "BPEDecoder", "suffix": END_OF_WORD}

    def __init__(self, characters: Iterable[str] = ()):
        characters = list(characters)
        self.alphabet = [END_OF_TEXT, *chain.from_iterable((c, c + END_OF_WORD) for c in characters)]
        self._ids = np.full(_ALL, _UNKNOWN, np.int32)  # of code points
        self._ids[[ord(c) for c in characters]] = np.arange(1, 2 * len(characters), 2)
        self._ids[_MARK_POINT] = GAP

    @classmethod
    def from_alphabet(cls, alphabet: Sequence[str]) -> "WordSpelling":
        return cls(alphabet[1::2])

    @classmethod
    def fit(cls, words: Sequence[bytes], counts: np.ndarray, vocab_limit: int) -> tuple["WordSpelling", str | None]:
        """Characters enter by count while they fit, ties by code point; advice if they would fill over half.

        `words` holds words in any number of strings, `counts` how often each of them occurs.
        """
        times = np.zeros(_ALL)  # float64, as bincount's weights are: exact up to 2^53
        for some in words:
            code_points = _code_points(some)
            (end,) = (code_points == _MARK_POINT).nonzero()
            counted, counts = counts[: len(end)], counts[len(end) :]
            times += np.bincount(code_points, np.repeat(counted, np.diff(end, prepend=-1)), _ALL)
        times[_MARK_POINT] = 0
        (found,) = times.nonzero()
        if not len(found):
            raise UserError(
                f"the text has no word to train on, only white space and {END_OF_TEXT} marks: give a text with words"
            )
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
        """ValueError for a lone surrogate."""
        data = b" " + _encoded(text).replace(MARK, b" " + MARK + b" ") + b" " * MARGIN
        white = _white(data)
        edge = (white[1:] != white[:-1]).nonzero()[0] + 1
        return Strings(data, edge[::2], edge[1::2] - edge[::2])

    cut = None  # a chunk is a word

    def spell(self, words: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """The row of the known characters' ids, and how many characters each word has lost, int32 [words].

        A word whose last character is unknown ends without </w>.
        """
        rows, lost = [_FIRST_GAP], [_NOTHING]
        for some in words:
            row = self._ids[_code_points(some)]
            (gap,) = (row == GAP).nonzero()
            known = row != _UNKNOWN
            row[gap - 1] += known[gap - 1]
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
        """No merge may spell a `</w>` that stands in the text: it would read as the end of a word."""
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
    """GPT-2's pieces, as UTF-8 bytes. Byte b has the id b + 1."""

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
        """ValueError for a lone surrogate."""
        data = _encoded(text)
        padded = data + b" " * MARGIN
        white = _white(padded)[: len(data)]
        begins = white.copy()
        begins[1:] &= ~white[:-1]
        begins[:1] = True
        if MARK in data:
            (mark,) = (np.frombuffer(data, np.uint8) == MARK[0]).nonzero()
            begins[mark] = True
            begins[mark[mark + 1 < len(data)] + 1] = True
        (start,) = begins.nonzero()
        return Strings(padded, start, np.diff(start, append=len(data)))

    @staticmethod
    def cut(chunks: bytes) -> tuple[Strings, np.ndarray]:
        r"""GPT-2's pieces of each chunk, and how many those are, intp [chunks].

        The pattern is `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`: contractions, runs
        of letters, of digits or of other signs with the space before them, and white space less its last character if
        something follows.
        """
        points = np.append(_code_points(chunks), np.uint32([_MARK_POINT, _MARK_POINT]))
        kind = _kinds()[points]
        before, after = np.append(np.uint8(_END), kind[:-1]), np.append(kind[1:], np.uint8(_END))
        white, white_before, white_after = (np.isin(k, (_SPACE, _WHITE)) for k in (kind, before, after))
        begins = np.where(
            white,
            ~white_before | ~white_after & (after != _END),
            (kind != before) & (before != _SPACE) | (kind == _END),
        )
        (quote,) = (begins & (points == ord("'"))).nonzero()
        letters = _contraction(points[quote + 1], points[quote + 2])
        quote, letters = quote[letters > 0], letters[letters > 0]
        begins[quote + 1] = False
        begins[quote + 1 + letters] = True
        (begin,) = begins[:-2].nonzero()
        is_end = kind[begin] == _END
        first_bytes = ((np.frombuffer(chunks, np.uint8) & 0xC0) != 0x80).nonzero()[0]  # of the code points
        start = first_bytes[begin]
        pieces = Strings(chunks + bytes(MARGIN), start, np.diff(start, append=len(chunks)))
        return pieces.take(~is_end), np.diff(is_end.nonzero()[0], prepend=-1) - 1

    @staticmethod
    def spell(words: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """The row of the words' bytes, and the zeros that say that nothing is lost, int32 [words]."""
        data = np.frombuffer(b"".join(words), np.uint8)
        row = np.concatenate([_FIRST_GAP, data.astype(np.int32) + 1])
        row[1:][data == MARK[0]] = GAP
        return row, np.zeros(np.count_nonzero(row == GAP) - 1, np.int32)

    @staticmethod
    def unknown(text: str) -> Counter[str]:
        """No character is unknown."""
        return Counter()

    @staticmethod
    def joinable(left: str, right: str) -> bool:
        return True

    @staticmethod
    def byte_length(piece: str) -> int:
        """A piece spells each of its bytes in one character."""
        return len(piece)

    @staticmethod
    def decoder(piece: Callable[[int], str]) -> Decoder:
        return _ByteDecoder(piece)


class _ByteDecoder:
    """Bytes wait until they make a character; malformed ones become U+FFFD, as in Hugging Face's ByteLevel."""

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
    """UTF-8 with MARK for each end-of-text mark."""
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the text holds a lone surrogate at character {error.start}") from None
    return data.replace(END_OF_TEXT.encode(), MARK)


def _white(data: bytes) -> np.ndarray:
    """Which bytes belong to white space (Unicode's White_Space), bool [n]. `data` must end in MARGIN spaces."""
    array = np.frombuffer(data, np.uint8)
    white = (array == ord(" ")) | (array - np.uint8(ord("\t")) < 5)
    if not data.isascii():
        four_bytes = np.ndarray(len(data) - 3, "<u4", data, strides=(1,))  # from each byte on
        for wide in _WIDE_WHITE:
            size = len(wide[0])
            (at,) = np.isin(array, [c[0] for c in wide]).nonzero()
            found = np.isin(four_bytes[at] & ((1 << 8 * size) - 1), [int.from_bytes(c, "little") for c in wide])
            for byte in range(size):
                white[at[found] + byte] = True
    return white


@cache
def _white_points() -> np.ndarray:
    """Which code points are white space (Unicode's White_Space), bool [code points]."""
    white = np.zeros(_ALL, bool)
    white[[*map(ord, "\t\n\v\f\r "), *(ord(c.decode()) for c in chain(*_WIDE_WHITE))]] = True
    return white


@cache
def _kinds() -> np.ndarray:
    """Of each code point, which of the kinds that GPT-2's pattern tells apart, uint8 [code points].

    One version of Unicode, whatever is installed, so that a text has the same ids everywhere.
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
    """How many letters after an apostrophe belong to it, int64 [n]: 1 for s, t, m, d, 2 for re, ve, ll, else 0."""
    both = first.astype(np.uint64) << np.uint64(32) | second
    two = np.isin(both, np.array([ord(a) << 32 | ord(b) for a, b in ("re", "ve", "ll")], np.uint64))
    return np.isin(first, [*map(ord, "stmd")]) + 2 * two


def _code_points(text: bytes) -> np.ndarray:
    """uint32 [characters], where a MARK counts as one."""
    text = text.decode("utf-8", "surrogateescape")
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
