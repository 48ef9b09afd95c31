"""Text files, read block by block.

What is a character, a newline or a mark at the beginning is the file's business: nothing is translated, so that the
blocks joined are the file's very text. Blocks end where every tokenizer has a seam, so that tokenizing block by block
gives what tokenizing the whole text gives.
"""

import codecs
from collections.abc import Iterator
from pathlib import Path

import regex

from gpt.errors import UserError

END_OF_TEXT = "<|endoftext|>"

# The rightmost seam: before a run of white space (what precedes it keeps its pieces, and a space stays with the word
# that follows) or before the end-of-text mark. `regex` means White_Space by \s; `re` would add U+001C to U+001F.
_LAST_SEAM = regex.compile(r"(?r)(?<=\S)(?=\s)|(?<=.)(?=" + regex.escape(END_OF_TEXT) + ")", regex.DOTALL)


def read_blocks(path: str | Path, block_chars: int = 1 << 20) -> Iterator[str]:
    """The text of a UTF-8 file in blocks of about `block_chars` characters (at most, while seams lie that close).

    Every block but the last ends just before a run of white space (Unicode White_Space) or just before a verbatim
    `<|endoftext|>`; what offers neither comes in one block, however long. Joined, the blocks are the file's text,
    with its newlines as they are and its byte order mark, if it has one, as the character U+FEFF.
    Raises UserError for a file that is missing, a directory, unreadable, empty, or not UTF-8.
    """
    held: list[str] = []  # text without a seam
    tail = ""  # its end, where the next characters may complete a seam
    for text in _decoded(Path(path), block_chars):
        text = tail + text
        seam = _LAST_SEAM.search(text)
        if seam:
            yield "".join(held) + text[: seam.start()]
            held.clear()
            text = text[seam.start() :]
        kept = max(0, len(text) - len(END_OF_TEXT))
        held.append(text[:kept])
        tail = text[kept:]
    yield "".join(held) + tail


def _decoded(path: Path, size: int) -> Iterator[str]:
    """The file's characters, `size` bytes at a time."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0  # of the first byte that is not decoded yet
    try:
        with open(path, "rb") as file:
            while data := file.read(size):
                undecoded = len(decoder.getstate()[0])
                yield decoder.decode(data)
                offset += undecoded + len(data) - len(decoder.getstate()[0])
            decoder.decode(b"", final=True)
            if not file.tell():
                raise UserError(f"{path} is empty: give a text file with something in it")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give the path of a text file") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a directory: give the path of a text file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8: byte {offset + error.start} ({error.object[error.start]:#04x}) is "
            "no part of a character: convert the file to UTF-8"
        ) from None
