"""Tells the compression and encoding of a file from its first bytes, and its format from its name as well.

Files of other formats, such as archives and PDF, are refused with advice.
"""

import bz2
import codecs
import errno
import gzip
import importlib
import io
import json
import lzma
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from gpt.corpus import conversations, documents
from gpt.corpus.finding import is_saved_dataset
from gpt.errors import UserError, cannot
from gpt.system.reading import irregular

HEAD = 4096  # bytes at the beginning of a file that show its kind
_UNPACKED = 1 << 16  # bytes that are decompressed at a time

_COMPRESSIONS = re.compile(
    rb"(?P<gzip>\x1f\x8b)|(?P<xz>\xfd7zXZ\x00)|(?P<bzip2>BZh[1-9](?:1AY&SY|\x17rE8P\x90))|"
    rb"(?P<zstd>\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18)"
)  # a stream of bzip2 begins with a block, or ends at once if it is empty
_SUFFIXES = {".gz", ".xz", ".bz2", ".zst"}  # of a compressed file; the name before them says how its documents lie
_MARKS = {  # byte order marks → encodings that take them away; UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
_ANY_MARK = re.compile(b"|".join(map(re.escape, _MARKS)))
TEXT_FIELD = "text"  # the field or column of a document, unless --text-field names another
_LINES = {".jsonl", ".ndjson"}
_TABLES = {".csv": "csv", ".tsv": "tsv"}

_UNPACK = "unpack it, and give the texts that were in it"
_CONVERT = "write the texts in it to a UTF-8 file"
# Formats of files that people give instead of a text: the first bytes, the kind, advice
_OTHERS = (
    (rb"(PK\x03\x04|PK\x05\x06)", "a zip archive, such as a .docx or .epub", "unpack it, or save its text in UTF-8"),
    (rb"(7z\xbc\xaf\x27\x1c)", "a 7z archive", _UNPACK),
    (rb"(.{257}ustar)", "a tar archive", _UNPACK),
    (rb"(Rar!\x1a\x07)", "a rar archive", _UNPACK),
    (rb"(ARROW1|\xff{4}.{3}\0)", "an Arrow file", _CONVERT),  # a file, or a stream as the package datasets writes it
    (rb"(%PDF-)", "a PDF file", _CONVERT),
    (rb"(\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1)", "a document of an old Microsoft Office", _CONVERT),
    (rb"(SQLite format 3\0)", "a SQLite database", _CONVERT),
)
_JSON = re.compile(r'\s*(\[\s*)?\{\s*"[^"]*"\s*:')
_ANY_OTHER = re.compile(b"|".join(beginning for beginning, *_ in _OTHERS), re.DOTALL)


class NotTextError(UserError):
    """A file without a text that hipgpt can read."""


class Kind(NamedTuple):
    """How a file is to be read. `format` is "plain", "json" (a list), "jsonl", "csv", "tsv" or "parquet".

    With `conversations`, the records in it are conversations, not texts.
    """

    format: str
    compression: str | None
    encoding: str
    conversations: bool = False


def kind_of(path: Path, encoding: str, has_field: bool, in_folder: bool) -> tuple[Kind, os.stat_result]:
    """The kind of a file, and its state before it was read. `encoding` is that of texts without a byte order mark.

    CSV and TSV are tables if `has_field`, that is, if the user has named a column; else they are plain text. A file
    `.json` is plain text, except if its first line is an object, or it is a list of objects, and either `has_field`, or
    the first object is a conversation.
    A folder may have very many files, so each is looked at once: one `stat`, and one reading of its first bytes.
    Raises NotTextError for a file that is missing, empty, not a regular file or of another format, and for one that was
    found `in_folder` and whose first bytes are not text. Raises UserError for one that cannot be read.
    """
    state, head, compression = _beginning(path)
    if head.startswith(b"PAR1"):
        if compression:
            raise NotTextError(f"{path} is a parquet file compressed with {compression}: {_UNPACK}")
        has_conversations = not has_field and conversations.are_among(documents.Parquet(path).columns, TEXT_FIELD)
        return Kind("parquet", None, encoding, has_conversations), state
    _raise_if_other(path, head)
    encoding = _marked_encoding(head) or encoding
    if in_folder:
        _raise_unless_text(path, head, encoding)
    elif encoding == "utf-8":
        _raise_if_binary(path, head)
    suffix = suffix_of(path)
    if suffix in _TABLES and has_field:
        return Kind(_TABLES[suffix], compression, encoding), state
    if suffix in _LINES and has_field:
        return Kind("jsonl", compression, encoding), state
    if suffix not in _LINES and suffix != ".json":
        return Kind("plain", compression, encoding), state
    form, first = _first_record(path, head, compression, encoding, may_be_list=suffix == ".json")
    has_conversations = not has_field and conversations.has_one(first, TEXT_FIELD)
    if suffix == ".json" and not has_conversations and not (has_field and first):
        form = "plain"
    return Kind(form, compression, encoding, has_conversations), state


def _beginning(path: Path) -> tuple[os.stat_result, bytes, str | None]:
    """The state of a file, its first bytes, decompressed, and its compression. Raises as `kind_of` does."""
    try:
        _raise_if_irregular(path, state := os.stat(path))
        head, compression = _head(path)
    except FileNotFoundError:
        raise NotTextError(f"{path} does not exist: give the path of a text file") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotTextError(f"{path} is a link that leads in a circle: give the path of a text file") from None
        with cannot(f"read {path}"):
            raise
    if compression and (twice := _COMPRESSIONS.match(head)):
        raise NotTextError(f"{path} is compressed twice, with {twice.lastgroup}, then {compression}: {_UNPACK}")
    if not head:
        raise NotTextError(f"{path} is empty: give a text file with something in it")
    return state, head, compression


def _marked_encoding(head: bytes) -> str | None:
    """The encoding of a file whose beginning has a byte order mark."""
    mark = _ANY_MARK.match(head)
    return _MARKS[mark[0]] if mark else None


def _unmarked_encoding(head: bytes) -> str | None:
    """The one of UTF-16 and UTF-32 in which the beginning of a file without a mark is text, mostly of Latin letters."""
    for name in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"):
        with suppress(UnicodeError):
            text = codecs.getincrementaldecoder(name)().decode(head)
            if text and "\0" not in text and sum(letter < "\u0100" for letter in text) > len(text) / 2:
                return name
    return None


def suffix_of(path: Path) -> str:
    """The end of a file's name that says how its documents lie, in small letters.

    >>> suffix_of(Path("web/A.JSON.gz")), suffix_of(Path("notes.txt"))
    ('.json', '.txt')
    """
    name, suffix = os.path.splitext(str(path).lower())
    return os.path.splitext(name)[1] if suffix in _SUFFIXES else suffix


def suffix_for(path: Path, encoding: str, has_field: bool) -> str:
    """The end of a name for a file that has none, so that `kind_of` knows how its documents lie: by its content.

    It is JSON Lines if `has_field`, or if the first line is an object that has a text or is a conversation.
    """
    form, first = "jsonl", dict[str, Any]()
    with suppress(UserError):  # of damaged compression, which whoever reads the whole file names
        head, compression = _head(path)
        encoding = _marked_encoding(head) or encoding
        form, first = _first_record(path, head, compression, encoding, may_be_list=True)
    if form == "json":
        return ".json"
    return ".jsonl" if has_field or TEXT_FIELD in first or conversations.has_one(first, TEXT_FIELD) else ".txt"


def _first_record(
    path: Path, head: bytes, compression: str | None, encoding: str, may_be_list: bool
) -> tuple[str, dict[str, Any]]:
    """The format of a file of records, "json" or "jsonl", and its first object; an empty one if there is none.

    It is mostly in the `head`. Then the file is not opened, because a folder may have very many. What is wrong with the
    file, whoever reads all of it can say better.
    """
    try:
        beginning = codecs.getincrementaldecoder(documents.without_mark(encoding))().decode(head).lstrip()
        is_list = may_be_list and beginning.startswith("[")
        if is_list:
            with suppress(UserError):
                return "json", next(documents.objects(io.StringIO(beginning), path))
        elif "\n" in beginning or len(head) < HEAD:
            return "jsonl", _object(beginning.partition("\n")[0])
        with _content(path, compression, encoding) as content:
            if is_list:
                return "json", next(documents.objects(content, path))
            return "jsonl", _object(next((line for line in content if not line.isspace()), ""))
    except (UserError, ValueError, RecursionError):
        return "jsonl", {}


def _object(line: str) -> dict[str, Any]:
    """The object in a line of JSON; an empty one if there is something else. Raises ValueError if it is not JSON."""
    record = json.loads(line)
    return record if isinstance(record, dict) else {}


@contextmanager
def _content(path: Path, compression: str | None, encoding: str) -> Iterator[io.TextIOWrapper]:
    """The lines of a file, decompressed."""
    with cannot(f"read {path}"), damage_named(path, compression), open(path, "rb") as file:
        yield documents.lines(decompressed(cast(BinaryIO, file), compression) if compression else file, encoding, "\n")


def _head(path: Path) -> tuple[bytes, str | None]:
    """The first bytes of a file, decompressed, and the compression. Raises OSError, and UserError if it is damaged."""
    head = first_bytes(path, HEAD)
    if (known := _COMPRESSIONS.match(head)) is None:
        return head, None
    with damage_named(path, compression := str(known.lastgroup)), open(path, "rb", buffering=0) as file:
        return decompressed(cast(BinaryIO, file), compression).read(HEAD), compression


def first_bytes(path: Path, count: int) -> bytes:
    """The first `count` bytes of a file. A file object would take twice as long, which counts if files are small."""
    file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        return os.read(file, count)
    finally:
        os.close(file)


def decompressed(file: BinaryIO, compression: str) -> BinaryIO:
    """The content of a compressed file, as a stream. Raises UserError if a package is missing for that."""
    if compression == "zstd":
        zstd = _zstd()
        widest = zstd.DecompressionParameter.window_log_max  # of 2^27 without it; `zstd --long=31` writes more
        return cast(BinaryIO, zstd.ZstdFile(file, options={widest: widest.bounds()[1]}))
    raw: Any = (
        gzip.GzipFile(fileobj=file, mode="rb") if compression == "gzip" else
        _Streams(file, bz2.BZ2Decompressor if compression == "bzip2" else lzma.LZMADecompressor)
    )  # fmt: skip
    return cast(BinaryIO, io.BufferedReader(raw, _UNPACKED))


class _Streams(io.RawIOBase):
    """The content of compressed streams that follow each other, perhaps with zeros between them and at the end.

    BZ2File and LZMAFile take anything that is not a stream for the end, so they would leave out a damaged one, and all
    that follows. This raises the decompressor's error, and EOFError if the file ends within a stream.
    """

    def __init__(self, file: BinaryIO, decompressor: Callable[[], Any]) -> None:
        self._file, self._decompressor, self._current = file, decompressor, decompressor()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = b""
        while not content:
            data = b""
            if self._current.eof:
                data = self._current.unused_data.lstrip(b"\0")
                while not data:
                    if not (data := self._file.read(_UNPACKED)):
                        return 0
                    data = data.lstrip(b"\0")
                self._current = self._decompressor()
            elif self._current.needs_input and not (data := self._file.read(_UNPACKED)):
                raise EOFError("Compressed file ended before the end-of-stream marker was reached")
            content = self._current.decompress(data, len(buffer))
        buffer[: len(content)] = content
        return len(content)


def _zstd() -> Any:
    """The module that reads zstd: Python's own from 3.14 on, before that a package that is the same."""
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise UserError('reading zstd needs the package backports.zstd: pip install "hipgpt[zstd]"')


@contextmanager
def damage_named(path: Path, compression: str | None) -> Iterator[None]:
    """Turn the errors of a decompressor inside the `with` into a UserError that names the file.

    An OSError of the file itself has a number, and passes through.
    """
    try:
        yield
    except Exception as error:
        is_decompressors = (
            isinstance(error, EOFError | zlib.error | lzma.LZMAError) or type(error).__name__ == "ZstdError"
        )
        if compression and (is_decompressors or (isinstance(error, OSError) and error.errno is None)):
            raise UserError(f"{path} is damaged or cut short ({compression}: {error}): get it again") from None
        raise


def _raise_if_irregular(path: Path, state: os.stat_result) -> None:
    if stat.S_ISDIR(state.st_mode) and is_saved_dataset(path):
        raise NotTextError(
            f"{path} is a dataset in Arrow files: write it as parquet, with datasets.load_from_disk({str(path)!r})"
            ".to_parquet('FILE.parquet'), or each of its splits so"
        )
    if not stat.S_ISREG(state.st_mode) and (what := irregular(path)):
        raise NotTextError(
            f"{path} is a directory: give the path of a text file" if what == "a directory" else
            f"{path} is {what}, but a text is read more than once: write it to a file, and give that one"
        )  # fmt: skip


def _raise_if_other(path: Path, head: bytes) -> None:
    if (found := _ANY_OTHER.match(head)) and found.lastindex:
        _, what, advice = _OTHERS[found.lastindex - 1]
        raise NotTextError(f"{path} is {what}: {advice}")


def _raise_if_binary(path: Path, head: bytes) -> None:
    """NotTextError, with a guess at what the file is, if more of its first bytes are 0 than in any text in UTF-8."""
    if head.count(0) / len(head) <= 1 / 4:
        return
    unmarked = _unmarked_encoding(head)
    raise NotTextError(
        f"{path} is not UTF-8, but looks like {unmarked.upper()} without its mark: give --encoding {unmarked}"
        if unmarked else
        f"{path} looks like tokens that another program has made: name them with --tokens"
        if path.suffix == ".bin" else
        f"{path} is not text, as many of its bytes are 0: give a text file"
    )  # fmt: skip


def _raise_unless_text(path: Path, head: bytes, encoding: str) -> None:
    """NotTextError if the first bytes of a file are not text: if they cannot be decoded, or hold the character NUL."""
    try:
        if "\0" not in codecs.getincrementaldecoder(encoding)().decode(head):
            return
    except UnicodeError:
        pass
    raise NotTextError(f"{path} is not text in {encoding}")


def looks_like_json(text: str) -> bool:
    """Whether a text begins as JSON does that has records: with an object that has a key, or a list of such objects."""
    return bool(_JSON.match(text))
