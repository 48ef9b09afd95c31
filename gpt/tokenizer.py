"""Text to token ids and back: byte-pair encoding of words or of bytes, kept in Hugging Face's tokenizer.json.

Two kinds share one algorithm (gpt/bpe.py) and differ in what they merge:
- `word` (Sennrich et al. 2016): words between white space, spelled in Unicode characters, the last one carrying `</w>`.
  White space itself is not kept: decoding puts one space between words.
- `byte` (Radford et al. 2019): GPT-2's pieces, spelled in UTF-8 bytes. Lossless for any text.

Id 0 is `<|endoftext|>`, then comes the alphabet, then the merges in the order they were learned. A text is split into
words, each distinct word is merged once, and a table does the rest.
"""

import codecs
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import regex

from gpt.bpe import Merges, learn
from gpt.config import TOKENIZERS, VOCAB_LIMIT
from gpt.errors import UserError
from gpt.files import write_atomically
from gpt.text import END_OF_TEXT

END_OF_WORD = "</w>"

_CACHED_WORDS = 1 << 17
_CACHED_WORD_CHARS = 100

# str.split() takes these for white space, Unicode (and so Hugging Face) does not
_SEPARATORS = "\x1c\x1d\x1e\x1f"
_WORD = regex.compile(r"\S+")
# English contractions, then runs of letters, of digits or of other signs with the space before them, then white space
_PIECE = regex.compile(r"'(?:[stmd]|re|ve|ll)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


class Decoder(Protocol):
    """Ids to text, one at a time: what `feed` and `finish` return, joined, is what `decode` gives for all the ids."""

    def feed(self, id: int) -> str: ...

    def finish(self) -> str: ...


class Tokenizer:
    """Byte-pair encoding of at most `vocab_limit` tokens, everything counted. Blank until `train_bpe` or `load`.

    `advice` is one line for the user after a training that left little room for merges, else None.
    `dropped` counts the characters that encoding has left out because the vocabulary lacks them.
    Raises UserError for an unknown kind and for a limit below what the kind needs (word 3, byte 257).
    """

    def __init__(self, vocab_limit: int = VOCAB_LIMIT, kind: str = "word"):
        if kind not in _SPELLINGS:
            raise UserError(f"--tokenizer is {kind}, but must be one of {', '.join(TOKENIZERS)}")
        least = _SPELLINGS[kind].least
        if vocab_limit < least:
            raise UserError(f"--vocab-size is {vocab_limit}, but must be at least {least} with --tokenizer {kind}")
        self.kind = kind
        self.vocab_limit = vocab_limit
        self.advice: str | None = None
        self.dropped = 0
        self._become(_SPELLINGS[kind](), [])

    def _become(self, spelling: "_Spelling", pairs: Sequence[tuple[int, int]]) -> None:
        self._spelling = spelling
        self._merges = Merges(len(spelling.alphabet), pairs)
        self._pieces = list(spelling.alphabet)
        for left, right in pairs:
            self._pieces.append(self._pieces[left] + self._pieces[right])
        self._ids_of_word = _WordTable(lambda word: self._merges.apply(spelling.spell(word)))

    @property
    def vocab_size(self) -> int:
        return len(self._pieces)

    def train_bpe(self, text: str | Iterable[str], progress: Callable[[int, int], None] | None = None) -> None:
        """Learn the vocabulary from a text, or from its blocks as `read_blocks` cuts them.

        Memory follows the number of distinct words. `progress` is called as (merges done, merges planned).
        Raises UserError if there is no word to learn from, ValueError for a lone surrogate.
        """
        words: Counter[str] = Counter()
        for block in [text] if isinstance(text, str) else text:
            for document in _documents(block):
                words.update(self._spelling.split(document))
        spelling, self.advice = _SPELLINGS[self.kind].fit(words, self.vocab_limit)
        pairs = learn(
            ((spelling.spell(word), count) for word, count in words.items()),
            spelling.alphabet,
            self.vocab_limit - len(spelling.alphabet),
            spelling.joinable,
            progress,
        )
        self._become(spelling, pairs)

    def encode(self, text: str) -> list[int]:
        """The ids of a text; a verbatim `<|endoftext|>` is id 0 wherever it stands. ValueError for a lone surrogate."""
        ids: list[int] = []
        for number, document in enumerate(_documents(text)):
            if number:
                ids.append(0)
            ids += chain.from_iterable(map(self._ids_of_word.__getitem__, self._spelling.split(document)))
            self.dropped += self._spelling.count_unknown(document)
        return ids

    def encode_blocks(self, blocks: Iterable[str]) -> Iterator[np.ndarray]:
        """The ids of a text that comes in blocks as `read_blocks` cuts them: one int32 array [ids] per block."""
        for block in blocks:
            yield np.array(self.encode(block), dtype=np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids. Bytes that are no UTF-8 become U+FFFD. UserError for an id outside the vocabulary."""
        decoder = self.decoder()
        return "".join(map(decoder.feed, ids)) + decoder.finish()

    def decoder(self) -> Decoder:
        """A decoder for ids that arrive one by one; it never gives away half a character."""
        return self._spelling.decoder(self.piece)

    def piece(self, id: int) -> str:
        """The token as it stands in the vocabulary. UserError for an id outside it."""
        if not 0 <= id < len(self._pieces):
            raise UserError(f"token id {id} is not in the vocabulary, whose ids are 0 to {len(self._pieces) - 1}")
        return self._pieces[id]

    def save(self, path: str | Path) -> None:
        """Write a tokenizer.json that Hugging Face `tokenizers` loads and that gives the same ids and strings there."""
        write_atomically(path, json.dumps(self._document(), ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a file that `save` wrote (Hugging Face may have written it again). UserError if it is anything else."""
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path} does not exist: `hipgpt tokenize` or `hipgpt train` makes it") from None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is damaged ({error}): put it back, or take another --run-name") from None
        try:
            return cls._from_document(document)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            raise UserError(f"{path} is not a tokenizer of hipgpt: put back the one that was there") from None

    def _document(self) -> dict[str, Any]:
        special = {"id": 0, "content": END_OF_TEXT, "special": True}
        special |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [special],
            "normalizer": None,
            "pre_tokenizer": self._spelling.pre_tokenizer,
            "post_processor": None,
            "decoder": self._spelling.hf_decoder,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": self._spelling.suffix,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab_limit": self.vocab_limit,  # ours; inside the model Hugging Face passes over unknown keys
                "vocab": {piece: id for id, piece in enumerate(self._pieces)},
                "merges": [[self._pieces[left], self._pieces[right]] for left, right in self._merges.pairs],
            },
        }

    @classmethod
    def _from_document(cls, document: dict[str, Any]) -> "Tokenizer":
        """Rebuild from the alphabet and the merges alone; ValueError unless that gives the very same document."""
        model = document["model"]
        ids = model["vocab"]
        pieces = sorted(ids, key=ids.__getitem__)
        limit = model.setdefault("vocab_limit", len(pieces))
        kind = "word" if model["end_of_word_suffix"] else "byte"
        tokenizer = cls(max(limit, _SPELLINGS[kind].least), kind)
        alphabet = pieces[: len(pieces) - len(model["merges"])]
        tokenizer._become(
            _SPELLINGS[kind].from_alphabet(alphabet), [(ids[left], ids[right]) for left, right in model["merges"]]
        )
        if tokenizer._document() != document or len(pieces) > limit:
            raise ValueError("not what save writes")
        return tokenizer


