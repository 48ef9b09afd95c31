"""The files that --data-path names, in an order that depends on their names alone.

A name is that of a file, of a folder or a pattern such as "books/*.txt". A folder stands for all files in it, at any
depth, and a pattern for the files that match. Their order is that of their whole paths, compared byte by byte. Files
and folders whose names begin with a dot are passed over, as the shell does. So are the directories of runs, which lie
in the folder of the texts if hipgpt is used there, and have JSON in them. A dataset that the package datasets has saved
counts as one file that is not text (kinds.py), because its texts are in Arrow files, which other files describe.
"""

import glob
import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from gpt.errors import UserError, cannot
from gpt.run import is_run

STANDARD_INPUT = "-"

_DESCRIPTIONS = ("dataset_info.json", "state.json", "dataset_dict.json")  # files of a saved dataset; the last of splits


class Named(NamedTuple):
    """The files that one --data-path stands for. If it is the name of a file, this is named `by_itself`."""

    paths: list[Path]
    by_itself: bool


def named(name: str, option: str = "--data-path") -> Named:
    """The files that `name`, which comes from `option`, stands for; a file named by itself need not exist.

    Raises UserError for a pattern that no file matches, for a folder that cannot be read, and for standard input, of
    which the caller has a copy if it may be named.

    Example: a folder with b.txt, a/z.txt and .hidden.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, "a").mkdir()
    ...     for name in ("b.txt", "a/z.txt", ".hidden"):
    ...         Path(folder, name).touch()
    ...     found = named(folder)
    ...     [path.relative_to(folder).as_posix() for path in found.paths], found.by_itself
    (['a/z.txt', 'b.txt'], False)
    """
    path = _behind(Path(name))
    if name == STANDARD_INPUT and not os.path.lexists(path):
        raise UserError(
            f"{option} is -, but only --data-path of train and tokenize copies standard input: write it to a file"
        )
    if is_saved_dataset(path):
        return Named([path], by_itself=True)
    if os.path.isdir(path):  # False if a folder above may not be read; whoever reads the file says so
        return Named(_ordered(_walk(str(path), set())), by_itself=False)
    if glob.has_magic(name) and not os.path.lexists(path):
        in_run = cache(is_run)
        matches = (each for each in glob.iglob(name, recursive=True) if not os.path.isdir(each))
        if not (files := [each for each in matches if not in_run(os.path.dirname(each))]):
            raise UserError(f"{option} {name} matches no file: give the path of a file, of a folder or a pattern")
        return Named(_ordered(files), by_itself=False)
    return Named([path], by_itself=True)


def is_saved_dataset(path: str | Path) -> bool:
    """Whether `save_to_disk` of the package datasets has made this folder, for one dataset or for its splits."""
    there = {name for name in _DESCRIPTIONS if os.path.exists(os.path.join(path, name))}
    return "dataset_dict.json" in there or len(there) == 2


def absolute(paths: Iterable[str | Path]) -> Iterator[str]:
    """The absolute path of each of many files. Few folders hold them, so the system is asked for these."""
    of_folder = cache(os.path.abspath)
    for folder, name in map(os.path.split, paths):
        yield os.path.join(of_folder(folder), name)


def _behind(path: Path) -> Path:
    """The file behind a name that means another file in every process, such as /dev/stdin; other names stay."""
    real = os.path.realpath(path)
    return Path(real) if str(path).startswith(("/dev/", "/proc/")) and os.path.isfile(real) else path


def _ordered(paths: Iterable[str]) -> list[Path]:
    return list(map(Path, sorted(paths, key=lambda path: os.fsencode(path.replace(os.sep, "/")))))


def _walk(folder: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    """All files in a folder, at any depth, but none of a run. A folder is read once, even if links lead to it again."""
    with cannot(f"read {folder}"):
        stat = os.stat(folder)
        if (stat.st_dev, stat.st_ino) in seen or is_run(folder):
            return
        if is_saved_dataset(folder):
            yield folder
            return
        seen.add((stat.st_dev, stat.st_ino))
        with os.scandir(folder) as entries:
            visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda each: each.name)
    for entry in visible:
        if _is_folder(entry):
            yield from _walk(entry.path, seen)
        else:
            yield entry.path


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """False for a link that cannot be followed; whoever reads the file says so."""
    try:
        return entry.is_dir()
    except OSError:
        return False
