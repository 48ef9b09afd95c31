"""Where a text may be cut: at seams, places at which every kind of tokenizer cuts.

The ids of the blocks between seams, one after the other, are the ids of the whole text, whatever comes behind a seam.
gpt/corpus/ reads the text. A seam is
- before white space other than a line end, if no white space is before it: no pattern has a word with white space in it
  that begins with something else, except for line ends behind signs, and the space or tab may stay with the word behind
  it;
- after a line end that stands alone, if no slash is behind it: no pattern has a word with a line end in it that ends
  with something else, except for slashes;
- before a line end or `<|endoftext|>`, if a letter or digit is before it: no pattern joins these with a line end or a
  sign behind them. (If `<|endoftext|>` is a mark, words end there anyway; if not, it begins with a sign.)

Base64 and JSON may be written in one line of many megabytes that has no seam. All tokenizers but those of the kind
`word`, whose words end at white space alone, cut within such a line as well (`last_cut`).
"""

import codecs
from collections.abc import Callable, Container, Iterable, Iterator
from functools import cache
from typing import Any, BinaryIO

import regex

from gpt.tokenizer.marks import END_OF_TEXT
from gpt.tokenizer.unicode_table import LETTERS, NUMBERS

BLOCK_CHARS = 1 << 20  # characters of a block

_CONTINUATION = bytes(range(0x80, 0xC0))  # bytes of UTF-8 that are not the first of a character
_SEARCHED = 1 << 16  # bytes that the search for a seam reads at a time


@cache
def _seam(way: str) -> Any:
    """The pattern that finds the first seam if `way` is "", the last one if it is "(?r)". The match begins at the seam.

    A search for the last seam reads the pattern from its end. So a character that can follow a seam comes first, and
    the long list of letters last: a long stretch without a seam then takes a tenth of the time.

    Letters and digits are those of the tokenizers. \\s is White_Space in `regex`; `re` adds U+001C to U+001F.
    """
    mark = regex.escape(END_OF_TEXT)
    return regex.compile(rf"{way}(?<=\S)[^\S\r\n]|(?<=\S[\r\n])[^\s/]|(?<=[{_letters()}])(?<!\s)(?:[\r\n]|{mark})")


@cache
def _letters() -> str:
    """All letters and digits, as a set in a pattern has them."""
    ranges = [each.partition("-") for each in f"{LETTERS} {NUMBERS}".split()]
    return "".join(f"\\U{int(first, 16):08x}-\\U{int(last or first, 16):08x}" for first, _, last in ranges)


@cache
def _within() -> Any:
    """The pattern that finds the last place at which patterns of words cut a line, whatever stands around it.

    These are the places between one of ASCII's letters and one of its digits, and those between a letter or digit and
    a sign that begins no contraction and joins no letter: no pattern has a word with two such neighbors in it.
    """
    return regex.compile(rf"(?r)(?<=[a-zA-Z])[0-9]|(?<=[0-9])[a-zA-Z]|(?<=[{_letters()}])[!-&(-/:-@\[-`{{-~、。！，？]")


def last_cut(text: str, apart: Container[str]) -> int:
    """The last place within a line at which all tokenizers but those of the kind `word` cut; 0 if there is none.

    `apart` has the pairs of characters between which there is no such place, because a mark has them.

    >>> last_cut("aGVsbG8gd29ybGQh", set()), last_cut("aGVsbG8gd29ybGQh", {"9y"}), last_cut("the cat", set())
    (11, 9, 0)
    """
    places = (found.start() for found in _within().finditer(text))
    return next((place for place in places if text[place - 1 : place + 1] not in apart), 0)


def nowhere(text: str) -> int:
    """The `last_cut` of a tokenizer that cuts at seams alone."""
    return 0


def blocks_of(texts: Iterable[str], block_chars: int, cut: Callable[[str], int] = nowhere) -> Iterator[str]:
    """A text that comes in strings, in blocks of about `block_chars` characters.

    Every block but the last ends at a seam, or, in a long stretch without one, where `cut` says. Without such a place
    the stretch comes in one block, however long. Joined, the blocks are the text.

    Example:

    >>> list(blocks_of(["the cat sat on", " the", " mat"], block_chars=10))
    ['the cat', ' sat', ' on the', ' mat']
    """
    held: list[str] = []  # text without a seam so far
    tail = ""  # end of that text, which together with the next characters may make a seam
    for text in _gathered(texts, block_chars):
        text = tail + text
        seam = _seam("(?r)").search(text)
        if place := seam.start() if seam else cut(text):
            yield "".join(held) + text[:place]
            held.clear()
            text = text[place:]
        kept = max(0, len(text) - len(END_OF_TEXT))
        held.append(text[:kept])
        tail = text[kept:]
    if last := "".join(held) + tail:  # a text may be empty
        yield last


def _gathered(texts: Iterable[str], size: int) -> Iterator[str]:
    """The same text in strings of `size` characters at most. Thousands of small documents then take one search.

    >>> list(_gathered(["a", "bc", "d", "efghi", "j"], 4))
    ['abcd', 'efgh', 'i', 'j']
    """
    held: list[str] = []
    count = 0
    for text in texts:
        if held and count + len(text) > size:
            yield "".join(held)
            held.clear()
            count = 0
        if len(text) > size:
            yield from (text[first : first + size] for first in range(0, len(text), size))
            continue
        held.append(text)
        count += len(text)
    if held:
        yield "".join(held)


def seam_behind(file: BinaryIO, place: int, size: int) -> int:
    """The first seam behind the byte `place` of a UTF-8 file of `size` bytes; `size` if there is none.

    A byte that is not UTF-8 counts as a letter. Raises OSError.

    Example: "der Bär aß" has 12 bytes. Its seams are at 3 and at 8, because ä has two bytes.

    >>> import io
    >>> file = io.BytesIO("der Bär aß".encode())
    >>> [seam_behind(file, place, 12) for place in (0, 3, 4, 6, 9)]
    [3, 8, 8, 8, 12]
    """
    file.seek(place)
    rest = file.read(3)  # may begin within a character
    place += len(rest) - len(rest.lstrip(_CONTINUATION))
    file.seek(place)
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")  # with it, encoding gives back the same bytes
    text = ""  # characters that may make a seam together with the next ones; it begins at the byte `place`
    while place < size and (data := file.read(_SEARCHED)):
        text += decoder.decode(data)
        if seam := _seam("").search(text):
            return min(size, place + _byte_count(text[: seam.start()]))
        passed = max(0, len(text) - len(END_OF_TEXT))
        place += _byte_count(text[:passed])
        text = text[passed:]
    return size


def _byte_count(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))
