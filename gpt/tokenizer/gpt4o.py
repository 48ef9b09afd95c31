r"""GPT-4o's pattern, which cuts words at changes of case too. GPT-OSS and others have it.

`[^\r\n\p{L}\p{N}]?[U]*[W]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[U]+[W]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|
\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`, with `\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}` for U, and
`\p{Ll}\p{Lm}\p{Lo}\p{M}` for W.

It is GPT-4's pattern but for four things:
- A run of letters is cut before an upper case letter if the last letter with a case before it is lower case: "getItem"
  is get, Item. Letters without a case, such as Chinese ones, join both. But upper case letters at the end of a run do
  not join a letter without a case before them.
- A contraction belongs to the word before it.
- Slashes may follow line ends that follow other signs.
- A combining mark is a letter. In a run of signs it is a sign, unless the run is one sign before letters.
"""

import numpy as np

from gpt.tokenizer.characters import (
    COMBINING,
    END,
    LETTER,
    LOWER,
    NEWLINE,
    SIGN,
    SPACE,
    UPPER,
    cased_kinds,
)
from gpt.tokenizer.lexicon import Strings
from gpt.tokenizer.splits import Gpt4, contraction_lengths, neighbors, padded_points, words


class Gpt4o(Gpt4):
    """GPT-4o's pattern. Its chunks are those of GPT-4, but for slashes behind line ends, and contractions."""

    def __init__(self) -> None:
        super().__init__(digits=3)

    def cut(self, chunks: bytes) -> tuple[Strings, np.ndarray]:
        r"""Cut chunks into words: (the words; how many each chunk has, intp [chunks]).

        Example:

        >>> found, count = Gpt4o().cut(b" getItem's:\n/\xffHTTP\xff")
        >>> found.joined().split(b"\xff")[:-1], count.tolist()
        ([b' get', b"Item's", b':\n/', b'HTTP'], [3, 1])
        """
        points = padded_points(chunks)
        cased = cased_kinds().take(points)
        kind = _without_case(cased, points)
        begins = self._begins(kind)
        # Contractions belong to the letters before them, and begin no word
        quote, length = self._contractions(points, kind)
        for letter in range(2):
            cased[quote[length > letter] + 1 + letter] = SIGN  # their own case does not count
        begins |= _case_begins(np.where(cased == COMBINING, kind, cased))
        begins[quote] = begins[quote + 1] = False
        begins[quote[length == 2] + 2] = False
        begins[quote + 1 + length] = True
        return words(begins, kind, chunks)

    def _never_begins(self, array: np.ndarray) -> np.ndarray:
        """Apostrophes, which may belong to a word, and slashes behind line ends, which may follow signs."""
        never: np.ndarray = array == ord("'")
        is_newline = (array == ord("\n")) | (array == ord("\r"))
        never[1:] |= (array[1:] == ord("/")) & is_newline[:-1]
        return never

    def _contractions(self, points: np.ndarray, kind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The apostrophes of contractions behind letters, intp [n], and the number of letters that each has.

        A contraction directly behind another one begins a word instead: "it's's" is it's, 's.
        """
        before, _ = neighbors(kind)
        (quote,) = ((points == ord("'")) & (before == LETTER)).nonzero()
        length = contraction_lengths(points, quote, any_case=True)
        quote, length = quote[length > 0], length[length > 0]
        stays = np.ones(len(quote), bool)
        for number in (quote[1:] == quote[:-1] + length[:-1] + 1).nonzero()[0].tolist():
            stays[number + 1] = not stays[number]
        return quote[stays], length[stays]


def _without_case(cased: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The kinds that GPT-4's pattern knows: letters are LETTER, and slashes that follow line ends are NEWLINE.

    Which combining marks are signs, and which slashes are behind line ends that follow signs, depends on one another,
    from left to right. So this goes round until nothing changes.
    """
    kind = np.where((cased == UPPER) | (cased == LOWER), np.uint8(LETTER), cased)
    is_slash, is_mark = points == ord("/"), cased == COMBINING
    has_marks = bool(is_mark.any())
    before, _ = neighbors(kind)
    if not has_marks and not (is_slash & (before == NEWLINE)).any():
        return kind
    while True:
        found = kind
        if has_marks:
            found = np.where(is_mark, np.where(_in_signs(kind, is_mark), np.uint8(SIGN), np.uint8(LETTER)), found)
        of_slash = np.where(_behind_line_ends(found, is_slash), np.uint8(NEWLINE), np.uint8(SIGN))
        found = np.where(is_slash, of_slash, found)
        if np.array_equal(found, kind):
            return kind
        kind = found


def _in_signs(kind: np.ndarray, is_mark: np.ndarray) -> np.ndarray:
    """Whether each character is behind two signs side by side or a sign behind a space, in one run of signs and marks.

    A single sign goes with the letters behind it, and so with marks.
    """
    is_sign = (kind == SIGN) & ~is_mark
    before, _ = neighbors(kind)
    return _behind(is_sign & (np.append(is_sign[1:], False) | (before == SPACE)), is_sign | is_mark)


def _behind_line_ends(kind: np.ndarray, is_slash: np.ndarray) -> np.ndarray:
    """Whether each character is behind a line end that follows a sign or slash, in one run of line ends and slashes."""
    is_newline = (kind == NEWLINE) & ~is_slash
    follows = np.append(False, (kind[:-1] == SIGN) | is_slash[:-1])
    return _behind(is_newline & follows, is_newline | is_slash)


def _behind(found: np.ndarray, run: np.ndarray) -> np.ndarray:
    """Whether each character has one that is `found` before it, or is one itself, and all between belong to `run`."""
    index = np.arange(len(run))
    outside = np.maximum.accumulate(np.where(run, -1, index))
    behind: np.ndarray = np.maximum.accumulate(np.where(found, index, -1)) > outside
    return behind


def _case_begins(cased: np.ndarray) -> np.ndarray:
    """Whether a word begins at each character because of its case, bool [n]. Letters without a case are LETTER."""
    index = np.arange(len(cased))
    before, _ = neighbors(cased)
    is_upper = cased == UPPER
    # The last character before it that is not a letter without a case
    last = np.maximum.accumulate(np.where(cased != LETTER, index, 0))
    begins = is_upper & (np.append(np.uint8(END), cased[last][:-1]) == LOWER)
    # Upper case letters at the end of a run behind one without a case
    behind = np.minimum.accumulate(np.where(is_upper, len(cased) - 1, index)[::-1])[::-1]  # what follows a run of them
    at_end = (cased[behind] != LOWER) & (cased[behind] != LETTER)
    begins |= is_upper & (before == LETTER) & at_end
    found: np.ndarray = begins
    return found
