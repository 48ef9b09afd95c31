"""Files that are either wholly there or not there at all, on whatever file system they lie.

Some file systems lack something: symbolic links (exFAT, Google Drive in Colab, Windows), fsync of a directory (SMB,
VirtualBox), mapping into memory (some of FUSE). hipgpt goes on without it, and says so once on standard error.

Whatever is written lies under a temporary name first, `.NAME.XXXXXXXX.tmp` beside its place. A process that is killed
leaves that file behind; the next one that writes there removes it. It knows that nobody writes it any more by the lock
that its writer holds on it.
"""

import errno
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

try:
    import fcntl
except ImportError:  # Windows, which does not let a file be removed while it is open
    fcntl = None  # type: ignore[assignment]

LACKING = {  # answers of a file system to a call that it does not support
    errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.ENODEV, errno.ENOTTY, errno.ENOLCK, errno.EOPNOTSUPP,
    errno.ENOTSUP,
}  # fmt: skip

_noted: set[str] = set()


def note(lacking: str, text: str) -> None:
    """Say `text` on standard error, once for each thing that is `lacking`."""
    if lacking not in _noted:
        _noted.add(lacking)
        with suppress(OSError, AttributeError):  # a closed standard error
            print(f"Note: {text}", file=sys.stderr, flush=True)


@contextmanager
def atomic_paths(*targets: str | os.PathLike) -> Iterator[list[Path]]:
    """Temporary paths beside `targets`, to be written inside the `with`; they replace `targets` at its end, in order.

    All bytes are on disk (fsync) before the first rename, and each rename is on disk before the next one. The last
    rename is the one that counts: an older file in its place is removed before the first, so that a last file, if
    there is one, always belongs to those beside it. If the block raises, nothing changes.
    """
    places = [Path(target) for target in targets]
    temporaries: list[Path] = []
    handles: list[int] = []
    try:
        for place in places:
            temporaries.append(_beside(place))
            handles.append(_held(os.open(temporaries[-1], os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)))
        yield temporaries
        for temporary in temporaries:
            sync(temporary)
        _close(handles)
        if len(places) > 1 and os.path.lexists(places[-1]):
            places[-1].unlink()
            sync_directory(places[-1].parent)
        for temporary, place in zip(temporaries, places, strict=True):
            os.replace(temporary, place)
            sync_directory(place.parent)
    except OSError as error:
        for temporary, place in zip(temporaries, places, strict=False):
            if error.filename == str(temporary):
                error.filename, error.filename2 = str(place), None
        raise
    finally:
        _close(handles)
        for temporary in temporaries:
            with suppress(OSError):  # the next process that writes here removes it
                temporary.unlink(missing_ok=True)


