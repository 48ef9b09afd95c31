"""Marks: tokens that stand for a text of their own, such as `<|endoftext|>`, wherever it occurs in a text.

They are cut out of a text before anything else looks at it. Hugging Face calls them added tokens.
"""

import re
import unicodedata
from typing import NamedTuple

import numpy as np

from gpt.tokenizer.lexicon import MARK

END_OF_TEXT = "<|endoftext|>"
ENDS = (END_OF_TEXT, "<|end_of_text|>")  # marks that end a text, the first of those that a tokenizer has

# Ranges of code points that Unicode 9 lacks, among them all characters of Unicode 10 to 17 that NFC moves or composes
_NEWER_POINTS = """
5c8-5cf 7fb-7ff 85f-89f 8be-8d3 9fc-a00 c3a-c3c d3b-d3c eba 1715-171f 1abf-1aff 1df6-1dfa a82c-a82f 10570-105ff
10d00-10e5f 10e7f-10fff 11070-1107e 1133a-1133b 11375-113ff 1145e-1147f 11740-1189f 11900-11abf 11cb7-11fff 14647-167ff
16b90-16eff 16fe1-16fff 1d127-1d128 1d246-1d2ff 1e02b-1e7ff
"""
_NEWER = re.compile(f"([{''.join(re.sub('[0-9a-f]+', lambda c: chr(int(c[0], 16)), _NEWER_POINTS).split())}]+)")


class Mark(NamedTuple):
    """A mark: its text, and its id. Hugging Face's decoding leaves out those that are `special`, if it is asked to."""

    text: str
    id: int
    special: bool = True


class Marks:
    """The marks of a tokenizer. A text is brought into Unicode's composed form between them if `nfc` is true.

    `pairs` has all neighboring characters of a mark.
    """

    def __init__(self, marks: tuple[Mark, ...], nfc: bool = False) -> None:
        self._ids = {mark.text: mark.id for mark in marks}
        self._nfc = nfc
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
        self.pairs = {text[place : place + 2] for text in self._ids for place in range(len(text) - 1)}
        self._beginnings = {text[:2] for text in self._ids}  # most texts have none of them, and need no slower search

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def end_of_text(self) -> int | None:
        """The id of the mark that ends a text, if there is one."""
        return next((self._ids[text] for text in ENDS if text in self._ids), None)

    def encoded(self, text: str) -> tuple[bytes, np.ndarray]:
        r"""The text in UTF-8, with MARK for each of its marks, and their ids, int32 [marks].

        Of several marks that begin at one place, the longest counts. Raises ValueError for a lone surrogate.

        Example:

        >>> data, ids = Marks((Mark("<|endoftext|>", 0), Mark("<user>", 1))).encoded("<user>hi<|endoftext|>")
        >>> data, ids.tolist()
        (b'\xffhi\xff', [1, 0])
        """
        parts = [text]  # text, mark, text … text
        if any(beginning in text for beginning in self._beginnings):
            parts = self._pattern.split(text)
        between, marks = parts[::2], parts[1::2]
        try:
            data = MARK.join(part.encode() for part in (map(composed, between) if self._nfc else between))
            return data, np.array([self._ids[mark] for mark in marks], np.int32)
        except UnicodeEncodeError:
            raise ValueError(f"the text holds a lone surrogate at character {_lone_surrogate(text)}") from None


def composed(text: str) -> str:
    r"""The text in NFC, as Unicode 9 has it. So have Hugging Face's tokenizers 0.23, and the ids of a model are theirs.

    A character that Unicode 9 lacks neither moves nor composes, so the text on each side of it is composed by itself.
    A text that is in NFC by a newer Unicode is in NFC by Unicode 9 too, because all of its parts are.

    Example: by newer versions, U+07FD would stand behind the acute accent, and let it compose with the letter.

    >>> composed("a\u0301"), composed("a\u07fd\u0301") == "a\u07fd\u0301"
    ('á', True)
    """
    if unicodedata.is_normalized("NFC", text):
        return text
    parts = _NEWER.split(text)
    parts[::2] = [unicodedata.normalize("NFC", part) for part in parts[::2]]
    return "".join(parts)


def _lone_surrogate(text: str) -> int:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return -1


def overlap(text: str, other: str) -> bool:
    """Whether two marks can share a character of a text: one lies in the other, or ends with the other's beginning.

    Example:

    >>> overlap("<s>", "<s>>"), overlap("<a|", "|b>"), overlap("<|endoftext|>", "[PAD]")
    (True, True, False)
    """
    for first, second in ((text, other), (other, text)):
        if first in second or any(second.startswith(first[at:]) for at in range(1, len(first))):
            return True
    return False


def unfit(text: str) -> str | None:
    """The reason why a text cannot be a mark, in words that follow it, or None.

    Blocks of a text (gpt/tokenizer/text.py) may end at white space and before `<|endoftext|>`, so a mark may have
    neither within it, and may not end like the beginning of `<|endoftext|>`.
    """
    if not text:
        return "is empty"
    if text != "".join(text.split()) or any(c.isspace() for c in text):
        return "has white space in it"
    if any(END_OF_TEXT.startswith(text[at:]) for at in range(1, len(text))) or END_OF_TEXT in text[1:]:
        return f"has the beginning of {END_OF_TEXT} in it"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "is not valid text"
    return None
