"""How the kinds of tokenizer spell words in symbols, and how the pieces of tokens become text again.

The symbols of an alphabet are numbers from 0 on, as gpt/tokenizer/merges.py merges them. Several words in one `bytes`
have MARK behind each.
"""

import codecs
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Protocol

import numpy as np

from gpt.errors import UserError
from gpt.tokenizer.bpe import GAP
from gpt.tokenizer.characters import ALL, MARK_POINT, code_points
from gpt.tokenizer.lexicon import MARK
from gpt.tokenizer.marks import END_OF_TEXT

END_OF_WORD = "</w>"

_UNKNOWN = -2  # symbol of a character that has none
_FIRST_GAP = np.array([GAP], np.int32)  # GAP before the first word of a row
_NOTHING = np.zeros(0, np.int32)  # array of no words, so that there is always something to concatenate


class Decoder(Protocol):
    """Turns ids into text one at a time. The results of all `feed` calls and of `finish`, joined, equal `decode`'s."""

    def feed(self, id: int) -> str: ...

    def finish(self) -> str: ...


class WordSpelling:
    """Words spelled in Unicode characters.

    Character number k has two symbols: 2k within a word, and 2k + 1, with `</w>`, at the end of a word.
    """

    least = 2

    def __init__(self, characters: Iterable[str] = ()):
        known = list(characters)
        self.alphabet = list(chain.from_iterable((c, c + END_OF_WORD) for c in known))
        self._symbols = np.full(ALL, _UNKNOWN, np.int32)  # symbols by code point
        self._symbols[[ord(c) for c in known]] = np.arange(0, 2 * len(known), 2)
        self._symbols[MARK_POINT] = GAP

    @classmethod
    def fit(cls, words: Sequence[bytes], counts: np.ndarray, room: int) -> tuple["WordSpelling", str | None]:
        r"""Choose the most frequent characters as alphabet: (spelling, advice). The lower code point wins a tie.

        `words` holds words in any number of strings, and `counts` says how often each of them occurs. At most `room`
        symbols are made. The advice is a line for the user if the characters would fill more than half of them, else
        None.
        Raises UserError if there is no word.

        Example: "ab" occurs once and "b" twice, so b comes before a.

        >>> spelling, advice = WordSpelling.fit([b"ab\xffb\xff"], np.array([1, 2]), room=7)
        >>> spelling.alphabet
        ['b', 'b</w>', 'a', 'a</w>']
        """
        by_count = _characters_by_count(words, counts)
        if not by_count:
            raise UserError(
                f"the text has no word to train on, only white space and {END_OF_TEXT} marks: give a text with words"
            )
        # A character takes two symbols: with and without </w>
        advice = None
        if 4 * len(by_count) > room + 1:
            advice = (
                f"the {len(by_count)} different characters want {2 * len(by_count)} of the {room} tokens that are "
                "free: a larger --vocab-size or --tokenizer byte would leave room for words"
            )
        return cls(by_count[: room // 2]), advice

    def spell(self, words: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        r"""Spell words: (the row of their characters' symbols; the characters that each word has lost, int32 [words]).

        A word whose last character is unknown ends without </w>.

        Example: the alphabet is a = 0, a</w> = 1, b = 2, b</w> = 3. "ab" becomes a b</w>, and "xbx" loses both x.

        >>> row, lost = WordSpelling("ab").spell([b"ab\xffxbx\xff"])
        >>> row.tolist(), lost.tolist()
        ([-1, 0, 3, -1, 2, -1], [0, 2])
        """
        rows, lost = [_FIRST_GAP], [_NOTHING]
        for some in words:
            # Symbols of characters, with GAP for each MARK; the symbol of c</w> is one more than that of c
            row = self._symbols[code_points(some)]
            (gap,) = (row == GAP).nonzero()
            known = row != _UNKNOWN
            row[gap - 1] += known[gap - 1]
            # Unknown characters go; their number per word is counted from each word's first character to its GAP
            rows.append(row[known])
            lost.append(np.add.reduceat(~known, gap - np.diff(gap, prepend=-1) + 1, dtype=np.int32))
        return np.concatenate(rows), np.concatenate(lost)

    def unknown(self, words: bytes) -> Counter[str]:
        """The characters of words that have no symbol, with how often each occurs."""
        return _lacking(self._symbols, words)

    @staticmethod
    def joinable(left: str, right: str) -> bool:
        """Whether a merge is allowed. It may not spell a `</w>` of the text, which would read as the end of a word."""
        return (left + right).count(END_OF_WORD) == right.count(END_OF_WORD)

    @staticmethod
    def byte_length(piece: str) -> int:
        """UTF-8 bytes of the piece's characters, and one for the space that decoding puts behind a word.

        A line end takes the place of the space behind the word before it, and has none behind it.
        """
        return (
            0
            if piece == "\n" + END_OF_WORD
            else len(piece.removesuffix(END_OF_WORD).encode()) + piece.endswith(END_OF_WORD)
        )

    @staticmethod
    def decoder(piece: Callable[[int], str]) -> Decoder:
        return _WordDecoder(piece)


class _WordDecoder:
    """`</w>` becomes a space once another token follows (Hugging Face's BPEDecoder), but not beside a line end."""

    def __init__(self, piece: Callable[[int], str]):
        self._piece = piece
        self._space = ""

    def feed(self, id: int) -> str:
        piece = self._piece(id)
        text = piece.removesuffix(END_OF_WORD)
        space, self._space = self._space, " " if len(text) < len(piece) and text != "\n" else ""
        return text if text == "\n" else space + text

    def finish(self) -> str:
        return ""


def _byte_characters() -> list[str]:
    """GPT-2's printable character for each byte: itself if Latin-1 prints it, else the next from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0x100)} - {0xAD}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(spare)) for byte in range(0x100)]


_BYTES = {character: byte for byte, character in enumerate(_byte_characters())}
_TO_LATIN1 = {ord(character): byte for character, byte in _BYTES.items()} | {ord(" "): MARK[0]}


class ByteSpelling:
    """Words spelled in UTF-8 bytes. Byte b is the symbol b. A piece has one of GPT-2's printable characters a byte."""

    least = 256
    alphabet = tuple(_byte_characters())

    @classmethod
    def fit(cls, words: Sequence[bytes], counts: np.ndarray, room: int) -> tuple["ByteSpelling", None]:
        return cls(), None

    @staticmethod
    def spell(words: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        r"""Spell words: (the row of their bytes; a zero per word, int32 [words], because no byte is ever lost).

        Example:

        >>> row, lost = ByteSpelling.spell([b"\x00\x01\xff\x02\xff"])
        >>> row.tolist(), lost.tolist()
        ([-1, 0, 1, -1, 2, -1], [0, 0])
        """
        data = np.frombuffer(b"".join(words), np.uint8)
        row = np.concatenate([_FIRST_GAP, data.astype(np.int32)])
        row[1:][data == MARK[0]] = GAP
        return row, np.zeros(np.count_nonzero(row == GAP) - 1, np.int32)

    @staticmethod
    def unknown(words: bytes) -> Counter[str]:
        """Always empty: every character is known."""
        return Counter()

    @staticmethod
    def joinable(left: str, right: str) -> bool:
        return True

    @staticmethod
    def byte_length(piece: str) -> int:
        """The piece's bytes."""
        return len(ByteSpelling.bytes_of(piece))

    @staticmethod
    def bytes_of(piece: str) -> bytes:
        """The bytes of a piece, as in Hugging Face's ByteLevel. A mark may have characters that stand for no byte."""
        try:
            return bytes(map(_BYTES.__getitem__, piece))
        except KeyError:
            return piece.encode()

    @staticmethod
    def piece_of(data: bytes) -> str:
        """The piece that has these bytes."""
        return "".join(map(ByteSpelling.alphabet.__getitem__, data))

    @staticmethod
    def joined(pieces: Sequence[str]) -> bytes:
        """The bytes of pieces that merges make, MARK before the first, between any two and behind the last."""
        return MARK + " ".join(pieces).translate(_TO_LATIN1).encode("latin-1") + MARK

    @staticmethod
    def decoder(piece: Callable[[int], str]) -> Decoder:
        return _ByteDecoder(piece)


class _ByteDecoder:
    """Holds bytes back until they make a character. Malformed ones become U+FFFD, as in Hugging Face's ByteLevel."""

    def __init__(self, piece: Callable[[int], str]):
        self._piece = piece
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, id: int) -> str:
        return self._utf8.decode(ByteSpelling.bytes_of(self._piece(id)))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class CharSpelling:
    """Text spelled in Unicode characters, white space too. Character number k is the symbol k."""

    least = 1

    def __init__(self, characters: Iterable[str] = ()):
        self.alphabet = list(characters)
        self._symbols = np.full(ALL, _UNKNOWN, np.int32)  # symbols by code point
        self._symbols[[ord(c) for c in self.alphabet]] = np.arange(len(self.alphabet))
        self._symbols[MARK_POINT] = GAP

    @classmethod
    def fit(cls, words: Sequence[bytes], counts: np.ndarray, room: int) -> tuple["CharSpelling", None]:
        r"""All characters of a text, the most frequent first. Raises UserError if there is none, or no room for all.

        Example:

        >>> CharSpelling.fit([b"ab\xffb\xff"], np.array([1, 2]), room=2)[0].alphabet
        ['b', 'a']
        """
        found = _characters_by_count(words, counts)
        if not found:
            raise UserError(f"the text has only {END_OF_TEXT} marks: give a text with something in it")
        if len(found) > room:
            raise UserError(
                f"the text has {len(found)} different characters, but --vocab-size leaves room for {room}: "
                f"raise it by {len(found) - room}"
            )
        return cls(found), None

    def spell(self, words: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        r"""Spell chunks: (the row of their symbols; the number of characters that each has lost, int32 [chunks]).

        Example:

        >>> row, lost = CharSpelling("ab").spell([b"ab\xffxb\xff"])
        >>> row.tolist(), lost.tolist()
        ([-1, 0, 1, -1, 1, -1], [0, 1])
        """
        row = self._symbols[code_points(b"".join(words))]
        (gap,) = (row == GAP).nonzero()
        known = row != _UNKNOWN
        lost = np.add.reduceat(~known, gap - np.diff(gap, prepend=-1) + 1, dtype=np.int32)
        return np.concatenate([_FIRST_GAP, row[known]]), lost

    def unknown(self, words: bytes) -> Counter[str]:
        """The characters that have no symbol, with how often each occurs."""
        return _lacking(self._symbols, words)

    @staticmethod
    def joinable(left: str, right: str) -> bool:
        return False

    @staticmethod
    def byte_length(piece: str) -> int:
        return len(piece.encode())

    @staticmethod
    def decoder(piece: Callable[[int], str]) -> Decoder:
        return _CharDecoder(piece)


class _CharDecoder:
    """A piece is its own text."""

    def __init__(self, piece: Callable[[int], str]):
        self.feed = piece

    def finish(self) -> str:
        return ""


def _characters_by_count(words: Sequence[bytes], counts: np.ndarray) -> list[str]:
    """The characters of words that occur so often, the most frequent first. The lower code point wins a tie."""
    # Add up the counts of the words that each character is in; MARK ends a word and is counted with it
    times = np.zeros(ALL)  # counts by code point; float64, as bincount's weights are: exact up to 2^53
    counted = 0  # words of the strings before
    for some in words:
        points = code_points(some)
        (end,) = (points == MARK_POINT).nonzero()
        weights = np.repeat(counts[counted : counted + len(end)], np.diff(end, prepend=-1))
        times += np.bincount(points, weights, ALL)
        counted += len(end)
    times[MARK_POINT] = 0
    (found,) = times.nonzero()
    return list(map(chr, found[np.argsort(-times[found], kind="stable")].tolist()))


def _lacking(symbols: np.ndarray, words: bytes) -> Counter[str]:
    """The characters of words that have no symbol, with how often each occurs. `symbols` is by code point."""
    points = code_points(words)
    points, counts = np.unique(points[symbols[points] == _UNKNOWN], return_counts=True)
    return Counter(dict(zip(map(chr, points.tolist()), counts.tolist(), strict=True)))


Spelling = WordSpelling | ByteSpelling | CharSpelling
SPELLINGS: dict[str, type[Spelling]] = {"word": WordSpelling, "byte": ByteSpelling, "char": CharSpelling}
