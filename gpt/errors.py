"""The one exception that means: the user can fix this. And how its message is made."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

_SHOWN = 80  # characters of a value in a message
_TEMPORARY = re.compile(r"\.(.+)\.[^.]+\.tmp")  # a temporary file's name, as gpt/system/files.py makes it


class UserError(Exception):
    """A mistake the user can correct.

    Its message is one line: what is wrong, the offending value, and what to do. The command line prints
    it without a traceback and exits with status 2; nothing has been half-written when it is raised.
    """


@contextmanager
def cannot(action: str) -> Iterator[None]:
    """Turn an OSError inside into a UserError that names the failed action: "cannot read a.txt: Is a directory".

    A missing file stays a FileNotFoundError, because the caller has better advice.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"cannot {action}: {error.strerror or error}") from error


def shown(value: object, *, quoted: bool = True) -> str:
    """A value as a message shows it: in Python's notation (or as it is), cut in the middle if it is long."""
    try:
        text = repr(value) if quoted else str(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python converts, or lists in lists in lists
        text = "too long to show"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}…{text[-_SHOWN // 4 :]}"


def told(path: str) -> str:
    """A path as the user knows it: a temporary file goes by the name of the file that it would have become."""
    directory, slash, name = str(path).rpartition("/")
    temporary = _TEMPORARY.fullmatch(name)
    return told(directory + slash + temporary[1]) if temporary else str(path)
