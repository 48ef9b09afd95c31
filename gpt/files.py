"""Files that are either wholly there or not there at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(target: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `target`, to be written inside the `with`; it replaces `target` at its end.

    The bytes are on disk (fsync) before the rename, and the rename is on disk before this returns, so that a
    kill or a power cut leaves either the old file or the new one. If the block raises, nothing changes.
    """
    target = Path(target)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's 0600 would hide a checkpoint from its group
        os.replace(temporary, target)
        sync_directory(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(target: str | os.PathLike, text: str) -> None:
    """Replace `target` by `text` (UTF-8, newlines as given), or leave it as it was."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def link_atomically(link: str | os.PathLike, target_name: str) -> None:
    """Point the symbolic link `link` at `target_name`, relative to the link's own directory."""
    link = Path(link)
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target_name)
    os.replace(temporary, link)
    sync_directory(link.parent)


def sync_directory(directory: Path) -> None:
    """Make renames inside `directory` durable, where the system can (not on Windows)."""
    if os.name == "posix":
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
