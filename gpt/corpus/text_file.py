"""A file of some format, compression and encoding, read as text from any place to any other at which it may be cut.

A plain file may be cut at its seams (gpt/tokenizer/text.py), JSON Lines at the beginning of a line, and parquet at that
of a row group. Any other file is read from its beginning to its end.
"""

import codecs
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from gpt.corpus import conversations, documents
from gpt.corpus.kinds import TEXT_FIELD, damage_named, decompressed, first_bytes, kind_of
from gpt.errors import UserError, cannot, naming, reason
from gpt.tokenizer.text import seam_behind

UTF_8 = "utf-8"

_BUFFER = 1 << 20  # bytes of a file that are read at a time
_CONVERT = "convert the file to UTF-8, or name its encoding with --encoding"

Watch = Callable[[bytes], object]
"""A function that is given the bytes of files, as they are on the disk, in their order. They may be compressed."""


def unwatched(data: bytes) -> None:
    """A `Watch` that does nothing."""


LeftOut = Callable[[Path, int, int], object]
"""A function that is told of documents without text: the file, a byte in it, and the number of the record behind it.

`Source.record` says which one that is."""


def uncounted(path: Path, begin: int, number: int) -> None:
    """A `LeftOut` that does nothing."""


@dataclass(frozen=True)
class Source:
    """A file: its size and time when it was found, and how it is to be read (see `gpt.corpus.kinds.Kind`).

    `field` is the field or the column that holds the documents, if the format has any.
    """

    path: Path
    size: int
    mtime_ns: int
    format: str = "plain"
    compression: str | None = None
    encoding: str = UTF_8
    conversations: bool = False
    field: str = TEXT_FIELD

    @classmethod
    def of(cls, path: Path, encoding: str = UTF_8, field: str | None = None, in_folder: bool = False) -> "Source":
        """The source at `path`. `field` is None if the user has named none. Raises UserError as `kind_of` does."""
        kind, state = kind_of(path, encoding, field is not None, in_folder)
        return cls(path, state.st_size, state.st_mtime_ns, **kind._asdict(), field=field or TEXT_FIELD)

    def texts(
        self, begin: int, end: int | None, mark: str, watch: Watch = unwatched, left_out: LeftOut = uncounted
    ) -> Iterator[str]:
        """The text between two bytes of the file (None: its end) in strings, with `mark` behind each document.

        Raises UserError for a file that is missing or unreadable, and for anything in it that cannot be read.
        """
        if self._is_small and begin == 0 and end is None and (text := self._whole(watch)) is not None:
            yield text + mark
            return
        try:
            with cannot(f"read {self.path}"), damage_named(self.path, self.compression):
                yield from self._texts(begin, end, mark, watch, partial(left_out, self.path, begin))
        except FileNotFoundError:
            raise UserError(f"{self.path} does not exist: give the path of a text file") from None
        except UnicodeDecodeError:
            raise UserError(self._undecodable()) from None
        except UnicodeError as error:  # of a decoder that names no byte: UTF-16's, if the byte order mark is missing
            raise UserError(f"{self.path} is not {self.encoding.upper()} ({reason(error)}): {_CONVERT}") from None

    def _texts(
        self, begin: int, end: int | None, mark: str, watch: Watch, left_out: documents.LeftOut
    ) -> Iterator[str]:
        if self.format == "parquet":
            yield from self._row_groups(begin, end, mark, watch, left_out)
            return
        with open(self.path, "rb", buffering=0) as raw:
            raw.seek(begin)
            watched = _Watched(raw, min(_BUFFER, self.size + 1), end, watch)
            if self.format == "plain" and not self.compression:
                yield from documents.plain(watched.chunk, self.encoding, mark, end is None)
                return
            file = _unpacked(watched, self.compression)
            text_of = conversations.text_of if self.conversations else documents.text_field(self.field)
            if self.format == "plain":
                yield from documents.plain(partial(file.read, _BUFFER), self.encoding, mark, is_whole=True)
            elif self.format == "json":
                yield from documents.json_list(file, self.path, self.encoding, text_of, mark, left_out)
            elif self.format == "jsonl":
                before = partial(self._lines_before, begin)
                yield from documents.json_lines(file, self.path, self.encoding, text_of, mark, left_out, before)
            else:
                delimiter = "\t" if self.format == "tsv" else ","
                yield from documents.table(file, self.path, self.encoding, self.field, mark, left_out, delimiter)

    @property
    def _is_small(self) -> bool:
        return self.size <= _BUFFER and self.format == "plain" and self.compression is None

    def _whole(self, watch: Watch) -> str | None:
        """The text of a small file, read at once. None if that cannot be done, and `_texts` has to do it or say why.

        Some file systems do not know the size of a file: in /proc it is 0.
        """
        try:
            if len(data := first_bytes(self.path, self.size + 1)) != self.size:
                return None
            text = codecs.getincrementaldecoder(self.encoding)().decode(data, final=True)  # as a large one is decoded
        except (OSError, UnicodeError):
            return None
        watch(data)
        return text

    def _row_groups(
        self, begin: int, end: int | None, mark: str, watch: Watch, left_out: documents.LeftOut
    ) -> Iterator[str]:
        file = documents.Parquet(self.path)
        columns = (
            [name for name in file.columns if name in conversations.FIELDS] if self.conversations else [self.field]
        )
        text_of = conversations.text_of if self.conversations else file.text_column(self.field)
        starts = file.starts()
        for group, (first, last) in enumerate(zip(starts, [*starts[1:], None], strict=True)):
            if begin <= first and (end is None or first < end):
                yield from file.documents(group, columns, text_of, mark, left_out)
                feed(self.path, first, last, watch)

    def cut_behind(self, place: int) -> int:
        """The first byte behind `place` at which the file may be cut, or its size if there is none."""
        if self.format == "parquet":
            starts = documents.Parquet(self.path).starts()
            return next((start for start in starts if start > place), self.size)
        if self.compression or self.format not in ("plain", "jsonl") or self.encoding != UTF_8:
            return self.size
        with naming(self.path), open(self.path, "rb") as file:
            if self.format == "plain":
                return seam_behind(file, place, self.size)
            file.seek(place)
            while (line := file.readline(_BUFFER)) and not line.endswith(b"\n"):
                pass
            return min(file.tell(), self.size)

    def record(self, begin: int, number: int) -> str:
        """What messages call the record that a `LeftOut` was told of, such as "line 7"."""
        if self.format == "jsonl":
            return f"line {self._lines_before(begin) + number}"
        return f"{ {'parquet': 'row', 'json': 'object'}.get(self.format, 'line') } {number}"

    def _lines_before(self, place: int) -> int:
        counts: list[int] = []
        if place:
            feed(self.path, 0, place, lambda data: counts.append(data.count(b"\n")))
        return sum(counts)

    def _undecodable(self) -> str:
        """One line about the first byte that cannot be decoded. The file is read once more, to find it."""
        name = self.encoding.upper()
        decoder = codecs.getincrementaldecoder(self.encoding)()
        place, line, data = 0, 1, b"-"
        with open(self.path, "rb", buffering=0) as raw:
            file = _unpacked(_Watched(raw, _BUFFER), self.compression)
            while data:
                data = file.read(_BUFFER)
                state = decoder.getstate()
                held = len(state[0])  # bytes of a character that has begun
                try:
                    line += decoder.decode(data, final=not data).count("\n")
                except UnicodeDecodeError as error:
                    decoder.setstate(state)
                    line += decoder.decode(data[: max(0, error.start - held)]).count("\n")
                    byte, value = place - held + error.start, error.object[error.start]
                    return (
                        f"{self.path} is not {name}: byte {byte} ({value:#04x}) in line {line} is not part of a "
                        f"character: {_CONVERT}"
                    )
                place += len(data)
        return f"{self.path} is not {name}: {_CONVERT}"


