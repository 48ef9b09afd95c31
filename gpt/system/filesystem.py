"""Calls that some file systems or systems lack, each with the way to go on without it.

Some file systems lack symbolic links (exFAT, Google Drive in Colab), fsync of a directory (SMB, VirtualBox), locks (NFS
without lockd) or mapping into memory (some FUSE ones). hipgpt goes on without them, and says so once on standard error.
All differences between Windows and other systems that concern files are here too.
"""

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

from gpt.errors import naming, reason

# How file systems answer a call that they do not support.
LACKING = frozenset({
    errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.ENODEV, errno.ENOTTY, errno.ENOLCK, errno.EOPNOTSUPP,
    errno.ENOTSUP,
})  # fmt: skip

IS_WINDOWS = os.name == "nt"  # which lets nobody move or remove a file that is open

_noted: set[str] = set()


def note(topic: str, text: str) -> None:
    """Print `text` on standard error, but only the first time for each `topic`."""
    if topic not in _noted:
        _noted.add(topic)
        with suppress(OSError, AttributeError):  # a closed standard error
            print(f"Note: {text}", file=sys.stderr, flush=True)


def try_lock(handle: int) -> bool:
    """Lock an open file or directory until it is closed, without waiting. False if another process has locked it.

    Raises OSError with an error number in `LACKING` if the file system has no locks.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except PermissionError:
        if IS_WINDOWS:  # its way to say that the file is locked
            return False
        raise
    return True


def try_symlink(link: Path, target: str) -> OSError | NotImplementedError | None:
    """Make `link` a symbolic link to `target`. Returns the error if the file system has no links; raises any other."""
    try:
        link.symlink_to(target)
    except NotImplementedError as error:
        return error
    except OSError as error:
        if error.errno not in LACKING:
            raise
        return error
    return None


def try_second_name(path: Path, name: Path) -> bool:
    """Give a file the second name `name` (a hard link). False if the file system has no hard links; raises any other
    OSError.
    """
    try:
        os.link(path, name)
    except OSError as error:
        if error.errno not in LACKING:
            raise
        return False
    return True


def sync(path: Path) -> None:
    """Put a file's bytes on the disk, if its file system can. Raises OSError, which names the file."""
    with open(path, "rb+") as file:
        _fsync(file.fileno(), path, LACKING)


def sync_directory(directory: Path) -> None:
    """Put the names in `directory` (files made, renamed, removed) on the disk. Raises OSError, which names it.

    Does nothing on Windows, which cannot.
    """
    if IS_WINDOWS:
        return
    try:
        handle = os.open(directory, os.O_RDONLY)
    except PermissionError:  # a directory that one may write to, but not list
        return
    try:
        _fsync(handle, directory, LACKING | {errno.EIO})  # DrvFs over SMB answers EIO
    finally:
        os.close(handle)


def sync_tree(directory: Path) -> None:
    """Put a directory on the disk with everything in it, but not its own name, which the directory above it holds."""
    for path, _, names in os.walk(directory, topdown=False):
        for name in names:
            sync(Path(path, name))
        sync_directory(Path(path))


def _fsync(handle: int, path: Path, lacking: frozenset[int]) -> None:
    with naming(path):
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in lacking:
                raise
            at_risk = "a power cut may take the last writes"
            note("fsync", f"{path} cannot be synced to its disk ({reason(error)}): {at_risk}")


def array_on_disk(path: Path, dtype: np.dtype, count: int, first: int = 0) -> np.ndarray:
    """`count` elements of a file from byte `first` on, [count], read-only: mapped, or read if that is impossible.

    Raises OSError, which names the file, if it cannot be opened or read, and ValueError if it is shorter.
    """
    with naming(path), open(path, "rb") as file:
        try:
            return np.memmap(file, dtype, mode="r", offset=first, shape=(count,))
        except OSError as error:
            if error.errno not in LACKING:
                raise
            note("mapping", f"{path.parent} cannot be mapped ({reason(error)}): its files are read into memory")
        array = np.empty(count, dtype)
        file.seek(first)
        if file.readinto(array.view(np.uint8).data) < array.nbytes:
            raise ValueError(f"{path} ended before its element {count}")
    array.flags.writeable = False
    return array
