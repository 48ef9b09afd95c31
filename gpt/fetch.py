"""Download of well-known texts and models, each file checked against the SHA-256 digest that is known for it.

The bytes go to a file beside their place, `NAME.part`. If the connection breaks, the download goes on where it stopped:
at once, or at the next call. A file takes its place only when its digest is right, so a damaged download or another
file at the same address is never used.

The digests of GPT-2's vocabulary are those in the source of OpenAI's tiktoken. Those of its weights and its config were
published by several projects that pin them, and agree; the server's own header (X-Linked-ETag) says the same.
"""

import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO, NamedTuple

from gpt.errors import UserError, cannot, shown
from gpt.system.files import make_directory, missing, remove, remove_empty
from gpt.system.filesystem import sync, sync_directory, try_lock
from gpt.system.reading import sha256

TIMEOUT = 30  # seconds without a byte after which a connection has failed
BREAKS = 5  # broken connections in a row after which a download gives up; one that brought bytes does not count
PAUSE = 1.0  # seconds before the next attempt
_BLOCK = 1 << 16  # bytes that are read at a time
_RANGE = re.compile(r"bytes (?P<first>\d+)-\d*(?:/(?P<size>\d+))?")  # a header Content-Range
_LATER = (408, 429)  # answers to a request that came too slowly or too often

Progress = Callable[..., None]  # takes the bytes done, and `total`, the bytes in all, which are 0 if unknown


class Source(NamedTuple):
    """A file: its address, the digest of its bytes, and its path in the directory of data on this machine."""

    url: str
    sha256: str
    file: str


_HUB, _MIRROR = "https://huggingface.co", "HF_ENDPOINT"  # the Hub, and the variable that names a mirror of it to use
_GPT2 = f"{_HUB}/openai-community/gpt2/resolve/607a30d783dfa663caf39e06633721c8d4cfcd7e/"
_GPT2_VOCABULARY = (
    Source(_GPT2 + "vocab.json", "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783", "gpt2/vocab.json"),
    Source(_GPT2 + "merges.txt", "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5", "gpt2/merges.txt"),
)
SOURCES: dict[str, tuple[Source, ...]] = {
    "shakespeare": (
        Source(
            "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
            "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            "shakespeare.txt",
        ),
    ),
    "gpt2": (
        *_GPT2_VOCABULARY,
        Source(
            _GPT2 + "config.json", "0daed7749b4f02b8f76240d5444551d7b08712dab4d0adb8239c56ba823bb7b4",
            "gpt2/config.json",
        ),
        Source(
            _GPT2 + "model.safetensors", "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
            "gpt2/model.safetensors",
        ),
    ),
    "gpt2-tokenizer": _GPT2_VOCABULARY,
}  # fmt: skip


def fetch(source: Source, directory: Path, progress: Progress = lambda done, total: None) -> Path:
    """Download a file into `directory`, and return its path.

    If the file exists with the right digest, nothing is downloaded. Any other file is replaced, but only once the right
    bytes have arrived whole.

    The variable HF_ENDPOINT names a mirror from which files of Hugging Face are downloaded, as for its own programs.

    Raises UserError if that is no address, if the file cannot be downloaded, if its digest is wrong, or if it cannot be
    written. The bytes that arrived before a break are kept for the next call.
    """
    target, url = directory / source.file, _address(source.url)
    part = target.with_name(f"{target.name}.part")
    with cannot(f"write {target}", even_if_missing=True):
        if target.is_file() and sha256(target) == source.sha256:
            return target
        with _directory(target.parent), open(part, "ab+") as file:
            with suppress(OSError):  # a file system without locks
                if not try_lock(file.fileno()):
                    raise UserError(f"another process is downloading {target}: wait for it")
            try:
                _download(url, target, file, progress)
                file.flush()
                if (found := sha256(part)) != source.sha256:
                    file.truncate(0)
                    raise UserError(
                        f"{url} is not the file it was: its SHA-256 is {found}, not {source.sha256}; nothing "
                        "was written, try again later"
                    )
            finally:
                if file.seek(0, os.SEEK_END) == 0:
                    remove(part)
        sync(part)
        os.replace(part, target)
        sync_directory(target.parent)
    return target


