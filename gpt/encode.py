"""The tokens of a text, encoded by all ranks into one tokens.bin.

The text is cut at seams (gpt/tokenizer/text.py) into one range per rank, so the tokens of the ranges, one after the
other, are those that one process makes. The first rank writes its own straight into tokens.bin; the others write parts
beside it, which the first one appends. Everything lies in the run's staging folder until it is whole.
"""

import errno
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpt.distributed.ranks import Ranks
from gpt.errors import UserError, naming
from gpt.run import Run
from gpt.system.files import remove
from gpt.tokenizer import Tokenizer
from gpt.tokenizer.text import find_seams, read_blocks

_COPIED = 1 << 20  # bytes of a file that are read at a time

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


class Encoded(NamedTuple):
    """A range of a text, encoded: its numbers of tokens and of characters, the characters that the vocabulary lacks.

    The digests have taken the bytes of the range and of its tokens.
    """

    tokens: int
    characters: int
    lost: Counter[str]
    text_digest: "hashlib._Hash"
    tokens_digest: "hashlib._Hash"


def encode(
    run: Run, text: Path, size: int, tokenizer: Tokenizer, tokenizer_file: Path, progress: Progress, ranks: Ranks
) -> Encoded:
    """Write tokens.bin into the staging folder: the tokens of the first range, which is this rank's, then the others'.

    Returns the whole text's figures. The text's digest takes all of its bytes in their order, so this rank reads the
    other ranges too, while it would only wait. Raises UserError if the text cannot be used, or if another rank has read
    something else, and OSError.

    Example: 3 ranks share a text of 300 MB. The first one writes tokens.bin from the first 100 MB, the others write
    tokens.1.bin and tokens.2.bin, and these two are appended to tokens.bin and removed.
    """
    seams = find_seams(text, size, ranks.size)
    ranges = list(zip([0, *seams], [*seams, None], strict=True))
    ranks.share({"text": str(text), "tokenizer": str(tokenizer_file), "ranges": ranges})
    target, itemsize = _part_path(run, 0), dtype_of(tokenizer).itemsize
    with progress("Encoding", size) as advance:
        # Progress takes this range for all of the text, because the other ranges are as long
        first = _encode_range(
            text, 0, ranges[0][1], tokenizer, target, lambda read: advance(min(size, read * ranks.size))
        )
    tokens, characters, lost = first.tokens, first.characters, first.lost
    digests = [_digest(text, begin, end, first.text_digest) for begin, end in ranges[1:]]
    parts = ranks.gather(None)[1:]
    for rank, (digest, part) in enumerate(zip(digests, parts, strict=True), start=1):
        its_tokens, its_characters, its_lost, its_digest = part
        if its_digest != digest:
            raise UserError(
                f"rank {rank} has read another {text} than the first rank: try again when nothing writes to it, and "
                "keep it on a file system that all ranks share"
            )
        _move_to_end(_part_path(run, rank), its_tokens * itemsize, target, first.tokens_digest)
        tokenizer.lost.update(its_lost)
        lost.update(its_lost)
        tokens, characters = tokens + its_tokens, characters + its_characters
    return first._replace(tokens=tokens, characters=characters)


def encode_part(run: Run, asked: Mapping[str, Any], ranks: Ranks) -> Tokenizer:
    """Encode the range of this rank, another than the first, as `encode` of the first rank has `asked` for.

    Returns the tokenizer. Raises UserError if the files of the first rank are not there or the text cannot be used, and
    OSError.
    """
    if not run.staged_path.is_dir():
        raise UserError(
            f"{run.staged_path}, which the first rank has made, is not there: put --runs-dir on a "
            "file system that all ranks share"
        )
    tokenizer = Tokenizer.load(asked["tokenizer"])
    begin, end = asked["ranges"][ranks.rank]
    with named_as_placed(run):
        made = _encode_range(Path(asked["text"]), begin, end, tokenizer, _part_path(run, ranks.rank), lambda read: None)
    ranks.gather([made.tokens, made.characters, made.lost, made.text_digest.hexdigest()])
    return tokenizer


def _encode_range(
    text: Path, begin: int, end: int | None, tokenizer: Tokenizer, target: Path, advance: Callable[[int], None]
) -> Encoded:
    """Write the tokens of a range of the text to a new file, block by block. `end` is None for the end of the text."""
    text_digest, tokens_digest = hashlib.sha256(), hashlib.sha256()
    characters = read = tokens = 0
    lost_before = tokenizer.lost.copy()

    def blocks() -> Iterator[str]:
        nonlocal characters, read
        for block in read_blocks(text, begin=begin, end=end):
            data = block.encode()
            text_digest.update(data)
            characters += len(block)
            read += len(data)
            yield block

    dtype = dtype_of(tokenizer)
    with enough_memory(text), naming(target), open(target, "wb") as file:
        for ids in tokenizer.encode_blocks(blocks()):
            data = ids.astype(dtype).tobytes()
            file.write(data)
            tokens_digest.update(data)
            tokens += len(ids)
            advance(read)
    return Encoded(tokens, characters, tokenizer.lost - lost_before, text_digest, tokens_digest)


def dtype_of(tokenizer: Tokenizer) -> np.dtype[Any]:
    """The type of the ids in tokens.bin: uint16 if the whole vocabulary fits, else uint32, both little-endian."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")


def _part_path(run: Run, rank: int) -> Path:
    """The file in the staging folder into which a rank writes its tokens. The first rank's becomes tokens.bin."""
    return run.staged_path / (f"tokens.{rank}.bin" if rank else run.tokens_path.name)


def _digest(text: Path, begin: int, end: int | None, whole: "hashlib._Hash") -> str:
    """The SHA-256 of a range of the text. `whole` takes the same bytes."""
    digest = hashlib.sha256()
    with naming(text), open(text, "rb") as file:
        file.seek(begin)
        while data := file.read(_COPIED if end is None else min(_COPIED, end - file.tell())):
            digest.update(data)
            whole.update(data)
    return digest.hexdigest()


def _move_to_end(part: Path, size: int, target: Path, digest: "hashlib._Hash") -> None:
    """Append a file of `size` bytes to `target`, remove it, and let `digest` take its bytes. OSError if it is cut."""
    with open(part, "rb") as source, naming(target), open(target, "ab") as file:
        while data := source.read(_COPIED):
            digest.update(data)
            file.write(data)
            size -= len(data)
    if size:
        raise OSError(errno.EIO, "not what its rank has written", str(part))
    remove(part)


@contextmanager
def enough_memory(text: Path) -> Iterator[None]:
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
