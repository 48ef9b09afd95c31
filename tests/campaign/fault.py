"""Every system call on files fails in turn, with the errors of a full disk, a broken one, a network drive or a limit.

A trial makes call number K of one class (open, write, rename, …) of a scenario fail, or, in one trial of four, that
call and all later ones of the class. The command must then either do its work, with a note or without, or end with
status 2 and one line that names a file and the system's reason. Then `Lab.judge` goes on without faults: nothing may be
lost and no temporary file left. If the error means that the file system lacks the call (`LACKING`), every call of that
class fails, and the work must be done all the same. A failing print may end the command as Ctrl-C does, or with the
status that Python gives it then (1 or 120).
"""

import errno
import os
import re
from functools import cache
from random import Random

from tests.campaign.journal import Event
from tests.campaign.process import CHANGING, READING, Order
from tests.campaign.scenarios import (
    EARLIER,
    SCENARIOS,
    Failure,
    Lab,
    Scenario,
    content,
    differences,
    generic,
    scattered,
)

ERRORS = {
    "create": ("ENOSPC", "EMFILE", "EACCES", "EIO", "EROFS"),
    "open": ("EMFILE", "EACCES", "EIO"),
    "read": ("EIO", "ESTALE"),
    "write": ("ENOSPC", "EIO", "EDQUOT"),
    "truncate": ("ENOSPC", "EIO", "EINVAL"),
    "copy": ("ENOSPC", "EIO", "EINVAL"),
    "rename": ("EIO", "EPERM", "ENOSPC", "EACCES"),
    "link": ("EPERM",),
    "symlink": ("EPERM", "ENOSYS", "ENOSPC", "EOPNOTSUPP"),
    "unlink": ("EPERM", "EIO", "EACCES"),
    "mkdir": ("ENOSPC", "EACCES", "EROFS"),
    "rmdir": ("EPERM", "EIO"),
    "chmod": ("EPERM", "EOPNOTSUPP"),
    "utime": ("EPERM",),
    "fsync": ("EIO", "ENOSPC"),
    "fsyncdir": ("EIO", "EINVAL"),
    "flock": ("ENOLCK", "ENOSYS", "EOPNOTSUPP"),
    "list": ("EIO", "EACCES"),
    "stat": ("EIO", "EACCES"),
    "mmap": ("ENODEV", "EACCES"),
    "print": ("EPIPE", "EIO", "ENOSPC"),
}
LACKING = (
    ("symlink", "EPERM"), ("symlink", "ENOSYS"), ("symlink", "EOPNOTSUPP"), ("chmod", "EPERM"), ("chmod", "EOPNOTSUPP"),
    ("utime", "EPERM"), ("fsyncdir", "EINVAL"), ("flock", "ENOSYS"), ("flock", "ENOLCK"), ("flock", "EOPNOTSUPP"),
    ("mmap", "ENODEV"), ("link", "EPERM"),
)  # fmt: skip
_REAL_SHARE = 64

Point = tuple[Scenario, str, int, str, bool]  # scenario, class, number of its call from 1, error, whether it is lacking


@cache
def points(lab: Lab) -> list[Point]:
    """Each call of each class of each scenario, with each of its errors."""
    found: list[Point] = []
    for scenario in SCENARIOS:
        events = lab.known(scenario).events
        for call in (*CHANGING, *READING):
            count = len(_of(call, events))
            found += [(scenario, call, at, error, False) for error in ERRORS[call] for at in range(1, count + 1)]
        found += [(scenario, call, 1, error, True) for call, error in LACKING if _of(call, events)]
    return found


def trial(lab: Lab, seed: int) -> Failure | None:
    scenario, call, at, error, lacking = scattered(points(lab), seed)
    number, done_without = getattr(errno, error), lacking or (call, error) in LACKING
    forever = lacking or Random(seed).random() < 1 / 4
    lab.begin(lab.known(scenario).before)
    order = Order((call,), at, str(-number if forever else number))
    outcome = lab.run(scenario.command, order, real=seed % _REAL_SHARE == 0)
    where = f"{call} lacking" if lacking else f"{call} fails"
    if call == "print":
        if outcome.status not in (0, 1, 2, 120, 129, 130, 141, 143) or "Traceback" in outcome.errors:
            return Failure(f"{where}: {outcome.fault or outcome.errors[-80:]}", lab.story)
    elif outcome.fault:
        return Failure(f"{where}: {outcome.fault}", lab.story)
    elif outcome.status == 2:
        if lacking:
            return Failure(f"{where}: refused: {generic(outcome.errors)}", lab.story)
        if os.strerror(number).lower() not in outcome.errors.lower() or not _names_a_file(outcome.errors):
            return Failure(f"{where}: no file or no reason in: {generic(outcome.errors)}", lab.story)
    elif wrong := _wrong(lab, scenario, call, at, done_without):
        lab.story += wrong
        return Failure(f"{where}: status 0, but {generic(wrong[0].partition(':')[0])}", lab.story)
    elif done_without:
        return None  # going on would find links in the place of files
    failure = lab.judge(scenario)
    if failure:
        failure.kind = f"{where}: {failure.kind}"
    return failure


def _of(call: str, events: list[Event]) -> list[Event]:
    names = {call, "new"} if call == "create" else {call}
    return [event for event in events if event.call in names]


def _wrong(lab: Lab, scenario: Scenario, call: str, at: int, done_without: bool) -> list[str]:
    """The differences that a command that ended well has left, without those that the fault excuses.

    A line of the log that could not be written may be missing. If there are no links, a file may stand in the place of
    a link, or nothing in the place of a link to weights. A file that could not be removed may be there.
    """
    wrong = differences(lab.known(scenario).content, content(lab.trial))
    event = _of(call, lab.known(scenario).events)[at - 1]
    if event.path.endswith("metrics.jsonl") and call in ("create", "write"):
        wrong = [line for line in wrong if "metrics.jsonl differs" not in line]
    if call == "unlink":
        wrong = [line for line in wrong if not EARLIER.fullmatch(line)]
    if done_without:
        wrong = [line for line in wrong if not re.search(r"/(latest|best)_\w+\.\w+ (differs|is missing)", line)]
    return wrong


def _names_a_file(message: str) -> bool:
    words = message.replace(":", " ").split()
    return any("/" in word or word.endswith((".json", ".bin", ".txt", "hf")) for word in words)
