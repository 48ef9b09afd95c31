"""Text to token ids and back: byte-pair encoding of words or of bytes, kept in Hugging Face's tokenizer.json.

Kinds share one algorithm (gpt/tokenizer/bpe.py) and differ in what they merge:
- `word` (Sennrich et al. 2016): words between white space, spelled in Unicode characters, the last one carrying `</w>`.
  White space itself is not kept: decoding puts one space between words.
- `byte` (Radford et al. 2019): the words that a pattern such as GPT-2's finds, spelled in UTF-8 bytes. Lossless for any
  text.
- `char`: nothing. Each character of the training text has an id.

Id 0 is `<|endoftext|>`, then come other marks, then the alphabet, then the merges in the order they were learned. A
tokenizer of the kind `byte` may also come from elsewhere, and then keeps its ids. A token as a string, such as
"the</w>", is called a piece. A text is split into words, each distinct word is merged once, and a table does the rest
(gpt/tokenizer/encoding.py).

Example:

>>> tokenizer = Tokenizer(vocab_limit=260, kind="byte")
>>> tokenizer.train_bpe("the cat sat on the mat")
>>> ids = tokenizer.encode("the rat")
>>> [tokenizer.piece(id) for id in ids]
['the', 'Ġ', 'r', 'at']
>>> tokenizer.decode(ids)
'the rat'
"""

import gc
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from gpt.config import TOKENIZERS, TokenizerConfig
from gpt.errors import UserError, shown
from gpt.system.files import write_atomically
from gpt.tokenizer import huggingface
from gpt.tokenizer.bpe import learn
from gpt.tokenizer.encoding import count_words
from gpt.tokenizer.marks import END_OF_TEXT, Mark, Marks, unfit
from gpt.tokenizer.spelling import SPELLINGS, ByteSpelling, Decoder
from gpt.tokenizer.text import last_cut
from gpt.tokenizer.vocabulary import DEFAULT_SPLITS, SPLITS, Vocabulary

_MENTIONED = 10  # characters that a message names at most
_OURS = "a tokenizer that hipgpt can use"
_INSTEAD = (
    "give a tokenizer.json that `hipgpt tokenize` or Hugging Face's tokenizers wrote, or a directory with GPT-2's "
    "vocab.json and merges.txt; to learn a new one, take another --run-name"
)
_ANOTHER = "take another tokenizer, or learn one with --tokenizer byte for a new run"


