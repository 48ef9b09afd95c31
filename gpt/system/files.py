"""Files that are either wholly there or not there at all, whenever the process is killed or the power is cut.

Every file is written under a temporary name beside its place, `.NAME.XXXXXXXX.tmp`. Once its bytes are on the disk, a
rename puts it into its place, and a rename cannot be half done.

A process that is killed leaves its temporary files behind; the next process that writes there removes them. A writer
holds a lock on its temporary files, so that others can tell these from those left behind.
"""

import glob
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from gpt.errors import naming, reason
from gpt.system.filesystem import (
    IS_WINDOWS,
    note,
    sync,
    sync_directory,
    sync_tree,
    try_lock,
    try_second_name,
    try_symlink,
)


@contextmanager
def atomic_paths(*targets: str | os.PathLike[str]) -> Iterator[list[Path]]:
    """Temporary paths beside `targets`, to write to inside the `with`; at its end they replace `targets`, in order.

    All bytes are on the disk before the first rename, and each rename is on the disk before the next one. The last
    rename is the one that counts. If there are several targets, an old last file is removed before the first rename.
    So a last file, if there is one, always belongs to the files beside it. If the block raises, nothing changes.

    Raises OSError.

    Example:
        with atomic_paths("weights", "config") as (weights, config):
            weights.write_bytes(data)
            config.write_text(text)  # whoever finds `config` finds the `weights` that belong to it
    """
    places = [Path(target) for target in targets]
    with ExitStack() as stack:
        temporaries = [stack.enter_context(_temporary(place)) for place in places]
        yield temporaries
        for temporary in temporaries:
            sync(temporary)
        if len(places) > 1 and os.path.lexists(places[-1]):
            places[-1].unlink()
            sync_directory(places[-1].parent)
        for temporary, place in zip(temporaries, places, strict=True):
            os.replace(temporary, place)
            sync_directory(place.parent)


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `target`, to write to inside the `with`; at its end it replaces `target`.

    A kill or a power cut leaves either the old file or the new one. If the block raises, nothing changes. Raises
    OSError.
    """
    with atomic_paths(target) as (temporary,):
        yield temporary


@contextmanager
def atomic_directory(target: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty temporary directory beside `target`, to fill inside the `with`; at its end it becomes `target`.

    `target` is a new name or an empty directory. The directories above it are made if needed. Everything is on the
    disk before the rename, so a kill or a power cut leaves nothing or all of it. If the block raises, nothing changes.
    Raises OSError, also if `target` is a file or a directory that is not empty.
    """
    target = Path(os.path.abspath(target))
    make_directory(target.parent)
    discard_leftovers(target)
    with _temporary(target, is_directory=True) as temporary:
        yield temporary
        sync_tree(temporary)
        if IS_WINDOWS and target.exists():  # on other systems a rename replaces an empty directory
            target.rmdir()
        os.rename(temporary, target)
    sync_directory(target.parent)


def write_atomically(target: str | os.PathLike[str], text: str) -> None:
    """Replace `target` by `text` (UTF-8, newlines as given), or leave it as it was. Raises OSError, which names it."""
    with naming(target), atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def commit(staged: Path, committed: Path) -> None:
    """Let all files in the directory `staged` replace those of the same names in the directory above it, or none.

    First `staged` is renamed to `committed`, a name beside it. This is the rename that counts. Then the files are put
    into their places one by one. If the process is killed meanwhile, `finish_commit` does that again. Raises OSError.

    Example:
        commit(run / ".tokenizing", run / ".tokenized")  # .tokenizing/tokens.bin replaces tokens.bin, and so on
        finish_commit(run / ".tokenized")  # at the next start: completes what a kill cut short
    """
    sync_tree(staged)
    os.rename(staged, committed)
    sync_directory(committed.parent)
    finish_commit(committed)