class _WordTable(dict):
    """Word → ids, filled on demand; bounded in words and in the length of a word."""

    def __init__(self, ids_of: Callable[[str], list[int]]):
        self._ids_of = ids_of

    def __missing__(self, word: str) -> list[int]:
        ids = self._ids_of(word)
        if len(word) <= _CACHED_WORD_CHARS:
            if len(self) >= _CACHED_WORDS:
                self.clear()
            self[word] = ids
        return ids


def _documents(text: str) -> list[str]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the text holds a lone surrogate at character {error.start}") from None
    return text.split(END_OF_TEXT)


class _WordSpelling:
    """Words between white space, as characters. Of character number k, the ids 2k + 1 and 2k + 2 are c and c</w>."""

    least = 3
    suffix = END_OF_WORD
    pre_tokenizer = {"type": "WhitespaceSplit"}
    hf_decoder = {"type": "BPEDecoder", "suffix": END_OF_WORD}

    def __init__(self, characters: Iterable[str] = ()):
        self._id = {c: 2 * k + 1 for k, c in enumerate(characters)}
        self.alphabet = [END_OF_TEXT, *chain.from_iterable((c, c + END_OF_WORD) for c in self._id)]

    @classmethod
    def from_alphabet(cls, alphabet: Sequence[str]) -> "_WordSpelling":
        return cls(alphabet[1::2])

    @classmethod
    def fit(cls, words: Counter[str], vocab_limit: int) -> tuple["_WordSpelling", str | None]:
        """Characters enter by count while they fit, ties by code point; advice if they would fill over half."""
        counts: Counter[str] = Counter()
        for word, count in words.items():
            for c in word:
                counts[c] += count
        if not counts:
            raise UserError("the text has no word to train on, only white space: give a text with words")
        advice = None
        if 4 * len(counts) > vocab_limit:
            advice = (
                f"the {len(counts)} different characters want {2 * len(counts)} of the {vocab_limit} tokens: "
                "a larger --vocab-size or --tokenizer byte would leave room for words"
            )
        by_count = sorted(counts, key=lambda c: (-counts[c], c))
        return cls(by_count[: (vocab_limit - 1) // 2]), advice

    @staticmethod
    def split(text: str) -> list[str]:
        if any(separator in text for separator in _SEPARATORS):
            return _WORD.findall(text)
        return text.split()

    def spell(self, word: str) -> list[int]:
        """The known characters' ids: unknown ones vanish, and a word whose last is unknown ends without </w>."""
        ids = [self._id[c] for c in word if c in self._id]
        if word[-1] in self._id:
            ids[-1] += 1
        return ids

    def count_unknown(self, text: str) -> int:
        unknown = {c for c in set(text) - self._id.keys() if not _is_space(c)}
        if not unknown:  # the rule, and quick to see
            return 0
        counts = Counter(text)
        return sum(counts[c] for c in unknown)

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


def _is_space(character: str) -> bool:
    return character.isspace() and character not in _SEPARATORS


def _byte_characters() -> list[str]:
    """GPT-2's printable character for each byte: itself if Latin-1 prints it, else the next from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0x100)} - {0xAD}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(spare)) for byte in range(0x100)]


class _ByteSpelling:
    """GPT-2's pieces, as UTF-8 bytes. Byte b has the id b + 1."""

    least = 257
    suffix = None
    alphabet = (END_OF_TEXT, *_byte_characters())
    pre_tokenizer = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    hf_decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}

    @classmethod
    def from_alphabet(cls, alphabet: Sequence[str]) -> "_ByteSpelling":
        return cls()

    @classmethod
    def fit(cls, words: Counter[str], vocab_limit: int) -> tuple["_ByteSpelling", None]:
        return cls(), None

    @staticmethod
    def split(text: str) -> list[str]:
        return _PIECE.findall(text)

    @staticmethod
    def spell(word: str) -> list[int]:
        return [byte + 1 for byte in word.encode()]

    @staticmethod
    def count_unknown(text: str) -> int:
        return 0

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


_Spelling = _WordSpelling | _ByteSpelling
_SPELLINGS: dict[str, type[_Spelling]] = {"word": _WordSpelling, "byte": _ByteSpelling}