@contextmanager
def _no_collection() -> Iterator[None]:
    """Let no reference cycles be collected meanwhile: the collector would look through a million new objects again and
    again, and a tokenizer.json makes no cycles.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Tokenizer:
    """Byte-pair encoding with at most `vocab_limit` tokens, marks and the alphabet included.

    A new tokenizer has no merges: call `train_bpe`, or make one with `load`. Its marks are `<|endoftext|>` and then the
    `special_tokens`. `split` is the pattern that cuts a text into words: gpt2, gpt4, qwen2 or gpt4o for the kind `byte`
    (None: gpt2). With `keep_newlines`, a tokenizer of the kind `word` has a token for line ends.
    `advice` is one line for the user after a training that left little room for merges, else None.
    `lost` counts each character that encoding has left out because the vocabulary lacks it.
    Raises UserError for an unknown kind or split, for a special token that cannot be one, for a limit below the least
    of its kind (word 3, byte 257, char 2, and one more for each special token) and for a limit of 2^31 or more.
    """

    def __init__(
        self,
        vocab_limit: int = TokenizerConfig.vocab_limit,
        kind: str = TokenizerConfig.kind,
        *,
        split: str | None = None,
        special_tokens: Sequence[str] = (),
        keep_newlines: bool = False,
    ):
        if kind not in SPELLINGS:
            raise UserError(f"--tokenizer is {kind}, but must be one of {', '.join(TOKENIZERS)}")
        if kind != "byte" and split is not None:
            raise UserError(f"--split {split} goes with --tokenizer byte, not with --tokenizer {kind}: leave it out")
        if kind != "word" and keep_newlines:
            raise UserError(
                f"--keep-newlines goes with --tokenizer word, and {kind} keeps line ends anyway: leave it out"
            )
        marks = _marks(special_tokens, kind)
        least = SPELLINGS[kind].least + len(marks)
        if vocab_limit < least:
            raise UserError(f"--vocab-size is {vocab_limit}, but must be at least {least} with --tokenizer {kind}")
        if vocab_limit >= huggingface.LIMIT:
            raise UserError(
                f"--vocab-size is {shown(vocab_limit)}, but must be below {huggingface.LIMIT}: ids are int32"
            )
        self.advice: str | None = None
        self.lost: Counter[str] = Counter()
        split = "lines" if keep_newlines else split or DEFAULT_SPLITS[kind]
        self._become(Vocabulary.learned(kind, split, vocab_limit, marks, SPELLINGS[kind](), []))

    def _become(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._pieces = vocabulary.pieces
        self._marks = Marks(vocabulary.marks, vocabulary.nfc)
        self._encoder = vocabulary.encoder()

    @property
    def kind(self) -> str:
        return self._vocabulary.kind

    @property
    def split(self) -> str:
        """The name of the pattern that cuts a text into words."""
        return self._vocabulary.split

    @property
    def keep_newlines(self) -> bool:
        """Whether words are a tokenizer's pieces, and line ends are too."""
        return self.split == "lines"

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The texts of the marks other than the one that ends a text."""
        return tuple(mark.text for mark in self._vocabulary.marks if mark.id != self.end_of_text)

    @property
    def end_of_text(self) -> int | None:
        """The id of the mark that ends a text: `<|endoftext|>`, or else `<|end_of_text|>`; None if there is neither."""
        return self._marks.end_of_text

    @property
    def config(self) -> TokenizerConfig:
        """The settings with which a tokenizer like this one learns."""
        split = self.split if self.kind == "byte" and self.split != DEFAULT_SPLITS["byte"] else None
        return TokenizerConfig(self.kind, self.vocab_limit, split, self.special_tokens, self.keep_newlines)

    @property
    def vocab_limit(self) -> int:
        return self._vocabulary.limit

    @property
    def vocab_size(self) -> int:
        return len(self._pieces)

    def with_special_tokens(self, texts: Sequence[str]) -> "Tokenizer":
        """The same tokenizer with these special tokens, too. Those that it lacks get ids behind all others.

        Example:

        >>> Tokenizer(kind="byte").with_special_tokens(["<|user|>"]).encode("hi<|user|>")
        [105, 106, 257]
        """
        tokenizer = type(self).__new__(type(self))
        tokenizer.advice, tokenizer.lost = self.advice, Counter(self.lost)
        tokenizer._become(self._vocabulary.grown([text for text in texts if text not in self.special_tokens]))
        return tokenizer

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
        kind, split, limit, marks = self.kind, self.split, self.vocab_limit, self._vocabulary.marks
        words, counts = count_words(SPLITS[split], self._marks, blocks)
        room = limit - len(marks)
        spelling, self.advice = SPELLINGS[kind].fit(words, counts, room)
        row, _ = spelling.spell(words)
        del words  # learning can use the memory
        texts = {mark.text for mark in marks}
        pairs = learn(
            row, counts, spelling.alphabet, 0 if kind == "char" else room - len(spelling.alphabet),
            lambda left, right: left + right not in texts and spelling.joinable(left, right), progress,
        )  # fmt: skip
        self._become(Vocabulary.learned(kind, split, limit, marks, spelling, pairs))

    def encode(self, text: str) -> list[int]:
        """The ids of a text. A mark, such as `<|endoftext|>`, has its id wherever it stands verbatim.

        Raises ValueError for a lone surrogate.

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

    def last_cut(self, text: str) -> int:
        """The last place at which a block may end in a text without a seam (gpt/tokenizer/text.py); 0 if there is none.

        Example:

        >>> Tokenizer(kind="byte").last_cut("aGVsbG8gd29ybGQh"), Tokenizer(kind="word").last_cut("aGVsbG8gd29ybGQh")
        (11, 0)
        """
        return 0 if self.kind == "word" else last_cut(text, self._marks.pairs)

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
        words = SPLITS[self.split].chunks(self._marks.encoded(text)[0])
        return self._vocabulary.spelling.unknown(words.joined())

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
        return self._vocabulary.spelling.decoder(self.piece)

    def piece(self, id: int) -> str:
        """The token as a string, as it stands in the vocabulary. UserError for an id beyond the largest one.

        An id that a vocabulary from elsewhere leaves out has an empty one.
        """
        if not 0 <= id < len(self._pieces):
            raise UserError(f"token id {id} is not in the vocabulary, whose ids are 0 to {len(self._pieces) - 1}")
        return self._pieces[id]

    def byte_lengths(self) -> np.ndarray:
        """The number of bytes of UTF-8 text that each token decodes to, int64 [vocab_size].

        The end of a word counts as the one space behind it. So for `byte` and `char` the sum over a text's tokens is
        the size of the text. For `word` it is the size of the text with single spaces between words, because further
        white space is neither kept nor predicted. A line end that is kept stands in the place of such a space, so a
        second one in a row is not counted.

        Example:

        >>> tokenizer = Tokenizer(kind="word")
        >>> tokenizer.train_bpe("ab ab b")
        >>> tokenizer.byte_lengths()[tokenizer.encode("ab b")].tolist()
        [3, 2]
        """
        return np.array(list(map(self._vocabulary.spelling.byte_length, self._pieces)), np.int64)

    def save(self, path: str | Path) -> None:
        """Write a tokenizer.json. Hugging Face's `tokenizers` loads it too, and gives the same ids and strings.

        The file is replaced at once or not at all.

        Example: `tokenizer.save("tokenizer.json")`, later `tokenizer = Tokenizer.load("tokenizer.json")`.
        """
        document = huggingface.document(self._vocabulary)
        write_atomically(path, json.dumps(document, ensure_ascii=False, indent=1) + "\n")

    @classmethod
    @_no_collection()
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a tokenizer.json: one that `save` wrote, or one from elsewhere with byte-level BPE.

        `path` may also be a directory that has it, or that has GPT-2's vocab.json and merges.txt, or a vocabulary in
        tiktoken's form (gpt/tokenizer/tiktoken.py). The ids stay those of the file. Raises UserError if it is anything
        else, or asks for something that hipgpt does not do.

        Example: `Tokenizer.load("checkpoints/tales/tokenizer.json").encode("Once upon a time")`.
        """
        path = Path(path)
        try:
            document = huggingface.read(path, _OURS, _INSTEAD)
        except FileNotFoundError:
            raise UserError(f"{path} does not exist: `hipgpt tokenize` or `hipgpt train` makes it") from None
        try:
            vocabulary = huggingface.vocabulary(document)
        except huggingface.UnsupportedError as reason:
            raise UserError(f"{path} asks for what hipgpt does not do: it {reason}: {_ANOTHER}") from None
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            raise UserError(f"{path} is not {_OURS}: {_INSTEAD}") from None
        tokenizer = cls.__new__(cls)
        tokenizer.advice, tokenizer.lost = None, Counter()
        tokenizer._become(vocabulary)
        return tokenizer

    def __eq__(self, other: object) -> bool:
        """Whether two tokenizers have the same document, and so give the same ids."""
        if not isinstance(other, Tokenizer):
            return NotImplemented
        return huggingface.document(self._vocabulary) == huggingface.document(other._vocabulary)

    __hash__ = None  # type: ignore[assignment]


def _marks(special_tokens: Sequence[str], kind: str) -> tuple[Mark, ...]:
    """The marks of a new tokenizer. Raises UserError for a text that cannot be one."""
    for number, text in enumerate(special_tokens):
        reason = unfit(text)
        if text == END_OF_TEXT or text in special_tokens[:number]:
            reason = "is one already"
        elif len(text) == 1:
            reason = "is a single character"
        elif kind == "byte" and not reason and ByteSpelling.bytes_of(text) != text.encode():
            reason = "has letters that stand for bytes in a byte tokenizer's file"
        if reason:
            raise UserError(f"--special-token {shown(text)} {reason}: give another text, such as <|user|>")
    return tuple(Mark(text, id) for id, text in enumerate((END_OF_TEXT, *special_tokens)))


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
