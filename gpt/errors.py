"""`UserError`, the one exception that the user can do something about, and helpers that word its message.

Every message is one line of bounded length, whatever the values in it are. Messages about a temporary file name the
file that it would have become.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 2000  # characters of a message
_SHOWN = 80  # characters of a value in a message
_TEMPORARY = re.compile(r"\.(.+)\.[^.]+\.tmp")  # the name of a temporary file, as gpt/system/files.py makes it


class UserError(Exception):
    """A mistake that the user can correct.

    Its message is one line: what is wrong, with the value, and what to do. The command line prints it without a
    traceback and exits with status 2. No file is half-written when it is raised.
    """


def one_line(message: str) -> str:
    """The message without line breaks, and cut in the middle if it is longer than LONGEST."""
    message = " ".join(message.split())
    return message if len(message) <= LONGEST else f"{message[: LONGEST // 2]} … {message[-LONGEST // 2 :]}"


@contextmanager
def cannot(action: str, *, even_if_missing: bool = False) -> Iterator[None]:
    """Turn an OSError inside the `with` into a UserError that names the failed action.

    A FileNotFoundError passes through, because most callers have better advice; not with `even_if_missing`.

    Example:
        >>> with cannot("read a.txt"):
        ...     raise IsADirectoryError(21, "Is a directory")
        UserError: cannot read a.txt: Is a directory
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not even_if_missing:
            raise
        raise UserError(f"cannot {action}: {reason(error)}") from error


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Give an OSError inside the `with` the name of this file, if it has none.

    It has none if a call on an open file failed, because the system knows only the file's number.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def shown(value: object, *, quoted: bool = True) -> str:
    """A value for a message: in Python's notation (as it is, if not `quoted`), and cut in the middle if it is long."""
    try:
        text = repr(value) if quoted else str(value)
    except (ValueError, RecursionError):  # an integer with more digits than Python converts, or lists nested too deeply
        text = "too long to show"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}…{text[-_SHOWN // 4 :]}"


def reason(error: Exception) -> str:
    """The cause of an error, in one line of bounded length; its type if it says nothing.

    Example:
        >>> reason(OSError(28, "No space left on device")), reason(NotImplementedError())
        ('No space left on device', 'NotImplementedError')
    """
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return shown(" ".join(words.split()), quoted=False)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, because drivers and libraries write pages; its type if it has none.

    Example:
        >>> first_line(RuntimeError("no kernel\\n  at line 3")), first_line(MemoryError())
        ('no kernel', 'MemoryError')
    """
    return str(error).strip().partition("\n")[0] or type(error).__name__


def told(path: str) -> str:
    """A path as the user knows it: a temporary file goes by the name of the file that it would have become.

    Example:
        >>> told("out/.config.json.1f9c22ab.tmp")
        'out/config.json'
    """
    directory, slash, name = str(path).rpartition("/")
    temporary = _TEMPORARY.fullmatch(name)
    return told(directory + slash + temporary[1]) if temporary else str(path)
