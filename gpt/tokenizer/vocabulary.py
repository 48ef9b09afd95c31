"""A vocabulary: the symbols that merging works with, their pieces and ids, and the marks beside them.

gpt/tokenizer/huggingface.py writes it to a tokenizer.json and reads it from there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from gpt.tokenizer.bpe import Pair
from gpt.tokenizer.breaks import Breaks
from gpt.tokenizer.encoding import Encoder, WordsToIds
from gpt.tokenizer.gpt4o import Gpt4o
from gpt.tokenizer.lexicon import MARK
from gpt.tokenizer.marks import Mark, Marks
from gpt.tokenizer.merges import Merges
from gpt.tokenizer.spelling import ByteSpelling, Spelling
from gpt.tokenizer.splits import Characters, Gpt2, Gpt4, Split, WhiteSpace

SPLITS: dict[str, Split] = {
    "white-space": WhiteSpace(),
    "lines": WhiteSpace(keep_newlines=True),
    "gpt2": Gpt2(),
    "gpt4": Gpt4(digits=3),
    "qwen2": Gpt4(digits=1),
    "gpt4o": Gpt4o(),
    "characters": Characters(),
}
DEFAULT_SPLITS = {
    "word": "white-space",
    "byte": "gpt2",
    "char": "characters",
}  # the split of each kind unless another one is asked for


@dataclass(frozen=True)
class Vocabulary:
    """All that decides which ids a text has.

    `symbols[s]` is the piece of symbol s: first those of the alphabet of `spelling`, then those that `merges` make.
    `ids[s]` is its id, int32; an id may be missing. `split` is a name in SPLITS. With `nfc`, a text is brought into
    Unicode's composed form first. With `whole_words`, a word that is a piece has its id, even if the merges would end
    with something else. `limit` is the largest number of tokens that it was allowed.
    """

    kind: str
    split: str
    spelling: Spelling
    symbols: Sequence[str]
    merges: Merges
    ids: np.ndarray
    marks: tuple[Mark, ...]
    nfc: bool = False
    whole_words: bool = False
    limit: int = 0

    @classmethod
    def learned(
        cls, kind: str, split: str, limit: int, marks: tuple[Mark, ...], spelling: Spelling, pairs: Sequence[Pair]
    ) -> "Vocabulary":
        """The vocabulary of a tokenizer of our own: the ids are those of the marks, then the symbols in their order."""
        symbols = list(spelling.alphabet)
        for left, right in pairs:
            symbols.append(symbols[left] + symbols[right])
        ids = np.arange(len(marks), len(marks) + len(symbols), dtype=np.int32)
        merges = Merges(len(spelling.alphabet), pairs)
        return cls(kind, split, spelling, symbols, merges, ids, marks, limit=limit)

    def grown(self, texts: Sequence[str]) -> "Vocabulary":
        """The same vocabulary with these texts as further marks, whose ids come behind all others."""
        size = len(self.pieces)
        marks = (*self.marks, *(Mark(text, id) for id, text in enumerate(texts, size)))
        return replace(self, marks=marks, limit=max(self.limit, size + len(texts)))

    @cached_property
    def pieces(self) -> list[str]:
        """The piece of each id; an id that is missing has an empty one."""
        pieces = [""] * (max([*self.ids.tolist(), *(mark.id for mark in self.marks)]) + 1)
        for id, piece in zip(self.ids.tolist(), self.symbols, strict=True):
            pieces[id] = piece
        for mark in self.marks:
            pieces[mark.id] = mark.text
        return pieces

    def encoder(self) -> Encoder:
        if self.kind != "byte":
            return Encoder(SPLITS[self.split], Marks(self.marks, self.nfc), self._merging())
        whole = self._whole_words() if self.whole_words else {}
        breaks = Breaks(self.symbols, self._exceptions(whole), has_case=self.split == "gpt4o")
        return Encoder(SPLITS[self.split], Marks(self.marks, self.nfc), self._merging(whole), breaks)

    def _merging(self, whole: Mapping[bytes, int] | None = None) -> WordsToIds:
        return WordsToIds(self.spelling, self.merges, self.ids, whole)

    def _whole_words(self) -> dict[bytes, int]:
        """The pieces, in bytes, with their ids."""
        data = ByteSpelling.joined(self.symbols)
        end = np.cumsum([len(piece) + 1 for piece in self.symbols]).tolist()
        words = [data[before + 1 : behind] for before, behind in zip([0, *end], end, strict=False)]
        return dict(zip(words, self.ids.tolist(), strict=True))

    def _exceptions(self, whole: Mapping[bytes, int]) -> list[bytes]:
        """The words of `whole` that merging makes no single piece, if they have characters of three bytes or more.

        Pieces that are not UTF-8 are none, because they are no words.
        """
        words = [word for word in whole if max(word) >= 0xE0 and _is_word(word)]
        lengths = self._merging()(b"".join(word + MARK for word in words)).lengths.tolist()
        return [word for word, length in zip(words, lengths, strict=True) if length > 1]


def _is_word(word: bytes) -> bool:
    try:
        word.decode()
    except UnicodeDecodeError:
        return False
    return True
