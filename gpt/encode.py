"""The tokens of a text, encoded by all ranks into one tokens.bin.

The text is cut into pieces (gpt/corpus/sources.py), so that the tokens of the pieces, one after the other, are those
that one process makes. A piece is many small files, or a part of a large one. Each rank begins with the piece of its
own number. When it is done with a piece, it takes the next one that no rank has taken. So all ranks end at about the
same time, even if one is slower, or has more new words. The first rank writes piece 0 straight into tokens.bin. The
others become files beside it, which the first rank appends between its own pieces. Everything lies in the run's staging
folder until it is whole.

For example, two ranks share a text of 20 MiB, which has 4 pieces (rank 0 also appends, and so encodes less):

    rank 0    encodes 0 │ encodes 2 │ appends 1, 2 │ waits │ appends 3
    rank 1    encodes 1  │ encodes 3                       │
"""

import errno
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpt.arithmetic import ceil_div
from gpt.corpus import START, Place, Source, Sources
from gpt.distributed.ranks import Ranks
from gpt.errors import UserError, naming
from gpt.run import Run
from gpt.system.files import remove, write_atomically
from gpt.tokenizer import Tokenizer

_COPIED = 1 << 20  # bytes of a file that are read at a time
_PIECE = 4 << 20  # bytes of a piece at least; encoding them takes a fraction of a second
_MOST_PIECES = 16  # per rank

_SOURCES = "sources.json"  # the files of the text, for the other ranks
_TAKEN = ".taken"  # suffix of the empty file that says that some rank has taken a piece

Pieces = Sequence[tuple[Place, Place]]  # of each piece: the places at which it begins and ends
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


class Digests:
    """The SHA-256 of each file of a text, from the bytes of all files in their order."""

    def __init__(self) -> None:
        self._current = hashlib.sha256()
        self.finished: list[str] = []

    def take(self, data: bytes) -> None:
        self._current.update(data)

    def end_file(self) -> None:
        self.finished.append(self._current.hexdigest())
        self._current = hashlib.sha256()


class Encoded(NamedTuple):
    """A text or a piece, encoded: its numbers of tokens and of characters, the characters that the vocabulary lacks.

    `tokens_digest` has taken the bytes of its tokens.
    """

    tokens: int
    characters: int
    lost: Counter[str]
    tokens_digest: "hashlib._Hash"


class Report(NamedTuple):
    """All that a rank tells the first one of a piece."""

    number: int
    tokens: int
    characters: int
    lost: Counter[str]
    text_digest: str


