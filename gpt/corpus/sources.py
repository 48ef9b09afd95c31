"""The files that a run learns from, in their order, read as one text.

A `Source` is one file, and knows how to read itself. `Sources` are all of them. Their text comes in blocks that end at
seams (gpt/tokenizer/text.py), across the borders of files. So 50,000 small files take about as long as one large one.

A `Place` is a source and a byte in it: a seam of a plain file, the beginning of a line of JSON Lines or of a row group.
Text can be read from any place to any other. `Sources.pieces` cuts it into such ranges, which ranks share.

For example, three files of 4, 1 and 2 MB are cut into pieces of about 2 MB at (0, 2 MB) and (1, 0).
"""

import codecs
import hashlib
import io
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from gpt.arithmetic import ceil_div
from gpt.corpus import conversations, documents
from gpt.corpus.finding import absolute, named
from gpt.corpus.kinds import TEXT_FIELD, NotTextError, damage_named, decompressed, first_bytes, kind_of
from gpt.errors import UserError, cannot, naming, reason
from gpt.tokenizer import END_OF_TEXT
from gpt.tokenizer.text import BLOCK_CHARS, blocks_of, seam_behind

_BUFFER = 1 << 20  # bytes of a file that are read at a time
_STRETCH = 1 << 20  # bytes of a sample that stand together
_MOST_NAMED = 5  # files that a message names
_CONVERT = "convert the file to UTF-8, or name its encoding with --encoding"

UTF_8 = "utf-8"


class Place(NamedTuple):
    """Byte `byte` of source number `source`."""

    source: int
    byte: int


START = Place(0, 0)

Watch = Callable[[bytes], object]
"""A function that is given the bytes of files, as they are on the disk, in their order. They may be compressed."""


def _unwatched(data: bytes) -> None: ...


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
        return cls(path, state.st_size, state.st_mtime_ns, *kind, field or TEXT_FIELD)

    def texts(self, begin: int, end: int | None, mark: str, watch: Watch = _unwatched) -> Iterator[str]:
        """The text between two bytes of the file (None: its end) in strings, with `mark` behind each document.

        Raises UserError for a file that is missing or unreadable, and for anything in it that cannot be read.
        """
        if self._is_small and begin == 0 and end is None and (text := self._whole(watch)) is not None:
            yield text + mark
            return
        try:
            with cannot(f"read {self.path}"), damage_named(self.path, self.compression):
                yield from self._texts(begin, end, mark, watch)
        except FileNotFoundError:
            raise UserError(f"{self.path} does not exist: give the path of a text file") from None
        except UnicodeDecodeError:
            raise UserError(self._undecodable()) from None
        except UnicodeError as error:  # of a decoder that names no byte: UTF-16's, if the byte order mark is missing
            raise UserError(f"{self.path} is not {self.encoding.upper()} ({reason(error)}): {_CONVERT}") from None

    def _texts(self, begin: int, end: int | None, mark: str, watch: Watch) -> Iterator[str]:
        if self.format == "parquet":
            yield from self._row_groups(begin, end, mark, watch)
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
                yield from documents.json_list(file, self.path, self.encoding, text_of, mark)
            elif self.format == "jsonl":
                before = partial(self._lines_before, begin)
                yield from documents.json_lines(file, self.path, self.encoding, text_of, mark, before)
            else:
                delimiter = "\t" if self.format == "tsv" else ","
                yield from documents.table(file, self.path, self.encoding, self.field, mark, delimiter)

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

    def _row_groups(self, begin: int, end: int | None, mark: str, watch: Watch) -> Iterator[str]:
        file = documents.Parquet(self.path)
        columns = (
            [name for name in file.columns if name in conversations.FIELDS] if self.conversations else [self.field]
        )
        text_of = conversations.text_of if self.conversations else file.text_column(self.field)
        starts = file.starts()
        for group, (first, last) in enumerate(zip(starts, [*starts[1:], None], strict=True)):
            if begin <= first and (end is None or first < end):
                yield from file.documents(group, columns, text_of, mark)
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

    def __init__(self, file: io.FileIO, at_once: int, end: int | None = None, watch: Watch = _unwatched) -> None:
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


