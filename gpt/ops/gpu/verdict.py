"""What is known about hipBLASLt on this card: faults, and steps that ended the program.

Some versions of hipBLASLt crash or hang on GPUs that they do not know. No error can be caught then, but the next start
can know: as long as a step is under way, it has a temporary file, which a program that dies leaves behind.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpt.system import ending
from gpt.system.files import atomic_path, discard_leftovers, leftovers

FORMAT = 2  # of a verdict's file, and of the check in selfcheck.py: a verdict of another number is not used
FIRST_TIME = (
    "Checking hipBLASLt, once for each GPU and model. If the program crashes or hangs here, start it again with "
    "--blas own."
)
SECOND_LOOK = 0.1  # seconds until a temporary file that is new has its lock


def given_up(fault: str) -> str:
    """The note for the user of a library that is not used because of a fault."""
    return f"Note: {fault}; matrix products run on hipgpt's own, slower kernel (--blas vendor insists on the library)"


class Verdict:
    """The file that remembers the fault of hipBLASLt in one step, or "" if it has none.

    `step` names the step in a note, such as "check", and `key` is everything that the fault depends on. The file is in
    `folder`. Several processes may judge at once.
    """

    def __init__(self, folder: Path, step: str, key: Sequence[Any]) -> None:
        self._step, self._key = step, json.dumps([FORMAT, *key])
        digest = hashlib.sha256(self._key.encode()).hexdigest()[:20]
        self._path = folder / f"hipgpt-hipblaslt-{step}-{digest}.json"

    def fault(self, take: Callable[[], str]) -> str:
        """The fault that is known, or else the one that `take` returns after it has taken the step.

        A line says before that the step is taken, because the program may end by it. Whatever `take` raises is raised
        and not remembered.
        """
        known = self._read()
        if known is None and self._was_cut_short():
            known = self._remembered(self._cut_short)
            discard_leftovers(self._path)
        elif known is None:  # another process may just have removed such a file, after it wrote its verdict
            known = self._read()
        if known is not None:
            return known
        ending.say_once(FIRST_TIME)
        return self._remembered(take)

    def _remembered(self, find: Callable[[], str]) -> str:
        """The fault that `find` finds, which is written to the file."""
        found = None
        try:
            with atomic_path(self._path) as temporary:
                found = find()
                temporary.write_text(json.dumps({"key": self._key, "fault": found}), encoding="utf-8")
        except OSError:  # the folder cannot be written to, so the next start takes the step again
            if found is None:
                found = find()
        return found

    def _cut_short(self) -> str:
        return (
            f"the last {self._step} of hipBLASLt on this GPU crashed, hung or was killed (remove {self._path} to "
            "repeat it)"
        )

    def _read(self) -> str | None:
        try:
            known = json.loads(self._path.read_text(encoding="utf-8"))
            return str(known["fault"]) if known["key"] == self._key else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _was_cut_short(self) -> bool:
        """Whether a process has died in this step. A file counts after a second look, because its lock comes later."""
        left = leftovers(self._path)
        if left:
            time.sleep(SECOND_LOOK)
        return not set(left).isdisjoint(leftovers(self._path))
