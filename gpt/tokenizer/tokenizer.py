"""Text to token ids and back: byte-pair encoding of words or of bytes, kept in Hugging Face's tokenizer.json.

Two kinds share one algorithm (gpt/tokenizer/bpe.py) and differ in what they merge:
- `word` (Sennrich et al. 2016): words between white space, spelled in Unicode characters, the last one carrying `</w>`.
  White space itself is not kept: decoding puts one space between words.
- `byte` (Radford et al. 2019): the words that GPT-2's pattern finds, spelled in UTF-8 bytes. Lossless for any text.

Id 0 is `<|endoftext|>`, then comes the alphabet, then the merges in the order they were learned. A token as a string,
such as "the</w>", is called a piece. A text is split into words, each distinct word is merged once, and a table does
the rest (gpt/tokenizer/encoding.py).

Example:

>>> tokenizer = Tokenizer(vocab_limit=260, kind="byte")
>>> tokenizer.train_bpe("the cat sat on the mat")
>>> ids = tokenizer.encode("the rat")
>>> [tokenizer.piece(id) for id in ids]
['the', 'Ġ', 'r', 'at']
>>> tokenizer.decode(ids)
'the rat'
"""

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gpt.config import TOKENIZERS, TokenizerConfig
from gpt.errors import UserError, shown
from gpt.system.files import write_atomically
from gpt.system.reading import LARGE, read_json
from gpt.tokenizer.bpe import Merges, learn
from gpt.tokenizer.encoding import Encoder, count_words, ids_of_words
from gpt.tokenizer.spelling import SPELLINGS, Decoder, Spelling
from gpt.tokenizer.text import END_OF_TEXT

_LIMIT = 1 << 31  # tokens in a vocabulary must be fewer: ids are int32
_MENTIONED = 10  # characters that a message names at most
_OURS = "a tokenizer that hipgpt has made"
_INSTEAD = (
    "tokenizer.json may be one that `hipgpt tokenize` wrote, or such a one saved again by Hugging Face's tokenizers, "
    "but with no token added and no setting changed; to learn a new one, remove the file or take another --run-name"
)