def encode(
    run: Run, text: Sources, tokenizer: Tokenizer, tokenizer_file: Path, target: Path, progress: Progress, ranks: Ranks
) -> tuple[Encoded, list[str]]:
    """Write a new file in the staging folder, `target`: the tokens of all pieces. This rank, the first, encodes some.

    Returns the whole text's figures, and the SHA-256 of each file. Raises UserError if the text cannot be used, or if
    another rank has read something else, and OSError.
    """
    size, pieces, described = text.size, [(START, text.end)], run.staged_path / _SOURCES
    if ranks.size > 1:
        most = ceil_div(size, ranks.size)  # even a short text is shared
        pieces = text.pieces(max(min(_PIECE, most), size // (_MOST_PIECES * ranks.size)), ranks.size)
        write_atomically(described, _to_json(text))
    ranks.share({"text": str(described), "tokenizer": str(tokenizer_file), "pieces": pieces})
    numbers, made, digests = _taken(run, ranks, len(pieces)), [], Digests()
    with progress("Encoding", size) as advance:
        # The other ranks have read about as much of their first pieces, and are done with all before any later one
        first = _encode_range(
            text, *pieces[next(numbers)], tokenizer, target, lambda read: advance(min(size, read * ranks.size)),
            digests.take, digests.end_file,
        )  # fmt: skip
        joined = _Joined(run, text, pieces, target, first, digests)
        for number in numbers:
            made.append(_encode_piece(run, text, pieces, number, tokenizer, advance))
            joined.append_finished()
    everyone = ranks.gather(made)
    joined.append_all()
    remove(described)
    return joined.checked(tokenizer, everyone), digests.finished


def encode_part(run: Run, asked: Mapping[str, Any], ranks: Ranks) -> Tokenizer:
    """Encode the pieces that this rank, another than the first, takes, as `encode` of the first rank has `asked` for.

    Returns the tokenizer. Raises UserError if the files of the first rank are not there or the text cannot be used, and
    OSError.
    """
    if not run.staged_path.is_dir():
        raise UserError(
            f"{run.staged_path}, which the first rank has made, is not there: put --runs-dir on a "
            "file system that all ranks share"
        )
    tokenizer, text = Tokenizer.load(asked["tokenizer"]), _from_json(Path(asked["text"]))
    pieces = [(Place(*begin), Place(*end)) for begin, end in asked["pieces"]]
    with named_as_placed(run):
        made = [
            _encode_piece(run, text, pieces, number, tokenizer, lambda read: None)
            for number in _taken(run, ranks, len(pieces))
        ]
    ranks.gather(made)
    return tokenizer


def _to_json(text: Sources) -> str:
    """The sources for the other ranks, who must not look for them by themselves."""
    files = [{**asdict(source), "path": str(source.path)} for source in text.files]
    return json.dumps({"paths": text.paths, "encoding": text.encoding, "field": text.field, "files": files})


def _from_json(path: Path) -> Sources:
    described = json.loads(path.read_text(encoding="utf-8"))
    files = [Source(**{**file, "path": Path(file["path"])}) for file in described["files"]]
    return Sources(tuple(described["paths"]), files, described["encoding"], described["field"])


def _taken(run: Run, ranks: Ranks, count: int) -> Iterator[int]:
    """The numbers of the pieces that this rank takes, each when it is asked for. There are `count` pieces in all."""
    yield ranks.rank
    for number in range(ranks.size, count):
        try:
            open(run.staged_path / f"{number}{_TAKEN}", "x").close()  # one rank alone can make the file
        except FileExistsError:
            continue
        yield number


def _encode_piece(
    run: Run, text: Sources, pieces: Pieces, number: int, tokenizer: Tokenizer, advance: Callable[[int], None]
) -> Report:
    """Write the tokens of a piece to a file of its own, which gets its name when it is whole.

    `advance` is called with the number of bytes up to the place in the text that has been reached.
    """
    part, (begin, end) = _part_path(run, number), pieces[number]
    unfinished = part.with_name(f"{part.name}.unfinished")
    before, digest = text.bytes_before(begin), hashlib.sha256()
    made = _encode_range(
        text, begin, end, tokenizer, unfinished, lambda read: advance(before + read), digest.update, lambda: None
    )
    os.replace(unfinished, part)
    return Report(number, made.tokens, made.characters, made.lost, digest.hexdigest())


def _encode_range(
    text: Sources, begin: Place, end: Place, tokenizer: Tokenizer, target: Path, advance: Callable[[int], None],
    watch: Callable[[bytes], object], watch_end: Callable[[], object],
) -> Encoded:  # fmt: skip
    """Write the tokens of a piece of the text to a new file, block by block.

    `watch` and `watch_end` learn what is read, as `Sources.blocks` says.
    """
    tokens_digest = hashlib.sha256()
    characters = read = tokens = 0
    lost_before = tokenizer.lost.copy()

    def count(data: bytes) -> None:
        nonlocal read
        read += len(data)
        watch(data)

    def blocks() -> Iterator[str]:
        nonlocal characters
        for block in text.blocks(begin, end, count, watch_end):
            characters += len(block)
            yield block

    dtype = dtype_of(tokenizer)
    with enough_memory(text.name), naming(target), open(target, "wb") as file:
        for ids in tokenizer.encode_blocks(blocks()):
            data = ids.astype(dtype).tobytes()
            file.write(data)
            tokens_digest.update(data)
            tokens += len(ids)
            advance(read)
    return Encoded(tokens, characters, tokenizer.lost - lost_before, tokens_digest)


def dtype_of(tokenizer: Tokenizer) -> np.dtype[Any]:
    """The type of the ids in tokens.bin: uint16 if the whole vocabulary fits, else uint32, both little-endian."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")


def _part_path(run: Run, number: int) -> Path:
    """The file in the staging folder that has the tokens of a piece, other than piece 0, until they are appended."""
    return run.staged_path / f"tokens.{number}.bin"


class _Joined:
    """A token file, to which the pieces are appended in the order of the text. `first` is piece 0, which it has.

    `digests` must take all bytes of the files in their order. So each piece is read again when it is appended.
    """

    def __init__(self, run: Run, text: Sources, pieces: Pieces, target: Path, first: Encoded, digests: Digests) -> None:
        self._run, self._text, self._pieces, self._target = run, text, pieces, target
        self._first, self._digests = first, digests
        self._read = [""]  # digests of the bytes of each piece so far; the first one's is not needed
        self._sizes = [0]  # bytes of their tokens

    def append_finished(self) -> None:
        """Append the next pieces, as many as are there."""
        # A folder is listed, because NFS may go on missing a file that it was once asked for too early
        there = set(os.listdir(self._run.staged_path))
        while (number := len(self._read)) < len(self._pieces) and _part_path(self._run, number).name in there:
            self._append(number)

    def append_all(self) -> None:
        """Append the rest of the pieces. All ranks are done."""
        for number in range(len(self._read), len(self._pieces)):
            self._append(number)
        for number in range(len(self._pieces)):
            remove(self._run.staged_path / f"{number}{_TAKEN}")

    def checked(self, tokenizer: Tokenizer, everyone: Sequence[Sequence[Sequence[Any]]]) -> Encoded:
        """The figures of the whole text, from the reports of every rank.

        Raises UserError if a rank has read another text, and OSError if a file was not as its rank has written it.
        """
        tokens, characters, lost = self._first.tokens, self._first.characters, self._first.lost
        for rank, reports in enumerate(everyone):
            for report in (Report(*each) for each in reports):
                if report.text_digest != self._read[report.number]:
                    raise UserError(
                        f"rank {rank} has read another {self._text.name} than the first rank has at the end: try again "
                        "when nothing writes to it, and keep it on a file system that all ranks share"
                    )
                if report.tokens * dtype_of(tokenizer).itemsize != self._sizes[report.number]:
                    raise OSError(errno.EIO, "not what its rank has written", str(_part_path(self._run, report.number)))
                if rank:
                    tokenizer.lost.update(report.lost)
                lost.update(report.lost)
                tokens, characters = tokens + report.tokens, characters + report.characters
        return self._first._replace(tokens=tokens, characters=characters)

    def _append(self, number: int) -> None:
        piece = hashlib.sha256()

        def take(data: bytes) -> None:
            piece.update(data)
            self._digests.take(data)

        self._text.feed(*self._pieces[number], take, self._digests.end_file)
        self._read.append(piece.hexdigest())
        self._sizes.append(move_to_end(_part_path(self._run, number), self._target, self._first.tokens_digest))


def move_to_end(part: Path, target: Path, digest: "hashlib._Hash") -> int:
    """Append a file to `target`, remove it, and let `digest` take its bytes. Returns their number."""
    size = 0
    with open(part, "rb") as source, naming(target), open(target, "ab") as file:
        while data := source.read(_COPIED):
            digest.update(data)
            file.write(data)
            size += len(data)
    remove(part)
    return size


@contextmanager
def enough_memory(text: str) -> Iterator[None]:
    """Turn a MemoryError inside the `with` into a UserError."""
    try:
        yield
    except MemoryError:
        raise UserError(
            f"out of memory while tokenizing {text}: use OMP_NUM_THREADS=1 or a part of the text; much memory goes to "
            "long stretches without white space and to many different words"
        ) from None


@contextmanager
def named_as_placed(run: Run) -> Iterator[None]:
    """Let an OSError inside the `with` name the file, not the folder that it is made in."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            error.filename = str(error.filename).replace(f"{run.staged_path}{os.sep}", f"{run.path}{os.sep}")
        raise
