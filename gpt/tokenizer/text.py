"""Text files, read block by block.

Nothing is translated: newlines and a byte order mark stay as they are, so the blocks joined are exactly the file's
text. A block ends at a seam, a place at which every tokenizer cuts, whatever comes behind it. So the ids of the blocks,
one after the other, are the ids of the whole text. A seam is
- before white space other than a line end, if no white space is before it: no pattern has a word with white space in it
  that begins with something else, except for line ends behind signs, and the space or tab may stay with the word behind
  it;
- after a line end that stands alone: no pattern begins a word with a line end and ends it with something else;
- before a line end or `<|endoftext|>`, if a letter or digit is before it: no pattern joins these with a line end or a
  sign behind them. (If `<|endoftext|>` is a mark, words end there anyway; if not, it begins with a sign.)
"""

import codecs
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import regex

from gpt.errors import UserError, cannot
from gpt.system.reading import SMALL, irregular, parse
from gpt.tokenizer.marks import END_OF_TEXT
from gpt.tokenizer.unicode_table import LETTERS, NUMBERS

_CONTINUATION = bytes(range(0x80, 0xC0))  # bytes of UTF-8 that are not the first of a character
_SEARCHED = 1 << 16  # bytes that the search for a seam reads at a time

_HEAD = 4096  # bytes at the beginning of a file that show its kind
_UNPACK = "unpack it, and give the text that was in it"
_CONVERT = "convert it, for example with `iconv -f UTF-16 -t UTF-8`"
_TABLE = "write the texts in it to a UTF-8 file"
# Formats of files that people give instead of a text: the first bytes, the kind, advice
_FORMATS = [
    (re.compile(beginning, re.DOTALL), what, advice)
    for beginning, what, advice in (
        (rb"\x1f\x8b", "compressed with gzip", _UNPACK),
        (rb"\xfd7zXZ\x00", "compressed with xz", _UNPACK),
        (rb"BZh[1-9]1AY&SY", "compressed with bzip2", _UNPACK),
        (rb"\x28\xb5\x2f\xfd", "compressed with zstd", _UNPACK),
        (rb"PK(\x03\x04|\x05\x06)", "a zip archive", _UNPACK),
        (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
        (rb".{257}ustar", "a tar archive", _UNPACK),
        (rb"PAR1", "a parquet file", _TABLE),
        (rb"ARROW1", "an Arrow file", _TABLE),
        (rb"%PDF-", "a PDF file", _TABLE),
        (rb"\xff\xfe\x00\x00|\x00\x00\xfe\xff", "not UTF-8, but UTF-32", _CONVERT.replace("16", "32")),
        (rb"\xff\xfe|\xfe\xff", "not UTF-8, but UTF-16", _CONVERT),
    )
]


@cache
def _seam(way: str) -> Any:
    """The pattern that finds the first seam if `way` is "", the last one if it is "(?r)".

    Letters and digits are those of the tokenizers. \\s is White_Space in `regex`; `re` adds U+001C to U+001F.
    """
    ranges = [each.partition("-") for each in f"{LETTERS} {NUMBERS}".split()]
    letter = "".join(f"\\U{int(first, 16):08x}-\\U{int(last or first, 16):08x}" for first, _, last in ranges)
    mark = regex.escape(END_OF_TEXT)
    return regex.compile(rf"{way}(?<=\S)(?=[^\S\r\n])|(?<=\S[\r\n])(?=\S)|(?<=[{letter}])(?=[\r\n]|{mark})")


def read_blocks(path: str | Path, block_chars: int = 1 << 20, begin: int = 0, end: int | None = None) -> Iterator[str]:
    """The text of a UTF-8 file in blocks of about `block_chars` characters.

    `begin` and `end` are the first byte to read and the one after the last (None: the end of the file), both at seams
    as `find_seams` finds them.

    Every block but the last ends at a seam (see the top of this file). A stretch of text without one comes in one
    block, however long. Joined, the blocks are the file's text, with its newlines as they are and its byte order mark,
    if it has one, as the character U+FEFF.
    Raises UserError for a file that is missing, not a regular file, unreadable, empty, or not UTF-8.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "text.txt").write_text("the cat sat on the mat")
    ...     list(read_blocks(Path(folder, "text.txt"), block_chars=10))
    ['the cat', ' sat on the', ' mat']
    """
    held: list[str] = []  # text without a seam so far
    tail = ""  # end of that text, which together with the next characters may make a seam
    for text in _decoded(Path(path), block_chars, begin, end):
        text = tail + text
        seam = _seam("(?r)").search(text)
        if seam:
            yield "".join(held) + text[: seam.start()]
            held.clear()
            text = text[seam.start() :]
        kept = max(0, len(text) - len(END_OF_TEXT))
        held.append(text[:kept])
        tail = text[kept:]
    if last := "".join(held) + tail:  # a range may be empty
        yield last


def find_seams(path: Path, size: int, ranges: int) -> list[int]:
    """Places, in bytes, that cut a UTF-8 file of `size` bytes into `ranges` ranges of about the same size.

    There are `ranges - 1` of them, ascending. Each is the first seam behind its share of the bytes and behind the place
    before it, or `size` if none follows. A byte that is not UTF-8 counts as a letter. Raises OSError.

    Example: "der Bär aß" has 12 bytes. Its seams are at 3 and at 8, because ä has two bytes.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "text.txt").write_text("der Bär aß", encoding="utf-8")
    ...     [find_seams(Path(folder, "text.txt"), 12, ranges) for ranges in (1, 2, 4)]
    [[], [8], [8, 12, 12]]
    """
    places: list[int] = []
    if ranges > 1:
        with open(path, "rb") as file:
            for number in range(1, ranges):
                places.append(_seam_behind(file, max([size * number // ranges, *places[-1:]]), size))
    return places


def _seam_behind(file: BinaryIO, place: int, size: int) -> int:
    """The first seam behind the byte `place` of a file; `size` if there is none."""
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


def _decoded(path: Path, size: int, begin: int, end: int | None) -> Iterator[str]:
    """The characters between two bytes of the file, `size` bytes at a time."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = begin  # place in the file of the first byte that is not decoded yet
    try:
        with cannot(f"read {path}"):
            if what := irregular(path):
                raise UserError(
                    f"{path} is a directory: give the path of a text file" if what == "a directory" else
                    f"{path} is {what}, but a text is read more than once: write it to a file, and give that one"
                )  # fmt: skip
            with open(path, "rb") as file:
                if begin == 0:
                    _raise_unless_text(path, file.peek(_HEAD)[:_HEAD])
                file.seek(begin)
                while data := file.read(size if end is None else min(size, end - file.tell())):
                    undecoded = len(decoder.getstate()[0])
                    yield decoder.decode(data)
                    offset += undecoded + len(data) - len(decoder.getstate()[0])
                decoder.decode(b"", final=True)
                if not file.tell():
                    raise UserError(f"{path} is empty: give a text file with something in it")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give the path of a text file") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8: byte {offset + error.start} ({error.object[error.start]:#04x}) is "
            "not part of a character: convert the file to UTF-8"
        ) from None


def _raise_unless_text(path: Path, head: bytes) -> None:
    """UserError for a file that does not begin like UTF-8 text but like another format."""
    for beginning, what, advice in _FORMATS:
        if beginning.match(head):
            raise UserError(f"{path} is {what}: {advice}")
    if 4 * head.count(0) > len(head):  # letters have two bytes in UTF-16, and one of them is mostly 0
        raise UserError(f"{path} is not UTF-8, but looks like UTF-16 without its mark: {_CONVERT}")


def looks_like_json_lines(path: Path) -> bool:
    """Whether the first two lines of a text are JSON objects, or the first is one and nothing follows."""
    with cannot(f"read {path}"), open(path, "rb") as file:
        lines = [file.readline(SMALL) for _ in range(2)]
    try:
        return all(isinstance(parse(line), dict) for line in lines if line.strip())
    except ValueError:
        return False