@dataclass(frozen=True)
class Sources:
    """The files of a text, in their order. `paths` is what named them, `encoding` and `field` how they were to be read.

    If there is a `seed`, the documents of the tokens are to be in an order that it decides; their text is not. If
    there is a `sample`, a tokenizer is to learn from so many bytes of the text.
    `<|endoftext|>` stands behind each document, except if there is one plain text that was named by itself: `marks` is
    then False.
    """

    paths: tuple[str, ...]
    files: Sequence[Source]
    encoding: str = UTF_8
    field: str | None = None
    seed: int | None = None
    sample: int | None = None

    @property
    def name(self) -> str:
        """What messages call the text."""
        return ", ".join(self.paths)

    @property
    def marks(self) -> bool:
        return self.paths != (str(self.files[0].path),) or self.files[0].format != "plain"

    @property
    def with_conversations(self) -> list[Path]:
        """The files that hold conversations."""
        return [source.path for source in self.files if source.conversations]

    @property
    def size(self) -> int:
        """The bytes of all files, as they are on the disk."""
        return sum(source.size for source in self.files)

    @property
    def end(self) -> Place:
        return Place(len(self.files), 0)

    def state(self) -> str:
        """A digest of the names, sizes and times of the files, and of how they are read."""
        files = [
            (str(each.path), each.size, each.mtime_ns, each.format, each.encoding, each.conversations)
            for each in self.files
        ]
        parts = (self.encoding, self.field, self.marks, files)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def blocks(
        self, begin: Place = START, end: Place | None = None, watch: Watch = _unwatched,
        watch_end: Callable[[], object] = lambda: None, block_chars: int = BLOCK_CHARS, mark: str = END_OF_TEXT,
    ) -> Iterator[str]:  # fmt: skip
        """The text between two places (None: the end) in blocks, as `gpt.tokenizer.text.blocks_of` cuts them.

        `mark` is what ends a document, if documents have an end (`marks`).
        `watch` is given the bytes that are read, and `watch_end` is called after the last byte of each file.
        Raises UserError for a file that cannot be read.
        """
        mark = mark if self.marks else ""
        return blocks_of(self._texts(begin, end or self.end, mark, watch, watch_end), block_chars)

    @property
    def learned_size(self) -> int:
        """The bytes of the text that a tokenizer is to learn from."""
        return self.size if self.sample is None else min(self.sample, self.size)

    def learned_blocks(self, watch: Watch = _unwatched) -> Iterator[str]:
        """The text that a tokenizer is to learn from, in blocks as those of `blocks`.

        A sample consists of stretches of about a MiB, evenly spread over the bytes of all files in their order. A file
        that can be read from its beginning alone (`Source.cut_behind`) gives as much of its beginning as there are
        stretches in it.
        """
        if self.learned_size == self.size:
            yield from self.blocks(watch=watch)
            return
        count = ceil_div(self.learned_size, _STRETCH)
        length, ends = self.learned_size // count, list(accumulate(source.size for source in self.files))
        places = [number * self.size // count for number in range(count)]
        for number, group in groupby(places, key=partial(bisect_right, ends)):
            source, within = self.files[number], [place - (ends[number] - self.files[number].size) for place in group]
            last = 0  # byte of the file up to which it has been read
            for place in within:
                begin = max(last, source.cut_behind(place - 1) if place else 0)
                last = source.cut_behind(max(begin, place) + length)
                if begin == 0 and last == source.size:
                    yield from self._beginning(number, length * len(within), watch)
                    break
                if begin < last:
                    yield from self.blocks(Place(number, begin), Place(number, last), watch)

    def _beginning(self, number: int, size: int, watch: Watch) -> Iterator[str]:
        """The first blocks of a file, of about `size` bytes as they are on the disk."""
        read = 0

        def count(data: bytes) -> None:
            nonlocal read
            read += len(data)
            watch(data)

        for block in self.blocks(Place(number, 0), Place(number + 1, 0), count, block_chars=min(BLOCK_CHARS, size)):
            yield block
            if read >= size:
                return

    def _texts(
        self, begin: Place, end: Place, mark: str, watch: Watch, watch_end: Callable[[], object]
    ) -> Iterator[str]:
        for number, first, last in self._ranges(begin, end):
            yield from self.files[number].texts(first, last, mark, watch)
            if last is None:
                watch_end()

    def feed(self, begin: Place, end: Place, watch: Watch, watch_end: Callable[[], object]) -> None:
        """Read the bytes between two places for `watch` and `watch_end` alone. Raises OSError."""
        for number, first, last in self._ranges(begin, end):
            feed(self.files[number].path, first, last, watch)
            if last is None:
                watch_end()

    def _ranges(self, begin: Place, end: Place) -> Iterator[tuple[int, int, int | None]]:
        """The number of each file between two places, its first byte there and the one after its last (None: its end).

        For example from (0, 7) to (2, 5): (0, 7, None), (1, 0, None), (2, 0, 5).
        """
        for number in range(begin.source, min(end.source + 1, len(self.files))):
            last = end.byte if number == end.source else None
            if last != 0:
                yield number, begin.byte if number == begin.source else 0, last

    def pieces(self, size: int, count: int, begin: Place = START) -> list[tuple[Place, Place]]:
        """Ranges of about `size` bytes that make up all from `begin` on: at least `count`, of which some may be empty.

        Raises OSError.
        """
        places, passed = [begin], 0  # bytes since the last place
        for number in range(begin.source, len(self.files)):
            source, byte = self.files[number], begin.byte if number == begin.source else 0
            while passed + source.size - byte > size:
                cut = source.cut_behind(byte + size - passed)
                if cut >= source.size:
                    break
                places.append(Place(number, cut))
                byte, passed = cut, 0
            passed += source.size - byte
            if passed >= size:
                places.append(Place(number + 1, 0))
                passed = 0
        places += [self.end] * (max(count + 1, len(places) + (places[-1] != self.end)) - len(places))
        return list(zip(places, places[1:], strict=False))

    def bytes_before(self, place: Place) -> int:
        """The bytes of all files up to a place, as they are on the disk."""
        return sum(source.size for source in self.files[: place.source]) + place.byte

    def raise_if_unreadable(self) -> None:
        """Read the first block of the text. Raises UserError if that cannot be done."""
        next(self.blocks(), None)


class Texts(NamedTuple):
    """The text to learn from, and the text that is held out, if it has sources of its own."""

    train: Sources
    held_out: Sources | None

    @property
    def with_conversations(self) -> list[Path]:
        """The files of both that hold conversations."""
        return [path for text in self if text for path in text.with_conversations]


class Found(NamedTuple):
    """Sources, and the files of their folders that are not text."""

    sources: Sources
    left_out: list[Path]


def find(names: Sequence[str], encoding: str = UTF_8, field: str | None = None, option: str = "--data-path") -> Found:
    """The sources that `names`, which come from `option`, stand for. `field` is None if the user has named none.

    Raises UserError if one cannot be used, if a file is named twice, and if no text is found.
    """
    groups = [named(name, option) for name in names]
    files, left_out, seen = [], [], set()
    for name, (paths, by_itself) in zip(names, groups, strict=True):
        for path, real in zip(paths, absolute(paths), strict=True):
            if real in seen:
                raise UserError(f"{option} {name} names {path} a second time: name each file once")
            seen.add(real)
            try:
                files.append(Source.of(path, encoding, field, in_folder=not by_itself))
            except NotTextError:
                if by_itself:
                    raise
                left_out.append(path)
    if not files:
        raise UserError(f"{', '.join(names)} holds no text" + left_out_words(left_out, "; ") + ": name another folder")
    called = tuple(str(group.paths[0]) if group.by_itself else name for name, group in zip(names, groups, strict=True))
    return Found(Sources(called, files, encoding, field), left_out)


def check_field(texts: Sequence[Sources], field: str | None) -> None:
    """Raises UserError if the user has named a field, but none of the texts has fields."""
    if field is not None and all(file.format == "plain" for text in texts for file in text.files):
        raise UserError(
            f"--text-field is {field}, but {', '.join(text.name for text in texts)} has no fields: leave it "
            "out, or give JSON Lines, a table or parquet, in a file whose name says so (.jsonl, .csv, .tsv)"
        )


def left_out_words(paths: Sequence[Path], before: str = "") -> str:
    """Words about files that were left out; none if there are none.

    >>> left_out_words([Path("a.png"), Path("b.bin")])
    '2 files left out, which are not text: a.png, b.bin'
    """
    if not paths:
        return ""
    files = "one file left out, which is" if len(paths) == 1 else f"{len(paths):,} files left out, which are"
    return f"{before}{files} not text: {few(paths)}"


def few(paths: Sequence[Path]) -> str:
    """The first few of some paths, in words.

    >>> few([Path("a"), Path("b"), Path("c"), Path("d"), Path("e"), Path("f"), Path("g")])
    'a, b, c, d, e and 2 more'
    """
    more = f" and {len(paths) - _MOST_NAMED:,} more" if len(paths) > _MOST_NAMED else ""
    return ", ".join(map(str, paths[:_MOST_NAMED])) + more


def read_blocks(path: str | Path, block_chars: int = BLOCK_CHARS) -> Iterator[str]:
    """The text of one file in blocks of about `block_chars` characters, for a tokenizer.

    Joined, the blocks of a plain text are the text, with its newlines as they are and its byte order mark, if it has
    one, as the character U+FEFF. Raises UserError for a file that cannot be used.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "text.txt").write_text("the cat sat on the mat")
    ...     list(read_blocks(Path(folder, "text.txt"), block_chars=10))
    ['the cat', ' sat on the', ' mat']
    """
    yield from find([str(path)]).sources.blocks(block_chars=block_chars)
