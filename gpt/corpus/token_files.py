"""Files of token ids that another program has made, as --tokens names them. They are mapped where they lie.

Three formats are known:

- raw: ids one after the other with no header, as nanoGPT writes them, and hipgpt. They are little-endian uint16, or
  uint32 if the vocabulary has more than 65,536 tokens, as in tokens.bin, or if every second uint16 at the beginning is
  0. (Ids of 1 and 2 are the numbers 1, 2 in uint16, and 1, 0, 2, 0 in uint32, if these are read as uint16.)
- NumPy's .npy with one row of uint16 or uint32, as build-nanogpt writes it.
- with a header of 256 little-endian int32, as llm.c and modded-nanogpt write them: a number that names the format, its
  version, and how many ids follow. 20240520, version 1, has uint16; 20240801, version 7, has uint32, for Llama 3.

The first bytes tell which one it is. To be taken for the other kind, a raw file would have to begin with ids such as
55,432 and 308, and GPT-2's vocabulary ends below the first of these.
"""

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.lib.format as npy

from gpt.corpus.finding import named
from gpt.errors import UserError, cannot, naming
from gpt.system.filesystem import array_on_disk
from gpt.system.reading import raise_unless_regular

_HEADER = 256  # int32 of a header
_FORMATS = {20240520: (1, "<u2"), 20240801: (7, "<u4")}  # by its first number: the version, and the type of an id
_TYPES = ("<u2", "<u4")
_QUESTIONS = 20240522  # the first number of llm.c's files of questions, such as HellaSwag's
_HEAD = 4096  # bytes in which a text shows that it is one
_TEXT = bytes({*range(0x20, 0x7F), *b"\t\n\r\f"})  # ASCII that stands in texts
_FEW = 16  # pairs of numbers whose second ones may all be 0 by chance
_OTHERS = {  # first bytes of files that people give instead; hardly any raw ids begin so
    rb"\x1f\x8b\x08|\xfd7zXZ\x00|BZh[1-9]1AY&SY|\x28\xb5\x2f\xfd": "compressed: unpack it",
    rb"PK\x03\x04": "a zip archive, such as .npz: write the ids in it with numpy.save",
    rb"PAR1": "a parquet file: write the ids in it as uint16, one after the other",
    rb"MMIDIDX\x00": "the index of a file of Megatron's: name the file .bin beside it",
}
_IDS_AT_ONCE = 1 << 22  # ids that are checked at a time


@dataclass(frozen=True)
class TokenFile:
    """A file of `count` ids of this type, which begin at the byte `first`."""

    path: Path
    dtype: np.dtype
    first: int
    count: int

    def mapped(self) -> np.ndarray:
        """The ids, [count]. Raises OSError."""
        return array_on_disk(self.path, self.dtype, self.count, self.first)


