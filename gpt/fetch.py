"""Download of texts to train on, each checked against the SHA-256 digest that is known for it."""

import hashlib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

from gpt.errors import UserError
from gpt.system.files import atomic_path, discard_leftovers, make_directory

TIMEOUT = 30  # seconds without a byte after which a download has failed


class Source(NamedTuple):
    """A text: its address, the digest of its bytes, and the name of its file on this machine."""

    url: str
    sha256: str
    file: str


SOURCES = {
    "shakespeare": Source(
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        "shakespeare.txt",
    )
}


def fetch(name: str, directory: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """Download the text `name` of SOURCES into `directory`, and return its path.

    If the file exists with the right digest, nothing is downloaded. Any other file is replaced, but only once the right
    bytes have arrived whole. `progress` is called with the bytes done and the bytes in all, which are 0 if unknown.

    Raises UserError if the text cannot be downloaded, if its digest is wrong, or if it cannot be written.
    """
    source = SOURCES[name]
    target = directory / source.file
    try:
        if target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == source.sha256:
            return target
        make_directory(directory)
        discard_leftovers(target)
        with atomic_path(target) as temporary:
            digest = hashlib.sha256()
            with open(temporary, "wb") as file:
                for data, done, total in _stream(source.url):
                    file.write(data)
                    digest.update(data)
                    progress(done, total)
            if digest.hexdigest() != source.sha256:
                raise UserError(
                    f"{source.url} is not the text it was: its SHA-256 is {digest.hexdigest()}, not {source.sha256}; "
                    "nothing was written, try again later"
                )
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}") from None
    return target


def _stream(url: str) -> Iterator[tuple[bytes, int, int]]:
    """The bytes at `url`, block by block. Each comes with the bytes so far and in all, which are 0 if unknown.

    Raises UserError for every failure of the network, so that any OSError that the caller sees is the disk's.
    """
    instead = f"download {url} yourself and pass it with --data-path"
    request = urllib.request.Request(url, headers={"User-Agent": "hipgpt"})
    done = 0
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            length = response.headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() else 0
            while data := response.read(1 << 16):
                done += len(data)
                yield data, done, total
        if done < total:
            raise ConnectionError(f"only {done} of {total} bytes came")
    except urllib.error.HTTPError as error:
        raise UserError(f"{url} answers {error.code} {error.reason}: {instead}") from None
    except (OSError, HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
        raise UserError(f"{url} cannot be downloaded ({reason}): check the network, or {instead}") from None