def _address(url: str) -> str:
    """The address at which a file is asked for: that of a mirror, if the user has named one."""
    mirror = os.environ.get(_MIRROR, "").strip().rstrip("/")
    if not mirror or not url.startswith(f"{_HUB}/"):
        return url
    if not re.fullmatch(r"https?://[!-~]+", mirror):
        raise UserError(f"{_MIRROR} is {shown(mirror)}, but must be an address such as {_HUB}: change it, or unset it")
    return mirror + url.removeprefix(_HUB)


@contextmanager
def _directory(path: Path) -> Iterator[None]:
    """Create `path` and those above it. Each that is new and still empty at the end of the `with` is removed."""
    new = missing(path)
    try:
        make_directory(path)
        yield
    finally:
        remove_empty(new)


def _download(url: str, target: Path, file: BinaryIO, progress: Progress) -> None:
    """Append to `file` the bytes at `url` that it does not have yet. Raises UserError, and OSError if it cannot write.

    A connection that breaks is opened again, unless the last ones brought no byte. Messages name `target` as the place
    for a file that the user gets in another way.
    """
    breaks = 0
    while True:
        before = file.seek(0, os.SEEK_END)
        try:
            for data, start, total in _stream(url, target, before):
                if start < file.tell():  # the server begins at the beginning
                    file.truncate(start)
                    file.seek(start)
                file.write(data)
                progress(file.tell(), total=total)
            return
        except _BrokenError as error:
            file.flush()
            breaks = 1 if file.tell() > before else breaks + 1
            if breaks >= BREAKS or error.is_final:
                raise UserError(str(error)) from None
            time.sleep(PAUSE)


class _BrokenError(Exception):
    """A connection that failed; if `is_final`, trying again is of no use. The message is for the user."""

    def __init__(self, message: str, is_final: bool) -> None:
        super().__init__(message)
        self.is_final = is_final


def _stream(url: str, target: Path, begin: int) -> Iterator[tuple[bytes, int, int]]:
    """The bytes at `url` from `begin` on, in blocks: each with its place in the file, and the size of all.

    A server that cannot begin there begins at 0. The size is 0 if unknown. Raises _BrokenError for every failure of the
    network, so that any OSError that the caller sees is the disk's.
    """
    instead = f"download it yourself to {target}"
    headers = {"User-Agent": "hipgpt"} | ({"Range": f"bytes={begin}-"} if begin else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
            place, total = _extent(response, begin)
            while data := response.read(_BLOCK):
                yield data, place, total
                place += len(data)
        if place < total:
            raise ConnectionError(f"only {place} of {total} bytes came")
    except urllib.error.HTTPError as error:
        if error.code == 416:  # there is nothing behind `begin`: the file is whole, and its digest decides
            return
        is_final = error.code < 500 and error.code not in _LATER
        later = "" if is_final else "try again later, or "
        raise _BrokenError(f"{url} answers {error.code} {_said(error)}: {later}{instead}", is_final) from None
    except (OSError, HTTPException, ValueError) as error:  # the latter for an address that is none, such as http://[
        is_final = begin == 0 and isinstance(error, urllib.error.URLError | ValueError)  # it was never reached
        raise _BrokenError(
            f"{url} cannot be downloaded ({_said(error)}): check the network and try again, or {instead}", is_final
        ) from None


def _said(error: Exception) -> str:
    """What an error of the network says, in one line; its type if it says nothing."""
    return " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__


def _extent(response: HTTPResponse, begin: int) -> tuple[int, int]:
    """The place at which a response begins, and the size of the whole file, 0 if unknown.

    A part may end before the file does: `Content-Range: bytes 100-199/500`.
    """
    length = response.headers.get("Content-Length", "")
    size = int(length) if length.isdecimal() else 0
    part = _RANGE.match(response.headers.get("Content-Range", ""))
    if response.status == 206 and part and int(part["first"]) == begin:
        return begin, int(part["size"]) if part["size"] else begin + size if size else 0
    return 0, size
