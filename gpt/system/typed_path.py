"""A path that a user has typed, on the command line, in a file of options or in a program."""

import os
import re
from os import PathLike

from gpt.errors import UserError


def typed_path(path: str | PathLike[str], option: str) -> str:
    """The path, with the home directory in place of a "~" at its beginning.

    A shell does that only for a word of its own: neither in `--data-path=~/my.txt` nor within quotes, and programs and
    files of options have no shell. A directory named "~" would be worse than useless: `rm -r ~` does not remove it.
    Raises UserError if the path is empty, as that of an unset variable is (`--data-path "$TEXT"`), and if it is the
    address of something on the Internet or in a cloud's store.
    """
    if not (typed := os.fspath(path)):
        raise UserError(f"{option} is empty, but must be a path: name one, or leave {option} out")
    if re.match(r"[a-z][a-z0-9+.-]+://", typed):
        raise UserError(f"{option} is {typed}, but must be a path: download the file, and give its path")
    return os.path.expanduser(typed)
