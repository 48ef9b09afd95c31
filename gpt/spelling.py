"""How the two kinds of tokenizer see a text: where it is cut, how words are spelled in ids, how ids become text again.

A text is cut into chunks, and a chunk into words, which merging never leaves. For `word` the two are the same: what
stands between white space. For `byte` a chunk is that with the white space before it, and its words are GPT-2's
pieces: their pattern is slow, so it is run over distinct chunks alone. No piece is in two chunks, as no alternative
of the pattern goes on from what is no white space to what is.
"""

import codecs
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Protocol

import numpy as np
import regex

from gpt.bpe import GAP
from gpt.errors import UserError
from gpt.text import END_OF_TEXT

END_OF_WORD = "</w>"

# str.split() and re take these for white space, Unicode (and so Hugging Face) does not
_SEPARATORS = "\x1c\x1d\x1e\x1f"
_WORD = regex.compile(r"\S+")
_CHUNK = regex.compile(r"\s*\S+|\s+")
_QUICK_CHUNK = re.compile(_CHUNK.pattern)
# English contractions, then runs of letters, of digits or of other signs with the space before them, then white space
_PIECE = regex.compile(r"'(?:[stmd]|re|ve|ll)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

# The same for ASCII alone, in half the time
_ASCII_PIECE = re.compile(r"'(?:[stmd]|re|ve|ll)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII)

_UNKNOWN = -2  # a character without an id
_AT_ONCE = 1 << 16  # words
_FIRST_GAP = np.array([GAP], np.int32)
_NOTHING = np.zeros(0, np.int64)


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
        self._ids = np.full(0x110000, _UNKNOWN, np.int32)  # of code points
        self._ids[[ord(c) for c in characters]] = np.arange(1, 2 * len(characters), 2)
        self._ids[ord(" ")] = GAP

    @classmethod
    def from_alphabet(cls, alphabet: Sequence[str]) -> "WordSpelling":
        return cls(alphabet[1::2])

    @classmethod
    def fit(cls, words: Mapping[str, int], vocab_limit: int) -> tuple["WordSpelling", str | None]:
        """Characters enter by count while they fit, ties by code point; advice if they would fill over half."""
        counts = np.zeros(0x110000, np.int64)
        for some in _batches(words):
            times = np.fromiter(map(words.__getitem__, some), np.int64, len(some))
            code_points = _code_points("".join(some))
            counts += np.bincount(code_points, np.repeat(times, [*map(len, some)]), len(counts)).astype(np.int64)
        (found,) = counts.nonzero()
        if not len(found):
            raise UserError("the text has no word to train on, only white space: give a text with words")
        advice = None
        if 4 * len(found) > vocab_limit:
            advice = (
                f"the {len(found)} different characters want {2 * len(found)} of the {vocab_limit} tokens: "
                "a larger --vocab-size or --tokenizer byte would leave room for words"
            )
        by_count = found[np.argsort(-counts[found], kind="stable")]
        return cls(map(chr, by_count[: (vocab_limit - 1) // 2].tolist())), advice

    @staticmethod
    def chunks(text: str) -> list[str]:
        if any(separator in text for separator in _SEPARATORS):
            return _WORD.findall(text)
        return text.split()

    cut = None  # a chunk is a word

    def spell(self, words: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """The row of the known characters' ids, and how many characters each word has lost, int64 [words].

        A word whose last character is unknown ends without </w>.
        """
        rows, lost = [_FIRST_GAP], [_NOTHING]
        for some in _batches(words):
            row = self._ids[_code_points(" ".join(some) + " ")]
            (gap,) = (row == GAP).nonzero()
            known = row != _UNKNOWN
            row[gap - 1] += known[gap - 1]
            rows.append(row[known])
            lost.append(np.add.reduceat(~known, gap - np.diff(gap, prepend=-1) + 1, dtype=np.int64))
        return np.concatenate(rows), np.concatenate(lost)

    @staticmethod
    def joinable(left: str, right: str) -> bool:
        """No merge may spell a `</w>` that stands in the text: it would read as the end of a word."""
        return (left + right).count(END_OF_WORD) == right.count(END_OF_WORD)

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
    def fit(cls, words: Mapping[str, int], vocab_limit: int) -> tuple["ByteSpelling", None]:
        return cls(), None

    @staticmethod
    def chunks(text: str) -> list[str]:
        if any(separator in text for separator in _SEPARATORS):
            return _CHUNK.findall(text)
        return _QUICK_CHUNK.findall(text)

    @staticmethod
    def cut(chunks: Iterable[str]) -> list[list[str]]:
        return [(_ASCII_PIECE if chunk.isascii() else _PIECE).findall(chunk) for chunk in chunks]

    @staticmethod
    def spell(words: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """The row of the words' bytes, and the zeros that say that nothing is lost, int64 [words]."""
        rows, lost = [_FIRST_GAP], [_NOTHING]
        for some in _batches(words):
            data = np.frombuffer(b"\xff".join([*map(str.encode, some), b""]), np.uint8)  # no byte of UTF-8 is 0xFF
            row = data.astype(np.int32) + 1
            row[data == 0xFF] = GAP
            rows.append(row)
            lost.append(np.zeros(len(some), np.int64))
        return np.concatenate(rows), np.concatenate(lost)

    @staticmethod
    def joinable(left: str, right: str) -> bool:
        return True

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


def _batches(words: Iterable[str]) -> Iterator[list[str]]:
    words = iter(words)
    while some := list(islice(words, _AT_ONCE)):
        yield some


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)
