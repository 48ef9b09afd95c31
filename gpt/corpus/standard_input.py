"""`--data-path -`: standard input is copied into the run, because a text is read more than once.

The copy is called after its content. So the same text on standard input is the same file, and another one takes
nothing away from it.
"""

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from gpt.config import DataConfig
from gpt.corpus.finding import STANDARD_INPUT
from gpt.corpus.kinds import suffix_for
from gpt.corpus.text_file import UTF_8
from gpt.errors import UserError, naming
from gpt.run import COPIES, Run
from gpt.system.files import remove
from gpt.system.filesystem import sync, sync_directory

_COPIED = 1 << 20  # bytes that are read at a time
_NAMED = 16  # hexadecimal digits of the digest that the copy's name has


@contextmanager
def copied(run: Run, data: DataConfig) -> Iterator[DataConfig]:
    """Copy standard input into the run if `data` names it; yields `data` with the copy's path in its place.

    The copy's name says whether it is JSON, as its content does (`gpt.corpus.kinds.suffix_for`). If the block ends with
    a UserError, a copy that was made for it is removed. If it succeeds, the copies of other texts are. Raises UserError
    if there is nothing to read.
    """
    if STANDARD_INPUT not in data.data_path:
        yield data
        return
    if data.data_path.count(STANDARD_INPUT) > 1:
        raise UserError("--data-path - is given twice, but standard input can be read once: give it once")
    before = set(run.input_copies())
    copy = _copy(run, data)
    try:
        yield replace(data, data_path=tuple(str(copy) if name == STANDARD_INPUT else name for name in data.data_path))
    except UserError:
        if copy not in before:
            copy.unlink(missing_ok=True)
        raise
    for other in before - {copy}:
        other.unlink(missing_ok=True)


def _copy(run: Run, data: DataConfig) -> Path:
    """Copy standard input to a file of the run, which stays as it is if it is there already. Returns its path."""
    temporary, digest = run.path / ".stdin.tmp", hashlib.sha256()
    try:
        with naming(temporary), open(temporary, "wb") as file:
            while chunk := sys.stdin.buffer.read(_COPIED):
                digest.update(chunk)
                file.write(chunk)
            if not file.tell():
                raise UserError("--data-path is -, but nothing comes from standard input: pipe a text into the command")
        suffix = suffix_for(temporary, data.encoding or UTF_8, data.text_field is not None)
        copy = run.path / f"{COPIES}{digest.hexdigest()[:_NAMED]}{suffix}"
        if not copy.exists():
            sync(temporary)
            os.replace(temporary, copy)
            sync_directory(run.path)
    finally:
        remove(temporary)  # it is still there if the text was there already
    return copy
