"""Other processes that run Python, such as the doctor's."""

import sys


def python(code: str) -> list[str]:
    """The command that runs `code`, and imports from the same folders as this process.

    `python -c` and `python -m` alone would look into the working directory first, whose random.py or gpt.py, say, is
    the user's own. (PYTHONSAFEPATH is new in Python 3.11.)
    """
    return [sys.executable, "-c", f"import sys; sys.path[:] = {list(map(str, sys.path))!r}; {code}"]


def command(module: str) -> list[str]:
    """The command that runs a module as `python -m` does, and imports from the same folders as this process."""
    return python(f"import runpy; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)")