def recognized(path: Path, vocab_size: int) -> TokenFile:
    """The token file at `path`, by its size and its first bytes. `vocab_size` is that of the tokenizer.

    Raises UserError if it is missing or none, or is not as long as its header says.
    """
    try:
        with cannot(f"read {path}"):
            raise_unless_regular(path)
            size = os.path.getsize(path)
            with open(path, "rb", buffering=0) as file:
                head = file.read(_HEAD)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give the path of a file of tokens") from None
    numbers = np.frombuffer(head[: 4 * _HEADER].ljust(4 * _HEADER, b"\1"), "<i4")
    magic, version, count = map(int, numbers[:3])
    # Raw ids can hardly be 0 that often in a row. Whoever has a header and an unknown number has another format.
    if magic in _FORMATS or magic == _QUESTIONS or (len(head) >= 4 * _HEADER and not numbers[3:].any() and magic):
        return _with_header(path, size, magic, version, count)
    if head and not head.translate(None, _TEXT):
        raise UserError(f"{path} is a text, not a file of tokens: name it with --data-path")
    if head.startswith(npy.MAGIC_PREFIX):
        return _of_numpy(path, size)
    for beginning, what in _OTHERS.items():
        if re.match(beginning, head):
            raise UserError(f"{path} is {what}")
    if not size:
        raise UserError(f"{path} is empty: leave it out")
    dtype = np.dtype("<u4" if vocab_size > 1 << 16 or _are_wider(head, "<u2") else "<u2")
    if dtype.itemsize == 4 and _are_wider(head, "<u4"):
        raise UserError(f"{path} has ids of 64 bits, but known are 16 and 32: write it anew, as uint16 or uint32")
    if size % dtype.itemsize:
        raise UserError(
            f"{path} has {size:,} bytes, which are no {dtype.name} ids: give a file of tokens as nanoGPT or llm.c "
            "writes it"
        )
    return TokenFile(path, dtype, 0, size // dtype.itemsize)


def _are_wider(head: bytes, dtype: str) -> bool:
    """Whether the numbers at the beginning of a file are twice as wide as `dtype`: every second one would be 0."""
    pairs = np.frombuffer(head[: len(head) // 8 * 8], dtype).reshape(-1, 2)
    return len(pairs) >= _FEW and bool(pairs[:, 0].any()) and not pairs[:, 1].any()


def _of_numpy(path: Path, size: int) -> TokenFile:
    """The ids in a file .npy. Raises UserError if it is damaged, or has other numbers than ids in a row."""
    advice = "write one row of uint16 or uint32 with numpy.save"
    with cannot(f"read {path}"), open(path, "rb") as file:
        try:
            read = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read(file)
        except ValueError:
            raise UserError(f"{path} has a damaged header: {advice}") from None
        first = file.tell()
    if len(shape) != 1 or dtype.str not in _TYPES:
        raise UserError(f"{path} has {dtype.name} {list(shape)}, which are no ids in a row: {advice}")
    if not shape[0] or size != first + shape[0] * dtype.itemsize:
        raise UserError(f"{path} should have {shape[0]:,} ids in {size - first:,} bytes: get it again, or leave it out")
    return TokenFile(path, dtype, first, shape[0])


def _with_header(path: Path, size: int, magic: int, version: int, count: int) -> TokenFile:
    if magic == _QUESTIONS:
        raise UserError(f"{path} has the questions of a test (llm.c's format {magic}), not a text: leave it out")
    if magic not in _FORMATS:
        known = " and ".join(map(str, _FORMATS))
        raise UserError(f"{path} begins with a header of the format {magic}, but known are {known}: give another file")
    wanted, dtype = _FORMATS[magic][0], np.dtype(_FORMATS[magic][1])
    if version != wanted:
        raise UserError(
            f"{path} has version {version} of the format {magic}, but known is version {wanted}: give another file"
        )
    there = (size - 4 * _HEADER) / dtype.itemsize
    if count != there:
        raise UserError(f"{path} has {there:,.15g} ids, but its header says {count:,}: get it again, or make it anew")
    if not count:
        raise UserError(f"{path} has no ids: leave it out")
    return TokenFile(path, dtype, 4 * _HEADER, count)


def find(names: Sequence[str], vocab_size: int, option: str) -> list[TokenFile]:
    """The token files that `option` names: files, folders and patterns.

    Raises UserError as `recognized` and `named` do, and for a file that is named twice.
    """
    files: dict[str, TokenFile] = {}
    for name in names:
        paths = named(name, option).paths
        if not paths:
            raise UserError(f"{option} {name} is a folder without files: name another one")
        for path in paths:
            if (real := os.path.abspath(path)) in files:
                raise UserError(f"{option} {name} names {path} a second time: name each file once")
            files[real] = recognized(path, vocab_size)
    return list(files.values())


def checked(file: TokenFile, vocab_size: int, advance: Callable[[int], None]) -> str:
    """The SHA-256 of a token file, all of whose ids are below `vocab_size`. It is read once, and never held whole.

    `advance` is called with the number of bytes that have been read since its last call. Raises UserError for a larger
    id, and OSError.
    """
    digest, position = hashlib.sha256(), 0
    with naming(file.path), open(file.path, "rb") as opened:
        digest.update(opened.read(file.first))
        while data := opened.read(_IDS_AT_ONCE * file.dtype.itemsize):
            digest.update(data)
            ids = np.frombuffer(data, file.dtype)
            if (largest := int(ids.max())) >= vocab_size:
                where = position + int(ids.argmax())
                raise UserError(
                    f"{file.path} has the id {largest} at place {where:,}, but the tokenizer has {vocab_size:,} "
                    "tokens: name the one that made the file with --tokenizer"
                )
            position += len(ids)
            advance(len(data))
    return digest.hexdigest()