@contextmanager
def atomic_path(target: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `target`, to be written inside the `with`; it replaces `target` at its end.

    A kill or a power cut leaves either the old file or the new one. If the block raises, nothing changes.
    """
    with atomic_paths(target) as (temporary,):
        yield temporary


@contextmanager
def atomic_directory(target: str | os.PathLike) -> Iterator[Path]:
    """An empty temporary directory beside `target`, to be filled inside the `with`; it becomes `target` at its end.

    `target` is a new name or an empty directory; the directories above it are made. Everything is on disk before the
    rename, so a kill or a power cut leaves nothing or all of it. If the block raises, nothing changes.
    """
    target = Path(os.path.abspath(target))
    make_directory(target.parent)
    discard_leftovers(target)
    temporary = _beside(target)
    temporary.mkdir()
    handles = [] if fcntl is None else [_held(os.open(temporary, os.O_RDONLY))]
    try:
        yield temporary
        sync_tree(temporary)
        if fcntl is None and target.exists():  # elsewhere a rename replaces an empty directory
            target.rmdir()
        os.rename(temporary, target)
    finally:
        _close(handles)
        shutil.rmtree(temporary, ignore_errors=True)
    sync_directory(target.parent)


def write_atomically(target: str | os.PathLike, text: str) -> None:
    """Replace `target` by `text` (UTF-8, newlines as given), or leave it as it was."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def commit(staged: Path, committed: Path) -> None:
    """Let all files of the directory `staged` replace those of the same names in the directory above it, or none.

    The rename of `staged` to `committed`, a name beside it, is the one that counts. A process that is killed after it
    has replaced some of the files; `finish_commit` replaces the others.
    """
    sync_tree(staged)
    os.rename(staged, committed)
    sync_directory(committed.parent)
    finish_commit(committed)


def finish_commit(committed: Path) -> None:
    """Complete a commit after its rename that counts (see `commit`). Does nothing if there was no such rename."""
    if not committed.is_dir():
        return
    for name in sorted(os.listdir(committed)):
        os.replace(committed / name, committed.parent / name)
    sync_directory(committed.parent)
    committed.rmdir()
    sync_directory(committed.parent)


def discard_leftovers(target: Path) -> None:
    """Remove temporary files that killed processes left beside `target`."""
    with suppress(OSError):
        for path in target.parent.glob(f".{glob_escaped(target.name)}.*.tmp"):
            if not _is_written(path):
                remove(path)


def remove(path: Path) -> None:
    """Remove a file, a link or a directory with all that is in it, if the system lets that happen."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def glob_escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def link_atomically(link: str | os.PathLike, target_name: str, copied: bool = True) -> None:
    """Point the symbolic link `link` at the file `target_name` in the link's own directory.

    Where a file system has no links, `link` becomes a plain copy of that file, or nothing at all unless `copied`.
    """
    link = Path(link)
    temporary = _beside(link)
    try:
        try:
            temporary.symlink_to(target_name)
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in LACKING:
                raise
            note("links", f"{link.parent} has no links ({_reason(error)}): latest_config.json is a plain file there")
            if copied:
                write_atomically(link, link.with_name(target_name).read_text(encoding="utf-8"))
            elif os.path.lexists(link):
                link.unlink()
                sync_directory(link.parent)
            return
        os.replace(temporary, link)
        sync_directory(link.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def make_directory(directory: Path) -> None:
    """Create `directory` and those above it, durably. Does nothing if it is there already."""
    if not directory.is_dir():
        if directory.parent != directory:
            make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)


def sync(path: Path) -> None:
    """Make a file's bytes durable, where its file system can."""
    with open(path, "rb+") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in LACKING:
                error.filename = str(path)
                raise
            _note_power_cut(path, error)


def sync_directory(directory: Path) -> None:
    """Make renames inside `directory` durable, where the system can (not on Windows)."""
    if os.name == "posix":
        try:
            handle = os.open(directory, os.O_RDONLY)
        except PermissionError:  # a directory that may be written to, but not be listed
            return
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in LACKING | {errno.EIO}:  # DrvFs over SMB answers EIO
                error.filename = str(directory)
                raise
            _note_power_cut(directory, error)
        finally:
            os.close(handle)


def sync_tree(directory: Path) -> None:
    """Make a directory with all that is in it durable, but for its own name."""
    for path, _, names in os.walk(directory, topdown=False):
        for name in names:
            sync(Path(path, name))
        sync_directory(Path(path))


def array_on_disk(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    """The first `count` elements of a file, [count], read-only: mapped into memory, or read if that is impossible.

    Raises OSError with the path if it cannot be opened or read, ValueError if the file is shorter.
    """
    try:
        with open(path, "rb") as file:
            try:
                return np.memmap(file, dtype, mode="r", shape=(count,))
            except OSError as error:
                if error.errno not in LACKING:
                    raise
                note("mapping", f"{path.parent} cannot be mapped ({_reason(error)}): its files are read into memory")
            array = np.empty(count, dtype)
            file.seek(0)
            if file.readinto(array.view(np.uint8)) < array.nbytes:
                raise ValueError(f"{path} ended before its element {count}")
    except OSError as error:
        error.filename = str(path)
        raise
    array.flags.writeable = False
    return array


def _beside(place: Path) -> Path:
    return place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")


def _held(handle: int) -> int:
    """An open file or directory, now locked, if the system has locks: somebody writes it."""
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return handle


def _is_written(path: Path) -> bool:
    """Whether a process holds the lock on a temporary file; True if there is no way to tell."""
    if fcntl is None:
        return False
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def _close(handles: list[int]) -> None:
    while handles:
        os.close(handles.pop())


def _note_power_cut(path: Path, error: OSError) -> None:
    note("fsync", f"{path} cannot be synced to its disk ({_reason(error)}): a power cut may take the last writes")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
