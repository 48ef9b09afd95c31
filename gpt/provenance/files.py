"""A file, as tokens.json remembers it: where it lies, its size, its time and its SHA-256.

A file counts as unchanged while its size and its modification time are the same; otherwise its SHA-256 decides.
A file inside the project (the directory that holds checkpoints/) is remembered relative to the run, so that the project
can move and be used from any working directory. A file outside it is remembered by its absolute path.
"""

import os
import posixpath
from collections.abc import Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from gpt.errors import UserError
from gpt.run import Run
from gpt.system.reading import sha256


def remember(run: Run, path: Path) -> str:
    """The path of a file as tokens.json has it (see the top of this file)."""
    directory, absolute = os.path.abspath(run.path), os.path.abspath(path)
    project = os.path.dirname(os.path.dirname(directory))
    if os.path.join(absolute, "").startswith(os.path.join(project, "")):
        absolute = os.path.relpath(absolute, directory)
    return absolute.replace(os.sep, "/")


def remember_all(run: Run, paths: Iterable[Path]) -> Iterator[str]:
    """`remember` for each of many files. Few folders hold them, so it is asked for these."""
    remembered = cache(partial(remember, run))
    for folder, name in map(os.path.split, paths):
        within = remembered(folder)
        yield name if within == os.curdir else posixpath.join(within, name)


def locate(run: Run, remembered: str) -> Path:
    """The path that `remember` turned into `remembered`. Links are not followed: `..` means the folder above."""
    return Path(os.path.normpath(os.path.join(run.path, remembered)))


def stamp(path: Path) -> dict[str, int]:
    """The size and the modification time of a file."""
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def check_file(path: Path, then: dict[str, Any], complaint: str, advice: str) -> dict[str, Any]:
    """Check a file against its section of tokens.json, and return the section with the file's time as it is now.

    Raises UserError if the content differs.
    """
    now = stamp(path)
    if now["size"] != then["size"]:
        raise UserError(f"{complaint} ({then['size']} bytes then, {now['size']} now): {advice}")
    if now["mtime_ns"] != then["mtime_ns"] and (digest := sha256(path)) != then["sha256"]:
        raise UserError(f"{complaint} (sha256 {then['sha256']:.12}… then, {digest:.12}… now): {advice}")
    return {**then, **now}
