"""A file as a run reads it, and the ways to compress one."""

import bz2
import gzip
import lzma
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gpt.corpus.sources import find
from gpt.errors import UserError

MARK = "<|endoftext|>"


def text_of(path: Path, **how: Any) -> str:
    """The text in a file. Asserts that its digest would take every byte of the file."""
    sources = find([str(path)], **how).sources
    seen: list[bytes] = []
    ends: list[None] = []
    text = "".join(sources.blocks(watch=seen.append, watch_end=lambda: ends.append(None)))
    assert b"".join(seen) == path.read_bytes(), "the digest takes every byte of the file"
    assert len(ends) == 1
    return text


def refused(path: Path, **how: Any) -> str:
    """The error with which a file is refused."""
    with pytest.raises(UserError) as error:
        text_of(path, **how)
    return str(error.value)


def zstd_module() -> ModuleType:
    return pytest.importorskip("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")


def _zstd_compressed(data: bytes) -> bytes:
    """Two frames, one after the other, as `cat a.zst b.zst` makes them."""
    zstd = zstd_module()
    return zstd.compress(data[: len(data) // 2]) + zstd.compress(data[len(data) // 2 :])


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zstd": _zstd_compressed
}  # fmt: skip