class _Watched(io.RawIOBase):
    """A file that is read up to the byte `end` (None: its end). `watch` is given all that is read."""

    def __init__(self, file: io.FileIO, at_once: int, end: int | None = None, watch: Watch = unwatched) -> None:
        self._file, self._at_once, self._watch = file, at_once, watch
        self._left = None if end is None else end - file.tell()

    def chunk(self) -> bytes:
        """The next bytes; none at the end."""
        data = self._file.read(self._at_once if self._left is None else min(self._at_once, self._left)) or b""
        if self._left is not None:
            self._left -= len(data)
        self._watch(data)
        return data

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        room = memoryview(buffer)[: self._left]
        count = self._file.readinto(room) or 0
        if self._left is not None:
            self._left -= count
        self._watch(bytes(room[:count]))
        return count


def _unpacked(file: _Watched, compression: str | None) -> BinaryIO:
    buffered = cast(BinaryIO, io.BufferedReader(file, _BUFFER))
    return decompressed(buffered, compression) if compression else buffered


def feed(path: Path, begin: int, end: int | None, watch: Watch) -> None:
    """Give `watch` the bytes of a file from `begin` to `end` (None: its end). Raises OSError, which names it."""
    with naming(path), open(path, "rb", buffering=0) as file:
        file.seek(begin)
        watched = _Watched(file, _BUFFER, end, watch)
        while watched.chunk():
            pass
