"""The journal that shim.c writes: each call that a command made under its folder, and the file's content after it."""

import os
from pathlib import Path
from typing import NamedTuple


class Event(NamedTuple):
    """One call. `path` and `second` are relative to the folder; a symlink's target is in `second`.

    `result` is the call's result, or minus its error number. `data` is a file's whole content after the call, or the
    bytes that were printed.
    """

    call: str
    path: str
    second: str
    result: int
    data: bytes


def read(journal: Path, folder: Path) -> list[Event]:
    """The events of a journal, in the order in which they happened."""
    content, place, events = journal.read_bytes(), 0, []
    root = os.path.realpath(folder)

    def field() -> str:
        nonlocal place
        end = content.index(b"\0", place)
        text, place = content[place:end], end + 1
        return os.fsdecode(text)

    def relative(path: str) -> str:
        return os.path.relpath(os.path.normpath(path), root) if path.startswith(root) else path

    while place < len(content):
        call, path, second, result, size = field(), relative(field()), relative(field()), int(field()), int(field())
        events.append(Event(call, path, second, result, content[place : place + size]))
        place += size
    return events