def finish_commit(committed: Path) -> None:
    """Complete a commit after the rename that counts (see `commit`). Does nothing if there was none. Raises OSError.

    The files stay in `committed` too until all of their new places are on the disk. If they were moved instead, a power
    cut could take a file from one directory before it is in the other.
    """
    if not committed.is_dir():
        return
    for name in sorted(os.listdir(committed)):
        _put_into_place(committed / name, committed.parent / name)
    sync_directory(committed.parent)
    shutil.rmtree(committed)
    sync_directory(committed.parent)


def _put_into_place(source: Path, place: Path) -> None:
    """Let the file `source` replace `place`. It keeps its old name as well, if the file system has hard links."""
    discard_leftovers(place)
    temporary = _temporary_name(place)
    try:
        if try_second_name(source, temporary):
            os.replace(temporary, place)
        else:
            os.replace(source, place)
    finally:
        remove(temporary)  # it is still there if `place` was a name of this file already


def leftovers(target: Path) -> list[Path]:
    """The temporary files that killed processes left beside `target`, as far as the system lets us see them."""
    found = []
    with suppress(OSError):
        for path in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
            with suppress(OSError):  # its writer has just put it into its place, or it is another user's
                if not _is_being_written(path):
                    found.append(path)
    return found


def discard_leftovers(target: Path) -> None:
    """Remove temporary files that killed processes left beside `target`, as far as the system lets us."""
    for path in leftovers(target):
        remove(path)


def remove(path: Path) -> None:
    """Remove a file, a link, or a directory with everything in it, as far as the system lets us."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def link_atomically(link: str | os.PathLike[str], target_name: str, copied: bool = True) -> None:
    """Point the symbolic link `link` at the file `target_name` in the same directory.

    If the file system has no links, `link` becomes a copy of that text file, or is removed if not `copied`. Raises
    OSError.
    """
    link = Path(link)
    temporary = _temporary_name(link)
    try:
        if (error := try_symlink(temporary, target_name)) is None:
            os.replace(temporary, link)
            sync_directory(link.parent)
            return
        note("links", f"{link.parent} has no links ({reason(error)}): latest_config.json is a plain file there")
        if copied:
            write_atomically(link, link.with_name(target_name).read_text(encoding="utf-8"))
        elif os.path.lexists(link):
            link.unlink()
            sync_directory(link.parent)
    finally:
        remove(temporary)


def make_directory(directory: Path) -> None:
    """Create `directory` and those above it, and put their names on the disk. Does nothing if it exists."""
    if not directory.is_dir():
        if directory.parent != directory:
            make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)


def missing(directory: Path) -> list[Path]:
    """Those of `directory` and the directories above it that do not exist, the innermost first."""
    return [each for each in (directory, *directory.parents) if not os.path.exists(each)]


def remove_empty(directories: Iterable[Path]) -> None:
    """Remove directories up to the first that is not empty, each of which contains the one before."""
    with suppress(OSError):
        for each in directories:
            each.rmdir()


@contextmanager
def _temporary(place: Path, is_directory: bool = False) -> Iterator[Path]:
    """A new, locked file or directory beside `place`. At the end of the `with` it is removed, unless it was moved."""
    path = _temporary_name(place)
    try:
        if is_directory:
            path.mkdir()
        else:
            path.touch(exist_ok=False)
        with _held(path):
            yield path
    finally:
        remove(path)


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Inside the `with`, this process holds a lock on `path`, if the file system has locks.

    On Windows it holds none, because it could not move a file that it has open.
    """
    if IS_WINDOWS:
        yield
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        with suppress(OSError):
            try_lock(handle)
        yield
    finally:
        os.close(handle)


def _is_being_written(path: Path) -> bool:
    """Whether a process holds the lock on a temporary file; True if there is no way to tell."""
    if IS_WINDOWS:
        return False  # a file that somebody has open cannot be removed anyway
    handle = os.open(path, os.O_RDONLY)
    try:
        return not try_lock(handle)
    except OSError:
        return True
    finally:
        os.close(handle)


def _temporary_name(place: Path) -> Path:
    return place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")
