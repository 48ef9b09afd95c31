"""The files that a run learns from, in their order, read as one text.

`Sources` are all of them, and a `Source` is one (text_file.py). Their text comes in blocks that end at seams
(gpt/tokenizer/text.py), across the borders of files. So 50,000 small files take about as long as one large one.

A `Place` is a source and a byte in it at which it may be cut. Text can be read from any place to any other.
`Sources.pieces` cuts it into such ranges, which ranks share.

For example, three files of 4, 1 and 2 MB are cut into pieces of about 2 MB at (0, 2 MB) and (1, 0).
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, groupby
from pathlib import Path
from typing import NamedTuple

from gpt.arithmetic import ceil_div
from gpt.corpus.finding import absolute, named
from gpt.corpus.kinds import NotTextError
from gpt.corpus.text_file import UTF_8, LeftOut, Source, Watch, feed, uncounted, unwatched
from gpt.errors import UserError
from gpt.tokenizer import END_OF_TEXT
from gpt.tokenizer.text import BLOCK_CHARS, blocks_of, nowhere

_STRETCH = 1 << 20  # bytes of a sample that stand together
_MOST_NAMED = 5  # files that a message names


class Place(NamedTuple):
    """Byte `byte` of source number `source`."""

    source: int
    byte: int


START = Place(0, 0)


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
        self, begin: Place = START, end: Place | None = None, watch: Watch = unwatched,
        watch_end: Callable[[], object] = lambda: None, block_chars: int = BLOCK_CHARS, mark: str = END_OF_TEXT,
        left_out: LeftOut = uncounted, cut: Callable[[str], int] = nowhere,
    ) -> Iterator[str]:  # fmt: skip
        """The text between two places (None: the end) in blocks, as `gpt.tokenizer.text.blocks_of` cuts them.

        `mark` is what ends a document, if documents have an end (`marks`). `cut` is `Tokenizer.last_cut`.
        `watch` is given the bytes that are read, and `watch_end` is called after the last byte of each file. `left_out`
        is told of documents without text. Raises UserError for a file that cannot be read.
        """
        mark = mark if self.marks else ""
        return blocks_of(self._texts(begin, end or self.end, mark, watch, watch_end, left_out), block_chars, cut)

    @property
    def learned_size(self) -> int:
        """The bytes of the text that a tokenizer is to learn from."""
        return self.size if self.sample is None else min(self.sample, self.size)

    def learned_blocks(self, watch: Watch = unwatched, cut: Callable[[str], int] = nowhere) -> Iterator[str]:
        """The text that a tokenizer is to learn from, in blocks as those of `blocks`.

        A sample consists of stretches of about a MiB, evenly spread over the bytes of all files in their order. A file
        that can be read from its beginning alone (`Source.cut_behind`) gives as much of its beginning as there are
        stretches in it.
        """
        if self.learned_size == self.size:
            yield from self.blocks(watch=watch, cut=cut)
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
                    yield from self._beginning(number, length * len(within), watch, cut)
                    break
                if begin < last:
                    yield from self.blocks(Place(number, begin), Place(number, last), watch, cut=cut)

    def _beginning(self, number: int, size: int, watch: Watch, cut: Callable[[str], int]) -> Iterator[str]:
        """The first blocks of a file, of about `size` bytes as they are on the disk."""
        read = 0

        def count(data: bytes) -> None:
            nonlocal read
            read += len(data)
            watch(data)

        ends, block_chars = (Place(number, 0), Place(number + 1, 0)), min(BLOCK_CHARS, size)
        for block in self.blocks(*ends, count, block_chars=block_chars, cut=cut):
            yield block
            if read >= size:
                return

    def _texts(
        self, begin: Place, end: Place, mark: str, watch: Watch, watch_end: Callable[[], object], left_out: LeftOut
    ) -> Iterator[str]:
        for number, first, last in self._ranges(begin, end):
            yield from self.files[number].texts(first, last, mark, watch, left_out)
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
