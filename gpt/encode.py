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
from gpt.corpus.without_text import WithoutText
from gpt.distributed.ranks import Ranks
from gpt.errors import UserError, naming
from gpt.run import Run
from gpt.system.files import remove, write_atomically
from gpt.system.filesystem import sync
from gpt.tokenizer import Tokenizer

_COPIED = 1 << 20  # bytes of a file that are read at a time
_PIECE = 4 << 20  # bytes of a piece at least; encoding them takes a fraction of a second
_MOST_PIECES = 16  # per rank, if they are not too large
_LARGEST = 64 << 20  # bytes of a piece: so much, some seconds of work, is encoded again after a kill

_SOURCES = "sources.json"  # the files of the text, for the other ranks
_TAKEN = ".taken"  # suffix of the empty file that says that some rank has taken a piece

Pieces = Sequence[tuple[Place, Place]]  # of each piece: the places at which it begins and ends
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


class Report(NamedTuple):
    """All that a rank tells the first one of a piece. It lies beside the tokens of the piece."""

    rank: int
    tokens: int
    characters: int
    lost: Mapping[str, int]
    without_text: Mapping[str, Sequence[int]]
    text_digest: str


def encode(
    run: Run, text: Sources, tokenizer: Tokenizer, tokenizer_file: Path, target: Path, progress: Progress, ranks: Ranks
) -> "Joined":
    """Write the file `target` in the staging folder: the tokens of all pieces. This rank, the first, encodes some.

    If an earlier call was interrupted, this one goes on behind the last piece that it has written. Returns the figures
    of the whole text. Raises UserError if the text cannot be used, or if another rank has read something else, and
    OSError.
    """
    size, described, joined = text.size, run.staged_path / _SOURCES, Joined(text, target, tokenizer, tokenizer_file)
    least = min(_PIECE, ceil_div(size, ranks.size))  # even a short text is shared
    piece = min(_LARGEST, max(least, size // (_MOST_PIECES * ranks.size))) if ranks.size > 1 else _LARGEST
    joined.pieces = text.pieces(piece, ranks.size, joined.place)
    if ranks.size > 1:
        write_atomically(described, _to_json(text))
    ranks.share({"text": str(described), "tokenizer": str(tokenizer_file), "pieces": joined.pieces})
    with progress("Encoding", size) as advance:
        for number in _taken(run, ranks, len(joined.pieces)):
            if number == joined.count:
                # The others have read about as much of their first pieces, and are done with them before later ones
                joined.encode_next(advance, ranks.size if number == 0 else 1)
            else:
                _encode_piece(run, text, joined.pieces, number, tokenizer, ranks.rank, advance)
            joined.append_finished(run)
    ranks.gather(None)
    joined.append_all(run)
    remove(described)
    return joined


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
        for number in _taken(run, ranks, len(pieces)):
            _encode_piece(run, text, pieces, number, tokenizer, ranks.rank, lambda read: None)
    ranks.gather(None)
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
    run: Run, text: Sources, pieces: Pieces, number: int, tokenizer: Tokenizer, rank: int,
    advance: Callable[[int], None],
) -> None:  # fmt: skip
    """Write the tokens of a piece to a file of its own, which gets its name when it is whole, and a report beside it.

    `advance` is called with the number of bytes up to the place in the text that has been reached.
    """
    part, (begin, end) = _part_path(run, number), pieces[number]
    unfinished = part.with_name(f"{part.name}.unfinished")
    before, digest = text.bytes_before(begin), _PieceDigest()
    with naming(unfinished), open(unfinished, "wb") as file:
        made = _encode_range(text, (begin, end), tokenizer, digest, file.write, lambda read: advance(before + read))
    report = Report(rank, made.tokens, made.characters, made.lost, made.without_text, digest.of_all.hexdigest())
    _report_path(part).write_text(json.dumps(report), encoding="utf-8")
    os.replace(unfinished, part)


class Encoded(NamedTuple):
    """A piece, encoded: its numbers of tokens and of characters, the characters that the vocabulary lacks, and the
    documents that have no text, as in `WithoutText.files`.
    """

    tokens: int
    characters: int
    lost: Counter[str]
    without_text: Mapping[str, Sequence[int]]


def _encode_range(
    text: Sources, piece: tuple[Place, Place], tokenizer: Tokenizer, digest: "_PieceDigest | Digests",
    write: Callable[[bytes], object], advance: Callable[[int], None],
) -> Encoded:  # fmt: skip
    """Encode a piece of the text block by block: `digest` takes the bytes that are read, `write` those of the tokens.

    `advance` is called with the number of bytes of the piece that have been read.
    """
    characters = read = tokens = 0
    lost_before, mark, without_text = tokenizer.lost.copy(), end_mark(text, tokenizer), WithoutText()

    def count(data: bytes) -> None:
        nonlocal read
        read += len(data)
        digest.take(data)

    def blocks() -> Iterator[str]:
        nonlocal characters
        for block in text.blocks(
            *piece, count, digest.end_file, mark=mark, left_out=without_text.add, cut=tokenizer.last_cut
        ):
            characters += len(block)
            yield block

    dtype = dtype_of(tokenizer)
    with enough_memory(text.name):
        for ids in tokenizer.encode_blocks(blocks()):
            write(ids.astype(dtype).tobytes())
            tokens += len(ids)
            advance(read)
    return Encoded(tokens, characters, tokenizer.lost - lost_before, without_text.files)


def end_mark(text: Sources, tokenizer: Tokenizer) -> str:
    """The mark that ends each document of a text: the tokenizer's own, or "" if documents have no end.

    Raises UserError if they need one that the tokenizer lacks.
    """
    if not text.marks:
        return ""
    if tokenizer.end_of_text is None:
        raise UserError(
            f"{text.name} is made of documents, but the tokenizer has no token that ends one, such as <|endoftext|>: "
            "take another --tokenizer, or give one plain text file"
        )
    return tokenizer.piece(tokenizer.end_of_text)


def dtype_of(tokenizer: Tokenizer) -> np.dtype[Any]:
    """The type of the ids in tokens.bin: uint16 if the whole vocabulary fits, else uint32, both little-endian."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")


def _part_path(run: Run, number: int) -> Path:
    """The file in the staging folder that has the tokens of a piece, other than piece 0, until they are appended."""
    return run.staged_path / f"tokens.{number}.bin"


def _report_path(part: Path) -> Path:
    return part.with_suffix(".json")


class _PieceDigest:
    """The SHA-256 of a piece of a text, `of_all` its files together."""

    def __init__(self) -> None:
        self.of_all = hashlib.sha256()

    def take(self, data: bytes) -> None:
        self.of_all.update(data)

    def end_file(self) -> None:
        """The bytes of the next file go on."""


class Digests:
    """The SHA-256 of each file of a text, from the bytes of all files in their order."""

    def __init__(self, finished: Sequence[str] = ()) -> None:
        self._current = hashlib.sha256()
        self.finished = list(finished)

    def take(self, data: bytes) -> None:
        self._current.update(data)

    def end_file(self) -> None:
        self.finished.append(self._current.hexdigest())
        self._current = hashlib.sha256()


class Joined:
    """A token file that grows in the order of the text: by the piece that the first rank encodes, if it is the next
    one, else by the files that ranks have written.

    Its `tokens`, `characters`, `lost` and `without_text` are those up to `place`; `digests` has all files that end
    before it, and `tokens_digest` all bytes of the file. They are saved beside the file when it has grown, so that a
    process that is interrupted or killed need not start over (`journal`). `digests` must take all bytes of the text in
    their order, so a piece that another rank has encoded is read again.
    """

    def __init__(self, text: Sources, target: Path, tokenizer: Tokenizer, tokenizer_file: Path) -> None:
        self._text, self._target, self._tokenizer = text, target, tokenizer
        self._of = [text.state(), hashlib.sha256(tokenizer_file.read_bytes()).hexdigest()]  # what the tokens are of
        self.pieces: Pieces = []
        self.count = 0  # pieces that this call has put into the file
        self.found = 0  # tokens that were there before
        self._begin(START, 0, 0, Counter(), {}, Digests())
        self.tokens_digest = hashlib.sha256()
        try:
            self._go_on()
        except (OSError, ValueError, KeyError, TypeError):  # there is nothing to go on with
            self._begin(START, 0, 0, Counter(), {}, Digests())
            self.tokens_digest = hashlib.sha256()
            remove(journal(target))
            open(target, "wb").close()

    def _begin(
        self, place: Place, tokens: int, characters: int, lost: Counter[str],
        without_text: Mapping[str, Sequence[int]], digests: Digests,
    ) -> None:  # fmt: skip
        self.place, self.tokens, self.characters, self.lost, self.digests = place, tokens, characters, lost, digests
        self.without_text = WithoutText()
        self.without_text.take(without_text)

    def _go_on(self) -> None:
        """Take up the work of a process that was interrupted. Raises ValueError if it is of no use, among others."""
        saved = json.loads(journal(self._target).read_text(encoding="utf-8"))
        if saved["of"] != self._of:
            raise ValueError("another text or tokenizer")
        with open(self._target, "r+b") as file:
            file.truncate(saved["tokens"] * dtype_of(self._tokenizer).itemsize)
            while data := file.read(_COPIED):
                self.tokens_digest.update(data)
        if self.tokens_digest.hexdigest() != saved["tokens_digest"]:
            raise ValueError("other tokens than were written")
        place, lost = Place(*saved["place"]), Counter(saved["lost"])
        self.found = saved["tokens"]
        self._begin(place, saved["tokens"], saved["characters"], lost, saved["without_text"], Digests(saved["digests"]))
        self._text.feed(Place(place.source, 0), place, self.digests.take, self.digests.end_file)
        self._tokenizer.lost.update(lost)

    def encode_next(self, advance: Callable[[int], None], times: int) -> None:
        """Encode the next piece straight into the file. `times` is how much faster the text is read than by this rank.

        `advance` is called with the number of bytes up to the place in the text that has been reached.
        """
        before, size = self._text.bytes_before(self.place), self._text.size
        with naming(self._target), open(self._target, "ab") as file:

            def write(tokens: bytes) -> None:
                file.write(tokens)
                self.tokens_digest.update(tokens)

            made = _encode_range(
                self._text, self.pieces[self.count], self._tokenizer, self.digests, write,
                lambda read: advance(min(size, before + read * times)),
            )  # fmt: skip
        self._grow(made)

    def append_finished(self, run: Run) -> None:
        """Append the next pieces, as many as are there."""
        # A folder is listed, because NFS may go on missing a file that it was once asked for too early
        there = set(os.listdir(run.staged_path))
        while self.count < len(self.pieces) and _part_path(run, self.count).name in there:
            self._append(_part_path(run, self.count))

    def append_all(self, run: Run) -> None:
        """Append the rest of the pieces. All ranks are done."""
        while self.count < len(self.pieces):
            self._append(_part_path(run, self.count))
        for number in range(len(self.pieces)):
            remove(run.staged_path / f"{number}{_TAKEN}")

    def _append(self, part: Path) -> None:
        """Append the tokens of a piece that some rank has encoded.

        Raises UserError if the rank has read another text, and OSError if the file is not as the rank has written it.
        """
        report = Report(*json.loads(_report_path(part).read_text(encoding="utf-8")))
        piece = _PieceDigest()

        def take(data: bytes) -> None:
            piece.take(data)
            self.digests.take(data)

        self._text.feed(*self.pieces[self.count], take, self.digests.end_file)
        if report.text_digest != piece.of_all.hexdigest():
            raise UserError(
                f"rank {report.rank} has read another {self._text.name} than the first rank has at the end: try again "
                "when nothing writes to it, and keep it on a file system that all ranks share"
            )
        size = move_to_end(part, self._target, self.tokens_digest)
        remove(_report_path(part))
        if report.tokens * dtype_of(self._tokenizer).itemsize != size:
            raise OSError(errno.EIO, "not what its rank has written", str(part))
        if report.rank:
            self._tokenizer.lost.update(report.lost)
        self._grow(report)

    def _grow(self, made: "Encoded | Report") -> None:
        """Count a piece that is in the file now, and save that, unless the text is so short that it does not matter."""
        self.place = self.pieces[self.count][1]
        self.count += 1
        self.tokens, self.characters = self.tokens + made.tokens, self.characters + made.characters
        self.lost.update(made.lost)
        self.without_text.take(made.without_text)
        if self._text.size > _PIECE:
            sync(self._target)
            saved = {
                "of": self._of, "place": self.place, "tokens": self.tokens, "characters": self.characters,
                "lost": self.lost, "without_text": self.without_text.files, "digests": self.digests.finished,
                "tokens_digest": self.tokens_digest.hexdigest(),
            }  # fmt: skip
            write_atomically(journal(self._target), json.dumps(saved))


def journal(target: Path) -> Path:
    """The file that says how far a token file has got."""
    return target.with_name(f"{target.name}.json")


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