class Tokenizer:
    """Byte-pair encoding with at most `vocab_limit` tokens, `<|endoftext|>` and the alphabet included.

    A new tokenizer has no merges: call `train_bpe`, or make one with `load`.
    `advice` is one line for the user after a training that left little room for merges, else None.
    `lost` counts each character that encoding has left out because the vocabulary lacks it.
    Raises UserError for an unknown kind, for a limit below the least of its kind (word 3, byte 257) and for a limit of
    2^31 or more.
    """

    def __init__(self, vocab_limit: int = TokenizerConfig.vocab_limit, kind: str = TokenizerConfig.kind):
        if kind not in SPELLINGS:
            raise UserError(f"--tokenizer is {kind}, but must be one of {', '.join(TOKENIZERS)}")
        least = SPELLINGS[kind].least
        if vocab_limit < least:
            raise UserError(f"--vocab-size is {vocab_limit}, but must be at least {least} with --tokenizer {kind}")
        if vocab_limit >= _LIMIT:
            raise UserError(f"--vocab-size is {shown(vocab_limit)}, but must be below {_LIMIT}: ids are int32")
        self.kind = kind
        self.vocab_limit = vocab_limit
        self.advice: str | None = None
        self.lost: Counter[str] = Counter()
        self._become(SPELLINGS[kind](), [])

    def _become(self, spelling: Spelling, pairs: Sequence[tuple[int, int]]) -> None:
        """Take over an alphabet and merges."""
        self._spelling = spelling
        self._pieces = list(spelling.alphabet)
        for left, right in pairs:
            self._pieces.append(self._pieces[left] + self._pieces[right])
        self._merges = Merges(len(spelling.alphabet), pairs)
        self._encoder = Encoder(spelling, partial(ids_of_words, spelling, self._merges))

    @property
    def vocab_size(self) -> int:
        return len(self._pieces)

    @property
    def end_of_text(self) -> int | None:
        """The id of `<|endoftext|>`, or None if the vocabulary has no such token."""
        return 0

    def train_bpe(self, text: str | Iterable[str], progress: Callable[[int, int], None] | None = None) -> None:
        """Learn the vocabulary from a text, or from its blocks as `read_blocks` cuts them.

        Give a long text in blocks: memory is then needed for its distinct words only, and threads share the work.
        `progress` is called as (merges done, merges planned).
        Raises UserError if there is no word to learn from or far too many, ValueError for a lone surrogate.

        Example: from a file, `tokenizer.train_bpe(read_blocks("data/data.txt"))`. From a text:

        >>> tokenizer = Tokenizer(vocab_limit=8, kind="word")
        >>> tokenizer.train_bpe("ab ab b")
        >>> [tokenizer.piece(id) for id in range(tokenizer.vocab_size)]
        ['<|endoftext|>', 'b', 'b</w>', 'a', 'a</w>', 'ab</w>']
        """
        blocks = [text] if isinstance(text, str) else text
        words, counts = count_words(SPELLINGS[self.kind], blocks)
        spelling, self.advice = SPELLINGS[self.kind].fit(words, counts, self.vocab_limit)
        row, _ = spelling.spell(words)
        del words  # learning can use the memory
        most = self.vocab_limit - len(spelling.alphabet)
        self._become(spelling, learn(row, counts, spelling.alphabet, most, spelling.joinable, progress))

    def encode(self, text: str) -> list[int]:
        """The ids of a text. A verbatim `<|endoftext|>` is id 0 wherever it stands. ValueError for a lone surrogate.

        For a long text use `encode_blocks`, which takes less memory and more threads.

        Example: a new `byte` tokenizer has one id per byte.

        >>> Tokenizer(kind="byte").encode("hi<|endoftext|>")
        [105, 106, 0]
        """
        (ids,) = self.encode_blocks([text])
        numbers: list[int] = ids.tolist()
        return numbers

    def encode_blocks(self, blocks: Iterable[str]) -> Iterator[np.ndarray]:
        """The ids of a text that comes in blocks as `read_blocks` cuts them: one int32 array [ids] per block.

        Blocks are read in groups of up to 4 per thread, and at most 8 threads work. The ids of the first block of a
        group come when the whole group has been read. Raises ValueError for a lone surrogate.

        Example:

        >>> tokenizer = Tokenizer(kind="byte")
        >>> [ids.tolist() for ids in tokenizer.encode_blocks(["hi", " hi"])]
        [[105, 106], [33, 105, 106]]
        """
        held: deque[str] = deque()  # blocks whose ids are still to come

        def passing() -> Iterator[str]:
            for block in blocks:
                held.append(block)
                yield block

        for ids, dropped in self._encoder.encode(passing()):
            block = held.popleft()
            if dropped:
                self.lost.update(self.unknown(block))
            yield ids

    @property
    def dropped(self) -> int:
        """The number of characters that encoding has left out."""
        return self.lost.total()

    def unknown(self, text: str) -> Counter[str]:
        """The characters of a text that encoding leaves out, and how often each occurs. ValueError as for `encode`.

        Example:

        >>> tokenizer = Tokenizer(kind="word")
        >>> tokenizer.train_bpe("ab ab b")
        >>> tokenizer.unknown("abc cd")
        Counter({'c': 2, 'd': 1})
        """
        return self._spelling.unknown(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids. Bytes that are not UTF-8 become U+FFFD. UserError for an id outside the vocabulary.

        Example:

        >>> Tokenizer(kind="byte").decode([105, 106])
        'hi'
        """
        decoder = self.decoder()
        return "".join(map(decoder.feed, ids)) + decoder.finish()

    def decoder(self) -> Decoder:
        """A decoder for ids that arrive one by one. It returns only whole characters.

        Example: "é" has two bytes, so its first id returns nothing yet.

        >>> tokenizer = Tokenizer(kind="byte")
        >>> decoder = tokenizer.decoder()
        >>> [decoder.feed(id) for id in tokenizer.encode("né")], decoder.finish()
        (['n', '', 'é'], '')
        """
        return self._spelling.decoder(self.piece)

    def piece(self, id: int) -> str:
        """The token as a string, as it stands in the vocabulary. UserError for an id outside it."""
        if not 0 <= id < len(self._pieces):
            raise UserError(f"token id {id} is not in the vocabulary, whose ids are 0 to {len(self._pieces) - 1}")
        return self._pieces[id]

    def byte_lengths(self) -> np.ndarray:
        """The number of bytes of UTF-8 text that each token decodes to, int64 [vocab_size].

        The end of a word counts as the one space behind it. So for `byte` the sum over a text's tokens is the size of
        the text. For `word` it is the size of the text with single spaces between words, because further white space
        is neither kept nor predicted.

        Example:

        >>> tokenizer = Tokenizer(kind="word")
        >>> tokenizer.train_bpe("ab ab b")
        >>> tokenizer.byte_lengths()[tokenizer.encode("ab b")].tolist()
        [3, 2]
        """
        return np.array([self._spelling.byte_length(piece) for piece in self._pieces], np.int64)

    def save(self, path: str | Path) -> None:
        """Write a tokenizer.json. Hugging Face's `tokenizers` loads it too, and gives the same ids and strings.

        The file is replaced at once or not at all.

        Example: `tokenizer.save("tokenizer.json")`, later `tokenizer = Tokenizer.load("tokenizer.json")`.
        """
        write_atomically(path, json.dumps(self._document(), ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a file that `save` wrote (Hugging Face may have saved it again). UserError if it is anything else.

        Example: `Tokenizer.load("checkpoints/tales/tokenizer.json").encode("Once upon a time")`.
        """
        path = Path(path)
        try:
            document = read_json(path, {}, _OURS, _INSTEAD, LARGE)
        except FileNotFoundError:
            raise UserError(f"{path} does not exist: `hipgpt tokenize` or `hipgpt train` makes it") from None
        try:
            return cls._from_document(document)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            raise UserError(f"{path} is not {_OURS}: {_INSTEAD}") from None

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
        """Rebuild a tokenizer from its alphabet and merges. ValueError unless its own document is the very same."""
        model = document["model"]
        ids = model["vocab"]
        pieces = sorted(ids, key=ids.__getitem__)
        "".join(pieces).encode()  # ValueError for a lone surrogate
        limit = model.setdefault("vocab_limit", len(pieces))
        if {type(number) for number in (limit, *ids.values())} != {int} or limit >= _LIMIT:
            raise ValueError("an id or a limit that is not an integer below 2^31")
        # Each merge must spell the next piece. Without this check, merges that double a piece could fill the memory.
        for (left, right), piece in zip(model["merges"], pieces[len(pieces) - len(model["merges"]) :], strict=True):
            if left + right != piece or ids[left] >= ids[piece] or ids[right] >= ids[piece]:
                raise ValueError("a merge that does not spell the next piece")
        kind = "word" if model["end_of_word_suffix"] else "byte"
        tokenizer = cls(max(limit, SPELLINGS[kind].least), kind)
        alphabet = pieces[: len(pieces) - len(model["merges"])]
        tokenizer._become(
            SPELLINGS[kind].from_alphabet(alphabet), [(ids[left], ids[right]) for left, right in model["merges"]]
        )
        if tokenizer._document() != document or len(pieces) > limit:
            raise ValueError("a document that save does not write")
        return tokenizer


def lost_note(source: str, lost: Counter[str], characters: int) -> str:
    """One line for the user about a text that has lost characters. It names the most frequent ones.

    Example:

    >>> lost_note("--prompt", Counter({"é": 2, "ü": 1}), 12)
    "--prompt loses 3 of its 12 characters, which the vocabulary lacks: 'é' (2), 'ü' (1)"
    """
    by_count = sorted(lost.items(), key=lambda each: (-each[1], each[0]))
    named = ", ".join(f"{c!r} ({count:,})" for c, count in by_count[:_MENTIONED])
    more = len(by_count) - _MENTIONED
    named += f" and {more:,} others" if more > 1 else " and one other" if more == 1 else ""
    return f"{source} loses {lost.total():,} of its {characters:,} characters, which the vocabulary lacks: {named}"
