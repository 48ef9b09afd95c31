"""numba's cache of compiled code, without its failures: a file that is damaged is compiled again.

numba keeps the code beside the source file, or in the user's cache if that folder is not writable. The environment
variable NUMBA_CACHE_DIR names another folder.
"""

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

ROOM = 2**22  # bytes that the cache needs, and to spare


def forgive_failures(module: ModuleType) -> None:
    """Let no compiled function of a module fail because its cache does."""
    for value in vars(module).values():
        function = getattr(value, "dispatcher", value)
        if hasattr(function, "py_func"):
            function._cache = ForgivingCache(function._cache)


class ForgivingCache:
    """numba's cache of a function, but it never fails: code that it cannot load is compiled again."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def load_overload(self, *arguments: Any) -> Any:
        try:
            return self._cache.load_overload(*arguments)
        except Exception:  # unpickling damaged bytes may raise any
            with suppress(Exception):
                self._cache.flush()
            return None

    def save_overload(self, *arguments: Any) -> None:
        with suppress(Exception):
            self._cache.save_overload(*arguments)


def cache_notes(folder: Path, module: str) -> list[str]:
    """Notes for the user about the cache of a module in `folder`. Files that a power cut damaged are removed."""
    damaged: list[Path] = []
    kept: list[Path] = []
    for file in folder.glob(f"{module}.*.nb[ic]"):
        (kept if _is_whole(file) else damaged).append(file)
    for file in damaged:
        with suppress(OSError):
            file.unlink()
    notes = []
    if damaged:
        notes.append(f"Note: {len(damaged)} damaged files of numba's cache {folder} are compiled anew")
    elif not kept:
        notes.append("Note: numba compiles the code of a step, once; that takes half a minute")
    if damaged or not kept:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as room:
                room.write(bytes(ROOM))
        except OSError as error:
            notes.append(
                f"Note: numba's cache {folder} cannot be written ({error.strerror}), so every start compiles anew: "
                "free some space, or set NUMBA_CACHE_DIR to another folder"
            )
    return notes


def _is_whole(file: Path) -> bool:
    """Whether a file ends as a pickle does, unlike one that was cut short or that ends in zeros."""
    try:
        with open(file, "rb") as content:
            content.seek(-1, os.SEEK_END)
            return content.read(1) == b"."
    except OSError:  # an empty file, too, has no last byte
        return False
